//! Metrics of predicted classes and entities, and the uncertainty of measured numbers.
//!
//! There are two kinds of uncertainty. [`wilson`] answers "what if other test texts had been
//! drawn?": an interval around one proportion on n texts. [`mean_interval`] and
//! [`paired_difference`] answer "what if other seeds had been drawn?": an interval around the mean
//! of a few runs. All intervals are two-sided with 95 % confidence.

mod confusion;
mod entities;
mod interval;

pub use confusion::{Confusion, accuracy};
pub use entities::{EntityCount, EntityCounts};
pub use interval::{Estimate, Interval, mean_interval, paired_difference, t_quantile, wilson};
