//! Fuzzes `http`: sends any bytes in any pieces to an HTTP connection, or valid publications.
//!
//! Checks that the connection ends, that all answers are HTTP, and that each 202 stands for one
//! publication within the limits with exactly the bytes that were sent. The clock advances only
//! while all tasks wait.
//!
//! The first bytes of the input describe the client. The rest is what it sends or publishes.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use hydrant::config::Config;
use hydrant::engine::publication::{Accepted, ChannelName, Origin, Publication, PublishError};
use hydrant::engine::{Engine, Item};
use hydrant::http::{HttpListener, serve_alone};
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
            message_bytes_max: MESSAGE_BYTES_MAX,
            token: token.map(Into::into),
            // Everything on one port, for everybody.
            admin_listen: Config::default().listen.pop(),
            open: true,
            ..Config::default()
        };
        let (_, served) = config.listeners().remove(0);
        // There is no admin thread: requests to it are answered as during a drain.
        let engine = Engine::new(config, mpsc::channel(1).0);
        let listener = HttpListener::new(engine.clone(), served, None);
        Self { runtime, engine, listener }
    }

    /// The sequencer of every channel: accepts or refuses each publication and keeps it.
    async fn sequencer(&self, refuses: bool, taken: &RefCell<Vec<(Publication, bool)>>) -> Infallible {
        let inbox = &self.engine.inboxes[0];
        loop {
            inbox.pushed().await;
            inbox.clear_signal();
            while let Some(item) = inbox.pop() {
                self.take(item, refuses, taken);
            }
        }
    }

    fn take(&self, item: Item, refuses: bool, taken: &RefCell<Vec<(Publication, bool)>>) {
        match item {
            Item::Publish(mut publication) => {
                self.engine.inboxes[0].release(publication.frame.wire().len());
                let offset = taken.borrow().len() as u64;
                let Origin::Request(answer) = std::mem::replace(&mut publication.origin, Origin::Server) else {
                    panic!("only requests publish here");
                };
                let result = if refuses { Err(PublishError::Overloaded) } else { Ok(Accepted { offset, matched: 7 }) };
                answer.send(result);
                drop(publication.receipt.take());
                taken.borrow_mut().push((publication, result.is_ok()));
            }
            Item::Count { .. } | Item::Panic => {}
            other => panic!("HTTP never sends {other:?}"),
        }
    }

    fn converse(&self, bytes: &[u8], client: &Client, refuses: bool) -> Outcome {
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
                never = self.sequencer(refuses, &taken) => match never {},
            }
        });
        // Items of a client that has disconnected.
        while let Some(item) = self.engine.inboxes[0].pop() {
            self.take(item, refuses, &taken);
        }
        assert_eq!(self.engine.registry.reserved(), 0, "a reserved connection was not released");
        Outcome { output, publications: taken.into_inner(), ended_after }
    }
}

