//! The right to be connected.
//!
//! A [`Permit`] is taken when a socket is accepted and given back when it is dropped, wherever the connection ends. The
//! number of permits of a shard is its load: the accept thread hands a socket to the shard with the fewest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The connections of one shard, whatever phase they are in.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicUsize>);

impl Load {
    /// Number of permits out.
    #[must_use]
    pub fn get(&self) -> usize {
        // Relaxed: a hint for balance, nothing is published by it.
        self.0.load(Ordering::Relaxed)
    }

    /// One more connection.
    #[must_use]
    pub fn permit(&self) -> Permit {
        self.0.fetch_add(1, Ordering::Relaxed);
        Permit(self.0.clone())
    }
}

/// One connection's place; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
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
}
