//! The number of messages to publish, and their times. Time is an argument.

use super::options::Pace;
use super::schedule::Schedule;

/// How many messages are to be published, and when.
pub(super) struct PublishPlan {
    /// Messages still to publish.
    pub(super) left: u64,
    /// End of publishing, in nanoseconds of the run's clock.
    pub(super) until_ns: u64,
    schedule: Option<Schedule>,
    /// Messages published.
    pub(super) sent: u64,
    /// Most messages in flight.
    pub(super) in_flight: u64,
}

impl PublishPlan {
    /// A plan for `messages` at this pace from now on, and none from `until_ns` on.
    pub(super) fn new(pace: Pace, messages: u64, now_ns: u64, until_ns: u64) -> Self {
        let (schedule, in_flight) = match pace {
            Pace::Rate(per_second) => (Some(Schedule::new(now_ns, per_second)), u64::MAX),
            Pace::InFlight(in_flight) => (None, in_flight as u64),
            Pace::Flood => (None, u64::MAX),
        };
        Self { left: messages, until_ns, schedule, sent: 0, in_flight }
    }

    /// Publishes nothing from now on.
    pub(super) fn stop(&mut self, now_ns: u64) {
        self.until_ns = self.until_ns.min(now_ns);
    }

    /// Whether nothing is left to publish.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        self.left == 0 || now_ns >= self.until_ns
    }

    /// The due time of the next message.
    pub(super) fn due_ns(&self, now_ns: u64) -> u64 {
        self.schedule.map_or(now_ns, |schedule| schedule.due_ns(self.sent))
    }

    /// Messages that were due before the end and have not been sent.
    pub(super) fn unsent(&self) -> u64 {
        let Some(schedule) = self.schedule.filter(|_| self.until_ns < u64::MAX) else {
            return 0;
        };
        schedule.due_before(self.until_ns).saturating_sub(self.sent).min(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_goes_on_whether_or_not_messages_could_be_sent() {
        let mut plan = PublishPlan::new(Pace::Rate(1000.0), u64::MAX, 0, 10_000_000);
        assert_eq!((plan.due_ns(5), plan.unsent()), (0, 10));
        plan.sent += 1;
        plan.left -= 1;
        assert_eq!((plan.due_ns(7_000_000), plan.unsent()), (1_000_000, 9));
        assert!(!plan.is_over(9_999_999) && plan.is_over(10_000_000));
    }

    #[test]
    fn other_paces_are_always_due_and_leave_nothing_unsent() {
        for pace in [Pace::InFlight(3), Pace::Flood] {
            let mut plan = PublishPlan::new(pace, 1, 0, 10);
            assert_eq!((plan.due_ns(5), plan.unsent()), (5, 0));
            plan.left = 0;
            assert!(plan.is_over(1));
        }
    }
}
