//! The front: threads that accept sockets and speak HTTP and TLS, apart from the shards' threads.
//!
//! Clients' listeners share [`Config::http_threads`](crate::settings::Config::http_threads)
//! threads. A listener for administration alone has a thread of its own, so that a flood of clients
//! does not delay publishers. Every thread is a single-threaded runtime; the operating system
//! divides the cores between the front and the shards. It never touches a WebSocket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockAddr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

use crate::admission::{AcceptPace, Rejection};
use crate::engine::{Engine, ShardStats};
use crate::error::ServerError;
use crate::http::{self, HttpListener};
use crate::net::BoundListener;

/// How long a thread waits before it accepts again, when it is at the limit of open files and no
/// connection can be closed.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Sockets that a thread accepts before it handles the requests that have arrived.
const ACCEPT_CHUNK: usize = 4;
/// How long the last requests and responses may take after the shards have ended: longer than HTTP
/// connections take to end by themselves.
const LAST_RESPONSES: Duration = Duration::from_secs(2);
/// Time between two checks whether the last responses have left.
const LAST_RESPONSES_INTERVAL: Duration = Duration::from_millis(2);
/// The niceness of the front's threads, see `nice(2)`: the shards go first, because a request can
/// wait longer than a delivery.
const FRONT_NICE: libc::c_int = 5;

/// The front's threads; the module describes it.
pub struct Front {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    /// Each thread has a sender until its end.
    running: mpsc::Receiver<Infallible>,
}

impl Front {
    /// Starts the threads. A thread that fails reports to `ended`.
    ///
    /// # Errors
    /// When a thread or a runtime cannot be created.
    pub fn start(
        bound: Vec<BoundListener>,
        engine: &Arc<Engine>,
        ended: &mpsc::Sender<Result<ShardStats, ServerError>>,
    ) -> Result<Self, ServerError> {
        let failed = |error| ServerError::Thread("cannot start an HTTP thread", error);
        let admin_url = admin_url(&bound);
        let pace = Arc::new(Mutex::new(AcceptPace::new(Instant::now().into_std())));
        let (stop, stopped) = watch::channel(false);
        let mut groups = BTreeMap::<String, Vec<(TcpListener, Arc<HttpListener>)>>::new();
        for BoundListener { listener, config, .. } in bound {
            let http = HttpListener::new(engine.clone(), config, admin_url.clone());
            let is_admin_only = config.admin && !config.websockets;
            let names = match is_admin_only {
                true => vec!["http-admin".to_owned()],
                false => (0..engine.config.http_threads.get()).map(|index| format!("http-{index}")).collect(),
            };
            for name in names {
                let listener = listener.try_clone().map_err(failed)?;
                groups.entry(name).or_default().push((listener, http.clone()));
            }
        }
        let (runs, running) = mpsc::channel(1);
        let mut threads = Vec::new();
        for (name, listeners) in groups {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let (stopped, ended, engine, runs) = (stopped.clone(), ended.clone(), engine.clone(), runs.clone());
            let pace = pace.clone();
            let body = move || {
                let _runs = runs;
                if let Err(error) = run(&runtime, listeners, &engine, &pace, stopped) {
                    // The channel has room. It fails only if the receiver, the server, is gone.
                    let _ = ended.try_send(Err(ServerError::Thread("an HTTP thread has failed", error)));
                }
            };
            threads.push(thread::Builder::new().name(name).spawn(body).map_err(failed)?);
        }
        Ok(Self { threads, stop, running })
    }

    /// Closes the listeners, lets the last responses leave, and ends the threads.
    ///
    /// # Errors
    /// When a thread has panicked.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.stop.send_replace(true);
        // The end of the last thread. A join would block other tasks meanwhile.
        let _ = self.running.recv().await;
        for thread in self.threads {
            thread.join().map_err(|_| ServerError::Panicked("an HTTP thread"))?;
        }
        Ok(())
    }
}

/// The URL of administration, without a path.
fn admin_url(bound: &[BoundListener]) -> Option<String> {
    let admin = bound.iter().filter(|bound| bound.config.admin);
    let by_ip = admin.filter_map(|bound| Some((bound.config.secure, bound.address.ip()?)));
    by_ip.map(|(secure, address)| url(secure, address)).next()
}

