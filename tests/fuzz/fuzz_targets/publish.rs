//! Fuzzes `http`: sends any bytes in any pieces to an HTTP connection, or requests whose answers
//! are known.
//!
//! Checks that the connection ends in time, that all answers are HTTP, that each of them either
//! announces how long the connection is kept or ends it, and that each 202 stands for one
//! publication within the limits with exactly the bytes that were sent. The clock advances only
//! while all tasks wait.
//!
//! The first bytes of the input describe the client. The rest is what it sends.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use hydrant::engine::publication::{Accepted, ChannelName, Origin, Publication, PublishError};
use hydrant::engine::{Engine, Item};
use hydrant::http::{HttpListener, serve_alone};
use hydrant::settings::Config;
use hydrant::wire::frame::header_bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Longest message in bytes; short, so that the fuzzer finds longer ones.
const MESSAGE_BYTES_MAX: usize = 64;
const TOKEN: &str = "t0ken";
/// Pause between two pieces that a client sends.
const PAUSE: Duration = Duration::from_millis(1);
/// Time after which a client gives up whose bytes the server does not read.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the server waits for the rest of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection lives: 75 s, as it announces, and 2 s of grace.
const IDLE_TIMEOUT: Duration = Duration::from_secs(77);
/// By how much the last byte of a request may come after the first, and for the clock's precision.
const EARLIER: Duration = Duration::from_millis(100);

/// How the client ends its side of the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// It closes its sending half and reads the answers.
    HalfCloses,
    /// It keeps the connection open and reads the answers.
    Waits,
    /// It reads nothing and disconnects.
    Disconnects,
}

#[derive(Debug)]
struct Client {
    ending: Ending,
    /// Capacity of each direction of the pipe, in bytes.
    pipe_bytes: usize,
    /// Lengths of its writes, repeated as needed; if empty, all bytes are one write.
    pieces: Vec<u8>,
}

/// Result of one HTTP connection.
struct Outcome {
    output: Vec<u8>,
    /// In order of arrival; `true` if accepted.
    publications: Vec<(Publication, bool)>,
    /// Time from the client's last byte to the end of the connection.
    ended_after: Duration,
}

/// The front of a server with one listener; this file replaces its sequencer.
struct Stage {
    runtime: Runtime,
    engine: Arc<Engine>,
    listener: Arc<HttpListener>,
}

impl Stage {
    fn new(token: Option<&str>) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let config = Config {
            shards: std::num::NonZero::<usize>::MIN,
            // Everything on one port, for everybody.
            admin_listen: Config::default().listen.pop(),
            open: true,
            message_bytes_max: MESSAGE_BYTES_MAX,
            token: token.map(Into::into),
            ..Config::default()
        };
        // There is no admin thread: requests to it are answered as during a drain.
        let (_, served) = config.listeners().remove(0);
        assert!(served.websockets && served.admin, "it serves everything");
        let engine = Engine::new(config, mpsc::channel(1).0);
        let listener = HttpListener::new(engine.clone(), served, None);
        Self { runtime, engine, listener }
    }

    /// The sequencer of every channel: accepts or rejects each publication and keeps it.
    async fn sequencer(&self, rejects: bool, taken: &RefCell<Vec<(Publication, bool)>>) -> Infallible {
        let inbox = &self.engine.inboxes[0];
        loop {
            inbox.pushed().await;
            inbox.clear_signal();
            while let Some(item) = inbox.pop() {
                self.take(item, rejects, taken);
            }
        }
    }

    fn take(&self, item: Item, rejects: bool, taken: &RefCell<Vec<(Publication, bool)>>) {
        match item {
            Item::Publish(mut publication) => {
                self.engine.inboxes[0].release(publication.frame.wire().len());
                let offset = taken.borrow().len() as u64;
                let Origin::Request(reply) = std::mem::replace(&mut publication.origin, Origin::Server) else {
                    panic!("only requests publish here");
                };
                let result = if rejects { Err(PublishError::Overloaded) } else { Ok(Accepted { offset, matched: 7 }) };
                reply.send(result);
                drop(publication.receipt.take());
                taken.borrow_mut().push((publication, result.is_ok()));
            }
            Item::Count { .. } | Item::Panic => {}
            other => panic!("HTTP never sends {other:?}"),
        }
    }

    fn converse(&self, bytes: &[u8], client: &Client, rejects: bool) -> Outcome {
        let taken = RefCell::default();
        let (ours, theirs) = duplex(client.pipe_bytes);
        let server = async {
            let ended = timeout(Duration::from_hours(1), serve_alone(&self.listener, ours)).await;
            assert!(ended.is_ok(), "the HTTP connection does not end");
            Instant::now()
        };
        let client = async {
            let (mut reader, mut writer) = split(theirs);
            let mut output = Vec::new();
            let write = async {
                let mut rest = bytes;
                let mut pieces = client.pieces.iter().cycle();
                while !rest.is_empty() {
                    let length = pieces.next().map_or(rest.len(), |&length| length.into()).clamp(1, rest.len());
                    // Fails if the server has closed the connection.
                    if writer.write_all(&rest[..length]).await.is_err() {
                        break;
                    }
                    rest = &rest[length..];
                    sleep(PAUSE).await;
                }
                if client.ending == Ending::HalfCloses {
                    let _ = writer.shutdown().await;
                }
                Instant::now()
            };
            let last_byte = if client.ending == Ending::Disconnects {
                timeout(PATIENCE, write).await.unwrap_or_else(|_| Instant::now())
            } else {
                let (last_byte, read) = tokio::join!(write, reader.read_to_end(&mut output));
                read.expect("a pipe does not fail");
                last_byte
            };
            (output, last_byte)
        };
        let (output, ended_after) = self.runtime.block_on(async {
            tokio::select! {
                ((output, last_byte), end) = async { tokio::join!(client, server) } => {
                    (output, end.saturating_duration_since(last_byte))
                }
                never = self.sequencer(rejects, &taken) => match never {},
            }
        });
        // Items of a client that has disconnected.
        while let Some(item) = self.engine.inboxes[0].pop() {
            self.take(item, rejects, &taken);
        }
        assert_eq!(self.engine.registry.reserved(), 0, "a reserved connection was not released");
        assert_eq!(self.engine.loads[0].get(), 0, "a permit was not released");
        Outcome { output, publications: taken.into_inner(), ended_after }
    }
}

