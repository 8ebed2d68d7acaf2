//! A few queries over many keys. The time is that of reading keys and values, so they are divided
//! among as many blocks as the device runs at once. A second kernel combines the parts.

use super::{
    AttentionSize, DECODE, FLASH_DECODE, OP, PAGED_DECODE, Seen, View, size_args, stride_args,
};
use crate::cuda::{Arg, Cuda, Extent, Source, args, int};
use crate::ops::attention::mask::Rule;
use crate::pages::Pages;
use crate::{DType, Result, Tensor};

/// Largest number of queries for which keys are divided among blocks.
pub(in crate::ops::attention) const DECODE_MAX: usize = 8;

/// A kernel for a few queries, for keys in order and for keys in pages, with the number of query
/// rows per block and its shared memory.
struct Decode {
    sources: [&'static Source; 2],
    names: [&'static str; 2],
    at_once: usize,
    shared_bytes: u32,
}

/// The names of both forms of a kernel.
macro_rules! names {
    ($kernel:literal, $ending:literal) => {
        [concat!($kernel, "_", $ending), concat!($kernel, "_paged_", $ending)]
    };
}

/// Tensor cores take 16 rows for the price of one; for one or two, plain arithmetic keeps up with
/// the memory.
fn decode_kernel(rows: usize, width: usize, on_tensor_cores: bool) -> Decode {
    if on_tensor_cores && rows > 2 {
        let (names, shared_bytes) = match width {
            0..=32 => (names!("flash_decode", "32"), 18_048),
            33..=64 => (names!("flash_decode", "64"), 35_456),
            65..=96 => (names!("flash_decode", "96"), 52_864),
            97..=128 => (names!("flash_decode", "128"), 70_272),
            129..=192 => (names!("flash_decode", "192"), 55_936),
            _ => (names!("flash_decode", "256"), 74_368),
        };
        return Decode { sources: [&FLASH_DECODE; 2], names, at_once: 16, shared_bytes };
    }
    let at_once = if rows >= 3 { 4 } else { rows };
    let names = match (width, at_once) {
        (0..=64, 1) => names!("attention_decode", "64_1"),
        (0..=64, 2) => names!("attention_decode", "64_2"),
        (0..=64, _) => names!("attention_decode", "64_4"),
        (65..=128, 1) => names!("attention_decode", "128_1"),
        (65..=128, 2) => names!("attention_decode", "128_2"),
        (65..=128, _) => names!("attention_decode", "128_4"),
        (_, 1) => names!("attention_decode", "256_1"),
        (_, 2) => names!("attention_decode", "256_2"),
        _ => names!("attention_decode", "256_4"),
    };
    Decode { sources: [&DECODE, &PAGED_DECODE], names, at_once, shared_bytes: 0 }
}

/// The division of one call among blocks, with memory for their parts.
struct Division {
    kernel: Decode,
    /// Query rows that share a key-value head.
    rows: usize,
    extent: Extent,
    n_splits: i32,
    workspace: Tensor,
}

impl Division {
    /// For at most `n_keys` keys of a text.
    fn new(
        cuda: &Cuda,
        views: &[View; 3],
        size: AttentionSize,
        n_keys: usize,
        out: &Tensor,
    ) -> Result<Self> {
        /// Smallest number of keys per block.
        const KEYS_MIN: usize = 64;
        let rows = size.n_heads / size.n_kv_heads * size.tq;
        let is_packed = |view: &View| view.ptr.is_multiple_of(16) && view.stride.is_multiple_of(8);
        let packed = size.width.is_multiple_of(8) && views.iter().all(is_packed);
        let kernel = decode_kernel(rows, size.width, out.dtype() != DType::F32 && packed);
        let blocks = size.n_kv_heads * rows.div_ceil(kernel.at_once);
        let most = n_keys.div_ceil(KEYS_MIN).max(1);
        let n_splits = (2 * cuda.n_sms() as usize / (blocks * size.batch)).clamp(1, most);
        let workspace =
            out.like_f32([size.batch * size.n_heads * size.tq * n_splits, size.width + 2])?;
        let mut extent = Extent::line(n_splits, 128);
        extent.grid[1..].copy_from_slice(&[blocks as u32, size.batch as u32]);
        extent.shared_bytes = kernel.shared_bytes;
        Ok(Self { kernel, rows, extent, n_splits: n_splits as i32, workspace })
    }

    /// Runs the kernel in form `form` (0 or 1), then the kernel that combines the parts.
    fn run(&self, form: usize, args: &[Arg], size: AttentionSize, out: &Tensor) -> Result<()> {
        let (cuda, dtype) = (out.cuda()?, out.dtype());
        let Decode { sources, names, .. } = &self.kernel;
        cuda.launch(sources[form], dtype, names[form], self.extent, args)?;
        let mut extent = Extent::line(self.rows, if size.width > 64 { 128 } else { 64 });
        extent.grid[1..].copy_from_slice(&[size.n_kv_heads as u32, size.batch as u32]);
        let args = args![
            &self.workspace,
            out,
            int(OP, size.tq)?,
            int(OP, size.n_heads)?,
            int(OP, size.n_kv_heads)?,
            int(OP, size.width)?,
            self.n_splits,
        ];
        cuda.launch(&DECODE, dtype, "attention_decode_combine", extent, args)
    }
}

/// Runs a few queries over keys in order.
pub(super) fn decode(
    views: [View; 3],
    size: AttentionSize,
    seen: &Seen,
    scale: f32,
    out: &mut Tensor,
) -> Result<()> {
    let division = Division::new(out.cuda()?, &views, size, seen.rule.n_keys as usize, out)?;
    let [q, k, v] = views;
    let args: [&[Arg]; 4] = [
        args![q.ptr, k.ptr, v.ptr, &division.workspace, seen.intervals.as_ref()],
        &stride_args(views)?,
        &size_args(size, seen.rule, scale)?,
        args![division.n_splits],
    ];
    division.run(0, &args.concat(), size, out)
}

/// Runs a few queries over keys in pages of `1 << shift` tokens, whose table and lengths are read
/// on the device: `q [B, Tq, H, E]`, pools `[n_pages, P, K, E]`.
pub(in crate::ops::attention) fn decode_paged(
    [q, k, v]: [&Tensor; 3],
    size: AttentionSize,
    rule: Rule,
    (pages, shift): (&Pages, u32),
    scale: f32,
    out: &mut Tensor,
) -> Result<()> {
    let view =
        |x: &Tensor, n_heads: usize| View { ptr: x.device_ptr(), stride: n_heads * size.width };
    let views = [view(q, size.n_heads), view(k, size.n_kv_heads), view(v, size.n_kv_heads)];
    let division = Division::new(out.cuda()?, &views, size, size.tk, out)?;
    let [q, k, v] = views;
    let Rule { causal, window, .. } = rule;
    let args = args![
        q.ptr,
        k.ptr,
        v.ptr,
        &division.workspace,
        pages.table(),
        pages.lengths(),
        int(OP, pages.max_pages())?,
        shift,
        int(OP, q.stride)?,
        int(OP, k.stride)?,
        int(OP, v.stride)?,
        int(OP, size.tq)?,
        int(OP, size.n_heads)?,
        int(OP, size.n_kv_heads)?,
        int(OP, size.width)?,
        causal,
        window,
        scale,
        division.n_splits,
    ];
    division.run(1, args, size, out)
}
