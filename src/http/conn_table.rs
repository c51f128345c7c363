//! The HTTP connections of one listener: how far each has got, and which one is closed when there
//! are too many.
//!
//! At the bound the connections with the least progress are closed, several at once, in this order:
//!
//! 1. connections that have had their last response, or do not read a response,
//! 2. idle ones, while they are more than half of all,
//! 3. connections with an unfinished request,
//! 4. the other idle ones.
//!
//! Of one kind, the longest waiting is closed first. A connection whose request is being answered
//! is never closed. So a client that only holds connections does not keep out clients that send
//! requests. Each listener has a table of its own: a flood at one closes nothing at another.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::upgrade::Granted;
use crate::admission::AddressPermit;

/// Time between two checks whether a client still waits for a slow response.
const END_INTERVAL: Duration = Duration::from_millis(100);

/// How far a connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Progress {
    /// It has had its last response.
    Done,
    /// Its client does not read a response.
    Sending,
    /// No byte of its first request has arrived.
    New,
    /// A request head has begun and is not complete.
    Head,
    /// A head is complete and its body is not.
    Body,
    /// Its last request has been answered.
    Idle,
    /// A request is being answered.
    Busy,
}

impl Progress {
    const ALL: [Self; 7] = [Self::Done, Self::Sending, Self::New, Self::Head, Self::Body, Self::Idle, Self::Busy];
}

/// The other end of an HTTP connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    /// The client's address, or the proxy's; none on a Unix socket.
    pub(super) address: Option<IpAddr>,
    /// It is a proxy whose headers count.
    pub(super) is_trusted_proxy: bool,
}

impl Peer {
    /// Whether it is on this machine: at a loopback address, or on a Unix socket.
    pub(super) fn is_local(&self) -> bool {
        self.address.is_none_or(|address| address.to_canonical().is_loopback())
    }
}

/// One HTTP connection.
#[derive(Debug)]
pub(super) struct HttpConn {
    /// The socket, for as long as its task runs; -1 for a stream that is none.
    fd: RawFd,
    pub(super) peer: Peer,
    opened: Instant,
    progress: AtomicU8,
    /// Since when, in microseconds after `opened`.
    since_us: AtomicU64,
    evicted: AtomicBool,
    last: AtomicBool,
    /// Bytes of its request's body, of known length, that have not been read from the stream.
    body_bytes: AtomicU64,
    changed: Notify,
    /// A response with `Connection: close` has begun.
    said_last: AtomicBool,
    granted: AtomicBool,
    grant: Mutex<Option<Granted>>,
    of_address: Mutex<Option<AddressPermit>>,
}

