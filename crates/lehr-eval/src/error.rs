//! Errors of measurements, and their remedies.

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a metric or of fitting a baseline.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no data to compute from.
    #[error("computing {what}: no {items} were given, expected at least one")]
    Empty {
        /// What was being computed.
        what: &'static str,
        /// What is missing, in the plural.
        items: &'static str,
    },
    /// Two lists that belong together differ in length.
    #[error("computing {what}: {left} {left_name} against {right} {right_name}, expected as many")]
    LengthMismatch {
        /// What was being computed.
        what: &'static str,
        /// Length of the first list.
        left: usize,
        /// What the first list holds.
        left_name: &'static str,
        /// Length of the second list.
        right: usize,
        /// What the second list holds.
        right_name: &'static str,
    },
    /// A class number is too large.
    #[error("computing {what}: item {index} has class {class}, expected a class below {n_classes}")]
    ClassOutOfRange {
        /// What was being computed.
        what: &'static str,
        /// Position in the list, from 0.
        index: usize,
        /// The class found.
        class: usize,
        /// The number of classes.
        n_classes: usize,
    },
    /// More successes than trials.
    #[error("computing {what}: {successes} successes of {n} trials, expected at most {n}")]
    TooManySuccesses {
        /// What was being computed.
        what: &'static str,
        /// Successes given.
        successes: u64,
        /// Trials given.
        n: u64,
    },
    /// A measured value is not a number.
    #[error("computing {what}: value {index} is {value}, expected a finite number")]
    NotFinite {
        /// What was being computed.
        what: &'static str,
        /// Position in the list, from 0.
        index: usize,
        /// The value, as text because `NaN` is not equal to itself.
        value: String,
    },
}

impl Error {
    /// Returns a remedy for the user, if one is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty { items, .. } => format!("check the file or filter the {items} come from"),
            Self::LengthMismatch { .. } => {
                "both lists must come from the same items in the same order".to_owned()
            }
            Self::ClassOutOfRange { .. } => {
                "the label set must be made from all labels before training".to_owned()
            }
            Self::NotFinite { .. } => {
                "that run diverged: leave it out and say so, or repeat it with a lower learning \
                 rate"
                    .to_owned()
            }
            Self::TooManySuccesses { .. } => return None,
        })
    }
}
