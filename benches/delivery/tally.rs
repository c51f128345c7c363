//! Who has received what. Pure bookkeeping: bytes and times come in as arguments, no I/O.
//!
//! All messages have one length, so the position of a byte in a subscriber's stream says which message it belongs to,
//! and a message has arrived everywhere when every subscriber has passed its last byte. That is exact as long as the
//! stream holds nothing else, so every frame's header is compared with the one that is expected, and the tag behind it
//! with the tag that the first subscriber found at that position: a message that is lost, repeated, reordered between
//! two subscribers, or foreign ends the run. A server's pings are taken out and handed back to be answered.

use std::io;
use std::time::{Duration, Instant};

use crate::message::{self, TAG_BYTES, Tag};

/// A position in the stream, the same for all subscribers.
#[derive(Clone, Default)]
struct Position {
    /// The message at this position and its number, once somebody has received it.
    message: Option<(Tag, u32)>,
    /// Subscribers that have all of it.
    subscribers: usize,
}

/// A publication, by its number.
struct Publication {
    at: Instant,
    /// Whether it has its position.
    placed: bool,
}

/// A ping between two messages.
pub(crate) struct Ping<'a> {
    /// Goes back in the pong.
    pub(crate) payload: &'a [u8],
    /// The bytes that came behind it.
    pub(crate) rest: &'a [u8],
}

impl<'a> Ping<'a> {
    fn parse(bytes: &'a [u8]) -> io::Result<Self> {
        // A server writes a control frame at once, so one that is cut can only mean that its socket was full, and this
        // client reads faster than that.
        let cut = || io::Error::other("received half a ping");
        let (head, rest) = bytes.split_first_chunk::<2>().ok_or_else(cut)?;
        let (payload, rest) = rest.split_at_checked(head[1].into()).ok_or_else(cut)?;
        Ok(Self { payload, rest })
    }
}

/// See the head of this file.
pub(crate) struct Tally {
    header: Vec<u8>,
    frame_bytes: usize,
    /// Received bytes of every subscriber, those of its messages.
    received_bytes: Vec<usize>,
    positions: Vec<Position>,
    publications: Vec<Publication>,
    /// Messages that everybody has. They are complete in the order of their positions.
    complete: usize,
    /// Publish until the last subscriber has it, in the order of positions.
    latencies: Vec<Duration>,
}

impl Tally {
    /// Nothing published, nothing received.
    pub(crate) fn new(subscribers: usize, payload: usize) -> Self {
        let mut header = Vec::new();
        message::write_header(&mut header, payload);
        Self {
            frame_bytes: header.len() + payload,
            header,
            received_bytes: vec![0; subscribers],
            positions: Vec::new(),
            publications: Vec::new(),
            complete: 0,
            latencies: Vec::new(),
        }
    }

    /// Notes a publication at this moment; the answer is its number.
    pub(crate) fn publish(&mut self) -> u32 {
        let number = self.publications.len();
        self.publications.push(Publication { at: Instant::now(), placed: false });
        self.positions.push(Position::default());
        // The tag has as many digits as a u32 needs, and no run comes near to four billion messages.
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Messages published so far.
    pub(crate) fn published(&self) -> usize {
        self.publications.len()
    }

    /// Messages that every subscriber has.
    pub(crate) fn complete(&self) -> usize {
        self.complete
    }

    /// Whole messages received, over all subscribers.
    pub(crate) fn received(&self) -> u64 {
        self.received_bytes.iter().map(|bytes| (bytes / self.frame_bytes) as u64).sum()
    }

    /// Latencies of the messages that are complete, in order.
    pub(crate) fn latencies(&self) -> &[Duration] {
        &self.latencies
    }

    /// Takes in the next bytes of one subscriber's stream, up to the first ping among them.
    pub(crate) fn receive<'a>(&mut self, subscriber: usize, bytes: &'a [u8]) -> io::Result<Option<Ping<'a>>> {
        let start = self.received_bytes[subscriber];
        let first_frame = start.div_ceil(self.frame_bytes);
        let offset = first_frame * self.frame_bytes - start;
        let mut message_bytes = bytes.len();
        for (frame, offset) in (offset..bytes.len()).step_by(self.frame_bytes).enumerate() {
            if bytes[offset] == message::PING {
                message_bytes = offset;
                break;
            }
            self.check(first_frame + frame, &bytes[offset..])
                .map_err(|reason| io::Error::other(format!("subscriber {subscriber}: {reason}")))?;
        }
        let end = start + message_bytes;
        self.received_bytes[subscriber] = end;
        for position in start / self.frame_bytes..end / self.frame_bytes {
            self.positions[position].subscribers += 1;
            if self.positions[position].subscribers == self.received_bytes.len() {
                self.finish(position);
            }
        }
        match &bytes[message_bytes..] {
            [] => Ok(None),
            ping => Ping::parse(ping).map(Some),
        }
    }

    /// Compares the start of a frame with what has to stand there. A frame that is cut before the end of its tag is
    /// compared as far as it goes; that happens only on a socket that was full.
    fn check(&mut self, position: usize, frame: &[u8]) -> Result<(), String> {
        let Some(expected) = self.positions.get_mut(position) else {
            return Err(format!("received message {position}, but only {position} were published: one came twice"));
        };
        let header_bytes = self.header.len().min(frame.len());
        let (header, rest) = frame.split_at(header_bytes);
        if header != &self.header[..header_bytes] {
            return Err(format!(
                "{header:02x?} in place of a header at message {position}: not a publication of this bench"
            ));
        }
        let Some((tag, _)) = rest.split_first_chunk::<TAG_BYTES>() else {
            return Ok(());
        };
        match expected.message {
            Some((first, _)) if first == *tag => Ok(()),
            Some((first, _)) => Err(format!(
                "has {:?} as message {position}, another subscriber has {:?} there",
                String::from_utf8_lossy(tag),
                String::from_utf8_lossy(&first)
            )),
            None => {
                let number = message::number(tag);
                let publication = number
                    .and_then(|number| self.publications.get_mut(number as usize))
                    .filter(|publication| !publication.placed);
                let (Some(number), Some(publication)) = (number, publication) else {
                    return Err(format!(
                        "message {position} is {:?}: repeated, or never published",
                        String::from_utf8_lossy(tag)
                    ));
                };
                publication.placed = true;
                expected.message = Some((*tag, number));
                Ok(())
            }
        }
    }

    fn finish(&mut self, position: usize) {
        // Without a tag (every subscriber had it cut in two) the publication at the same place is next to it at most.
        let number = self.positions[position].message.map_or(position, |(_, number)| number as usize);
        self.latencies.push(self.publications[number].at.elapsed());
        self.complete += 1;
    }
}
