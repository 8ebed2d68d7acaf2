//! Notices that a run makes no progress, as when its data lies on a disk that does not answer.
//!
//! A thread of its own looks at the clock. It only reports, so no result depends on it.

use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Reading,
    Computing,
    Evaluating,
    Sampling,
    Saving,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading the data",
            Self::Computing => "computing a step",
            Self::Evaluating => "evaluating",
            Self::Sampling => "generating a sample",
            Self::Saving => "saving a checkpoint",
        }
    }
}

/// Where a run is, and since when.
#[derive(Clone, Copy, Debug)]
struct Place {
    phase: Phase,
    since: Instant,
    /// Number of steps made, without and with those that a rollback undid.
    step: u64,
    attempt: u64,
    /// Stalls of this phase that were reported.
    n_reported: u32,
}

/// The progress of a run, which its thread notes and another one watches.
pub(crate) struct Pulse(Mutex<Place>);

/// A stall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    /// Number of steps made.
    pub(crate) step: u64,
    /// The same with the steps that a rollback undid.
    pub(crate) attempt: u64,
    /// Names the phase and its duration.
    pub(crate) reason: String,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        let since = Instant::now();
        let phase = Phase::Reading;
        Self(Mutex::new(Place { phase, since, step: 0, attempt: 0, n_reported: 0 }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a phase begins.
    pub(crate) fn enter(&self, phase: Phase) {
        let mut place = self.lock();
        (place.phase, place.since, place.n_reported) = (phase, Instant::now(), 0);
    }

    /// Notes the number of steps made, without and with those that a rollback undid.
    pub(crate) fn made(&self, step: u64, attempt: u64) {
        let mut place = self.lock();
        (place.step, place.attempt) = (step, attempt);
    }

    /// Returns a stall that has not been reported, or the time until there may be one. Each report
    /// waits twice as long as the one before.
    fn look(&self, patience: Duration, now: Instant) -> std::result::Result<Stall, Duration> {
        let mut place = self.lock();
        let waited = now.saturating_duration_since(place.since);
        let limit = patience.saturating_mul(1 << place.n_reported.min(16));
        if waited < limit {
            return Err(limit - waited);
        }
        place.n_reported += 1;
        let reason =
            format!("no progress for {} s while {}", waited.as_secs(), place.phase.as_str());
        Ok(Stall { step: place.step, attempt: place.attempt, reason })
    }

    /// Runs `work` and meanwhile reports stalls of more than `seconds`; 0 = none.
    pub(crate) fn watch<T>(
        &self,
        seconds: u64,
        report: impl Fn(&Stall) + Send + Sync,
        work: impl FnOnce() -> T,
    ) -> T {
        if seconds == 0 {
            return work();
        }
        let (patience, report) = (Duration::from_secs(seconds), &report);
        // Dropped at the end of the work, also if it panics.
        let (working, ended) = mpsc::channel::<()>();
        std::thread::scope(move |scope| {
            scope.spawn(move || {
                let mut pause = patience;
                while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
                    match self.look(patience, Instant::now()) {
                        Ok(stall) => {
                            report(&stall);
                            pause = Duration::ZERO;
                        }
                        Err(left) => pause = left,
                    }
                }
            });
            let _working = working;
            work()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_reported_once_and_again_after_twice_the_time() {
        let (pulse, patience) = (Pulse::new(), Duration::from_secs(60));
        pulse.made(7, 9);
        pulse.enter(Phase::Reading);
        let start = pulse.lock().since;
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.look(patience, at(59)), Err(Duration::from_secs(1)));
        let reason = "no progress for 61 s while reading the data".to_owned();
        assert_eq!(pulse.look(patience, at(61)), Ok(Stall { step: 7, attempt: 9, reason }));
        assert_eq!(pulse.look(patience, at(62)), Err(Duration::from_secs(58)));
        assert!(pulse.look(patience, at(120)).is_ok());
        assert_eq!(pulse.look(patience, at(121)), Err(Duration::from_secs(119)));
        // Progress begins anew.
        pulse.enter(Phase::Computing);
        let since = pulse.lock().since;
        assert_eq!(pulse.look(patience, since), Err(patience));
    }

    #[test]
    fn work_is_watched_until_it_ends() {
        let pulse = Pulse::new();
        // Long ago, so that the first look finds a stall.
        let (reported, seen) = mpsc::channel();
        pulse.lock().since = Instant::now().checked_sub(Duration::from_secs(90)).unwrap();
        let report = move |stall: &Stall| {
            let _ = reported.send(stall.clone());
        };
        let stall = pulse.watch(1, report, || seen.recv().unwrap());
        assert!(stall.reason.contains("while reading the data"), "{stall:?}");
        assert_eq!(pulse.watch(0, |_| panic!("watched"), || 5), 5);
    }
}
