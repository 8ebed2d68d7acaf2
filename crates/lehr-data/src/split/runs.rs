//! Held-out runs of documents within a text file.

use crate::loader::mix;

/// Documents of a held-out run in large files. The documents that are dropped beside runs are then
/// an eighth of the held-out ones.
const RUN_DOCUMENTS: u64 = 16;
/// Minimum number of runs, so that they are spread over a small file.
const RUNS_MIN: u64 = 4;
/// Documents of a file for each run that are not held out, at least. Up to two of them are dropped.
const REST_MIN: u64 = 4;

/// The side of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Training,
    HeldOut,
    /// Dropped, because it is beside a held-out document.
    Margin,
}

/// Runs of held-out documents in a file. The file is cut into as many stretches of equal length as
/// there are runs, and each stretch has a run at a place drawn by `key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Runs {
    documents: u64,
    held_out: u64,
    runs: u64,
    key: u64,
}

impl Runs {
    /// Holds out `held_out` of `documents` documents, fewer if nothing would be left to train on;
    /// `None` if nothing can be held out.
    pub(crate) fn new(documents: u64, held_out: u64, key: u64) -> Option<Self> {
        let held_out = held_out.min(documents.saturating_sub(2));
        if held_out == 0 {
            return None;
        }
        let runs = (held_out / RUN_DOCUMENTS).max(RUNS_MIN.min(held_out / 2));
        let runs = runs.min((documents - held_out) / REST_MIN).max(1);
        Some(Self { documents, held_out, runs, key })
    }

    /// Returns the side of a document of the file.
    pub(crate) fn place(&self, document: u64) -> Place {
        let before = || document.checked_sub(1).is_some_and(|before| self.holds_out(before));
        match self.holds_out(document) {
            true => Place::HeldOut,
            false if before() || self.holds_out(document + 1) => Place::Margin,
            false => Place::Training,
        }
    }

    fn holds_out(&self, document: u64) -> bool {
        if document >= self.documents {
            return false;
        }
        // The stretch that begins last at or before the document.
        let run = ((document + 1) * self.runs - 1) / self.documents;
        let bounds = |total: u64| [run, run + 1].map(|i| i * total / self.runs);
        let ([start, end], [first, last]) = (bounds(self.documents), bounds(self.held_out));
        let (len, n) = (end - start, last - first);
        let at = match self.documents - self.held_out < REST_MIN {
            // A run within the file would need two documents beside it.
            true => len - n,
            false => mix(self.key ^ mix(run)) % (len - n + 1),
        };
        (start + at..start + at + n).contains(&document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn runs_hold_out_as_many_documents_as_asked_for_and_leave_some_to_train_on(
            documents in 3u64..3000,
            share in 0.0f64..1.0,
            key in any::<u64>(),
        ) {
            let wanted = ((documents as f64 * share) as u64).max(1);
            let runs = Runs::new(documents, wanted, key).unwrap();
            let places: Vec<Place> = (0..documents).map(|i| runs.place(i)).collect();
            let count = |place| places.iter().filter(|p| **p == place).count() as u64;
            prop_assert_eq!(count(Place::HeldOut), wanted.min(documents - 2));
            prop_assert!(count(Place::Training) > 0);
            prop_assert!(count(Place::Margin) <= 2 * runs.runs);
            for pair in places.windows(2) {
                let is_both = pair.contains(&Place::Training) && pair.contains(&Place::HeldOut);
                prop_assert!(!is_both, "{places:?}");
            }
        }
    }

    #[test]
    fn runs_are_spread_over_the_file() {
        let runs = Runs::new(350, 17, 5).unwrap();
        for quarter in 0..4u64 {
            let held = (quarter * 350 / 4..(quarter + 1) * 350 / 4)
                .filter(|i| runs.place(*i) == Place::HeldOut)
                .count();
            assert!((4..=5).contains(&held), "{held} in quarter {quarter}");
        }
        assert_eq!(Runs::new(100_000, 5000, 5).unwrap().runs, 5000 / 16);
        assert_eq!(Runs::new(2, 1, 5), None);
    }
}
