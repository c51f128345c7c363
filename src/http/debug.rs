//! The server's health, memory statistics and metrics. The admin thread produces the latter two,
//! because a purge, or the lines of thousands of channels, would delay other requests.

use std::sync::Arc;

use axum::extract::State;
use hyper::StatusCode;
use tokio::sync::oneshot;

use super::answer::{draining, json, plain, text, unavailable};
use super::{Answer, HttpListener};
use crate::engine::{AdminRequest, Engine, MemoryRequest};

/// `GET /readyz`: whether the server takes clients.
pub(super) async fn readyz(State(listener): State<Arc<HttpListener>>) -> Answer {
    if listener.engine.is_draining() { draining() } else { text(StatusCode::OK, "ready") }
}

/// `GET /debug/mem`.
pub(super) async fn mem(State(listener): State<Arc<HttpListener>>) -> Answer {
    memory(&listener.engine, false).await
}

/// `POST /debug/mem/purge`: gives free memory back to the system first.
pub(super) async fn purge(State(listener): State<Arc<HttpListener>>) -> Answer {
    memory(&listener.engine, true).await
}

async fn memory(engine: &Engine, purge: bool) -> Answer {
    let request = |answer| AdminRequest::MemoryStats(MemoryRequest { purge, answer });
    ask(engine, request, |stats| json(StatusCode::OK, &stats)).await
}

/// `GET /metrics`: the conservation law, live, in total and for each channel that has subscribers.
pub(super) async fn metrics(State(listener): State<Arc<HttpListener>>) -> Answer {
    ask(&listener.engine, AdminRequest::Metrics, |lines| plain(StatusCode::OK, lines)).await
}

/// `POST /debug/panic`: a fault to test with.
#[cfg(debug_assertions)]
pub(super) async fn panic(State(listener): State<Arc<HttpListener>>) -> Answer {
    listener.engine.inboxes[0].push(crate::engine::Item::Panic);
    text(StatusCode::ACCEPTED, "shard 0 will panic")
}

/// Answers with the admin thread's result, or with 503 if a shard does not answer.
async fn ask<T>(
    engine: &Engine,
    request: impl FnOnce(oneshot::Sender<Option<T>>) -> AdminRequest,
    answer: impl FnOnce(T) -> Answer,
) -> Answer {
    let (sender, receiver) = oneshot::channel();
    // A failed send returns the request, which contains the sender. Drop it before waiting for the
    // answer.
    if engine.admin.send(request(sender)).await.is_err() {
        return draining();
    }
    match receiver.await {
        Ok(Some(made)) => answer(made),
        Ok(None) => unavailable("a shard does not answer: it is busy, or it has drained already"),
        Err(_) => draining(),
    }
}
