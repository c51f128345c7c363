//! Every connection of the node by id, with the shard that owns it.
//!
//! Owns the map from [`ConnId`] to [`ConnHandle`] and the count of reserved connections. It is used
//! to find one connection (direct sends, closing), to count and to list; the `mailbox` strategy
//! iterates over it as well. The map consists of locked shards, so no step of a `direct` delivery
//! touches it. It never lends an entry to a caller that sends or awaits: [`Registry::on_shard`]
//! therefore copies.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;

/// The number of a connection; never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// The shard and slot of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnHandle {
    /// Index of the shard that owns it.
    pub shard: u16,
    /// Its slot in the shard's slab.
    pub slot: u32,
}

/// All connections of the node.
#[derive(Debug, Default)]
pub struct Registry {
    connections: DashMap<ConnId, ConnHandle>,
    next_id: AtomicU64,
    /// Kept beside the map, because the map would lock each of its shards to count.
    len: AtomicUsize,
    peak: AtomicUsize,
    /// Connections and reservations.
    reserved: AtomicUsize,
}

impl Registry {
    /// Reserves room for one connection, if fewer than `most` are reserved or registered.
    /// [`Registry::deregister`] releases the reservation, or [`Registry::release`] if no
    /// connection was registered.
    #[must_use]
    pub fn reserve(&self, most: usize) -> bool {
        // Relaxed: a bound, not a signal.
        let next = |reserved: usize| (reserved < most).then_some(reserved + 1);
        self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Releases a reservation that was not used.
    pub fn release(&self) {
        self.reserved.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections and reservations.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Adds a connection that has a reservation, and returns its number.
    pub fn register(&self, handle: ConnHandle) -> ConnId {
        // Relaxed: only uniqueness matters.
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.connections.insert(id, handle);
        // Relaxed, here and below: statistics only, no other data depends on them.
        let len = self.len.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(len, Ordering::Relaxed);
        id
    }

    /// Removes a connection; a second call does nothing.
    pub fn deregister(&self, id: ConnId) {
        if self.connections.remove(&id).is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
            self.release();
        }
    }

    /// The shard and slot of a connection, if it is still registered.
    #[must_use]
    pub fn find(&self, id: ConnId) -> Option<ConnHandle> {
        self.connections.get(&id).map(|entry| *entry)
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether no connection is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest number of simultaneous connections so far.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// The slots of the connections that `shard` owns, in no particular order.
    #[must_use]
    pub fn on_shard(&self, shard: u16) -> Vec<u32> {
        self.connections.iter().filter(|entry| entry.shard == shard).map(|entry| entry.slot).collect()
    }

    /// Frees the memory that the map holds beyond its present size.
    pub fn shrink(&self) {
        self.connections.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_registered_and_removed() {
        let registry = Registry::default();
        assert!(registry.reserve(2) && registry.reserve(2) && !registry.reserve(2));
        let first = registry.register(ConnHandle { shard: 0, slot: 7 });
        let second = registry.register(ConnHandle { shard: 1, slot: 7 });
        assert_ne!(first, second);
        assert_eq!(registry.find(second), Some(ConnHandle { shard: 1, slot: 7 }));
        assert_eq!(registry.on_shard(0), [7]);
        registry.deregister(first);
        registry.deregister(first);
        assert_eq!((registry.len(), registry.find(first), registry.peak()), (1, None, 2));
        assert!(registry.on_shard(0).is_empty());
        assert!(registry.reserve(2) && !registry.reserve(2), "a reservation was released");
        registry.release();
        registry.deregister(second);
        registry.shrink();
        assert!(registry.is_empty());
    }
}
