//! `registry`: the three operations on `registry::Registry`, a `DashMap`, beside other maps that
//! could hold the same 10,000 connections: find one, register and deregister one, list all of one
//! shard.
//!
//! With two threads each does the whole work, so a map that scales perfectly takes as long with two
//! as with one. All candidates keep the registry's promises: a number is never used again, and the
//! peak is known.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use hydrant::registry::{ConnHandle, ConnId, Registry};
use slab::Slab;

const CONNECTIONS: u32 = 10_000;
const THREADS: [u32; 2] = [1, 2];

pub(crate) fn run(criterion: &mut Criterion) {
    let candidates: [(&str, Box<dyn Directory>); 5] = [
        ("Registry (DashMap)", Box::<Registry>::default()),
        ("papaya", Box::<Papaya>::default()),
        ("RwLock HashMap", Box::<Numbers<RwLock<HashMap<ConnId, ConnHandle>>>>::default()),
        ("Mutex HashMap", Box::<Numbers<Mutex<HashMap<ConnId, ConnHandle>>>>::default()),
        ("sharded slab", Box::<Slabs>::default()),
    ];
    let ids: Vec<Vec<ConnId>> = candidates.iter().map(|(_, directory)| fill(&**directory)).collect();
    let operations: [(&str, Operation); 3] = [("find", find), ("register", register), ("walk", walk)];
    for (operation, run) in operations {
        let mut group = criterion.benchmark_group(format!("registry/{operation}"));
        for threads in THREADS {
            for ((name, directory), ids) in candidates.iter().zip(&ids) {
                group.bench_function(BenchmarkId::new(*name, threads), |bencher| {
                    bencher.iter_custom(|times| race(threads, |thread| run(&**directory, ids, thread, times)));
                });
            }
        }
        group.finish();
    }
}

fn fill(directory: &dyn Directory) -> Vec<ConnId> {
    (0..CONNECTIONS).map(|slot| directory.register(ConnHandle { shard: (slot % 2) as u16, slot })).collect()
}

/// The time from when all threads have started until the last has ended, which the scope waits for.
fn race(threads: u32, work: impl Fn(u32) + Sync) -> Duration {
    let (work, start) = (&work, &Barrier::new(threads as usize));
    thread::scope(|scope| {
        for thread in 1..threads {
            scope.spawn(move || {
                start.wait();
                work(thread);
            });
        }
        start.wait();
        let started = Instant::now();
        work(0);
        started
    })
    .elapsed()
}

/// Runs one operation `times` times: `(directory, ids, thread, times)`.
type Operation = fn(&dyn Directory, &[ConnId], u32, u64);

/// Visits the connections in an order that the caches cannot predict. The stride has no common
/// divisor with their number, so all are visited.
fn find(directory: &dyn Directory, ids: &[ConnId], thread: u32, times: u64) {
    let mut position = thread as usize;
    for _ in 0..times {
        position = (position + 7_919) % ids.len();
        let found = directory.find(black_box(ids[position]));
        assert_eq!(found.map(|handle| handle.slot as usize), Some(position));
    }
}

fn register(directory: &dyn Directory, _: &[ConnId], thread: u32, times: u64) {
    for _ in 0..times {
        let id = directory.register(black_box(ConnHandle { shard: 2, slot: thread }));
        directory.deregister(id);
    }
}

fn walk(directory: &dyn Directory, _: &[ConnId], thread: u32, times: u64) {
    for _ in 0..times {
        let slots = directory.on_shard(black_box(thread as u16 % 2));
        assert_eq!(slots.len(), CONNECTIONS as usize / 2);
    }
}

/// The operations of the registry.
trait Directory: Sync {
    fn register(&self, handle: ConnHandle) -> ConnId;
    fn deregister(&self, id: ConnId);
    fn find(&self, id: ConnId) -> Option<ConnHandle>;
    fn on_shard(&self, shard: u16) -> Vec<u32>;
}

impl Directory for Registry {
    fn register(&self, handle: ConnHandle) -> ConnId {
        self.register(handle)
    }
    fn deregister(&self, id: ConnId) {
        self.deregister(id);
    }
    fn find(&self, id: ConnId) -> Option<ConnHandle> {
        self.find(id)
    }
    fn on_shard(&self, shard: u16) -> Vec<u32> {
        self.on_shard(shard)
    }
}

type Map = HashMap<ConnId, ConnHandle>;

/// A map behind a lock.
trait Locked: Default + Sync {
    fn read<T>(&self, read: impl FnOnce(&Map) -> T) -> T;
    fn write<T>(&self, change: impl FnOnce(&mut Map) -> T) -> T;
}

