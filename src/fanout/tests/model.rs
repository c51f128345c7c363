//! All strategies against a naive model: random joins, leaves, publications, slow readers and ends.

use clap::ValueEnum;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;

/// Bytes that may wait for a client.
const BYTES_MAX: usize = 3000;

/// The model's state of one client.
struct Expected {
    client: Client,
    /// The numbers of the messages sent to it, by channel.
    due: [Vec<usize>; CHANNELS],
    subscribed: [bool; CHANNELS],
    /// Its socket always has room, so that it loses nothing.
    reads_all: bool,
}

impl Expected {
    /// Checks that the received messages are those sent, in the order of each channel, with gaps
    /// only where the policy allows them.
    fn check(&self, policy: SlowPolicy, context: &str) {
        for (channel, due) in self.due.iter().enumerate() {
            let seen = received(self.client.socket(), channel);
            let mut rest = due.iter();
            assert!(seen.iter().all(|number| rest.any(|next| next == number)), "{context}: {seen:?} of {due:?}");
            if self.reads_all || policy == SlowPolicy::Disconnect {
                assert!(due.starts_with(&seen), "{context}: a gap: {seen:?} of {due:?}");
            }
        }
    }
}

struct Run {
    world: World,
    clients: Vec<Expected>,
    rng: TestRng,
    context: String,
}

impl Run {
    fn new(strategy: Strategy, policy: SlowPolicy, seed: u64) -> Self {
        let bound = Bound { bytes_max: BYTES_MAX, policy };
        // Every other ring is so small that it wraps around all the time.
        let fanout = match strategy {
            Strategy::Ring if seed.is_multiple_of(2) => Box::new(ring::Ring::new(4, bound)),
            _ => strategy.build(bound),
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let context = format!("{strategy:?} {policy:?} HYDRANT_SEED={seed}");
        Self { world: World::new(fanout, bound), clients: Vec::new(), rng, context }
    }

    fn random(&mut self, below: usize) -> usize {
        self.rng.next_u64() as usize % below
    }

    fn connect(&mut self) {
        let reads_all = self.random(2) == 0;
        let room = if reads_all { usize::MAX } else { self.random(2000) };
        let client = self.world.connect(room);
        self.clients.push(Expected { client, due: Default::default(), subscribed: [false; CHANNELS], reads_all });
    }

    /// The index of a random client; `None` without clients.
    fn any_client(&mut self) -> Option<usize> {
        (!self.clients.is_empty()).then(|| self.random(self.clients.len()))
    }

    fn join_or_leave(&mut self, may_leave: bool) {
        let (Some(index), channel) = (self.any_client(), self.random(CHANNELS)) else { return };
        let expected = &mut self.clients[index];
        if expected.client.phase() != Phase::Open || expected.subscribed[channel] && !may_leave {
            return;
        }
        let joins = !expected.subscribed[channel];
        let list = &mut self.world.channels[channel];
        assert!(if joins { list.join(&expected.client) } else { list.leave(&expected.client) });
        expected.subscribed[channel] = joins;
    }

    fn read_some(&mut self) {
        let (Some(index), room) = (self.any_client(), self.random(1500)) else { return };
        if !self.clients[index].reads_all {
            writable(&self.clients[index].client, room);
        }
    }

    fn end_one(&mut self) {
        if let Some(index) = self.any_client() {
            let expected = self.clients.swap_remove(index);
            self.world.end(&expected.client, DropReason::Closed);
            expected.check(self.world.bound.policy, &self.context);
        }
    }

    /// Publishes to one channel, or to two at a time, while other clients join, read and write.
    async fn publish(&mut self) {
        // Waits as a paced channel does, so that a burst closes no client that reads.
        if self.clients.iter().any(|expected| expected.reads_all && expected.client.backlog().0 > 0) {
            quiet().await;
        }
        let first = self.random(CHANNELS);
        let mut passes = Vec::new();
        for channel in [first, (first + 1) % CHANNELS].into_iter().take(1 + self.random(2)) {
            let sizes: Vec<_> = (0..=self.random(3)).map(|_| self.random(300)).collect();
            let numbers = self.world.next[channel]..self.world.next[channel] + sizes.len();
            let mut matched = 0_u64;
            for expected in self.clients.iter_mut().filter(|expected| expected.subscribed[channel]) {
                matched += 1;
                expected.due[channel].extend(numbers.clone());
            }
            passes.push((channel, self.world.begin(channel, &sizes), sizes.len(), matched));
        }
        while !passes.is_empty() {
            let index = self.random(passes.len());
            let (channel, pass, frames, matched) = &mut passes[index];
            if self.world.step(*channel, pass, 3) {
                self.meanwhile().await;
                continue;
            }
            for frame in 0..*frames {
                let outcome = pass.outcome(frame);
                // A client that the other pass ended may have left before this pass reached it.
                let left = self.clients.iter().filter(|expected| expected.client.phase() != Phase::Open).count() as u64;
                assert!((matched.saturating_sub(left)..=*matched).contains(&outcome.matched), "{}", self.context);
                let accounted = outcome.delivered + outcome.pending + outcome.dropped;
                assert_eq!(outcome.matched, accounted, "{}: {outcome:?}", self.context);
            }
            passes.swap_remove(index);
        }
    }

    async fn meanwhile(&mut self) {
        match self.random(6) {
            0 => yield_now().await,
            1 => self.read_some(),
            2 => self.join_or_leave(false),
            3 if self.clients.len() < 12 => self.connect(),
            _ => {}
        }
    }

    async fn execute(mut self) {
        let policy = self.world.bound.policy;
        for _ in 0..400 {
            match self.random(12) {
                0 | 1 if self.clients.len() < 12 => self.connect(),
                2..5 => self.join_or_leave(true),
                5..9 => self.publish().await,
                9 => self.read_some(),
                10 if self.random(4) == 0 => self.end_one(),
                _ => {
                    quiet().await;
                    self.world.check(&self.context);
                }
            }
            for expected in self.clients.extract_if(.., |expected| expected.client.phase() != Phase::Open) {
                assert!(
                    policy == SlowPolicy::Disconnect && !expected.reads_all,
                    "{}: a client was closed",
                    self.context
                );
                expected.check(policy, &self.context);
            }
        }
        for expected in &self.clients {
            writable(&expected.client, usize::MAX);
        }
        quiet().await;
        self.world.check(&self.context);
        assert_eq!(self.world.counters.totals().outstanding(), 0, "{}", self.context);
        for expected in self.clients {
            expected.check(policy, &self.context);
            if expected.reads_all || policy == SlowPolicy::Disconnect {
                for (channel, due) in expected.due.iter().enumerate() {
                    let seen = received(expected.client.socket(), channel);
                    assert_eq!(seen, *due, "{}: messages are missing", self.context);
                }
            }
            self.world.end(&expected.client, DropReason::Closed);
            quiet().await;
            assert_eq!(Rc::strong_count(&expected.client), 1, "{}: its task has ended", self.context);
        }
    }
}

#[test]
fn every_strategy_agrees_with_the_model() {
    let first = std::env::var("HYDRANT_SEED")
        .map_or_else(|_| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 >> 8, |seed| seed.parse().unwrap());
    println!("HYDRANT_SEED={first}");
    for seed in first..first + 12 {
        for &strategy in Strategy::value_variants() {
            for &policy in SlowPolicy::value_variants() {
                run(async || Run::new(strategy, policy, seed).execute().await);
            }
        }
    }
}