/// Statuses and bodies of the answers in `output`, which has to contain complete answers only.
fn answers(output: &[u8]) -> Vec<(u16, &[u8])> {
    let mut rest = output;
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(rest);
        let Ok(httparse::Status::Complete(head)) = parsed else { panic!("{parsed:?}: {}", rest.escape_ascii()) };
        let status = answer.code.expect("it is complete");
        let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        rest = &rest[head..];
        assert!((100..=599).contains(&status) && status != 500, "{status}");
        if status == 101 {
            assert!(rest.is_empty(), "HTTP after an upgrade");
        } else if status >= 200 {
            let length: usize =
                length.map_or("0".into(), |header| String::from_utf8_lossy(header.value)).parse().expect("a length");
            // An answer to HEAD names the length of a body that is not sent.
            let is_head = rest.is_empty() || rest.starts_with(b"HTTP/1.");
            let body = if is_head { &[] } else { rest.split_off(..length).expect("a whole body") };
            answers.push((status, body));
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
fn check<'a>(sent: &[u8], client: &Client, has_token: bool, outcome: &'a Outcome) -> Vec<(u16, &'a [u8])> {
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
    // After the client's end the server waits no longer; a silent client has time for a head and a body.
    let most = match client.ending {
        Ending::Waits => {
            let Config { handshake_timeout, keep_alive_timeout, .. } = Config::default();
            // A kept connection lives some seconds longer than announced.
            2 * handshake_timeout + keep_alive_timeout + 5 * PATIENCE
        }
        Ending::HalfCloses | Ending::Disconnects => PATIENCE,
    };
    assert!(outcome.ended_after <= most, "{client:?}: ended after {:?}", outcome.ended_after);
    if client.ending == Ending::Disconnects {
        return Vec::new();
    }
    let answers = answers(&outcome.output);
    let accepted = outcome.publications.iter().filter(|(_, accepted)| *accepted).count();
    // A publication to several channels gets a list with one entry each; an entry has an offset if it was accepted.
    let bodies = answers.iter().filter(|(status, body)| *status == 202 && body.starts_with(b"{"));
    let lists = answers.iter().filter(|(_, body)| body.starts_with(b"["));
    let mut receipts: Vec<Value> = bodies.map(|(_, body)| serde_json::from_slice(body).expect("JSON")).collect();
    for (_, list) in lists {
        let list: Vec<Value> = serde_json::from_slice(list).expect("JSON");
        receipts.extend(list.into_iter().filter(|entry| entry.get("error").is_none()));
    }
    assert_eq!(receipts.len(), accepted, "a receipt for each publication");
    for receipt in receipts {
        let offset = receipt["offset"].as_u64().expect("an offset");
        assert_eq!(receipt["channel"], outcome.publications[offset as usize].0.channel.as_str());
    }
    answers
}

/// A valid publication.
#[derive(Arbitrary, Debug)]
struct Post {
    channel: Channel,
    body: Vec<u8>,
    /// The body is repeated `times % 8 + 1` times.
    times: u8,
    binary: bool,
    /// Lengths of the chunks; if empty, the request has a `Content-Length`.
    chunks: Vec<u8>,
    expects_continue: bool,
    wants_receipt: bool,
}

#[derive(Arbitrary, Debug)]
enum Channel {
    All,
    Room(u8),
    Escaped(u8),
    Invalid,
}

impl Post {
    fn channel(&self) -> Option<String> {
        match self.channel {
            Channel::All => Some("all".to_owned()),
            Channel::Room(number) | Channel::Escaped(number) => Some(format!("room:{number}")),
            Channel::Invalid => None,
        }
    }

    fn body(&self) -> Vec<u8> {
        self.body.repeat(usize::from(self.times % 8) + 1)
    }

    fn write(&self, wire: &mut Vec<u8>, token: Option<&str>) {
        let path = match self.channel {
            Channel::All => String::new(),
            Channel::Room(number) => format!("/room:{number}"),
            Channel::Escaped(number) => format!("/%72oom%3a{number}"),
            Channel::Invalid => "/a%20b".to_owned(),
        };
        let query = if self.wants_receipt { "?receipt=1" } else { "" };
        let mut head = format!("POST /publish{path}{query} HTTP/1.1\r\nHost: localhost\r\n");
        let body = self.body();
        if let Some(token) = token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        if self.binary {
            head += "content-type: Application/Octet-Stream; x=1\r\n";
        }
        if self.expects_continue {
            head += "Expect: 100-continue\r\n";
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

/// Sends publications and checks that exactly these are published, in order.
fn publish(stage: &Stage, token: Option<&str>, client: &Client, refuses: bool, posts: &[Post]) {
    let mut sent = Vec::new();
    let (mut statuses, mut published) = (Vec::new(), Vec::new());
    // After an answer to a request whose body was not read, the server may close the connection.
    let mut certain = None;
    for post in posts {
        post.write(&mut sent, token);
        let body = post.body();
        let status = match post.channel() {
            None => 400,
            Some(_) if body.len() > MESSAGE_BYTES_MAX => 413,
            Some(channel) => {
                // Without a type, a body that is not UTF-8 is binary.
                let binary = post.binary || str::from_utf8(&body).is_err();
                published.push((channel, binary, body.clone()));
                if refuses { 503 } else { 202 }
            }
        };
        statuses.push(status);
        if post.channel().is_none() || body.len() > MESSAGE_BYTES_MAX {
            certain.get_or_insert((statuses.len(), published.len()));
        }
    }
    let outcome = stage.converse(&sent, client, refuses);
    let answers = check(&sent, client, token.is_some(), &outcome);
    let found: Vec<_> = outcome
        .publications
        .iter()
        .map(|(publication, _)| {
            let (binary, bytes) = payload(publication);
            (publication.channel.as_str().to_owned(), binary, bytes.to_vec())
        })
        .collect();
    assert!(published.starts_with(&found), "{found:?} of {published:?}");
    if client.ending != Ending::Disconnects {
        let answered: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
        let (answers_min, published_min) = certain.unwrap_or((statuses.len(), published.len()));
        assert!(statuses.starts_with(&answered), "{answered:?} of {statuses:?}");
        assert!(answered.len() >= answers_min && found.len() >= published_min, "{answered:?} of {statuses:?}");
    }
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
    let (has_token, refuses, careful) = (kind & 0x10 != 0, kind & 0x20 != 0, kind & 0x80 != 0);
    let token = has_token.then_some(TOKEN);
    STAGES.with(|stages| {
        let stage = &stages[usize::from(has_token)];
        if careful {
            let posts: Vec<Post> = input.arbitrary()?;
            publish(stage, token, &client, refuses, &posts);
        } else {
            let sent = input.take_rest();
            check(sent, &client, has_token, &stage.converse(sent, &client, refuses));
        }
        Ok(())
    })
}

fuzz_target!(|input: &[u8]| {
    // An error means that the input is too short; there is nothing to test.
    let _ = run(input);
});
