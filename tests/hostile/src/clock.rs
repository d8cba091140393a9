//! Time of the harness: attacks and honest clients live in real time, as the server does.

#![expect(
    clippy::disallowed_methods,
    reason = "the one place of this program that reads the clock"
)]

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Now.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The end of an attack, announced to all of its threads.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    told: Condvar,
}

impl Bell {
    /// It is over.
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    /// Lets `time` pass, or less when it is over; whether it is over.
    pub(crate) fn rests(&self, time: Duration) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(rung, time, |rung| !*rung);
        let (rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *rung
    }
}

/// Looks every 20 ms until `holds` or `time` is over; whether it holds.
pub(crate) fn until(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let (end, bell) = (now() + time, Bell::default());
    loop {
        if holds() {
            return true;
        }
        if now() >= end {
            return false;
        }
        bell.rests(Duration::from_millis(20));
    }
}
