//! The counters: what happened to every frame for every subscriber, and [`Counters`] for events
//! that any thread may count.
//!
//! Owns the counters of the conservation law, `matched = delivered + dropped{reason} + pending`,
//! and the declarations of the other counter families: each has its name, label and help text once,
//! here or beside its enum. [`DeliveryCounters`] belong to one shard and are plain cells;
//! [`Totals`] cross threads. A channel's counters write through to the shard's, so that both agree
//! at every instant. Never writes text: `engine::exposition` does.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::AddAssign;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Why a frame did not reach a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The backlog was full: `drop-newest`, `drop-oldest`, or the client was closed for it.
    Slow,
    /// The connection ended, for another reason, while the frame waited.
    Closed,
}

impl DropReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Slow, Self::Closed];

    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Closed => "closed",
        }
    }
}

/// Counters of one channel on one shard, or of the whole shard; in frames times subscribers.
#[derive(Debug, Default)]
pub struct DeliveryCounters {
    matched: Cell<u64>,
    delivered: Cell<u64>,
    dropped: [Cell<u64>; DropReason::ALL.len()],
    parent: Option<Rc<Self>>,
}

impl DeliveryCounters {
    /// Counters that write through to `parent`.
    #[must_use]
    pub fn within(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { parent: Some(parent.clone()), ..Self::default() })
    }

    /// `frames` match a subscriber; until they are delivered or dropped they are pending.
    pub fn matched(&self, frames: u64) {
        self.matched.set(self.matched.get() + frames);
        if let Some(parent) = &self.parent {
            parent.matched(frames);
        }
    }

    /// `frames` were handed to the kernel, whole.
    pub fn delivered(&self, frames: u64) {
        self.delivered.set(self.delivered.get() + frames);
        if let Some(parent) = &self.parent {
            parent.delivered(frames);
        }
    }

    /// `frames` will not be sent.
    pub fn dropped(&self, reason: DropReason, frames: u64) {
        let cell = &self.dropped[reason as usize];
        cell.set(cell.get() + frames);
        if let Some(parent) = &self.parent {
            parent.dropped(reason, frames);
        }
    }

    /// The present figures.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let dropped = DropReason::ALL.map(|reason| self.dropped[reason as usize].get());
        let (matched, delivered) = (self.matched.get(), self.delivered.get());
        Totals { matched, delivered, dropped_slow: dropped[0], dropped_closed: dropped[1] }
    }
}

/// Sums of [`DeliveryCounters`], in frames times subscribers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Frames that matched subscribers.
    pub matched: u64,
    /// Frames handed to the kernel, whole.
    pub delivered: u64,
    /// Frames dropped because a backlog was full.
    pub dropped_slow: u64,
    /// Frames dropped because their connection ended first.
    pub dropped_closed: u64,
}

impl Totals {
    /// Frames dropped, whatever the reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_slow + self.dropped_closed
    }

    /// The pending frames by the conservation law: matched, and neither delivered nor dropped.
    /// `engine::ShardStats::pending` is an independent count of the frames in the backlogs. The two
    /// agree whenever the server is quiet.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.matched - self.delivered - self.dropped()
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.delivered += other.delivered;
        self.dropped_slow += other.dropped_slow;
        self.dropped_closed += other.dropped_closed;
    }
}

/// A family of counters: one metric with one label, whose values are the variants of an enum.
pub trait Family: Copy + 'static {
    /// The name of the metric; it ends in `_total`.
    const NAME: &'static str;
    /// The name of the label.
    const LABEL: &'static str;
    /// The help text.
    const HELP: &'static str;
    /// Every variant, in the order of their discriminants.
    const ALL: &'static [Self];

    /// The value of the label.
    fn label(self) -> &'static str;

    /// The position in [`Family::ALL`].
    fn index(self) -> usize;
}