impl Locked for Mutex<Map> {
    fn read<T>(&self, read: impl FnOnce(&Map) -> T) -> T {
        read(&guard(self))
    }
    fn write<T>(&self, change: impl FnOnce(&mut Map) -> T) -> T {
        change(&mut guard(self))
    }
}

fn guard(map: &Mutex<Map>) -> MutexGuard<'_, Map> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locked for RwLock<Map> {
    fn read<T>(&self, read: impl FnOnce(&Map) -> T) -> T {
        read(&self.read().unwrap_or_else(PoisonError::into_inner))
    }
    fn write<T>(&self, change: impl FnOnce(&mut Map) -> T) -> T {
        change(&mut self.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A locked map with the registry's numbering and peak.
#[derive(Default)]
struct Numbers<M> {
    map: M,
    next_id: AtomicU64,
    peak: AtomicUsize,
}

// Relaxed throughout, as in the registry: ids only have to be unique, and the peak is a hint.
impl<M: Locked> Directory for Numbers<M> {
    fn register(&self, handle: ConnHandle) -> ConnId {
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let length = self.map.write(|map| {
            map.insert(id, handle);
            map.len()
        });
        self.peak.fetch_max(length, Ordering::Relaxed);
        id
    }
    fn deregister(&self, id: ConnId) {
        self.map.write(|map| map.remove(&id));
    }
    fn find(&self, id: ConnId) -> Option<ConnHandle> {
        self.map.read(|map| map.get(&id).copied())
    }
    fn on_shard(&self, shard: u16) -> Vec<u32> {
        self.map.read(|map| map.values().filter(|handle| handle.shard == shard).map(|handle| handle.slot).collect())
    }
}

/// papaya's map with the registry's numbering and peak.
#[derive(Default)]
struct Papaya {
    map: papaya::HashMap<ConnId, ConnHandle>,
    next_id: AtomicU64,
    peak: AtomicUsize,
}

impl Directory for Papaya {
    fn register(&self, handle: ConnHandle) -> ConnId {
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.map.pin().insert(id, handle);
        self.peak.fetch_max(self.map.len(), Ordering::Relaxed);
        id
    }
    fn deregister(&self, id: ConnId) {
        self.map.pin().remove(&id);
    }
    fn find(&self, id: ConnId) -> Option<ConnHandle> {
        self.map.pin().get(&id).copied()
    }
    fn on_shard(&self, shard: u16) -> Vec<u32> {
        let map = self.map.pin();
        map.values().filter(|handle| handle.shard == shard).map(|handle| handle.slot).collect()
    }
}

const STRIPES: usize = 16;

/// A locked slab for each stripe. An id consists of a serial number, the slot in the slab (24 bits)
/// and the stripe (4 bits). The serial number shows whether the slot has been reused. No hash is
/// computed.
#[derive(Default)]
struct Slabs {
    stripes: [RwLock<Slab<(u64, ConnHandle)>>; STRIPES],
    next_serial: AtomicU64,
    length: AtomicUsize,
    peak: AtomicUsize,
}

impl Slabs {
    fn stripe(&self, id: ConnId) -> (&RwLock<Slab<(u64, ConnHandle)>>, usize) {
        (&self.stripes[id.0 as usize % STRIPES], (id.0 >> 4 & 0xff_ffff) as usize)
    }
}

impl Directory for Slabs {
    fn register(&self, handle: ConnHandle) -> ConnId {
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let stripe = serial as usize % STRIPES;
        let mut slab = self.stripes[stripe].write().unwrap_or_else(PoisonError::into_inner);
        let slot = slab.insert((serial, handle));
        drop(slab);
        let length = self.length.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(length, Ordering::Relaxed);
        ConnId(serial << 28 | (slot as u64) << 4 | stripe as u64)
    }
    fn deregister(&self, id: ConnId) {
        let (stripe, slot) = self.stripe(id);
        let mut slab = stripe.write().unwrap_or_else(PoisonError::into_inner);
        if slab.get(slot).is_some_and(|(serial, _)| *serial == id.0 >> 28) {
            slab.remove(slot);
            self.length.fetch_sub(1, Ordering::Relaxed);
        }
    }
    fn find(&self, id: ConnId) -> Option<ConnHandle> {
        let (stripe, slot) = self.stripe(id);
        let slab = stripe.read().unwrap_or_else(PoisonError::into_inner);
        slab.get(slot).filter(|(serial, _)| *serial == id.0 >> 28).map(|(_, handle)| *handle)
    }
    fn on_shard(&self, shard: u16) -> Vec<u32> {
        let mut slots = Vec::new();
        for stripe in &self.stripes {
            let slab = stripe.read().unwrap_or_else(PoisonError::into_inner);
            slots.extend(slab.iter().filter(|(_, (_, handle))| handle.shard == shard).map(|(_, (_, h))| h.slot));
        }
        slots
    }
}