/// A whole answer.
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
    /// The connection is kept for another request.
    kept: bool,
    /// Whether the answer says how long the connection is kept.
    announced: bool,
}

/// The answers in `output`, which has to contain complete answers only, and nothing behind the last
/// one.
fn answers(output: &[u8]) -> Vec<Answer<'_>> {
    let mut rest = output;
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(rest);
        let Ok(httparse::Status::Complete(head)) = parsed else { panic!("{parsed:?}: {}", rest.escape_ascii()) };
        let status = answer.code.expect("it is complete");
        let values = |name: &'static str| {
            let headers = answer.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
            headers.map(|header| header.value)
        };
        let shown = rest[..head].escape_ascii();
        rest = &rest[head..];
        assert!((100..=599).contains(&status) && status != 500, "{status}");
        if status == 101 {
            assert!(rest.is_empty(), "HTTP after an upgrade");
            answers.push(Answer { status, body: &[], kept: false, announced: false });
        } else if status >= 200 {
            let length = values("content-length").next();
            let length: usize = length.map_or("0".into(), String::from_utf8_lossy).parse().expect("a length");
            // An answer to HEAD names the length of a body that is not sent.
            let is_head = rest.is_empty() || rest.starts_with(b"HTTP/1.");
            let body = if is_head { &[] } else { rest.split_off(..length).expect("a whole body") };
            let mut options = values("connection").flat_map(|value| value.split(|&byte| byte == b','));
            let closes = options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
            let announced = values("keep-alive").eq([b"timeout=75"]);
            assert!(closes || announced, "neither kept nor ended: {shown}");
            assert!(!closes || rest.is_empty(), "more than the last answer: {}", rest.escape_ascii());
            answers.push(Answer { status, body, kept: !closes, announced });
        }
    }
    answers
}

fn payload(publication: &Publication) -> (bool, &[u8]) {
    let wire = publication.frame.wire();
    let header = header_bytes(wire);
    (wire[0] == 0x82, &wire[header..])
}

