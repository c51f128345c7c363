//! `parse`: decodes the bytes that clients send into messages: `wire::inbound` beside
//! fastwebsockets' own reader.
//!
//! Both read from memory. In place of the system call, a copy fills the reader's own buffer; it
//! also restores the masked bytes that decoding in place has changed. A cell decodes one buffer of
//! frames again and again, and both sides must find the same number of messages and bytes in it.
//! fastwebsockets reads 8 KiB at a time and joins fragments in its `FragmentCollectorRead`; Hydrant
//! reads `engine::READ_BYTES` and copies only what arrived in part. fastwebsockets rejects less
//! (`wire::inbound` lists its further checks).

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use criterion::{BenchmarkId, Criterion, Throughput};
use fastwebsockets::{FragmentCollectorRead, Frame, OpCode, Role};
use hydrant::engine::READ_BYTES;
use hydrant::wire::inbound::{Decoder, Inbound, Input, Limits};
use tokio::io::{AsyncRead, ReadBuf};

const LIMITS: Limits = Limits { message_bytes_max: 64 * 1024, fragments_max: 1024 };

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let cells = [
        ("text 16 B", Wire::frames(1, 16)),
        ("text 125 B", Wire::frames(1, 125)),
        ("text 1 KiB", Wire::frames(1, 1024)),
        ("text 16 KiB", Wire::frames(1, 16 * 1024)),
        ("1 KiB in 8 fragments", Wire::fragments(8, 128)),
        ("256 x text 16 B", Wire::frames(256, 16)),
    ];
    for (name, wire) in &cells {
        group.throughput(Throughput::Elements(wire.messages));
        let mut hydrant = Hydrant::default();
        group.bench_function(BenchmarkId::new("hydrant", name), |bencher| bencher.iter(|| hydrant.decode(wire)));
        let mut fast = Fast::new(wire);
        group.bench_function(BenchmarkId::new("fastwebsockets", name), |bencher| bencher.iter(|| fast.decode(wire)));
    }
    group.finish();
}

/// The bytes of a client, and the expected messages in them.
struct Wire {
    bytes: Vec<u8>,
    messages: u64,
    payload_bytes: usize,
}

impl Wire {
    /// Messages of one frame each.
    fn frames(number: usize, payload: usize) -> Self {
        let one = frame(true, OpCode::Text, payload);
        Self { bytes: one.repeat(number), messages: number as u64, payload_bytes: number * payload }
    }

    /// One message in several fragments.
    fn fragments(number: usize, payload: usize) -> Self {
        let opcode = |piece| if piece == 0 { OpCode::Text } else { OpCode::Continuation };
        let pieces: Vec<_> = (0..number).map(|piece| frame(piece == number - 1, opcode(piece), payload)).collect();
        Self { bytes: pieces.concat(), messages: 1, payload_bytes: number * payload }
    }
}

/// A masked frame, as a client sends it (RFC 6455, section 5.2).
fn frame(fin: bool, opcode: OpCode, payload: usize) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut wire = vec![u8::from(fin) << 7 | opcode as u8];
    if payload < 126 {
        wire.push(0x80 | payload as u8);
    } else {
        let payload = u16::try_from(payload).expect("no message here is longer than that");
        wire.push(0x80 | 126);
        wire.extend(payload.to_be_bytes());
    }
    wire.extend(MASK);
    wire.extend(MASK.iter().cycle().take(payload).map(|mask| b'x' ^ mask));
    wire
}

/// `wire::inbound`, as a shard uses it.
struct Hydrant {
    decoder: Decoder,
    scratch: Vec<u8>,
}

impl Default for Hydrant {
    fn default() -> Self {
        Self { decoder: Decoder::default(), scratch: vec![0; READ_BYTES] }
    }
}

impl Hydrant {
    fn decode(&mut self, wire: &Wire) {
        let (mut messages, mut bytes) = (0, 0);
        let read = &mut self.scratch[..wire.bytes.len()];
        read.copy_from_slice(&wire.bytes);
        let mut input = Input::new(read);
        while let Some(inbound) = self.decoder.next(&mut input, &LIMITS).expect("nothing is wrong with the wire") {
            let Inbound::Text(text) = inbound else { panic!("only text was sent, not {inbound:?}") };
            messages += 1;
            bytes += text.len();
        }
        assert_eq!((messages, bytes), (wire.messages, wire.payload_bytes));
    }
}

/// A stream that repeats the same bytes forever. A read stops at their end, as if the client had
/// paused there.
struct Endless {
    bytes: Vec<u8>,
    position: usize,
}

impl AsyncRead for Endless {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.bytes[self.position..];
        let read = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..read]);
        self.position = (self.position + read) % self.bytes.len();
        Poll::Ready(Ok(()))
    }
}

/// fastwebsockets' reader.
struct Fast(FragmentCollectorRead<Endless>);

impl Fast {
    fn new(wire: &Wire) -> Self {
        let stream = Endless { bytes: wire.bytes.clone(), position: 0 };
        let (reader, _) = fastwebsockets::after_handshake_split(stream, tokio::io::sink(), Role::Server);
        Self(FragmentCollectorRead::new(reader))
    }

    fn decode(&mut self, wire: &Wire) {
        let mut bytes = 0;
        for _ in 0..wire.messages {
            let mut answer = async |_: Frame<'_>| Ok::<_, io::Error>(());
            let read = pin!(self.0.read_frame(&mut answer));
            let Poll::Ready(frame) = read.poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("the stream is always ready");
            };
            let frame = frame.expect("nothing is wrong with the wire");
            assert_eq!(frame.opcode, OpCode::Text);
            bytes += frame.payload.len();
        }
        assert_eq!(bytes, wire.payload_bytes);
    }
}
