//! Who is here: every connection of the node by id, with the shard that owns it.
//!
//! Used to find one connection (direct sends, closing), to count and to list; the `mailbox` strategy walks it as well.
//! The map is made of locked parts, so nothing on the way of a `direct` delivery touches it, and no caller may hold an
//! entry while it sends or awaits: [`Registry::on_shard`] therefore copies.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;

/// The number of a connection; never used again while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Where a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnHandle {
    /// Index of the shard that owns it.
    pub shard: u16,
    /// Its place in the shard's slab.
    pub slot: u32,
}

/// All connections of the node.
#[derive(Debug, Default)]
pub struct Registry {
    connections: DashMap<ConnId, ConnHandle>,
    next_id: AtomicU64,
    /// Beside the map, which would lock each of its parts to count.
    len: AtomicUsize,
    peak: AtomicUsize,
    /// Connections, and promises of one.
    places: AtomicUsize,
}

impl Registry {
    /// Promises a place, if fewer than `most` are taken; it is given back by [`Registry::deregister`], or by
    /// [`Registry::give_back`] if it is never used.
    #[must_use]
    pub fn reserve(&self, most: usize) -> bool {
        // Relaxed: a bound, not a signal.
        let next = |places: usize| (places < most).then_some(places + 1);
        self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// A promised place is not needed.
    pub fn give_back(&self) {
        self.places.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections, and promises of one.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    /// Adds a connection, for which a place was promised, and gives it its number.
    pub fn register(&self, handle: ConnHandle) -> ConnId {
        // Relaxed: only uniqueness matters.
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.connections.insert(id, handle);
        // Relaxed, here and below: figures to show, nothing is published by them.
        let len = self.len.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(len, Ordering::Relaxed);
        id
    }

    /// Forgets a connection; a second time does nothing.
    pub fn deregister(&self, id: ConnId) {
        if self.connections.remove(&id).is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
            self.give_back();
        }
    }

    /// Where a connection lives, if it is still here.
    #[must_use]
    pub fn find(&self, id: ConnId) -> Option<ConnHandle> {
        self.connections.get(&id).map(|entry| *entry)
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether nobody is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most connections there ever were at once.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// The slots of the connections that `shard` owns, in no order.
    #[must_use]
    pub fn on_shard(&self, shard: u16) -> Vec<u32> {
        self.connections.iter().filter(|entry| entry.shard == shard).map(|entry| entry.slot).collect()
    }

    /// Gives back the memory that the map holds beyond its present size.
    pub fn shrink(&self) {
        self.connections.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_come_and_go() {
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
        assert!(registry.reserve(2) && !registry.reserve(2), "a place was given back");
        registry.give_back();
        registry.deregister(second);
        registry.shrink();
        assert!(registry.is_empty());
    }
}
