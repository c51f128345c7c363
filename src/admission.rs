//! Admission: permits, limits per address, the pace of accepting, and the counters of rejections.
//!
//! A [`Permit`] is taken when a WebSocket is granted and given back when it is dropped, wherever
//! the connection ends. The number of permits of a shard is its load: the front hands a socket to
//! the shard with the fewest. The limit per address applies when a socket is accepted. All other
//! limits apply when a client asks for a WebSocket, so a full server still answers `/healthz` and
//! publishers.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::jwt::TokenError;
use crate::metrics::{Counters, Family};

/// Why a socket or a request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The server has as many WebSockets as it may have.
    Connections,
    /// The client's address has as many connections as it may have.
    Address,
    /// The heap has reached its bound.
    Memory,
    /// Too many sockets have not finished their requests.
    Handshakes,
    /// The request comes from a page of another origin.
    Origin,
    /// The server is draining.
    Draining,
    /// No token, or one that grants nothing.
    Unauthorized,
    /// The token grants other channels only.
    Forbidden,
}

impl Rejection {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::Connections,
        Self::Address,
        Self::Memory,
        Self::Handshakes,
        Self::Origin,
        Self::Draining,
        Self::Unauthorized,
        Self::Forbidden,
    ];

    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Memory => "memory",
            Self::Handshakes => "handshakes",
            Self::Origin => "origin",
            Self::Draining => "draining",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
        }
    }

    /// The HTTP status of the answer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Connections | Self::Memory | Self::Handshakes | Self::Draining => 503,
            Self::Address => 429,
            Self::Origin | Self::Forbidden => 403,
            Self::Unauthorized => 401,
        }
    }

    /// The text of the answer.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Connections => "the server has as many connections as --max-connections allows: try again later",
            Self::Address => "your address has as many connections as --max-per-address allows",
            Self::Memory => "the server uses as much memory as --max-memory allows: try again later",
            Self::Handshakes => "too many requests are unfinished (--max-handshakes): try again later",
            Self::Draining => "the server is shutting down",
            Self::Unauthorized => "a WebSocket needs a valid token: Authorization: Bearer TOKEN, or ?token=TOKEN",
            Self::Forbidden => "your token does not grant this channel",
            Self::Origin => "pages of this origin may not connect: see --allow-origin",
        }
    }
}

impl Family for Rejection {
    const NAME: &'static str = "hydrant_rejected_total";
    const LABEL: &'static str = "reason";
    const HELP: &'static str = "Sockets and handshakes that were rejected.";
    const ALL: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.label()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl From<&TokenError> for Rejection {
    fn from(error: &TokenError) -> Self {
        match error {
            TokenError::Channel(_) => Self::Forbidden,
            _ => Self::Unauthorized,
        }
    }
}

/// How often each [`Rejection`] occurred.
#[derive(Debug, Default)]
pub struct Rejections(Counters<Rejection>);

impl Rejections {
    /// Counts one rejection, and returns it for the answer.
    pub fn count(&self, rejection: Rejection) -> Rejection {
        self.0.count(rejection);
        tracing::debug!(reason = rejection.label(), "rejected");
        rejection
    }

    /// How often it has occurred so far.
    #[must_use]
    pub fn get(&self, rejection: Rejection) -> u64 {
        self.0.get(rejection)
    }

    /// Every reason, with how often it has occurred so far.
    pub fn series(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.series()
    }
}

/// The pace at which a server accepts sockets, at all its listeners together. Pure: time is an
/// argument.
#[derive(Debug)]
pub struct AcceptPace {
    per_second: Option<NonZeroU32>,
    /// Sockets that may be accepted now; below zero, that many are accepted later.
    left: f64,
    at: Instant,
}

impl AcceptPace {
    /// A pace before its first socket.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { per_second: None, left: 0.0, at: now }
    }

    /// Reserves one of `per_second` sockets a second, of which a tenth may be accepted at once. So
    /// listeners that wait take turns. Returns how long this one has to wait; `None` if it may be
    /// accepted now.
    #[must_use]
    pub fn reserve(&mut self, per_second: NonZeroU32, now: Instant) -> Option<Duration> {
        if self.per_second != Some(per_second) {
            *self = Self { per_second: Some(per_second), left: 1.0, at: now };
        }
        let per_second = f64::from(per_second.get());
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * per_second).min((per_second / 10.0).max(1.0)) - 1.0;
        self.at = self.at.max(now);
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / per_second))
    }

    /// Gives back what was reserved for a socket that did not come.
    pub fn give_back(&mut self) {
        self.left += 1.0;
    }
}

/// The WebSocket connections of one shard.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<Share>);

impl Load {
    /// The number of permits that are taken.
    #[must_use]
    pub fn get(&self) -> usize {
        // Relaxed: a hint for the choice of a shard; it publishes no other memory.
        self.0.count.load(Ordering::Relaxed)
    }

    /// Takes a permit.
    #[must_use]
    pub fn permit(&self) -> Permit {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Permit(self.0.clone())
    }

