//! Attention's memory grows with T, not with T². Alone in its file: the arena's counters belong
//! to the process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lehr_tensor::ops::attention::Mask;
use lehr_tensor::{Result, Tensor, arena, threads};

/// Bytes in use at the peak of forward and backward beyond what was in use before.
fn peak_bytes(t: usize) -> Result<usize> {
    let (heads, width) = (2, 16);
    let x = Tensor::full([1, t, 3 * heads * width], 0.5)?.trainable();
    let dy = Tensor::full([1, t, heads * width], 1.0)?;
    let before = arena::stats().used_bytes;
    arena::reset_peak();
    let y = x.attention_packed(heads, heads, &Mask::causal(), 0.25)?;
    y.backward_with(dy)?;
    Ok(arena::stats().used_peak_bytes - before)
}

#[test]
fn memory_is_linear_in_time() -> Result<()> {
    threads::set_n_threads(1);
    let (short, long) = (peak_bytes(2048)?, peak_bytes(4096)?);
    assert!(long > short && long as f64 <= 2.1 * short as f64, "{short} and {long} bytes");
    // One head's matrix of scores alone would take 64 MiB.
    assert!(long < 8 << 20, "{long} bytes");
    Ok(())
}
