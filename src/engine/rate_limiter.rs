//! Rate limits of clients: a token bucket of messages and one of bytes for each connection.
//!
//! The limiters are kept beside the connections, by slot, and only if a limit is set: without one
//! they cost nothing. Control frames count as messages, so pings are limited like other messages.
//! Pure: time and bytes are arguments.

use std::cell::{RefCell, RefMut};
use std::time::Duration;

use tokio::time::Instant;

use crate::settings::Config;

/// The messages and bytes that a connection may send per second; infinite without a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    messages: f64,
    bytes: f64,
    /// The longest message, which a burst may hold beyond the bytes of a second: a client that
    /// sends a long message now and then is within its rate.
    bytes_burst: f64,
}

impl Rates {
    /// The limits of this configuration; `None` without any.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let (messages, bytes) = (config.client_messages_max, config.client_bytes_max);
        (messages.is_some() || bytes.is_some()).then(|| Self {
            messages: messages.map_or(f64::INFINITY, |most| most.get().into()),
            bytes: bytes.map_or(f64::INFINITY, |most| most.get() as f64),
            bytes_burst: config.message_bytes_max as f64,
        })
    }
}

/// The messages and bytes that one connection may still send.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateLimiter {
    at: Instant,
    messages: f64,
    bytes: f64,
}

impl RateLimiter {
    /// A full limiter: it allows the messages and bytes of one second.
    pub(super) fn new(now: Instant, rates: &Rates) -> Self {
        Self { at: now, messages: rates.messages, bytes: rates.bytes + rates.bytes_burst }
    }

    /// Notes that `bytes` bytes were received.
    pub(super) fn read(&mut self, bytes: usize, now: Instant, rates: &Rates) {
        let seconds = now.saturating_duration_since(self.at).min(Duration::from_hours(1)).as_secs_f64();
        self.at = now;
        self.messages = (self.messages + seconds * rates.messages).min(rates.messages);
        let full = rates.bytes + rates.bytes_burst;
        // The debt is bounded: after a pause of at most twice the time that fills the bucket, a
        // client is within its rate again.
        self.bytes = ((self.bytes + seconds * rates.bytes).min(full) - bytes as f64).max(-full);
    }

    /// Counts one message if it is within the rate; false otherwise.
    pub(super) fn take(&mut self) -> bool {
        let may = self.messages >= 1.0 && self.bytes >= 0.0;
        self.messages -= if may { 1.0 } else { 0.0 };
        may
    }
}

/// The rate limiters of a shard, by slot; none as long as there is no limit.
#[derive(Debug, Default)]
pub(super) struct RateLimiters(RefCell<Vec<RateLimiter>>);

impl RateLimiters {
    /// Resets the limiter of a slot that has a new connection.
    pub(super) fn reset(&self, slot: u32, now: Instant, rates: &Rates) {
        *self.of(slot, now, rates) = RateLimiter::new(now, rates);
    }

    /// The limiter of a slot. A connection that is older than the limit begins with a full limiter.
    pub(super) fn of(&self, slot: u32, now: Instant, rates: &Rates) -> RefMut<'_, RateLimiter> {
        let mut limiters = self.0.borrow_mut();
        if limiters.len() <= slot as usize {
            limiters.resize(slot as usize + 1, RateLimiter::new(now, rates));
        }
        RefMut::map(limiters, |limiters| &mut limiters[slot as usize])
    }

    /// Counts one message of a connection, whose bytes are counted already, if it is within the
    /// rate; false otherwise.
    pub(super) fn take(&self, slot: u32) -> bool {
        self.0.borrow_mut()[slot as usize].take()
    }

    /// Frees the memory when no client is connected.
    pub(super) fn clear(&self) {
        self.0.take();
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroUsize};

    use super::*;

    #[test]
    fn a_limit_may_come_later_than_a_connection() {
        let config = Config { client_messages_max: NonZeroU32::new(2), ..Config::default() };
        let (limiters, rates, now) = (RateLimiters::default(), Rates::of(&config).unwrap(), Instant::now());
        limiters.of(3, now, &rates).read(10, now, &rates);
        assert_eq!([limiters.take(3), limiters.take(3), limiters.take(3)], [true, true, false]);
        assert!(limiters.take(0), "each has its own");
        limiters.reset(3, now, &rates);
        assert!(limiters.take(3));
        limiters.clear();
        assert!(limiters.0.borrow().is_empty());
    }

    fn rates(messages: u32, bytes: usize) -> Rates {
        let (client_messages_max, client_bytes_max) = (NonZeroU32::new(messages), NonZeroUsize::new(bytes));
        let config = Config { client_messages_max, client_bytes_max, message_bytes_max: 100, ..Config::default() };
        Rates::of(&config).unwrap()
    }

    #[test]
    fn a_burst_of_a_second_and_then_the_rate() {
        let (start, rates) = (Instant::now(), rates(4, 0));
        let mut limiter = RateLimiter::new(start, &rates);
        assert_eq!((0..6).filter(|_| limiter.take()).count(), 4);
        limiter.read(1_000_000, start + Duration::from_millis(500), &rates);
        assert_eq!((0..6).filter(|_| limiter.take()).count(), 2, "bytes have no limit");
        limiter.read(0, start + Duration::from_hours(9), &rates);
        assert_eq!((0..6).filter(|_| limiter.take()).count(), 4, "no more than a second's");
    }

    #[test]
    fn bytes_have_room_for_the_longest_message() {
        let (start, rates) = (Instant::now(), rates(0, 50));
        let mut limiter = RateLimiter::new(start, &rates);
        limiter.read(150, start, &rates);
        assert!(limiter.take() && limiter.take(), "messages have no limit");
        limiter.read(1, start, &rates);
        assert!(!limiter.take());
        limiter.read(0, start + Duration::from_secs(1), &rates);
        assert!(limiter.take());
    }

    #[test]
    fn without_a_limit_there_are_no_rates() {
        assert!(Rates::of(&Config::default()).is_none());
    }
}
