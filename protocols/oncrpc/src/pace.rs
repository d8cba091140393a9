//! Whether a transfer makes the progress that it must.
//!
//! Pure: bytes and times in, deadlines out. Invariant: a transfer that makes no progress is past
//! its deadline one interval after its last quota, whatever it did before.

use cairn_units::MonoTime;

use crate::config::Progress;
use crate::control::NEVER;

/// One transfer under one rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    since: MonoTime,
    done: u64,
}

/// `bytes_per_second` over `nanos`.
fn quota(need: Progress, nanos: u64) -> u64 {
    let bytes = u128::from(need.bytes_per_second) * u128::from(nanos) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl Pace {
    /// Begins with `done` bytes behind it.
    pub(crate) const fn new(now: MonoTime, done: u64) -> Self {
        Self { since: now, done }
    }

    /// `done` bytes are behind it now: the time at which it has failed.
    pub(crate) fn deadline(&mut self, now: MonoTime, done: u64, need: Progress) -> u64 {
        let interval = u64::try_from(need.interval.as_nanos()).unwrap_or(NEVER);
        let passed = now.since(self.since).unwrap_or(0);
        if done - self.done >= quota(need, passed.max(interval)) {
            *self = Self::new(now, done);
        }
        self.since.get().saturating_add(interval)
    }
}

/// One direction of a connection: under the rule of every day, and the one for scarce memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch(Option<(Pace, Pace)>);

/// Times at which a peer has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadlines {
    pub(crate) always: u64,
    pub(crate) scarce: u64,
}

impl Watch {
    /// Nothing is under way.
    pub(crate) fn rest(&mut self) {
        self.0 = None;
    }

    /// Something is under way.
    pub(crate) fn deadlines(
        &mut self,
        now: MonoTime,
        done: u64,
        always: Progress,
        scarce: Progress,
    ) -> Deadlines {
        let (a, s) = self.0.get_or_insert((Pace::new(now, done), Pace::new(now, done)));
        Deadlines { always: a.deadline(now, done, always), scarce: s.deadline(now, done, scarce) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    const SECOND: u64 = 1_000_000_000;
    const NEED: Progress = Progress { interval: Duration::from_secs(10), bytes_per_second: 100 };

    fn at(seconds: u64) -> MonoTime {
        MonoTime::new(seconds * SECOND)
    }

    #[test]
    fn a_burst_does_not_pay_for_silence_behind_it() {
        let mut pace = Pace::new(at(0), 0);
        assert_eq!(pace.deadline(at(1), 1_000_000, NEED), 11 * SECOND);
        assert_eq!(pace.deadline(at(9), 1_000_000, NEED), 11 * SECOND);
        assert_eq!(pace.deadline(at(11), 1_000_999, NEED), 11 * SECOND, "one byte too few");
        assert_eq!(pace.deadline(at(11), 1_001_000, NEED), 21 * SECOND);
    }

    #[test]
    fn what_was_looked_at_late_is_judged_by_its_rate() {
        let mut pace = Pace::new(at(0), 0);
        assert_eq!(pace.deadline(at(100), 9_999, NEED), 10 * SECOND);
        assert_eq!(pace.deadline(at(100), 10_000, NEED), 110 * SECOND);
    }

    #[test]
    fn a_new_transfer_begins_with_a_whole_interval() {
        let mut watch = Watch::default();
        let first = watch.deadlines(at(5), 0, NEED, NEED);
        assert_eq!(first, Deadlines { always: 15 * SECOND, scarce: 15 * SECOND });
        watch.rest();
        assert_eq!(watch.deadlines(at(50), 0, NEED, NEED).always, 60 * SECOND);
    }
}