/// The URL of an address, without a path.
pub(crate) fn url(secure: bool, address: std::net::SocketAddr) -> String {
    let scheme = if secure { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// One thread, until it is told to stop.
fn run(
    runtime: &Runtime,
    listeners: Vec<(TcpListener, Arc<HttpListener>)>,
    engine: &Arc<Engine>,
    pace: &Arc<Mutex<AcceptPace>>,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    lower_priority();
    runtime.block_on(async {
        let tables: Vec<_> = listeners.iter().map(|(_, http)| http.clone()).collect();
        let mut accepting = JoinSet::new();
        // The runtime ends with the thread, and the task with it.
        tokio::spawn(http::wakes::share());
        for (listener, http) in listeners {
            // SAFETY: a listener owns a valid descriptor and never replaces it; nothing closes it
            // while `AsyncFd` owns it.
            let listener = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE)? };
            accepting.spawn(accept(listener, http, engine.clone(), pace.clone()));
        }
        let failed = tokio::select! {
            // An error means that the sender is gone, which stops the thread as well.
            _ = stopped.wait_for(|stopped| *stopped) => None,
            failed = accepting.join_next() => failed,
        };
        match failed {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            Some(Ok(Ok(never))) => match never {},
            None => {}
        }
        drop(accepting);
        let all_gone = async {
            while tables.iter().any(|table| table.connections() > 0) {
                sleep(LAST_RESPONSES_INTERVAL).await;
            }
        };
        // After this timeout, a client that has not read its last response loses it.
        let _ = timeout(LAST_RESPONSES, all_gone).await;
        Ok(())
    })
}

/// Accepts sockets until the task is dropped.
async fn accept(
    listener: AsyncFd<TcpListener>,
    http: Arc<HttpListener>,
    engine: Arc<Engine>,
    pace: Arc<Mutex<AcceptPace>>,
) -> io::Result<Infallible> {
    // Nothing under the lock can be left half done.
    let pace = || pace.lock().unwrap_or_else(PoisonError::into_inner);
    let mut backing_off = false;
    loop {
        let mut ready = listener.readable().await?;
        let rate = engine.live().accept_rate;
        for _ in 0..ACCEPT_CHUNK {
            let wait = rate.and_then(|rate| pace().reserve(rate, Instant::now().into_std()));
            if let Some(wait) = wait {
                http::wakes::flush(&engine);
                sleep(wait).await;
            }
            let accepted = accept_one(listener.get_ref());
            if rate.is_some() && accepted.is_err() {
                pace().give_back();
            }
            match accepted {
                Ok((stream, peer)) => {
                    if std::mem::take(&mut backing_off) {
                        tracing::info!("accepting again");
                    }
                    http::take(&http, stream, peer).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                Err(error) if is_full(&error) => {
                    // Closing the connection with the least progress frees a file for the next one.
                    if http.make_room() {
                        engine.rejections.count(Rejection::Handshakes);
                        break;
                    }
                    if !std::mem::replace(&mut backing_off, true) {
                        tracing::warn!("cannot accept: {error}; raise the limit of open files or let clients go");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                    break;
                }
                // The client has already disconnected (ECONNABORTED and the like): accept the next
                // one.
                Err(error) => tracing::debug!("accept: {error}"),
            }
        }
        http::wakes::flush(&engine);
        yield_now().await;
    }
}

/// Accepts one non-blocking socket. Returns it with its peer's address, if it has one.
fn accept_one(listener: &TcpListener) -> io::Result<(TcpStream, Option<IpAddr>)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes a valid address into `storage`, and its length into `length`; both
    // are writable.
    let accepted = unsafe {
        SockAddr::try_init(|storage, length| {
            let fd = libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
        })
    };
    let (fd, peer) = accepted?;
    // SAFETY: the kernel has just created the descriptor, and this is its only owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((fd.into(), peer.as_socket().map(|peer| peer.ip())))
}

/// Lowers the priority of this thread, so that shards on the same core go first.
fn lower_priority() {
    // SAFETY: the call touches no memory. In Linux it lowers the priority of the calling thread
    // only, which is always allowed.
    unsafe { libc::nice(FRONT_NICE) };
}

/// Whether the process, or the machine, has no room for another file.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
