//! What the server says of itself: the memory memory_stats and the metrics. The admin thread makes both: a purge, or the lines of thousands
//! of channels, would hold up a shard.

use hyper::StatusCode;
use tokio::sync::oneshot;

use super::Answer;
use super::answer::{draining, json, plain, unavailable};
use crate::engine::{AdminRequest, Engine, MemoryRequest};

/// `GET /debug/mem`, and with `purge` `POST /debug/mem/purge`.
pub(super) async fn mem(engine: &Engine, purge: bool) -> Answer {
    let request = |answer| AdminRequest::MemoryStats(MemoryRequest { purge, answer });
    ask(engine, request, |memory_stats| json(StatusCode::OK, &memory_stats)).await
}

/// `GET /metrics`: the conservation law, live, in total and for each channel that has subscribers.
pub(super) async fn metrics(engine: &Engine) -> Answer {
    ask(engine, AdminRequest::Metrics, |lines| plain(StatusCode::OK, lines)).await
}

/// Answers with what the admin thread makes; there is none if a shard does not answer it.
async fn ask<T>(
    engine: &Engine,
    request: impl FnOnce(oneshot::Sender<Option<T>>) -> AdminRequest,
    answer: impl FnOnce(T) -> Answer,
) -> Answer {
    let (sender, receiver) = oneshot::channel();
    // What could not be sent has the sender in it: it has to be gone before anything is waited for.
    if engine.admin.send(request(sender)).await.is_err() {
        return draining();
    }
    match receiver.await {
        Ok(Some(made)) => answer(made),
        Ok(None) => unavailable("a shard does not answer: it is busy, or it has drained already"),
        Err(_) => draining(),
    }
}
