//! Decides which lines are logged, so that a client cannot fill the log: lines with the same key
//! once a minute.
//!
//! Owns the moment of each key's last line, in bounded memory: keys come from clients.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::origin::shown;

/// Most keys whose last line is remembered; the others share one line per [`LOG_INTERVAL`].
const LOGGED_KEYS_MAX: usize = 64;
/// Between two lines with the same key.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    logged: HashMap<String, LastLine>,
    /// All keys for which there was no room.
    others: Option<LastLine>,
}

#[derive(Debug)]
struct LastLine {
    logged_at: Instant,
    /// Events since then, none of them logged.
    silent: u64,
}

impl LastLine {
    fn again(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.logged_at) < LOG_INTERVAL {
            self.silent += 1;
            return None;
        }
        self.logged_at = now;
        Some(std::mem::take(&mut self.silent))
    }
}

impl LogThrottle {
    /// Counts an event. `Some` if it has to be logged now, with the number of events since the last
    /// line that were not.
    pub fn count(&self, key: &str, now: Instant) -> Option<u64> {
        let key = shown(key);
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = recent.logged.get_mut(&key) {
            return line.again(now);
        }
        if recent.logged.len() >= LOGGED_KEYS_MAX {
            recent.logged.retain(|_, line| now.saturating_duration_since(line.logged_at) < LOG_INTERVAL);
        }
        if recent.logged.len() < LOGGED_KEYS_MAX {
            recent.logged.insert(key, LastLine { logged_at: now, silent: 0 });
            return Some(0);
        }
        match &mut recent.others {
            Some(others) => others.again(now),
            none => {
                *none = Some(LastLine { logged_at: now, silent: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_logged_once_a_minute() {
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.count("http://a.com", at(0)), Some(0));
        assert_eq!(throttle.count("http://b.com", at(0)), Some(0));
        assert_eq!(throttle.count("http://a.com", at(1)), None);
        assert_eq!(throttle.count("http://a.com", at(59)), None);
        assert_eq!(throttle.count("http://a.com", at(60)), Some(2));
        assert_eq!(throttle.count("http://a.com", at(61)), None);
    }

    #[test]
    fn many_keys_take_bounded_memory_and_lines() {
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        let lines = |at| (0..10_000).filter(|n| throttle.count(&format!("http://{n}.com"), at).is_some()).count();
        assert_eq!(lines(start), 65, "64 of their own and one for all others");
        assert_eq!(throttle.0.lock().unwrap().logged.len(), 64);
        assert_eq!(lines(start + LOG_INTERVAL / 2), 0);
        assert_eq!(lines(start + LOG_INTERVAL), 65);
        assert_eq!(throttle.0.lock().unwrap().logged.len(), 64);
        // A new key has a line of its own as soon as the old ones are forgotten.
        assert_eq!(throttle.count("http://x.com", start + LOG_INTERVAL * 3), Some(0));
        assert_eq!(throttle.0.lock().unwrap().logged.len(), 1);
    }
}
