//! A heap profile: jemalloc's dump, read and scaled.
//!
//! jemalloc samples one in so many allocated bytes. For each stack it writes how many of the
//! samples are in use and how many there were. The estimate from these samples is computed here, by
//! the formula of jemalloc's own `jeprof`.

use std::time::{Duration, SystemTime};

use super::NoProfile;
use super::make::{Measured, Sample, Value};
use crate::mem;

/// The values of a heap profile, as in Go's; [`super::VALUES_LIVE`] and [`super::VALUES_ALLOCATED`]
/// are indices into it.
const VALUES: &[Value] = &[
    Value { what: "alloc_objects", unit: "count" },
    Value { what: "alloc_space", unit: "bytes" },
    Value { what: "inuse_objects", unit: "count" },
    Value { what: "inuse_space", unit: "bytes" },
];

/// Measures the present heap.
pub(super) fn measure() -> Result<Measured, NoProfile> {
    let started = SystemTime::now();
    let dump = mem::dump_heap().map_err(|error| match error {
        mem::NoDump::Unavailable(sentence) => NoProfile::Unavailable(sentence),
        mem::NoDump::Failed(error) => NoProfile::Failed(error.to_string()),
    })?;
    let (interval, samples) =
        read(&dump).ok_or_else(|| NoProfile::Failed("the allocator's dump is not readable".to_owned()))?;
    if samples.is_empty() {
        return Err(NoProfile::Empty(interval));
    }
    Ok(Measured {
        values: VALUES,
        samples,
        period: (Value { what: "space", unit: "bytes" }, interval),
        started,
        duration: Duration::ZERO,
        comments: vec![format!("a sample of every {interval} bytes on average; allocated since the start, in use now")],
    })
}

/// Whether a function only carries out an allocation for its caller. If these stayed in, they would
/// hold everything.
pub(super) fn is_allocator(name: &str) -> bool {
    const PREFIXES: [&str; 8] = [
        "tikv_jemallocator::",
        "<tikv_jemallocator::",
        "__rustc::",
        "alloc::alloc::",
        "<alloc::alloc::Global",
        "alloc::raw_vec::",
        "<alloc::raw_vec::",
        "<hashbrown::raw::inner::alloc::",
    ];
    // jemalloc is written in C, whose names have no path.
    !name.contains("::") || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Reads a dump in jemalloc's text format, version 2: the average number of bytes between two
/// samples, and the estimate for each stack.
fn read(dump: &str) -> Option<(i64, Vec<Sample>)> {
    // The format is "heap_v2/65536", then for each stack "@ 0x1 0x2", "  t*: 1: 16 [2: 32]" for all
    // threads and one line for each thread; then "MAPPED_LIBRARIES:".
    let mut lines = dump.lines();
    let interval: i64 = lines.next()?.strip_prefix("heap_v2/")?.parse().ok()?;
    let mut samples = Vec::new();
    let mut stack = None;
    for line in lines.take_while(|line| !line.starts_with("MAPPED_LIBRARIES")) {
        if let Some(addresses) = line.strip_prefix("@ ") {
            let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
            // Each address is where a call returns to; one less is inside the call.
            stack =
                Some(addresses.split_ascii_whitespace().map(|text| Some(address(text)? - 1)).collect::<Option<_>>()?);
        } else if let (Some(counts), Some(_)) = (line.trim_start().strip_prefix("t*: "), &stack) {
            let number = |text: &str| text.trim_matches([' ', '[', ']', ':']).parse::<i64>().ok();
            let counts: Vec<_> = counts.split_ascii_whitespace().map(number).collect::<Option<_>>()?;
            let [live, live_bytes, all, all_bytes] = counts.try_into().ok()?;
            let (live, live_bytes) = scale(live, live_bytes, interval);
            let (all, all_bytes) = scale(all, all_bytes, interval);
            samples.push(Sample { stack: stack.take()?, values: vec![all, all_bytes, live, live_bytes], thread: None });
        }
    }
    samples.sort_by(|one, other| one.stack.cmp(&other.stack));
    Some((interval, samples))
}

/// The estimate for `count` sampled objects of `bytes` bytes together: an object of size s is
/// sampled with the probability 1 − e^(−s/interval).
fn scale(count: i64, bytes: i64, interval: i64) -> (i64, i64) {
    if count == 0 || bytes == 0 {
        return (0, 0);
    }
    let size = bytes as f64 / count as f64;
    let factor = -(-size / interval as f64).exp_m1().recip();
    ((count as f64 * factor).round() as i64, (bytes as f64 * factor).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "jemalloc")]
    use crate::profile::{modules::Modules, symbols::resolve};

    #[test]
    fn a_dump_is_read_and_scaled() {
        let dump = "heap_v2/65536\n  t*: 3: 131280 [0: 0]\n  t0: 3: 131280 [0: 0]\n\
            @ 0x2001 0x3001\n  t*: 2: 131072 [4: 262144]\n  t1: 2: 131072 [4: 262144]\n\
            @ 0x1001\n  t*: 1: 208 [1: 208]\n  t0: 1: 208 [1: 208]\n\nMAPPED_LIBRARIES:\n@ 0x1\n";
        let (interval, samples) = read(dump).unwrap();
        assert_eq!(interval, 65_536);
        // 1 − e^(−208/65536) is 1/315.6; 1 − e^(−1) is 0.632.
        let expected =
            [(vec![0x1000], vec![316, 65_640, 316, 65_640]), (vec![0x2000, 0x3000], vec![6, 414_706, 3, 207_353])];
        let samples: Vec<_> = samples.into_iter().map(|sample| (sample.stack, sample.values)).collect();
        assert_eq!(samples, expected);
    }

    #[test]
    fn other_text_is_not_read_as_a_dump() {
        for text in ["", "heap_v1/3\n", "heap_v2/x", "heap_v2/9\n@ 1\n", "heap_v2/9\n@ 0x1\n  t*: 1: 2 [3]\n"] {
            assert_eq!(read(text).map(|(interval, _)| interval), None, "{text:?}");
        }
    }

    #[cfg(feature = "jemalloc")]
    #[test]
    fn allocations_in_use_are_in_the_profile() {
        mem::sample_heap(16 << 10);
        // A thread draws the distance to its next sample when it takes one, so the first sample
        // still comes at the old distance.
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        let held: Vec<Vec<u8>> = (0..400).map(|_| vec![1_u8; 112 << 10]).collect();
        let measured = measure().unwrap();
        let symbols = resolve(&Modules::loaded(), measured.samples.iter().map(|sample| sample.stack.as_slice()));
        let own =
            |stack: usize| symbols.names(stack).any(|name| name.contains("allocations_in_use_are_in_the_profile"));
        let samples = measured.samples.iter().enumerate().filter(|&(stack, _)| own(stack));
        let live: i64 = samples.map(|(_, sample)| sample.values[3]).sum();
        // The objects are larger than the distance between two samples: nearly every one is
        // sampled.
        assert!((44_000_000..48_000_000).contains(&live), "{live} of 45,875,200");
        drop(held);
    }
}
