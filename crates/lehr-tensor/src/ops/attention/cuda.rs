//! Attention on a GPU: tensor cores for 16-bit elements, plain arithmetic for f32 and odd widths.

mod decode;

use decode::decode;
pub(super) use decode::{DECODE_MAX, decode_paged};

use super::mask::{Mask, Rule};
use super::{AttentionSize, Inputs};
use crate::cuda::{Arg, Cuda, Extent, Source, args, int, source};
use crate::{DType, Error, Result, Tensor};

pub(crate) static PREPARE: Source = source!("attention-prepare", "prepare.cu");
pub(crate) static DECODE: Source = source!("attention-decode", "decode.cu");
pub(crate) static PAGED_DECODE: Source = source!("attention-paged-decode", "paged_decode.cu");
pub(crate) static PLAIN_FORWARD: Source = source!("attention-plain-forward", "plain_forward.cu");
pub(crate) static PLAIN_BACKWARD: Source = source!("attention-plain-backward", "plain_backward.cu");
pub(crate) static FLASH_FORWARD: Source = source!("attention-flash-forward", "flash_forward.cu");
pub(crate) static FLASH_BACKWARD_Q: Source =
    source!("attention-flash-backward-q", "flash_backward_q.cu");
pub(crate) static FLASH_BACKWARD_KV: Source =
    source!("attention-flash-backward-kv", "flash_backward_kv.cu");
pub(crate) static FLASH_DECODE: Source = source!("attention-flash-decode", "flash_decode.cu");
const OP: &str = "attention";

/// The keys that each query sees, for kernels: a rule, or intervals on the device.
pub(super) struct Seen {
    rule: Rule,
    intervals: Option<Tensor>,
}

impl Seen {
    /// Creates the form of a rule for `n_keys` keys.
    pub(super) fn by_rule(rule: Rule, n_keys: usize) -> Self {
        Self { rule: Rule { n_keys: n_keys as i32, ..rule }, intervals: None }
    }

    /// Adds intervals on the device, `[B, Tq, 2]`.
    pub(super) fn with_intervals(self, intervals: Tensor) -> Self {
        Self { intervals: Some(intervals), ..self }
    }

    pub(super) fn of(mask: &Mask, size: AttentionSize, x: &Tensor) -> Result<Self> {
        let rule = mask.rule(size.batch, size.tq, size.tk)?;
        let intervals = match mask.has_intervals() {
            true => Some(mask.intervals_on(x.device(), size.batch, size.tq, size.tk)?),
            false => None,
        };
        Ok(Self { rule, intervals })
    }
}

/// Heads within a buffer of the device: the first head of the first token, and elements from token
/// to token.
#[derive(Clone, Copy)]
struct View {
    ptr: u64,
    stride: usize,
}

/// Returns the positions of q, k and v (or their gradients) in three `tensors`, or in one that
/// holds all.
fn views(tensors: &[Option<&Tensor>], size: AttentionSize) -> [Option<View>; 3] {
    let (q, kv) = (size.n_heads * size.width, size.n_kv_heads * size.width);
    match tensors {
        [Some(all)] => [0, q, q + kv].map(|offset| {
            let ptr = all.device_ptr() + (offset * all.dtype().size()) as u64;
            Some(View { ptr, stride: q + 2 * kv })
        }),
        _ => {
            let at = |i: usize, stride| tensors[i].map(|t| View { ptr: t.device_ptr(), stride });
            [at(0, q), at(1, kv), at(2, kv)]
        }
    }
}

/// The strides of q, k and v as arguments of a kernel.
fn stride_args(views: [View; 3]) -> Result<[Arg; 3]> {
    let [q, k, v] = views.map(|view| int(OP, view.stride));
    Ok([q?.into(), k?.into(), v?.into()])
}

/// The arguments of every kernel over keys in order: sizes, then the mask's rule, then the scale.
fn size_args(size: AttentionSize, rule: Rule, scale: f32) -> Result<[Arg; 9]> {
    let AttentionSize { tq, tk, n_heads, n_kv_heads, width, .. } = size;
    let Rule { causal, window, n_keys } = rule;
    Ok(*args![
        int(OP, tq)?,
        int(OP, tk)?,
        int(OP, n_heads)?,
        int(OP, n_kv_heads)?,
        int(OP, width)?,
        causal,
        window,
        n_keys,
        scale,
    ])
}

/// The kernels of one head width.
struct Family {
    /// Widths up to this.
    width: usize,
    threads: u32,
    forward: Tile,
    backward_q: Tile,
    backward_kv: Tile,
    /// Queries per tile of `backward_kv`, for the bounds of tiles.
    kv_queries: usize,
    /// Whether `backward_kv` computes dk and dv in separate blocks.
    split: bool,
}

/// A kernel, rows of the result per block, dynamic shared memory.
struct Tile {
    source: &'static Source,
    name: &'static str,
    rows: usize,
    shared_bytes: u32,
}