impl HttpConn {
    pub(super) fn new(fd: RawFd, peer: Peer, of_address: Option<AddressPermit>) -> Self {
        Self {
            fd,
            peer,
            opened: Instant::now(),
            progress: AtomicU8::new(Progress::New as u8),
            since_us: AtomicU64::default(),
            evicted: AtomicBool::default(),
            last: AtomicBool::default(),
            body_bytes: AtomicU64::default(),
            changed: Notify::new(),
            said_last: AtomicBool::default(),
            granted: AtomicBool::default(),
            grant: Mutex::default(),
            of_address: Mutex::new(of_address),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        // Relaxed, here and below: only the connection's own task writes it; the table reads it as
        // a hint.
        Progress::ALL[usize::from(self.progress.load(Ordering::Relaxed))]
    }

    /// The moment of its last progress.
    pub(super) fn since(&self) -> Instant {
        self.opened + Duration::from_micros(self.since_us.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, progress: Progress) {
        self.since_us.store(self.opened.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.progress.store(progress as u8, Ordering::Relaxed);
    }

    /// Bytes have arrived.
    pub(super) fn note_input(&self) {
        if matches!(self.progress(), Progress::New | Progress::Idle) {
            self.set(Progress::Head);
        }
    }

    /// The socket has not taken a response, or has taken more of it.
    pub(super) fn note_output(&self, is_blocked: bool) {
        match (self.progress(), is_blocked) {
            (Progress::Idle, true) => self.set(Progress::Sending),
            (Progress::Sending, false) => self.set(Progress::Idle),
            _ => {}
        }
    }

    /// A request head is complete; `body_bytes` is 0 for a chunked body.
    pub(super) fn note_head(&self, has_body: bool, body_bytes: u64) {
        self.set(if has_body { Progress::Body } else { Progress::Busy });
        self.body_bytes.store(body_bytes, Ordering::Relaxed);
    }

    /// How many of the next `most` bytes of the stream are of the body of its request; they count
    /// as read.
    pub(super) fn take_body_bytes(&self, most: usize) -> usize {
        let rest = self.body_bytes.load(Ordering::Relaxed);
        let taken = rest.min(most as u64);
        self.body_bytes.store(rest - taken, Ordering::Relaxed);
        taken as usize
    }

    /// Whether it was closed to make room for another.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Waits until it is evicted.
    pub(super) async fn evicted(&self) {
        while !self.is_evicted() {
            self.changed.notified().await;
        }
    }

    /// Its next response is the last one.
    pub(super) fn end_soon(&self) {
        self.last.store(true, Ordering::Relaxed);
    }

    pub(super) fn ends_soon(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// A response that says that it is the last one has begun.
    pub(super) fn note_last_response(&self) {
        self.end_soon();
        self.said_last.store(true, Ordering::Relaxed);
    }

    /// Whether no response may follow.
    pub(super) fn has_said_last(&self) -> bool {
        self.said_last.load(Ordering::Relaxed)
    }

    /// Whether unread bytes wait in the socket.
    pub(super) fn has_unread(&self) -> bool {
        self.peek() > 0
    }

    /// Waits until the client has ended its sending side, or the socket has failed. Unread input
    /// hides the end. hyper does not check for the end while a request is being answered.
    pub(super) async fn ended(&self) {
        let has_ended = || match self.peek() {
            0 => true,
            1.. => false,
            _ => std::io::Error::last_os_error().kind() != std::io::ErrorKind::WouldBlock,
        };
        while !has_ended() {
            sleep(END_INTERVAL).await;
        }
    }

    /// As `recv(2)` of one byte, which stays where it is.
    fn peek(&self) -> isize {
        let mut byte = 0_u8;
        // SAFETY: the call writes at most one byte, into `byte`. A closed descriptor, or none, is
        // an error to it.
        unsafe {
            let (buffer, flags) = ((&raw mut byte).cast(), libc::MSG_PEEK | libc::MSG_DONTWAIT);
            libc::recv(self.fd, buffer, 1, flags)
        }
    }

    /// Grants its request a hand-over to a shard.
    pub(super) fn grant(&self, granted: Granted) {
        *lock(&self.grant) = Some(granted);
        self.granted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_granted(&self) -> bool {
        self.granted.load(Ordering::Relaxed)
    }

    pub(super) fn take_grant(&self) -> Option<Granted> {
        lock(&self.grant).take()
    }

    /// Its right among the connections of its address, to take along.
    pub(super) fn take_address_permit(&self) -> Option<AddressPermit> {
        lock(&self.of_address).take()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HttpConnTable {
    conns: Mutex<Slab<Arc<HttpConn>>>,
    /// Connections since the table was last empty.
    taken: AtomicUsize,
}

/// A connection in the table; it leaves on drop.
#[derive(Debug)]
pub(super) struct Entry {
    table: Arc<HttpConnTable>,
    key: usize,
    pub(super) conn: Arc<HttpConn>,
}

impl HttpConnTable {
    /// Adds a connection to at most `most`, and how many were evicted for it; `None` when every one
    /// is being answered.
    pub(super) fn insert(self: &Arc<Self>, conn: HttpConn, most: usize) -> Option<(Entry, usize)> {
        let mut conns = lock(&self.conns);
        let mut evicted = 0;
        if conns.len() >= most {
            evicted = evict(&mut conns, most);
            if evicted == 0 {
                return None;
            }
        }
        let conn = Arc::new(conn);
        let key = conns.insert(conn.clone());
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some((Entry { table: self.clone(), key, conn }, evicted))
    }

    /// Closes the connections with the least progress, because open files are used up; how many.
    pub(super) fn make_room(&self) -> usize {
        let mut conns = lock(&self.conns);
        let most = conns.len();
        evict(&mut conns, most)
    }

    /// Number of connections.
    pub(super) fn len(&self) -> usize {
        lock(&self.conns).len()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut conns = lock(&self.table.conns);
        // An evicted one has left already, and its key may be another's.
        if conns.get(self.key).is_some_and(|conn| Arc::ptr_eq(conn, &self.conn)) {
            conns.remove(self.key);
        }
        if conns.is_empty() && self.table.taken.swap(0, Ordering::Relaxed) >= FLUSH_AFTER {
            conns.shrink_to_fit();
            drop(conns);
            crate::mem::flush();
        }
    }
}

/// Connections, without a moment in which there is none, after which the memory that the thread
/// keeps of them is worth the call that gives it back.
const FLUSH_AFTER: usize = 64;

/// Most connections that are evicted at once: each has to end in its task, and other requests wait
/// meanwhile.
const EVICTIONS_MAX: usize = 8;

/// Evicts one connection, or up to a sixteenth of `most` of the same kind; returns their number. So
/// in a flood one scan of the table serves many evictions.
fn evict(conns: &mut Slab<Arc<HttpConn>>, most: usize) -> usize {
    let idle = conns.iter().filter(|(_, conn)| conn.progress() == Progress::Idle).count();
    let surplus_idle = idle.saturating_sub(conns.len() / 2);
    // The order in which kinds are closed, and how many of each kind may be.
    let rank = |progress| match progress {
        Progress::Done | Progress::Sending => Some((0, usize::MAX)),
        Progress::Idle if surplus_idle > 0 => Some((1, surplus_idle)),
        Progress::New | Progress::Head | Progress::Body => Some((2, usize::MAX)),
        Progress::Idle => Some((3, usize::MAX)),
        Progress::Busy => None,
    };
    let mut candidates: Vec<_> =
        conns.iter().filter_map(|(key, conn)| Some((rank(conn.progress())?, conn.since(), key))).collect();
    let number = (most / 16).clamp(1, EVICTIONS_MAX).min(candidates.len());
    if number == 0 {
        return 0;
    }
    // Selects those with the least progress, unsorted: sorting all of them would take ten times as
    // long.
    candidates.select_nth_unstable(number - 1);
    candidates.truncate(number);
    let Some(first) = candidates.iter().map(|&(rank, ..)| rank).min() else { return 0 };
    let evicted = candidates.iter().filter(|(rank, ..)| *rank == first).take(first.1);
    evicted.map(|&(.., key)| conns.remove(key).evict()).count()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under a lock here can be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
