//! Tools of the integration tests: a server in this process, the real binary, and clients for HTTP
//! and WebSocket that send exactly the given bytes and do nothing on their own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hydrant::engine::{Engine, ShardStats};
use hydrant::server::Server;
use hydrant::settings::{Config, SlowPolicy, Strategy};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::oneshot;

/// How long a test waits for an expected event before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const STRATEGIES: [Strategy; 4] = [Strategy::Direct, Strategy::Wake, Strategy::Ring, Strategy::Mailbox];
pub const POLICIES: [SlowPolicy; 3] = [SlowPolicy::Disconnect, SlowPolicy::DropNewest, SlowPolicy::DropOldest];

/// No tick, one free port for everything, two shards, and timeouts that are long enough for a busy
/// machine.
pub fn config() -> Config {
    Config {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()],
        admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0)).into()),
        open: true,
        shards: 2.try_into().unwrap(),
        tick: None,
        // No timeout but the one under test may end a client, even if the machine pauses for half a
        // minute.
        drain_timeout: PATIENCE,
        close_timeout: PATIENCE,
        handshake_timeout: PATIENCE,
        write_timeout: 2 * PATIENCE,
        ping_interval: None,
        ..Config::default()
    }
}

/// As [`config`], with clients at one port, and publishing and administration at the next in
/// `addresses`.
pub fn two_ports() -> Config {
    Config { admin_listen: None, open: false, ..config() }
}

/// A server in this process. `drop` drains it.
pub struct TestServer {
    pub address: SocketAddr,
    /// The address of every port, in the order of [`Config::listeners`].
    pub addresses: Vec<SocketAddr>,
    pub engine: Arc<Engine>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<ShardStats>>,
}

/// Number of panics on threads of servers. A panic in a task aborts the real binary; in a test,
/// tokio would swallow it.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_of_a_server = |name: &str| name.starts_with("shard-") || name.starts_with("http-");
            if thread::current().name().is_some_and(is_of_a_server) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            print(panic);
        }));
    });
}

impl TestServer {
    pub fn start(config: Config) -> Self {
        count_panics();
        hydrant::cli::raise_open_files().unwrap();
        config.check().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (started, start) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
            runtime.block_on(async {
                let server = Server::bind(config).unwrap();
                started.send((server.addresses().collect::<Vec<_>>(), server.engine())).unwrap();
                server.run(async { drop(stopped.await) }).await.unwrap()
            })
        });
        let (addresses, engine) = start.recv_timeout(PATIENCE).unwrap();
        Self { address: addresses[0], addresses, engine, stop: Some(stop), thread: Some(thread) }
    }

    /// Starts the drain.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Drains the server and returns its last statistics.
    pub fn finish(mut self) -> ShardStats {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn stats(&self) -> ShardStats {
        self.answered(self.engine.stats())
    }

    pub fn socket_stats(&self) -> ShardStats {
        self.answered(self.engine.socket_stats())
    }

    fn answered(&self, report: impl Future<Output = Option<ShardStats>>) -> ShardStats {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(report).expect("every shard answers")
    }

    /// Waits until the statistics are as wanted, and checks the conservation law.
    pub fn stats_until(&self, wanted: impl Fn(&ShardStats) -> bool) -> ShardStats {
        let report = until(|| Some(self.stats()).filter(&wanted), || format!("{:?}", self.stats()));
        assert_eq!(report.totals.outstanding(), report.pending, "the conservation law: {report:?}");
        report
    }

    /// Waits until `number` connections are registered.
    pub fn wait_for_connections(&self, number: usize) {
        until(|| (self.engine.registry.len() == number).then_some(()), || format!("{}", self.engine.registry.len()));
    }

    pub fn client(&self, path: &str) -> Client {
        Client::connect(self.address, path)
    }

    /// Publishes to a channel, waits for the end of the fan-out, and returns the receipt.
    pub fn publish(&self, channel: &str, body: &[u8]) -> Published {
        publish(self.address, channel, body)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "the server panicked");
            assert!(PANICS.load(Ordering::Relaxed) == 0 || thread::panicking(), "a task of a server panicked");
        }
    }
}

/// Calls `look` until it returns a value; fails with `why` after [`PATIENCE`].
pub fn until<T>(mut look: impl FnMut() -> Option<T>, why: impl Fn() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {}", why());
        thread::sleep(Duration::from_millis(2));
    }
}

/// The answer to `?receipt=1`.
#[derive(Debug, PartialEq, serde::Deserialize)]
pub struct Published {
    pub channel: String,
    pub offset: u64,
    pub matched: u64,
    pub delivered: u64,
    pub dropped: u64,
    pub pending: u64,
    pub fanout_us: u64,
}

pub fn publish(address: SocketAddr, channel: &str, body: &[u8]) -> Published {
    let answer = request(address, "POST", &format!("/publish/{channel}?receipt=1"), &[], body);
    assert_eq!(answer.status, 202, "{}", answer.body);
    let published: Published = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(published.matched, published.delivered + published.dropped + published.pending, "{published:?}");
    published
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let matches = |line: &&str| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name));
        self.head.lines().find(matches).map(|line| line[name.len() + 1..].trim())
    }
}

/// Connects and sends `first`.
pub fn begin(address: SocketAddr, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(first).unwrap();
    stream
}

/// Sends one request on a new connection and reads the answer.
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("Transfer-Encoding")) {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    headers.iter().for_each(|header| head += &format!("{header}\r\n"));
    read_answer_to(method, &mut begin(address, &[head.as_bytes(), b"\r\n", body].concat()))
}

