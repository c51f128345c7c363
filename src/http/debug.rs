//! What the server says of itself: the memory ledger, and the books in Prometheus' text format.

use std::fmt::Write;

use hyper::StatusCode;
use tokio::sync::oneshot;

use super::Answer;
use super::answer::{draining, json, text, unavailable};
use crate::admission::Refusal;
use crate::close::CloseReason;
use crate::engine::publication::ChannelName;
use crate::engine::{AdminRequest, Engine, LedgerRequest};
use crate::metrics::{DropReason, Totals};

/// What is said when a shard does not answer a survey.
const SILENT: &str = "a shard does not answer: it is busy, or it has drained already";

/// `GET /debug/mem`, and with `purge` `POST /debug/mem/purge`.
pub(super) async fn mem(engine: &Engine, purge: bool) -> Answer {
    let (answer, ledger) = oneshot::channel();
    // The admin thread answers: a purge would hold up a shard.
    let asked = engine.admin.send(AdminRequest::Ledger(LedgerRequest { purge, answer })).await;
    match (asked, ledger.await) {
        (Ok(()), Ok(Some(ledger))) => json(StatusCode::OK, &ledger),
        (Ok(()), Ok(None)) => unavailable(SILENT),
        _ => draining(),
    }
}

/// `GET /metrics`: the conservation law, live, in total and for each channel that has subscribers.
pub(super) async fn metrics(engine: &Engine) -> Answer {
    let Some(report) = engine.survey().await else { return unavailable(SILENT) };
    let totals = report.totals;
    let mut out = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, series: &[(String, u64)]| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in series {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let one = |value: u64| [(String::new(), value)];
    let reason = |label: &str, value: u64| (format!("{{reason=\"{label}\"}}"), value);
    let dropped = [totals.dropped_slow, totals.dropped_closed];
    let dropped = DropReason::ALL.map(|why| reason(why.label(), dropped[why as usize]));
    let closed = CloseReason::ALL.map(|why| reason(why.row().label, report.closed[why as usize]));
    metric("hydrant_connections", "gauge", "WebSocket connections.", &one(engine.registry.len() as u64));
    let refused = Refusal::ALL.map(|why| reason(why.label(), engine.refusals.get(why)));
    metric("hydrant_refused_total", "counter", "Sockets and handshakes that were turned away.", &refused);
    metric("hydrant_frames_matched_total", "counter", "Frames due to subscribers.", &one(totals.matched));
    metric("hydrant_frames_delivered_total", "counter", "Frames handed to the kernel, whole.", &one(totals.delivered));
    metric("hydrant_frames_dropped_total", "counter", "Frames that will not be sent.", &dropped);
    metric("hydrant_frames_pending", "gauge", "Frames that wait in backlogs.", &one(report.pending));
    let channels = |figure: fn(&Totals) -> u64| -> Vec<_> {
        let series = |(name, totals): (&ChannelName, &Totals)| (format!("{{channel=\"{name}\"}}"), figure(totals));
        report.channels.iter().map(series).collect()
    };
    let of_channel = [
        ("matched", channels(|totals| totals.matched)),
        ("delivered", channels(|totals| totals.delivered)),
        ("dropped", channels(Totals::dropped)),
    ];
    for (what, series) in of_channel {
        let help = format!("Frames {what}, of channels that have subscribers, for as long as they have.");
        metric(&format!("hydrant_channel_frames_{what}_total"), "counter", &help, &series);
    }
    let help = "Batches in shared pages that have not left; each is an open file.";
    metric("hydrant_pages_open", "gauge", help, &one(report.pages_open));
    let help = "Batches that were worth shared pages and were copied to each subscriber.";
    metric("hydrant_pages_refused_total", "counter", help, &one(report.pages_refused));
    metric("hydrant_says_total", "counter", "SAY events accepted.", &one(report.says));
    let help = "Messages and pings of clients that came too fast and were dropped.";
    metric("hydrant_ignored_total", "counter", help, &one(report.ignored));
    metric("hydrant_closed_total", "counter", "Connections that ended.", &closed);
    text(StatusCode::OK, out.trim_end())
}
