//! What a row, or a query, gives does not depend on what stands beside it.
//!
//! All comparisons are of bits. References are computed with one thread, the rest with one to
//! three.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod invariance {
    pub(crate) mod attention;
    pub(crate) mod heads;
    pub(crate) mod products;
    pub(crate) mod rowwise;
    pub(crate) mod support;
}