macro_rules! family {
    ($sources:ident, $threads:literal, $prefix:literal, $width:literal: $forward:expr, $q:expr, $kv:expr, $kv_queries:literal, $split:literal) => {
        Family {
            width: $width,
            threads: $threads,
            forward: Tile {
                source: $sources.forward,
                name: concat!($prefix, "_forward_", $width),
                rows: $forward.0,
                shared_bytes: $forward.1,
            },
            backward_q: Tile {
                source: $sources.backward_q,
                name: concat!($prefix, "_backward_q_", $width),
                rows: $q.0,
                shared_bytes: $q.1,
            },
            backward_kv: Tile {
                source: $sources.backward_kv,
                name: concat!($prefix, "_backward_kv_", $width),
                rows: $kv.0,
                shared_bytes: $kv.1,
            },
            kv_queries: $kv_queries,
            split: $split,
        }
    };
}

/// The files of the kernels of a family.
struct Sources {
    forward: &'static Source,
    backward_q: &'static Source,
    backward_kv: &'static Source,
}

const FLASH: Sources = Sources {
    forward: &FLASH_FORWARD,
    backward_q: &FLASH_BACKWARD_Q,
    backward_kv: &FLASH_BACKWARD_KV,
};
const PLAIN: Sources =
    Sources { forward: &PLAIN_FORWARD, backward_q: &PLAIN_BACKWARD, backward_kv: &PLAIN_BACKWARD };

/// Rows per block and shared memory: the comments at the kernels have the same numbers.
static ON_TENSOR_CORES: [Family; 6] = [
    family!(FLASH, 128, "flash", 32: (128, 25_680), (128, 34_896), (128, 33_904), 64, false),
    family!(FLASH, 128, "flash", 64: (128, 50_256), (128, 67_664), (128, 66_672), 64, false),
    family!(FLASH, 128, "flash", 96: (128, 74_832), (128, 75_856), (64, 74_864), 64, false),
    family!(FLASH, 128, "flash", 128: (128, 99_408), (128, 100_432), (64, 99_440), 64, false),
    family!(FLASH, 128, "flash", 192: (64, 74_320), (64, 99_408), (64, 98_928), 32, true),
    family!(FLASH, 128, "flash", 256: (64, 98_896), (64, 99_408), (64, 98_672), 16, true),
];

static ON_PLAIN_UNITS: [Family; 4] = [
    family!(PLAIN, 256, "attention", 32: (64, 36_368), (64, 54_800), (64, 55_296), 64, false),
    family!(PLAIN, 256, "attention", 64: (64, 52_752), (64, 87_568), (64, 88_064), 64, false),
    family!(PLAIN, 256, "attention", 128: (64, 85_520), (32, 72_464), (32, 72_704), 32, false),
    family!(PLAIN, 256, "attention", 256: (32, 71_440), (16, 67_984), (16, 68_096), 16, false),
];

/// The kernels for these heads: tensor cores need 16-bit elements and rows of whole packs of 16
/// bytes.
fn family(dtype: DType, width: usize, views: &[View]) -> Result<&'static Family> {
    let is_packed = |view: &View| view.ptr.is_multiple_of(16) && view.stride.is_multiple_of(8);
    let fast = dtype != DType::F32 && width.is_multiple_of(8) && views.iter().all(is_packed);
    let families: &[Family] = if fast { &ON_TENSOR_CORES } else { &ON_PLAIN_UNITS };
    families.iter().find(|f| width <= f.width).ok_or_else(|| {
        let expected = "at most 256 on a GPU";
        Error::Argument { op: OP, name: "head width", value: width.to_string(), expected }
    })
}

/// Blocks over queries: heads that share keys are neighbours.
fn over_queries(family: &Family, tile: &Tile, size: AttentionSize) -> Extent {
    let per_kv = size.n_heads / size.n_kv_heads;
    let mut extent = Extent::line(size.tq.div_ceil(tile.rows) * per_kv, family.threads);
    extent.grid[1..].copy_from_slice(&[size.n_kv_heads as u32, size.batch as u32]);
    extent.shared_bytes = tile.shared_bytes;
    extent
}

/// The result into `out` `[B, Tq, H, E]`, and log-sum-exps into `lse` `[B, H, Tq]` if wanted.
pub(super) fn forward(
    inputs: &Inputs,
    size: AttentionSize,
    seen: &Seen,
    scale: f32,
    out: &mut Tensor,
    lse: Option<&mut Tensor>,
) -> Result<()> {
    if out.shape().n_elements() == 0 {
        return Ok(());
    }
    let [q, k, v] = inputs.cuda_views(size);
    let dtype = out.dtype();
    if lse.is_none() && size.tq <= DECODE_MAX && size.width <= 256 && size.tk > 0 {
        return decode([q, k, v], size, seen, scale, out);
    }
    let family = family(dtype, size.width, &[q, k, v])?;
    let extent = over_queries(family, &family.forward, size);
    let lse = lse.map_or(0, |lse| lse.device_ptr());
    let args: [&[Arg]; 3] = [
        args![q.ptr, k.ptr, v.ptr, &*out, lse, seen.intervals.as_ref()],
        &stride_args([q, k, v])?,
        &size_args(size, seen.rule, scale)?,
    ];
    let Tile { source, name, .. } = family.forward;
    out.cuda()?.launch(source, dtype, name, extent, &args.concat())
}

