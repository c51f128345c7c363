//! The batch size and the number of subscribers above which shared pages are cheaper than a copy
//! for each socket.
//!
//! ```text
//! cargo bench --bench pages                        everything, about 2 minutes
//! cargo bench --bench pages -- 'pages/size'        by the size of the batch, 2,000 subscribers
//! cargo bench --bench pages -- 'pages/subscribers' by the number of subscribers
//! cargo bench --bench pages -- --test              each cell once: checks that every byte arrives
//! ```
//!
//! The bench hands the same bytes to real sockets over loopback in two ways, without the engine
//! around them. `copy` is one `send` per socket. `pages` puts the bytes into a file in memory and
//! then calls `sendfile` once per socket; creating and freeing the file is included. The time is
//! the CPU time of the sending thread. Another thread reads. Between two rounds the sender waits
//! for it, off the clock, so every round starts with empty sockets. Bytes that the kernel sends
//! later, when the reader has made room, are in the time of neither way.
//!
//! The defaults of `settings::Config::pages_bytes_min` and `pages::PAGES_SUBSCRIBERS_MIN` follow
//! from this bench.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use hydrant::conn::Socket;
use hydrant::pages::{PagePool, Pages};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{SockRef, Socket as Stream};

/// Bytes that a socket takes even if its reader does nothing, so that no round waits for a full
/// socket.
const KERNEL_BYTES: usize = 1024 * 1024;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1000))
        .nresamples(10_000)
        .configure_from_args();
    let mut clients = ClientPool::new(2000).expect("2000 connections to this process");
    let mut group = criterion.benchmark_group("pages/size");
    for kib in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let bytes = vec![b'x'; kib * 1024];
        group.throughput(Throughput::Elements(2000));
        for way in [Way::Copy, Way::Pages] {
            group.bench_with_input(BenchmarkId::new(way.name(), format!("{kib}KiB")), &bytes, |bencher, bytes| {
                bencher.iter_custom(|times| clients.deliver(way, bytes, 2000, times));
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("pages/subscribers");
    let bytes = vec![b'x'; 32 * 1024];
    for subscribers in [4, 8, 16, 32, 64, 128] {
        group.throughput(Throughput::Elements(subscribers as u64));
        for way in [Way::Copy, Way::Pages] {
            group.bench_with_input(BenchmarkId::new(way.name(), subscribers), &bytes, |bencher, bytes| {
                bencher.iter_custom(|times| clients.deliver(way, bytes, subscribers, times));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

/// How the bytes reach a socket.
#[derive(Clone, Copy)]
enum Way {
    Copy,
    Pages,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Pages => "pages",
        }
    }
}

/// Connections, and a thread that reads all bytes that arrive on them.
struct ClientPool {
    sockets: Vec<TcpStream>,
    sent: u64,
    read: Arc<AtomicU64>,
}

impl ClientPool {
    fn new(size: usize) -> io::Result<Self> {
        hydrant::cli::raise_open_files()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        SockRef::from(&listener).set_recv_buffer_size(KERNEL_BYTES)?;
        let mut sockets = Vec::with_capacity(size);
        let mut readers = Vec::with_capacity(size);
        for _ in 0..size {
            let socket = Stream::from(std::net::TcpStream::connect(listener.local_addr()?)?);
            socket.set_send_buffer_size(KERNEL_BYTES)?;
            socket.set_tcp_nodelay(true)?;
            socket.set_nonblocking(true)?;
            sockets.push(TcpStream::from_std(socket.into()));
            let (reader, _) = listener.accept()?;
            reader.set_nonblocking(true)?;
            readers.push(TcpStream::from_std(reader));
        }
        let read = Arc::new(AtomicU64::new(0));
        let counter = read.clone();
        // The thread ends with the process.
        thread::spawn(move || read_forever(readers, &counter).expect("reading from a socket of this process"));
        Ok(Self { sockets, sent: 0, read })
    }

    /// Hands `bytes` to the first `subscribers` sockets, `times` times. Returns the CPU time of the
    /// calls.
    fn deliver(&mut self, way: Way, bytes: &[u8], subscribers: usize, times: u64) -> Duration {
        let pool = PagePool::new(0);
        let mut elapsed = Duration::ZERO;
        for _ in 0..times {
            let start = thread_cpu_time();
            // No lower bound on the number of subscribers here: the bench is to find it.
            let pages = matches!(way, Way::Pages).then(|| pool.hold(bytes, usize::MAX).expect("a file in memory"));
            for socket in &self.sockets[..subscribers] {
                self.sent += send(socket, pages.as_ref(), bytes) as u64;
            }
            drop(pages);
            elapsed += thread_cpu_time() - start;
            // Acquire: pairs with the release in `read_forever`; only the number matters.
            while self.read.load(Ordering::Acquire) < self.sent {
                std::hint::spin_loop();
            }
        }
        elapsed
    }
}

/// Hands over all bytes: the socket is empty and has room for more.
fn send(socket: &TcpStream, pages: Option<&Pages>, bytes: &[u8]) -> usize {
    let sent = match pages {
        Some(pages) => socket.send_pages(pages, 0..bytes.len()),
        None => socket.send(bytes),
    };
    assert_eq!(sent.expect("an empty socket takes bytes"), bytes.len(), "all of them");
    bytes.len()
}

fn read_forever(mut readers: Vec<TcpStream>, counter: &AtomicU64) -> io::Result<()> {
    let mut poll = Poll::new()?;
    for (token, reader) in readers.iter_mut().enumerate() {
        poll.registry().register(reader, Token(token), Interest::READABLE)?;
    }
    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0; KERNEL_BYTES];
    loop {
        // Never sleeps: the sender would pay for the wake.
        poll.poll(&mut events, Some(Duration::ZERO))?;
        for event in &events {
            while let Ok(read @ 1..) = readers[event.token().0].read(&mut scratch) {
                // Release: pairs with the acquire in `deliver`.
                counter.fetch_add(read as u64, Ordering::Release);
            }
        }
    }
}

/// The CPU time of this thread so far.
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec that outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "the clock exists on every Linux");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
