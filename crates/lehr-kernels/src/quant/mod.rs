//! Stored forms of weights: floats of 16 and 32 bits, and few-bit integers with scales.
//!
//! [`WeightFormat`] is a format of GGUF files: bytes to numbers and numbers to bytes.
//! [`StoredMatrix`] is a weight matrix in such a format or one of our own ([`MatrixFormat`]), whose
//! bytes stay where they lie.
//!
//! ```
//! # use std::sync::Arc;
//! # use lehr_kernels::quant::{StoredMatrix, WeightFormat};
//! # fn main() -> lehr_kernels::Result<()> {
//! // A matrix that lies in a file: the mapping is shared, nothing is copied.
//! let file: Arc<Vec<u8>> = Arc::new(vec![0; 1024 + 2 * 34]);
//! let bytes = 1024..1024 + 2 * 34;
//! let w = StoredMatrix::new(WeightFormat::Q8_0, 2, 32, file, bytes, Vec::new())?;
//! let mut row = [1.0; 32];
//! w.dequantize_rows(1..2, &mut row);
//! assert_eq!(row, [0.0; 32]);
//! # Ok(())
//! # }
//! ```
//!
//! What is lost, as root mean square error of normally distributed numbers relative to their own
//! root mean square (the tests hold these figures; with other numbers it differs):
//!
//! | format | bits per number | error |
//! |---|---|---|
//! | BF16 | 16 | 0.2 % |
//! | F16 | 16 | 0.02 % |
//! | Q8_0, INT8 by rows of 512, INT8 by 64 | 8.5, 8.06, 8.5 | 0.53 %, 0.74 %, 0.59 % |
//! | Q6_K | 6.56 | 1.8 % |
//! | Q5_K, Q5_1, Q5_0 | 5.5, 6, 5.5 | 3.6 %, 3.8 %, 4.3 % |
//! | Q4_K, Q4_1, Q4_0 | 4.5, 5, 4.5 | 7.2 %, 7.8 %, 8.6 % |
//! | IQ4_NL, IQ4_XS | 4.5, 4.25 | 7.6 %, 7.7 % |
//! | NF4 | 4.5 | 9.2 % |
//! | INT4 by 32, 64, 128, by rows of 512 | 5, 4.5, 4.25, 4.06 | 9.7 %, 10.8 %, 11.7 %, 13.5 % |
//! | Q3_K | 3.44 | 15 % |
//! | Q2_K | 2.63 | 29 % |

mod block32;
mod codec;
mod format;
mod kquant;
mod matrix;
#[cfg(test)]
mod matrix_tests;
mod scaled;
mod tables;
#[cfg(test)]
mod tests;

pub use format::WeightFormat;
pub use matrix::{Activations, Grouping, MatrixFormat, Owner, Scaling, StoredMatrix};
pub use scaled::NF4_GROUP;
pub use tables::{IQ4, NF4};