/// Checks everything that holds for any input; returns the answers.
fn check<'a>(sent: &[u8], client: &Client, has_token: bool, outcome: &'a Outcome) -> Vec<Answer<'a>> {
    for (publication, _) in &outcome.publications {
        let (binary, bytes) = payload(publication);
        assert!(bytes.len() <= MESSAGE_BYTES_MAX, "a message beyond the bound");
        let again = if binary {
            hydrant::wire::Frame::binary(bytes)
        } else {
            hydrant::wire::Frame::text(str::from_utf8(bytes).expect("text is UTF-8"))
        };
        assert_eq!(publication.frame, again);
        let mut rest = sent.iter();
        assert!(bytes.iter().all(|byte| rest.any(|sent| sent == byte)), "no client sent {}", bytes.escape_ascii());
        assert!(ChannelName::new(publication.channel.as_str()).is_ok());
        let shows_token = sent.windows(TOKEN.len()).any(|bytes| bytes == TOKEN.as_bytes());
        assert!(!has_token || shows_token, "published without the token");
    }
    let answers = if client.ending == Ending::Disconnects { Vec::new() } else { answers(&outcome.output) };
    // After the client's end the server waits no longer. A silent client has time for the rest of
    // its request, or for another one.
    let most = match client.ending {
        Ending::Waits if answers.last().is_some_and(|answer| answer.kept) => IDLE_TIMEOUT + PATIENCE,
        Ending::Waits => REQUEST_TIMEOUT + PATIENCE,
        Ending::HalfCloses | Ending::Disconnects => PATIENCE,
    };
    assert!(outcome.ended_after <= most, "{client:?}: ended after {:?}", outcome.ended_after);
    if client.ending == Ending::Disconnects {
        return answers;
    }
    let published = (0_u64..).zip(&outcome.publications).filter(|(_, (_, accepted))| *accepted);
    let published: Vec<_> =
        published.map(|(offset, (publication, _))| (offset, publication.channel.as_str())).collect();
    let mut receipts = Vec::new();
    // The 202 of `/debug/panic` is plain text.
    for answer in answers.iter().filter(|answer| answer.status == 202 && !answer.body.starts_with(b"shard")) {
        match serde_json::from_slice(answer.body).expect("JSON") {
            Value::Array(several) => receipts.extend(several),
            one => receipts.push(one),
        }
    }
    let receipts: Vec<_> = receipts
        .iter()
        .map(|receipt| (receipt["offset"].as_u64().expect("an offset"), receipt["channel"].as_str().expect("a name")))
        .collect();
    assert_eq!(receipts, published, "an offset for each publication");
    answers
}

/// A request whose answer is known.
#[derive(Arbitrary, Debug)]
enum Request {
    Post(Post),
    /// One of `OTHERS`.
    Other(u8),
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// Stands for one header more than the server reads.
const TOO_MANY_HEADERS: &str = "65";

/// Requests that publish nothing: method and path, headers, the status of the answer, and whether
/// the connection is kept.
const OTHERS: [(&str, &str, u16, bool); 16] = [
    ("GET /", "", 200, true),
    ("GET /healthz", "Connection: close\r\n", 200, false),
    ("GET //healthz/", "", 200, true),
    ("HEAD /readyz", "", 200, true),
    ("OPTIONS /publish", "", 200, true),
    ("GET /ws?channel=a", HANDSHAKE, 101, false),
    ("GET /echo/", HANDSHAKE, 101, false),
    ("not", "", 400, false),
    ("GET /ws?room=a", HANDSHAKE, 400, true),
    ("GET /nowhere", "", 404, true),
    ("GET /publish", "", 405, true),
    ("DELETE /ws", "", 405, true),
    ("GET /ws", "", 426, true),
    ("GET /echo", "Upgrade: websocket\r\n", 426, true),
    ("GET /healthz", TOO_MANY_HEADERS, 431, false),
    // There is no admin thread.
    ("GET /metrics", "", 503, true),
];

/// A publication, which the server takes unless something about it is wrong.
#[derive(Arbitrary, Debug)]
struct Post {
    channel: Channel,
    query: Query,
    kind: Kind,
    body: Vec<u8>,
    /// The body is repeated `times % 8 + 1` times.
    times: u8,
    /// Lengths of the chunks; if empty, the request has a `Content-Length`.
    chunks: Vec<u8>,
    trailing_slash: bool,
    expects_continue: bool,
    wrong_token: bool,
    closes: bool,
}

#[derive(Arbitrary, Debug)]
enum Channel {
    All,
    Room(u8),
    Escaped(u8),
    Invalid,
}

#[derive(Arbitrary, Debug)]
enum Query {
    None,
    Receipt,
    /// Another channel.
    Room(u8),
    Unknown,
    Twice,
}

/// The headers that say what the body is.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Kind {
    None,
    Text,
    Json,
    Binary,
    Lines,
    Charset,
    Compressed,
}

/// The right answer to a request.
#[derive(Debug)]
struct Expected {
    status: u16,
    /// Whether the server keeps the connection; `None` if that depends on how much it has read.
    kept: Option<bool>,
    /// Channel, whether it is binary, and body of each publication.
    published: Vec<(String, bool, Vec<u8>)>,
}

