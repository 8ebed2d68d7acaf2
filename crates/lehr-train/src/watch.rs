//! Notes about work that takes long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lehr_data::Progress;

use crate::Notes;

/// Work shorter than this is not mentioned.
const FIRST_NOTE: Duration = Duration::from_secs(2);
/// Maximum time between two notes. The time doubles from note to note, so that a log stays short.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Amount of work done, readable while the work continues.
#[derive(Debug, Default)]
pub(crate) struct Done {
    bytes: AtomicU64,
}

impl Done {
    pub(crate) fn set(&self, progress: Progress) {
        self.bytes.store(progress.text_bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Runs `work`, which is `what` (as in "reading the data") on about `total_bytes` bytes (0: not
/// known). Once it has taken two seconds, notes what it does and how far it is, and again from
/// time to time.
pub(crate) fn watch<T: Send>(
    notes: Notes<'_>,
    what: &str,
    total_bytes: u64,
    work: impl FnOnce(&Done) -> T + Send,
) -> T {
    watch_from(FIRST_NOTE, notes, what, total_bytes, work)
}

fn watch_from<T: Send>(
    first: Duration,
    notes: Notes<'_>,
    what: &str,
    total_bytes: u64,
    work: impl FnOnce(&Done) -> T + Send,
) -> T {
    let done = Done::default();
    let (begin, mut pause) = (Instant::now(), first);
    let (finished, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let done = &done;
        let worker = scope.spawn(move || {
            // Dropped at the end of the work, also if it panics.
            let _finished = finished;
            work(done)
        });
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
            let bytes = done.bytes.load(Ordering::Relaxed);
            notes(&format!("{what}: {}", state(begin.elapsed(), bytes, total_bytes)));
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn state(elapsed: Duration, bytes: u64, total_bytes: u64) -> String {
    let (done, seconds) = (bytes as f64 / 1e6, elapsed.as_secs_f64());
    match (bytes, total_bytes) {
        (0, _) => format!("{seconds:.0} s"),
        (_, 0) => format!("{done:.0} MB in {seconds:.0} s"),
        (_, total) => {
            let share = (bytes as f64 / total as f64).min(1.0);
            let left = seconds / share - seconds;
            let total = total as f64 / 1e6;
            format!("{done:.0} of {total:.0} MB in {seconds:.0} s, about {left:.0} s left")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_is_noted_and_short_work_is_not() {
        let mut notes = Vec::new();
        let mut note = |text: &str| notes.push(text.to_owned());
        assert_eq!(watch(&mut note, "counting", 0, |_| 7), 7);
        assert_eq!(notes.len(), 0);

        // The work ends only after its note was written, however slow the machine is.
        let (written, seen) = mpsc::channel();
        let mut note = |text: &str| {
            notes.push(text.to_owned());
            let _ = written.send(());
        };
        let first = Duration::from_millis(1);
        let found = watch_from(first, &mut note, "reading", 4_000_000, move |done| {
            done.add_bytes(1_000_000);
            (seen.recv(), seen.recv())
        });
        assert_eq!(found, (Ok(()), Ok(())));
        assert!(notes.len() >= 2, "{notes:?}");
        assert!(notes[1].starts_with("reading: 1 of 4 MB in"), "{notes:?}");
    }

    #[test]
    fn what_is_known_is_said() {
        let s = Duration::from_secs(10);
        assert_eq!(state(s, 0, 5), "10 s");
        assert_eq!(state(s, 20_000_000, 0), "20 MB in 10 s");
        assert_eq!(state(s, 20_000_000, 80_000_000), "20 of 80 MB in 10 s, about 30 s left");
    }
}
