//! Schedules, and random numbers. Time is an argument.

/// Messages at a steady rate. Due times do not depend on whether earlier messages could be sent in
/// time, so latency counted from them omits nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start_ns: u64,
    per_second: f64,
}

impl Schedule {
    /// A schedule whose first message is due at `start_ns`.
    pub(crate) fn new(start_ns: u64, per_second: f64) -> Self {
        Self { start_ns, per_second }
    }

    /// The due time of the message with this number, counted from 0.
    pub(crate) fn due_ns(&self, number: u64) -> u64 {
        self.start_ns.saturating_add((number as f64 * 1e9 / self.per_second) as u64)
    }

    /// Number of messages that are due before this time.
    pub(crate) fn due_before(&self, end_ns: u64) -> u64 {
        (end_ns.saturating_sub(self.start_ns) as f64 * self.per_second / 1e9).ceil() as u64
    }
}

/// Random numbers from a seed (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>): good enough to
/// spread timers and to pick connections.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next random number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A random number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_does_not_drift() {
        let schedule = Schedule::new(500, 3.0);
        assert_eq!([0, 1, 3].map(|number| schedule.due_ns(number)), [500, 333_333_833, 1_000_000_500]);
        assert_eq!(schedule.due_ns(3_000_000), 1_000_000_000_000_500);
        assert_eq!([500, 501, 333_333_834].map(|end_ns| schedule.due_before(end_ns)), [0, 1, 2]);
        assert_eq!(Schedule::new(500, 1e-300).due_ns(1), u64::MAX, "never, not at once");
        let slow = Schedule::new(0, 0.1);
        assert_eq!(slow.due_ns(1), 10_000_000_000);
    }

    #[test]
    fn random_numbers_are_those_of_the_reference() {
        let mut random = Random(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert!((0..100).all(|_| random.below(7) < 7));
    }
}
