//! The sequencing of the channels that hash to one shard.
//!
//! Every publication of a channel passes the channel's sequencer. The sequencer gives it the next
//! offset and forwards it, joined with the publications that arrived together with it, to each
//! shard that has subscribers. A channel has one sequencer, so every subscriber sees the same order
//! and no lock is needed. Pure: it sends nothing itself; [`Sequencer::dispatch`] hands out the
//! dispatches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::publication::{Accepted, ChannelName, Charge, Dispatch, Publication, PublishError, Receipt};
use crate::wire::Frame;

/// The channels that one shard sequences.
#[derive(Debug)]
pub struct Sequencer {
    shards: usize,
    bounds: Bounds,
    channels: HashMap<ChannelName, Channel>,
    /// Channels with frames to forward, in the order of their first frame.
    touched: Vec<ChannelName>,
    /// The first offset of a new channel. It is higher than every offset of the channels forgotten
    /// so far, so the offsets of one name rise even when the channel was forgotten in between.
    first_offset: u64,
}

/// The bounds that a sequencer enforces.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of one channel that are accepted and not yet sent by every shard.
    pub pending_bytes_max: usize,
    /// Bytes of one dispatch, unless a single frame is longer. A subscriber that reads gets at most
    /// this much in one write.
    pub dispatch_bytes_max: usize,
    /// Frames of one dispatch.
    pub dispatch_frames_max: usize,
}

#[derive(Debug)]
struct Channel {
    next_offset: u64,
    /// Subscribers by shard.
    subscribers: Box<[u32]>,
    /// Bytes that are accepted and not yet sent by every shard.
    pending_bytes: Arc<AtomicUsize>,
    /// Frames that were sequenced since the last dispatch.
    sequenced: Vec<(Frame, Option<Arc<Receipt>>)>,
}

impl Channel {
    /// Takes as many frames, in order, as one dispatch may hold.
    fn next_dispatch(&mut self, name: &ChannelName, bounds: Bounds) -> Arc<Dispatch> {
        let mut bytes = 0;
        let mut fits = |(frame, _): &(Frame, _)| {
            bytes += frame.wire().len();
            bytes <= bounds.dispatch_bytes_max
        };
        let number =
            self.sequenced.iter().take(bounds.dispatch_frames_max).take_while(|next| fits(next)).count().max(1);
        let (frames, receipts): (Vec<_>, Vec<_>) = self.sequenced.drain(..number).unzip();
        let receipts = receipts.into_iter().enumerate().filter_map(|(index, receipt)| Some((index, receipt?)));
        let bytes = frames.iter().map(|frame| frame.wire().len()).sum();
        Arc::new(Dispatch {
            channel: name.clone(),
            charge: Charge::new(&self.pending_bytes, bytes),
            receipts: receipts.collect(),
            frames,
        })
    }

    fn is_idle(&self) -> bool {
        self.sequenced.is_empty() && self.subscribers.iter().all(|&number| number == 0)
    }
}

/// Capacity for sequenced frames that a channel keeps between bursts, in frames.
const KEPT_FRAMES: usize = 16;

impl Sequencer {
    /// A sequencer without channels, on a node of `shards` shards.
    #[must_use]
    pub fn new(shards: usize, bounds: Bounds) -> Self {
        Self { shards, bounds, channels: HashMap::new(), touched: Vec::new(), first_offset: 1 }
    }

    fn channel(&mut self, name: &ChannelName) -> &mut Channel {
        if !self.channels.contains_key(name) {
            let channel = Channel {
                next_offset: self.first_offset,
                subscribers: vec![0; self.shards].into(),
                pending_bytes: Arc::default(),
                sequenced: Vec::new(),
            };
            self.channels.insert(name.clone(), channel);
        }
        self.channels.get_mut(name).expect("inserted above")
    }

    /// Gives a publication its offset; its frame leaves with the next [`Sequencer::dispatch`].
    ///
    /// # Errors
    /// [`PublishError::Overloaded`] when the channel's pending bytes are at their bound.
    pub fn sequence(&mut self, publication: &mut Publication) -> Result<Accepted, PublishError> {
        let bytes_max = self.bounds.pending_bytes_max;
        let channel = self.channel(&publication.channel);
        let bytes = publication.frame.wire().len();
        // Relaxed: only this sequencer adds. A release by another shard may be seen late, which
        // rejects a publication a little early.
        if channel.pending_bytes.load(Ordering::Relaxed) + bytes > bytes_max {
            return Err(PublishError::Overloaded);
        }
        channel.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        channel.sequenced.push((publication.frame.clone(), publication.receipt.take()));
        let matched = channel.subscribers.iter().map(|&number| u64::from(number)).sum();
        let offset = channel.next_offset;
        channel.next_offset += 1;
        if channel.sequenced.len() == 1 {
            self.touched.push(publication.channel.clone());
        }
        Ok(Accepted { offset, matched })
    }

    /// Adds or removes one subscriber of `shard`.
    pub fn count(&mut self, name: &ChannelName, shard: u16, joined: bool) {
        let number = &mut self.channel(name).subscribers[usize::from(shard)];
        *number = if joined { *number + 1 } else { number.saturating_sub(1) };
        self.forget_if_idle(name);
    }