/// The inputs of backward.
pub(super) struct Backward<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) size: AttentionSize,
    pub(super) seen: &'a Seen,
    pub(super) scale: f32,
    pub(super) out: &'a Tensor,
    pub(super) lse: &'a Tensor,
}

impl Backward<'_> {
    /// Writes the gradients of q, k and v to `grads`: three optional tensors, or one that holds
    /// all.
    pub(super) fn run(
        &self,
        dy: &Tensor,
        grads: &[Option<&Tensor>],
        accumulate: bool,
    ) -> Result<()> {
        let size = self.size;
        if size.width == 0 {
            return Ok(());
        }
        let [q, k, v] = self.inputs.cuda_views(size);
        let [dq, dk, dv] = views(grads, size);
        let (cuda, dtype) = (self.out.cuda()?, self.out.dtype());
        let all: Vec<_> = [Some(q), Some(k), Some(v), dq, dk, dv].into_iter().flatten().collect();
        let family = family(dtype, size.width, &all)?;
        let stats = self.stats(cuda, dy)?;
        let intervals = self.seen.intervals.as_ref();
        let strides = stride_args([q, k, v])?;
        let sizes = size_args(size, self.seen.rule, self.scale)?;
        if let Some(dq) = dq {
            let extent = over_queries(family, &family.backward_q, size);
            let args: [&[Arg]; 5] = [
                args![q.ptr, k.ptr, v.ptr, dy, &stats, intervals, dq.ptr],
                &strides,
                args![int(OP, dq.stride)?],
                &sizes,
                args![accumulate],
            ];
            let Tile { source, name, .. } = family.backward_q;
            cuda.launch(source, dtype, name, extent, &args.concat())?;
        }
        if dk.is_none() && dv.is_none() {
            return Ok(());
        }
        let bounds = intervals.map(|i| self.tile_bounds(cuda, i, family.kv_queries)).transpose()?;
        let tile = &family.backward_kv;
        let blocks = size.tk.div_ceil(tile.rows) * if family.split { 2 } else { 1 };
        let mut extent = Extent::line(blocks, family.threads);
        extent.grid[1..].copy_from_slice(&[size.n_kv_heads as u32, size.batch as u32]);
        extent.shared_bytes = tile.shared_bytes;
        let part = |view: Option<View>| view.map_or((0, 0), |v| (v.ptr, v.stride));
        let ((dk, dk_stride), (dv, dv_stride)) = (part(dk), part(dv));
        let args: [&[Arg]; 5] = [
            args![q.ptr, k.ptr, v.ptr, dy, &stats, intervals, bounds.as_ref(), dk, dv],
            &strides,
            args![int(OP, dk_stride)?, int(OP, dv_stride)?],
            &sizes,
            args![accumulate],
        ];
        cuda.launch(tile.source, dtype, tile.name, extent, &args.concat())
    }

    /// Log-sum-exp and `Σ out · dy` of each query, `[B, H, Tq, 2]`.
    fn stats(&self, cuda: &Cuda, dy: &Tensor) -> Result<Tensor> {
        let AttentionSize { batch, tq, n_heads, width, .. } = self.size;
        let stats = self.out.like_f32([batch, n_heads, tq, 2])?;
        let rows = batch * n_heads * tq;
        let args = args![
            self.out,
            dy,
            self.lse,
            &stats,
            int(OP, rows)?,
            int(OP, tq)?,
            int(OP, n_heads)?,
            int(OP, width)?
        ];
        cuda.launch(
            &PREPARE,
            self.out.dtype(),
            "attention_stats",
            Extent::line(rows.div_ceil(32), 256),
            args,
        )?;
        Ok(stats)
    }

    /// Computes the bounds of the keys that each tile of `n` queries sees, `[B, ⌈Tq / n⌉, 4]`.
    fn tile_bounds(&self, cuda: &Cuda, intervals: &Tensor, n: usize) -> Result<Tensor> {
        let AttentionSize { batch, tq, .. } = self.size;
        let bounds = Tensor::uninit_on(intervals.device(), [batch, tq.div_ceil(n), 4], DType::I32)?;
        let mut extent = Extent::line(tq.div_ceil(n), 32);
        extent.grid[1] = batch as u32;
        let args = args![intervals, &bounds, int(OP, tq)?, self.seen.rule.n_keys, n as i32];
        cuda.launch(&PREPARE, self.out.dtype(), "attention_tile_bounds", extent, args)?;
        Ok(bounds)
    }
}

impl Inputs {
    /// Returns the positions of q, k and v on the device.
    fn cuda_views(&self, size: AttentionSize) -> [View; 3] {
        let all = match self {
            Self::Separate { q, k, v } => views(&[Some(q), Some(k), Some(v)], size),
            Self::Packed { qkv } => views(&[Some(qkv)], size),
        };
        // All three were given.
        all.map(|view| view.unwrap_or(View { ptr: 0, stride: 0 }))
    }
}