impl Request {
    /// Writes the request, and says what has to become of it.
    fn write(&self, wire: &mut Vec<u8>, token: Option<&str>, rejects: bool) -> Expected {
        match self {
            Self::Post(post) => {
                post.write(wire, token);
                post.expected(token.is_some(), rejects)
            }
            Self::Other(index) => {
                let (line, headers, status, kept) = OTHERS[usize::from(*index) % OTHERS.len()];
                let headers = if headers == TOO_MANY_HEADERS { "a: b\r\n".repeat(65) } else { headers.to_owned() };
                let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
                wire.extend(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{token}{headers}\r\n").into_bytes());
                Expected { status, kept: Some(kept), published: Vec::new() }
            }
        }
    }
}

impl Post {
    fn body(&self) -> Vec<u8> {
        self.body.repeat(usize::from(self.times % 8) + 1)
    }

    fn expected(&self, has_token: bool, rejects: bool) -> Expected {
        let body = self.body();
        let is_too_long = body.len() > MESSAGE_BYTES_MAX;
        let is_utf8 = str::from_utf8(&body).is_ok();
        let is_binary = self.kind == Kind::Binary || self.kind == Kind::None && !is_utf8;
        let status = if has_token && self.wrong_token {
            401
        } else if matches!(self.channel, Channel::Invalid) || matches!(self.query, Query::Unknown | Query::Twice) {
            400
        } else if matches!(self.kind, Kind::Lines | Kind::Charset | Kind::Compressed) {
            415
        } else if is_too_long {
            413
        } else if !is_utf8 && !is_binary {
            400
        } else if rejects {
            503
        } else {
            202
        };
        let mut channels = Vec::new();
        if let Channel::Room(number) | Channel::Escaped(number) = self.channel {
            channels.push(format!("room:{number}"));
        }
        if let Query::Room(number) = self.query {
            channels.push(format!("room:{number}"));
            channels.dedup();
        }
        if channels.is_empty() {
            channels.push("all".to_owned());
        }
        let published = channels.into_iter().map(|channel| (channel, is_binary, body.clone()));
        let kept = match status {
            _ if self.closes => Some(false),
            // The rest of a rejected body is read if it is short, and has come.
            _ if is_too_long => None,
            // Without the right token the server reads no body that is not there yet.
            401 if !body.is_empty() || !self.chunks.is_empty() => None,
            _ => Some(true),
        };
        Expected { status, kept, published: if matches!(status, 202 | 503) { published.collect() } else { Vec::new() } }
    }