/// Declares an enum that is a [`Family`]: the metric once, and each variant with its label's value.
macro_rules! family {
    (
        $(#[$docs:meta])*
        $name:ident: $metric:literal, $label:literal, $help:literal;
        $($(#[$variant_docs:meta])* $variant:ident = $value:literal,)+
    ) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_docs])* $variant,)+
        }

        impl Family for $name {
            const NAME: &'static str = $metric;
            const LABEL: &'static str = $label;
            const HELP: &'static str = $help;
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

family! {
    /// An answer with an error status, by that status.
    HttpError: "hydrant_http_errors_total", "status", "HTTP requests that were answered with an error status.";
    /// The request is wrong.
    BadRequest = "400",
    /// The request has no valid token.
    Unauthorized = "401",
    /// The client may not use the route.
    Forbidden = "403",
    /// There is no such route.
    NotFound = "404",
    /// The route has other methods.
    MethodNotAllowed = "405",
    /// The request did not arrive in time.
    RequestTimeout = "408",
    /// Another request like this one is being answered.
    Conflict = "409",
    /// The body is too long.
    ContentTooLarge = "413",
    /// The URL is too long.
    UriTooLong = "414",
    /// The body has a type or an encoding that is not accepted.
    UnsupportedMediaType = "415",
    /// The client has too many connections or requests.
    TooManyRequests = "429",
    /// The headers are too long or too many.
    HeadersTooLarge = "431",
    /// The server failed.
    Internal = "500",
    /// This build cannot answer the request.
    NotImplemented = "501",
    /// The server is overloaded or draining.
    Unavailable = "503",
    /// Any other error status.
    Other = "other",
}

impl HttpError {
    /// The counter of this status; `None` if it is not an error.
    #[must_use]
    pub fn of(status: u16) -> Option<Self> {
        let text = status.to_string();
        let named = Self::ALL.iter().copied().find(|error| error.label() == text);
        named.or((status >= 400).then_some(Self::Other))
    }
}

family! {
    /// The result of a publication, whatever its origin.
    PublicationResult: "hydrant_publications_total", "result",
        "Publications by HTTP requests, SAY events and the server itself.";
    /// It has an offset and leaves for its subscribers.
    Accepted = "accepted",
    /// The channel has too many pending bytes.
    Overloaded = "overloaded",
    /// The server is shutting down.
    Draining = "draining",
}

/// The counters of a [`Family`], which any thread may raise.
#[derive(Debug)]
pub struct Counters<F>(Box<[AtomicU64]>, PhantomData<F>);

impl<F: Family> Default for Counters<F> {
    fn default() -> Self {
        Self(F::ALL.iter().map(|_| AtomicU64::new(0)).collect(), PhantomData)
    }
}

impl<F: Family> Counters<F> {
    /// Counts one event.
    pub fn count(&self, event: F) {
        // Relaxed, here and below: only metrics read it.
        self.0[event.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// The number of events so far.
    #[must_use]
    pub fn get(&self, event: F) -> u64 {
        self.0[event.index()].load(Ordering::Relaxed)
    }

    /// Every label's value, with the number of events so far.
    pub fn series(&self) -> impl Iterator<Item = (&'static str, u64)> {
        F::ALL.iter().map(|&event| (event.label(), self.get(event)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_writes_through_to_its_shard() {
        let shard = Rc::new(DeliveryCounters::default());
        let (a, b) = (DeliveryCounters::within(&shard), DeliveryCounters::within(&shard));
        a.matched(5);
        a.delivered(3);
        a.dropped(DropReason::Slow, 1);
        b.matched(2);
        b.dropped(DropReason::Closed, 2);
        assert_eq!(a.totals(), Totals { matched: 5, delivered: 3, dropped_slow: 1, dropped_closed: 0 });
        assert_eq!(a.totals().outstanding(), 1);
        let mut sum = a.totals();
        sum += b.totals();
        assert_eq!(shard.totals(), sum);
    }
    #[test]
    fn every_event_has_its_own_counter() {
        let counters = Counters::<PublicationResult>::default();
        counters.count(PublicationResult::Overloaded);
        counters.count(PublicationResult::Overloaded);
        counters.count(PublicationResult::Accepted);
        assert!(counters.series().eq([("accepted", 1), ("overloaded", 2), ("draining", 0)]));
        assert!(PublicationResult::ALL.iter().enumerate().all(|(index, result)| result.index() == index));
    }

    #[test]
    fn every_error_status_has_a_counter() {
        for (status, expected) in [(101, None), (202, None), (304, None), (413, Some("413")), (426, Some("other"))] {
            assert_eq!(HttpError::of(status).map(Family::label), expected, "{status}");
        }
        assert_eq!(HttpError::ALL.len(), 16);
        assert!(HttpError::ALL.iter().enumerate().all(|(index, error)| error.index() == index));
    }
}