    /// One more connection, which keeps its address' permit if it has one.
    #[must_use]
    pub fn permit_of(&self, of_address: Option<AddressPermit>) -> Permit {
        let permit = self.permit();
        match of_address {
            None => permit,
            Some(of_address) => {
                let share = Share { count: AtomicUsize::new(1), _of_address: Some((permit, of_address)) };
                Permit(Arc::new(share))
            }
        }
    }
}

/// A counter of permits: shared by all of a shard, or that of one connection with an address.
#[derive(Debug, Default)]
struct Share {
    count: AtomicUsize,
    _of_address: Option<(Permit, AddressPermit)>,
}

/// The right of one connection to its shard; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Share>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of each address, HTTP and WebSocket; it lists only addresses that have any.
#[derive(Debug, Default)]
pub struct Addresses(DashMap<IpAddr, usize>);

impl Addresses {
    /// One more connection of `address`, if it has fewer than `most`.
    #[must_use]
    pub fn permit(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<AddressPermit> {
        let mut number = self.0.entry(address).or_insert(0);
        let fits = *number < most;
        *number += usize::from(fits);
        drop(number);
        fits.then(|| AddressPermit { address, addresses: self.clone() })
    }

    fn give_back(&self, address: IpAddr) {
        if let Entry::Occupied(mut number) = self.0.entry(address) {
            *number.get_mut() -= 1;
            if *number.get() == 0 {
                number.remove();
            }
        }
    }
}

/// The right of one connection of an address; given back on drop.
#[derive(Debug)]
pub struct AddressPermit {
    address: IpAddr,
    addresses: Arc<Addresses>,
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        self.addresses.give_back(self.address);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn permits_are_given_back() {
        let load = Load::default();
        let (first, second) = (load.permit(), load.permit());
        assert_eq!(load.get(), 2);
        drop(first);
        assert_eq!(load.get(), 1);
        drop(second);
        assert_eq!(load.get(), 0);
    }

    #[test]
    fn an_address_has_so_many_and_no_more() {
        let (load, addresses) = (Load::default(), Arc::<Addresses>::default());
        let address = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
        let permit = |last| addresses.permit(address(last), 2).map(|of_address| load.permit_of(Some(of_address)));
        let (first, second) = (permit(1), permit(1));
        assert!(first.is_some() && second.is_some() && permit(1).is_none());
        let other = permit(2);
        assert!(other.is_some());
        assert_eq!(load.get(), 3);
        drop(first);
        assert!(permit(1).is_some(), "one is free again");
        drop((second, other));
        assert_eq!((load.get(), addresses.0.len()), (0, 0));
    }

    #[test]
    fn sockets_are_accepted_at_a_pace() {
        let (start, rate) = (Instant::now(), NonZeroU32::new(20).unwrap());
        let mut pace = AcceptPace::new(start);
        assert_eq!(pace.reserve(rate, start), None);
        assert_eq!(pace.reserve(rate, start), Some(Duration::from_millis(50)));
        assert_eq!(pace.reserve(rate, start), Some(Duration::from_millis(100)), "behind the one before");
        pace.give_back();
        assert_eq!(pace.reserve(rate, start), Some(Duration::from_millis(100)));
        let later = start + Duration::from_secs(10);
        for _ in 0..2 {
            assert_eq!(pace.reserve(rate, later), None, "a tenth of a second's sockets at once");
        }
        assert!(pace.reserve(rate, later).is_some());
        assert_eq!(pace.reserve(NonZeroU32::new(10).unwrap(), later), None, "another rate begins anew");
    }

    #[test]
    fn several_listeners_share_one_pace() {
        const RATE: u32 = 50;
        const LISTENERS: usize = 8;
        let start = Instant::now();
        let mut pace = AcceptPace::new(start);
        // Each listener always has a socket that waits. It accepts when its time has come.
        let mut next = [start; LISTENERS];
        let mut accepted = [0; LISTENERS];
        let end = start + Duration::from_secs(10);
        while let Some(index) = (0..LISTENERS).filter(|&index| next[index] < end).min_by_key(|&index| next[index]) {
            let wait = pace.reserve(NonZeroU32::new(RATE).unwrap(), next[index]).unwrap_or_default();
            next[index] += wait;
            accepted[index] += u32::from(next[index] < end);
        }
        let all: u32 = accepted.iter().sum();
        assert!((10 * RATE..=10 * RATE + RATE / 10).contains(&all), "{accepted:?}");
        assert!(accepted.iter().all(|number| number.abs_diff(all / LISTENERS as u32) <= 2), "{accepted:?}");
    }

    #[test]
    fn rejections_are_counted_by_reason() {
        let rejections = Rejections::default();
        for (number, rejection) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(rejection as usize, number);
            assert_eq!((rejections.count(rejection), rejections.get(rejection)), (rejection, 1));
            assert!(rejection.sentence().len() > 20 && rejection.status() >= 401);
        }
    }
}
