//! Who may be connected: permits, limits, and the count of everybody who was turned away.
//!
//! A [`Permit`] is taken when a socket is accepted and given back when it is dropped, wherever the connection ends. The
//! number of permits of a shard is its load: the accept thread hands a socket to the shard with the fewest. Rejections are
//! decided where the right answer can be given: per address when a socket is accepted, everything else when it asks for a
//! WebSocket, so that a full server still answers `/healthz` and publishers.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Why somebody was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There are as many WebSockets as there may be.
    Connections,
    /// The client's address has as many connections as it may have.
    Address,
    /// The heap is at its bound.
    Memory,
    /// As many sockets as may be have not finished their requests.
    Handshakes,
    /// A page of another origin.
    Origin,
    /// The server drains.
    Draining,
    /// No token, or one that grants nothing.
    Unauthorized,
    /// A token for other channels.
    Forbidden,
}

impl Rejection {
    /// Every reason, in the order of their numbers.
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

    /// What the answer says.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Connections => "the server has as many connections as it takes (--max-connections): try again later",
            Self::Address => "your address has as many connections as it may have (--max-per-address)",
            Self::Memory => "the server has as much memory in use as it may have (--max-memory): try again later",
            Self::Handshakes => "too many requests are unfinished (--max-handshakes): try again later",
            Self::Draining => "the server is shutting down",
            Self::Unauthorized => "a WebSocket needs a valid token: Authorization: Bearer TOKEN, or ?token=TOKEN",
            Self::Forbidden => "your token does not reach as far as this channel",
            Self::Origin => "pages of this origin may not connect: see --allow-origin",
        }
    }
}

/// How often each [`Rejection`] was given.
#[derive(Debug, Default)]
pub struct Rejections([AtomicU64; Rejection::ALL.len()]);

impl Rejections {
    /// One more; the rejection, to answer it.
    pub fn count(&self, rejection: Rejection) -> Rejection {
        // Relaxed, here and below: a figure to show.
        self.0[rejection as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(reason = rejection.label(), "refused");
        rejection
    }

    /// How often so far.
    #[must_use]
    pub fn get(&self, rejection: Rejection) -> u64 {
        self.0[rejection as usize].load(Ordering::Relaxed)
    }
}

/// How fast sockets are accepted. Pure: time comes in as an argument.
#[derive(Debug)]
pub struct AcceptPace {
    per_second: f64,
    /// Sockets that may be accepted now.
    left: f64,
    at: Instant,
}

impl AcceptPace {
    /// So many in a second, and a tenth of them at once.
    #[must_use]
    pub fn new(per_second: NonZeroU32, now: Instant) -> Self {
        Self { per_second: per_second.get().into(), left: 1.0, at: now }
    }

    /// How long the next socket has to wait; nothing if it may be accepted now.
    #[must_use]
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min((self.per_second / 10.0).max(1.0));
        self.at = now;
        (self.left < 1.0).then(|| Duration::from_secs_f64((1.0 - self.left) / self.per_second))
    }

    /// One was accepted.
    pub fn accepted(&mut self) {
        self.left -= 1.0;
    }
}

/// The connections of one shard, whatever phase they are in.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<Place>);

impl Load {
    /// Number of permits out.
    #[must_use]
    pub fn get(&self) -> usize {
        // Relaxed: a hint for balance, nothing is published by it.
        self.0.count.load(Ordering::Relaxed)
    }

    /// One more connection.
    #[must_use]
    pub fn permit(&self) -> Permit {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Permit(self.0.clone())
    }

    /// One more connection of `address`, if it has fewer than `most`.
    #[must_use]
    pub fn permit_of(&self, address: IpAddr, most: usize, addresses: &Arc<Addresses>) -> Option<Permit> {
        addresses.enter(address, most).then(|| {
            let of_address = Some((self.permit(), address, addresses.clone()));
            Permit(Arc::new(Place { count: AtomicUsize::new(1), of_address }))
        })
    }
}

/// What permits are counted in: shared by all of a shard, or that of one connection with an address.
#[derive(Debug, Default)]
struct Place {
    count: AtomicUsize,
    of_address: Option<(Permit, IpAddr, Arc<Addresses>)>,
}

/// One connection's place; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Place>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        if let Some((_, address, addresses)) = &self.0.of_address {
            addresses.leave(*address);
        }
    }
}

/// How many connections each address has; only those that have any.
#[derive(Debug, Default)]
pub struct Addresses(DashMap<IpAddr, usize>);

impl Addresses {
    fn enter(&self, address: IpAddr, most: usize) -> bool {
        let mut number = self.0.entry(address).or_insert(0);
        let fits = *number < most;
        *number += usize::from(fits);
        fits
    }

    fn leave(&self, address: IpAddr) {
        if let Entry::Occupied(mut number) = self.0.entry(address) {
            *number.get_mut() -= 1;
            if *number.get() == 0 {
                number.remove();
            }
        }
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
        let (load, addresses) = (Load::default(), Arc::default());
        let address = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
        let permit = |last| load.permit_of(address(last), 2, &addresses);
        let (first, second) = (permit(1), permit(1));
        assert!(first.is_some() && second.is_some() && permit(1).is_none());
        let other = permit(2);
        assert!(other.is_some());
        assert_eq!(load.get(), 3);
        drop(first);
        assert!(permit(1).is_some(), "a place is free again");
        drop((second, other));
        assert_eq!((load.get(), addresses.0.len()), (0, 0));
    }

    #[test]
    fn sockets_are_accepted_at_a_pace() {
        let start = Instant::now();
        let mut pace = AcceptPace::new(NonZeroU32::new(20).unwrap(), start);
        assert_eq!(pace.wait(start), None);
        pace.accepted();
        assert_eq!(pace.wait(start), Some(Duration::from_millis(50)));
        let later = start + Duration::from_secs(10);
        for _ in 0..2 {
            assert_eq!(pace.wait(later), None, "a tenth of a second's at once");
            pace.accepted();
        }
        assert!(pace.wait(later).is_some());
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let rejections = Rejections::default();
        for (number, rejection) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(rejection as usize, number);
            assert_eq!((rejections.count(rejection), rejections.get(rejection)), (rejection, 1));
            assert!(rejection.sentence().len() > 20 && rejection.status() >= 401);
        }
    }
}