    fn write(&self, wire: &mut Vec<u8>, token: Option<&str>) {
        let path = match self.channel {
            Channel::All => String::new(),
            Channel::Room(number) => format!("/room:{number}"),
            Channel::Escaped(number) => format!("/%72oom%3a{number}"),
            Channel::Invalid => "/a%20b".to_owned(),
        };
        let slash = if self.trailing_slash { "/" } else { "" };
        let query = match self.query {
            Query::None => String::new(),
            Query::Receipt => "?receipt=1".to_owned(),
            Query::Room(number) => format!("?channel=room%3A{number}"),
            Query::Unknown => "?room=a".to_owned(),
            Query::Twice => "?receipt=1&receipt=1".to_owned(),
        };
        let mut head = format!("POST /publish{path}{slash}{query} HTTP/1.1\r\nHost: localhost\r\n");
        let body = self.body();
        if let Some(token) = token {
            let token = if self.wrong_token { "wrong" } else { token };
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        head += match self.kind {
            Kind::None => "",
            Kind::Text => "Content-Type: text/plain\r\n",
            Kind::Json => "CONTENT-TYPE: Application/JSON; charset=utf-8\r\n",
            Kind::Binary => "content-type: Application/Octet-Stream; x=1\r\n",
            Kind::Lines => "Content-Type: application/x-ndjson\r\n",
            Kind::Charset => "Content-Type: text/plain; charset=utf-16\r\n",
            Kind::Compressed => "Content-Encoding: gzip\r\n",
        };
        if self.expects_continue {
            head += "Expect: 100-continue\r\n";
        }
        if self.closes {
            head += "Connection: close\r\n";
        }
        if self.chunks.is_empty() {
            head += &format!("Content-Length: {}\r\n\r\n", body.len());
            wire.extend(head.into_bytes());
            return wire.extend(body);
        }
        wire.extend(format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes());
        let mut rest = &body[..];
        for &length in &self.chunks {
            let chunk = rest.split_off(..rest.len().min(length.into())).unwrap_or_default();
            write_chunk(wire, chunk);
        }
        write_chunk(wire, rest);
        wire.extend(b"0\r\n\r\n");
    }
}

/// Writes a chunk unless it is empty: an empty chunk would end the body.
fn write_chunk(wire: &mut Vec<u8>, chunk: &[u8]) {
    if !chunk.is_empty() {
        wire.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
        wire.extend(chunk);
        wire.extend(b"\r\n");
    }
}

/// A request that ends before it is whole.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Part {
    None,
    Head,
    Body,
}

/// Sends requests and checks that each is answered as it has to be, and that exactly the
/// publications among them are published, in order.
fn converse_known(
    stage: &Stage,
    token: Option<&str>,
    client: &Client,
    rejects: bool,
    requests: &[Request],
    part: Part,
) {
    let mut sent = Vec::new();
    let all: Vec<_> = requests.iter().map(|request| request.write(&mut sent, token, rejects)).collect();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let rest = match part {
        Part::None => String::new(),
        Part::Head => "GET /healthz HTTP/1.1\r\nHos".to_owned(),
        Part::Body => format!("POST /publish HTTP/1.1\r\n{authorization}Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
    };
    sent.extend(rest.into_bytes());
    let outcome = stage.converse(&sent, client, rejects);
    let answers = check(&sent, client, token.is_some(), &outcome);
    let found = outcome.publications.iter().map(|(publication, _)| {
        let (binary, bytes) = payload(publication);
        (publication.channel.as_str().to_owned(), binary, bytes.to_vec())
    });
    let found: Vec<_> = found.collect();
    if client.ending == Ending::Disconnects {
        let published: Vec<_> = all.into_iter().flat_map(|expected| expected.published).collect();
        return assert!(published.starts_with(&found), "{found:?} of {published:?}");
    }
    let mut answers = answers.iter();
    let (mut published, mut kept, mut is_first) = (Vec::new(), true, true);
    for expected in all {
        if !kept {
            break;
        }
        let Some(answer) = answers.next() else { panic!("no answer: {expected:?}") };
        assert_eq!(answer.status, expected.status, "{}: {expected:?}", answer.body.escape_ascii());
        assert!(expected.kept.is_none_or(|kept| kept == answer.kept), "{expected:?}");
        // hyper ends the connection behind a request with two lengths, and hides them.
        assert_eq!(answer.announced, answer.kept, "{expected:?}");
        published.extend(expected.published);
        (kept, is_first) = (answer.kept, false);
    }
    assert_eq!(found, published);
    let last: Vec<_> = answers.map(|answer| answer.status).collect();
    let waits = client.ending == Ending::Waits;
    let right: &[u16] = match part {
        Part::Body if kept && waits => &[408],
        Part::Body if kept => &[400],
        Part::Head if kept && waits => &[408],
        _ => &[],
    };
    assert_eq!(last, right, "{part:?}");
    let least = match part {
        _ if !kept || !waits => Duration::ZERO,
        Part::None if !is_first => IDLE_TIMEOUT,
        _ => REQUEST_TIMEOUT,
    };
    assert!(outcome.ended_after + EARLIER >= least, "{client:?}: ended after {:?}", outcome.ended_after);
}

thread_local! {
    /// A server without a token, and one with a token.
    static STAGES: [Stage; 2] = [Stage::new(None), Stage::new(Some(TOKEN))];
}

fn run(input: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(input);
    let (kind, reads): (u8, u8) = (input.arbitrary()?, input.arbitrary()?);
    let client = Client {
        ending: [Ending::HalfCloses, Ending::HalfCloses, Ending::Waits, Ending::Disconnects][usize::from(kind & 3)],
        pipe_bytes: [65_536, 1024, 64, 1][usize::from(kind >> 2 & 3)],
        pieces: input.bytes(usize::from(reads & 7))?.to_vec(),
    };
    let (has_token, rejects, careful) = (kind & 0x10 != 0, kind & 0x20 != 0, kind & 0x80 != 0);
    let token = has_token.then_some(TOKEN);
    STAGES.with(|stages| {
        let stage = &stages[usize::from(has_token)];
        if careful {
            let part = input.arbitrary()?;
            let requests: Vec<Request> = input.arbitrary()?;
            converse_known(stage, token, &client, rejects, &requests, part);
        } else {
            let sent = input.take_rest();
            check(sent, &client, has_token, &stage.converse(sent, &client, rejects));
        }
        Ok(())
    })
}

fuzz_target!(|input: &[u8]| {
    // An error means that the input is too short; there is nothing to test.
    let _ = run(input);
});