/// Reads one answer to the end of its body.
pub fn read_answer(stream: &mut impl Read) -> Answer {
    read_answer_to("GET", stream)
}

/// As [`read_answer`], for the given method: an answer to HEAD has a `Content-Length` but no body.
pub fn read_answer_to(method: &str, stream: &mut impl Read) -> Answer {
    let head = read_head(stream);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut answer =
        Answer { status: status.unwrap_or_else(|| panic!("no status: {head:?}")), head, body: String::new() };
    let length = if method == "HEAD" { None } else { answer.header("content-length") };
    let length = length.map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

/// Reads byte by byte, so that bytes behind the head stay in the socket.
fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

pub const HANDSHAKE: [&str; 4] = [
    "Upgrade: websocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// A message or control frame from the server, or the end of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    End,
}

/// A stream with a receive buffer that a few messages fill.
pub fn narrow_stream(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// A WebSocket client without timers or automatic answers.
pub struct Client<S = TcpStream> {
    pub stream: S,
}

impl Client {
    pub fn connect(address: SocketAddr, path: &str) -> Self {
        Self::upgrade(TcpStream::connect(address).unwrap(), path)
    }

    /// Connects over a [`narrow_stream`].
    pub fn connect_narrow(address: SocketAddr, path: &str) -> Self {
        Self::upgrade(narrow_stream(address), path)
    }

    fn upgrade(stream: TcpStream, path: &str) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::shake_hands(stream, path)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn shake_hands(mut stream: S, path: &str) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
        stream.write_all(head.as_bytes()).unwrap();
        let answer = read_head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        // The answer to the key that RFC 6455 uses as its example (section 1.3).
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        Self { stream }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.send_raw(&masked(first, payload));
    }

    pub fn text(&mut self, text: &str) {
        self.send(0x81, text.as_bytes());
    }

    /// Reads the next message or control frame.
    pub fn receive(&mut self) -> Received {
        let mut head = [0; 2];
        if let Err(error) = self.stream.read_exact(&mut head[..1]) {
            assert_eq!(
                error.kind(),
                io::ErrorKind::UnexpectedEof,
                "neither a frame nor the end of the stream: {error}"
            );
            return Received::End;
        }
        self.stream.read_exact(&mut head[1..]).unwrap();
        let length = match head[1] {
            126 => u64::from(u16::from_be_bytes(self.bytes())),
            127 => u64::from_be_bytes(self.bytes()),
            length => u64::from(length),
        };
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        let text = |payload| String::from_utf8(payload).unwrap();
        match (head[0], payload.len()) {
            (0x81, _) => Received::Text(text(payload)),
            (0x82, _) => Received::Binary(payload),
            (0x89, _) => Received::Ping(payload),
            (0x8a, _) => Received::Pong(payload),
            (0x88, 0) => Received::Close(None, String::new()),
            (0x88, _) => {
                let reason = payload.split_off(2);
                Received::Close(Some(u16::from_be_bytes([payload[0], payload[1]])), text(reason))
            }
            (first, _) => panic!("unexpected frame that starts with {first:#x}"),
        }
    }

    /// Reads the next message, which has to be text.
    pub fn receive_text(&mut self) -> String {
        match self.receive() {
            Received::Text(text) => text,
            other => panic!("not a text: {other:?}"),
        }
    }

    /// Reads text messages up to the close frame; returns them and its code.
    pub fn receive_to_close(&mut self) -> (Vec<String>, Option<u16>) {
        let mut texts = Vec::new();
        loop {
            match self.receive() {
                Received::Text(text) => texts.push(text),
                Received::Close(code, _) => return (texts, code),
                other => panic!("neither a text nor a close frame: {other:?}"),
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// A frame with a mask, as clients send it.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut wire = vec![first];
    match payload.len() {
        length @ 0..126 => wire.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            wire.push(0x80 | 126);
            wire.extend((length as u16).to_be_bytes());
        }
        length => {
            wire.push(0x80 | 127);
            wire.extend((length as u64).to_be_bytes());
        }
    }
    wire.extend(MASK);
    wire.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    wire
}

/// The real binary as a child process. `drop` kills it.
pub struct Binary {
    pub address: SocketAddr,
    child: Child,
    log: mpsc::Receiver<String>,
    /// Lines of its log that were read so far.
    pub seen: Vec<String>,
}

impl Binary {
    pub fn start(flags: &[&str]) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_hydrant")), flags)
    }

    /// As [`Binary::start`], under a limit of `files` open files.
    pub fn start_with_files(files: u32, flags: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_hydrant")]);
        Self::start_as(shell, flags)
    }

    fn start_as(mut command: Command, flags: &[&str]) -> Self {
        // Everything on one port, unless a flag says otherwise.
        command
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--open", "--tick", "0"])
            .args(flags)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (line, log) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|text| line.send(text)));
        let mut binary = Self { address: SocketAddr::from(([0, 0, 0, 0], 0)), child, log, seen: Vec::new() };
        let listening = binary.wait_for_line("listening on ");
        binary.address = listening.split("listening on ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        binary
    }

    /// Reads the log up to the next line that contains `text`.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line with {text:?} in {:?}", self.seen));
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        let pid = self.pid() as libc::pid_t;
        // SAFETY: a plain system call; the process is our child and not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// How the process has ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end of the process, and reads the rest of its log.
    pub fn wait(&mut self) -> ExitStatus {
        let status = until(|| self.child.try_wait().unwrap(), || "it still runs".to_owned());
        self.seen.extend(self.log.iter());
        status
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
