//! Latencies: a histogram with three digits of precision, and the quantiles of the report.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Shortest time that is resolved, in nanoseconds.
const NS_MIN: u64 = 100;
/// Longest time that is resolved, in nanoseconds: ten minutes.
const NS_MAX: u64 = 600_000_000_000;
/// Digits of precision.
const DIGITS: u8 = 3;

/// Times in nanoseconds. Serialised as pairs of a time and its count.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are constants in the order that the histogram asks for.
        Self(Histogram::new_with_bounds(NS_MIN, NS_MAX, DIGITS).expect("sound bounds"))
    }
}

impl From<Vec<(u64, u64)>> for Latencies {
    fn from(pairs: Vec<(u64, u64)>) -> Self {
        let mut latencies = Self::default();
        pairs.into_iter().for_each(|(ns, count)| latencies.0.saturating_record_n(ns, count));
        latencies
    }
}

impl From<Latencies> for Vec<(u64, u64)> {
    fn from(latencies: Latencies) -> Self {
        latencies.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }
}

impl Latencies {
    /// Records one time in nanoseconds.
    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Removes all times.
    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    /// Adds all times of `other`.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so no time of `other` is out of range.
        self.0.add(&other.0).expect("the same bounds");
    }

    /// Number of recorded times.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time in nanoseconds below which this share of the times lies; 0 without any.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    /// The quantiles; `None` without any time.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let us = |share| self.quantile_ns(share) as f64 / 1000.0;
        (self.count() > 0).then(|| Summary {
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p99_9: us(0.999),
            p99_99: us(0.9999),
            max: us(1.0),
        })
    }
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// Half of the times are at most this.
    pub p50: f64,
    /// 9 of 10 times are at most this.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p99_9: f64,
    /// 9,999 of 10,000.
    pub p99_99: f64,
    /// The longest time.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_survive_the_way_between_processes() {
        let mut latencies = Latencies::default();
        assert!(latencies.summary().is_none());
        (1..=10_000).for_each(|us| latencies.record(us * 1000));
        let text = serde_json::to_string(&latencies).unwrap();
        let again: Latencies = serde_json::from_str(&text).unwrap();
        for share in [0.5, 0.99, 1.0] {
            assert_eq!(latencies.quantile_ns(share), again.quantile_ns(share));
            let expected = 10_000_000.0 * share;
            assert!((again.quantile_ns(share) as f64 - expected).abs() < expected / 500.0, "{share}");
        }
        assert_eq!(again.count(), 10_000);
    }
}
