//! The metrics in Prometheus' text format: the conservation law and the counters beside it, in
//! total and for each channel that has subscribers.
//!
//! Owns the names, types and help texts. Never counts anything itself: the figures come from
//! [`ShardStats`] and the counters of the [`Engine`].

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::publication::ChannelName;
use super::{Engine, ShardStats};
use crate::admission::Rejection;
use crate::close::CloseReason;
use crate::metrics::{DropReason, Family, HttpError, PublicationResult, Totals};

/// The text of `GET /metrics`.
#[must_use]
pub fn exposition(engine: &Engine, report: &ShardStats) -> String {
    let mut lines = Lines::default();
    let totals = report.totals;
    lines.one("hydrant_connections", GAUGE, "WebSocket connections.", engine.registry.len() as u64);
    lines.declared::<Rejection>(engine.rejections.series());
    lines.declared::<HttpError>(engine.http_errors.series());
    lines.declared::<PublicationResult>(engine.publications.series());
    lines.one("hydrant_frames_matched_total", COUNTER, "Frames that matched subscribers.", totals.matched);
    lines.one("hydrant_frames_delivered_total", COUNTER, "Frames handed to the kernel, whole.", totals.delivered);
    let dropped = [totals.dropped_slow, totals.dropped_closed];
    let dropped = DropReason::ALL.map(|why| (why.label(), dropped[why as usize]));
    lines.family("hydrant_frames_dropped_total", COUNTER, "Frames that will not be sent.", "reason", dropped);
    lines.one("hydrant_frames_pending", GAUGE, "Frames that wait in backlogs.", report.pending);
    let mut channels = BTreeMap::<&ChannelName, Totals>::new();
    for (name, totals) in &report.channels {
        *channels.entry(name).or_default() += *totals;
    }
    let mut of_channels = |what: &str, figure: fn(&Totals) -> u64| {
        let help = format!("Frames {what}, of channels that have subscribers, for as long as they have.");
        let series = channels.iter().map(|(name, totals)| (name, figure(totals)));
        lines.family(&format!("hydrant_channel_frames_{what}_total"), COUNTER, &help, "channel", series);
    };
    of_channels("matched", |totals| totals.matched);
    of_channels("delivered", |totals| totals.delivered);
    of_channels("dropped", Totals::dropped);
    let help = "Batches in shared pages that have not left; each is an open file.";
    lines.one("hydrant_pages_open", GAUGE, help, report.pages_open);
    let help = "Batches large enough for shared pages that were copied to each subscriber instead.";
    lines.one("hydrant_pages_rejected_total", COUNTER, help, report.pages_rejected);
    lines.one("hydrant_says_total", COUNTER, "SAY events accepted.", report.says);
    let help = "Messages and pings of clients that came too fast and were dropped.";
    lines.one("hydrant_ignored_total", COUNTER, help, report.ignored);
    let closed = CloseReason::ALL.map(|why| (why.row().label, report.closed[why as usize]));
    lines.family("hydrant_closed_total", COUNTER, "Connections that ended.", "reason", closed);
    lines.0
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

#[derive(Default)]
struct Lines(String);

/// Writing to a string does not fail.
impl Lines {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A family of counters that is declared beside its enum.
    fn declared<F: Family>(&mut self, series: impl Iterator<Item = (&'static str, u64)>) {
        self.family(F::NAME, COUNTER, F::HELP, F::LABEL, series);
    }

    fn family<L: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in series {
            let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
        }
    }
}