    /// Hands the frames of every channel to `send`, in as few dispatches as the bounds allow, once
    /// for each shard that has subscribers.
    pub fn dispatch(&mut self, mut send: impl FnMut(u16, Arc<Dispatch>)) {
        for name in std::mem::take(&mut self.touched) {
            let bounds = self.bounds;
            let channel = self.channel(&name);
            while !channel.sequenced.is_empty() {
                let dispatch = channel.next_dispatch(&name, bounds);
                for (shard, &number) in channel.subscribers.iter().enumerate() {
                    if number > 0 {
                        send(shard as u16, dispatch.clone());
                    }
                }
            }
            channel.sequenced.shrink_to(KEPT_FRAMES);
            self.forget_if_idle(&name);
        }
    }

    /// Drops a channel without subscribers and frames. `all` is kept: its offsets have no gaps.
    fn forget_if_idle(&mut self, name: &ChannelName) {
        if !name.is_all() && self.channels.get(name).is_some_and(Channel::is_idle) {
            let forgotten = self.channels.remove(name).expect("looked up above");
            self.first_offset = self.first_offset.max(forgotten.next_offset);
        }
        if self.channels.len() < self.channels.capacity() / 8 {
            self.channels.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::publication::Origin;

    const BOUNDS: Bounds = Bounds { pending_bytes_max: 1000, dispatch_bytes_max: 500, dispatch_frames_max: 10 };

    fn publish(sequencer: &mut Sequencer, channel: &str, text: &str) -> Result<Accepted, PublishError> {
        let channel = ChannelName::new(channel).unwrap();
        sequencer.sequence(&mut Publication {
            channel,
            frame: Frame::text(text),
            origin: Origin::Server,
            receipt: None,
        })
    }

    fn dispatched(sequencer: &mut Sequencer) -> Vec<(u16, Arc<Dispatch>)> {
        let mut all = Vec::new();
        sequencer.dispatch(|shard, dispatch| all.push((shard, dispatch)));
        all
    }

    fn name(text: &str) -> ChannelName {
        ChannelName::new(text).unwrap()
    }

    #[test]
    fn a_shard_gets_a_drained_batch_as_one_dispatch() {
        let mut sequencer = Sequencer::new(3, BOUNDS);
        sequencer.count(&name("a"), 0, true);
        sequencer.count(&name("a"), 2, true);
        sequencer.count(&name("a"), 2, true);
        assert_eq!(publish(&mut sequencer, "a", "1"), Ok(Accepted { offset: 1, matched: 3 }));
        assert_eq!(publish(&mut sequencer, "b", "x"), Ok(Accepted { offset: 1, matched: 0 }));
        assert_eq!(publish(&mut sequencer, "a", "2"), Ok(Accepted { offset: 2, matched: 3 }));
        let sent = dispatched(&mut sequencer);
        assert_eq!(sent.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(sent[0].1.frames, [Frame::text("1"), Frame::text("2")]);
        assert!(Arc::ptr_eq(&sent[0].1, &sent[1].1));
        assert!(dispatched(&mut sequencer).is_empty());
    }

    #[test]
    fn a_burst_is_split_into_dispatches() {
        let mut sequencer = Sequencer::new(1, Bounds { pending_bytes_max: 2000, ..BOUNDS });
        sequencer.count(&name("a"), 0, true);
        let texts: Vec<_> = (0..12).map(|number| number.to_string()).chain(["x".repeat(480), "y".repeat(30)]).collect();
        for text in &texts {
            publish(&mut sequencer, "a", text).unwrap();
        }
        let sent = dispatched(&mut sequencer);
        assert_eq!(sent.iter().map(|(_, dispatch)| dispatch.frames.len()).collect::<Vec<_>>(), [10, 3, 1]);
        let frames = sent.iter().flat_map(|(_, dispatch)| &dispatch.frames);
        assert!(frames.eq(&texts.iter().map(|text| Frame::text(text)).collect::<Vec<_>>()));
        publish(&mut sequencer, "a", &"z".repeat(600)).unwrap();
        assert_eq!(dispatched(&mut sequencer).len(), 1, "a frame beyond the bound is a dispatch of its own");
    }

    #[test]
    fn pending_bytes_are_bounded_until_the_last_shard_is_done() {
        let mut sequencer = Sequencer::new(2, Bounds { pending_bytes_max: 10, ..BOUNDS });
        sequencer.count(&name("a"), 0, true);
        sequencer.count(&name("a"), 1, true);
        assert!(publish(&mut sequencer, "a", "12345678").is_ok());
        assert_eq!(publish(&mut sequencer, "a", "x"), Err(PublishError::Overloaded));
        assert!(publish(&mut sequencer, "b", "x").is_ok(), "another channel is not affected");
        let mut sent = dispatched(&mut sequencer);
        sent.pop();
        assert_eq!(publish(&mut sequencer, "a", "x"), Err(PublishError::Overloaded));
        sent.pop();
        assert_eq!(publish(&mut sequencer, "a", "x").map(|accepted| accepted.offset), Ok(2));
    }

    #[test]
    fn offsets_rise_even_when_a_channel_was_forgotten() {
        let mut sequencer = Sequencer::new(1, BOUNDS);
        for expected in 1..4 {
            assert_eq!(publish(&mut sequencer, "a", "x").unwrap().offset, expected);
            dispatched(&mut sequencer);
            assert!(sequencer.channels.is_empty(), "a channel without subscribers is not kept");
        }
        sequencer.count(&name("b"), 0, true);
        sequencer.count(&name("b"), 0, false);
        assert!(sequencer.channels.is_empty());
        publish(&mut sequencer, "all", "x").unwrap();
        dispatched(&mut sequencer);
        assert_eq!(sequencer.channels.len(), 1, "all is kept");
    }
}
