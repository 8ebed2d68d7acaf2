//! The rotation and its angles on a GPU.

use std::sync::{Mutex, PoisonError};

use super::RopeTable;
use super::table::{Angles, Pairs, RopeLayout};
use crate::cuda::{self, Extent, Source, args, int, source};
use crate::{DType, Device, Result, Tensor};

pub(crate) static KERNELS: Source = source!("rope", "kernel.cu");
const OP: &str = "rope";

/// `y (+)=` the heads of `x` rotated by the table's angles times `sign`.
pub(super) fn rotate(
    x: &Tensor,
    table: &RopeTable,
    (n_heads, width): (usize, usize),
    sign: f32,
    y: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let angles = table.angles(x.device())?;
    let half = table.rotary_dim() / 2;
    let layout = match table.pairs() {
        Pairs::Layout(RopeLayout::HalfSplit) => 0,
        Pairs::Layout(RopeLayout::AdjacentPairs) => 1,
        Pairs::TwoHalves => 2,
    };
    let cuda = x.cuda()?;
    let packs = table.n_tokens() * n_heads.div_ceil(4) * (width - half);
    let extent = Extent::line(packs.div_ceil(256 * crate::ops::rows_cuda::lanes(x.dtype())), 256);
    let args = args![
        x,
        &angles.cos,
        &angles.sin,
        &*y,
        int(OP, table.n_tokens())?,
        int(OP, n_heads)?,
        int(OP, width)?,
        int(OP, half)?,
        layout,
        sign,
        accumulate,
    ];
    cuda.launch(&KERNELS, x.dtype(), "rope_rotate", extent, args)
}

/// Cosines and sines of one or two streams of positions.
pub(super) fn angles(
    positions: &[Tensor],
    inv_freq: &[f64],
    amplitude: f64,
    device: Device,
) -> Result<Angles> {
    let (n, width) = (positions[0].shape().n_elements(), positions.len() * inv_freq.len());
    let cos = Tensor::uninit_on(device, [n, width], DType::F32)?;
    let sin = cos.like([n, width])?;
    let on_device = |t: &Tensor| t.to_device(device);
    let a = on_device(&positions[0])?;
    let b = positions.get(1).map(on_device).transpose()?;
    let frequencies = frequencies_on(inv_freq, device)?;
    let cuda = cos.cuda()?;
    let args = args![
        &a,
        b.as_ref(),
        &frequencies,
        &cos,
        &sin,
        amplitude,
        int(OP, n)?,
        int(OP, inv_freq.len())?
    ];
    cuda.launch(&KERNELS, DType::F32, "rope_table", Extent::elementwise(cuda, n * width), args)?;
    Ok(Angles { cos, sin })
}

/// The frequencies on a device. A model has one or two sets of a few hundred bytes. They are kept
/// for the life of the process, so that recorded work uploads nothing and finds them on every run
/// and thread.
fn frequencies_on(inv_freq: &[f64], device: Device) -> Result<Tensor> {
    static KNOWN: Mutex<Vec<(Vec<f64>, Device, Tensor)>> = Mutex::new(Vec::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known().iter().find(|(f, d, _)| f == inv_freq && *d == device).map(|k| k.2.clone());
    if let Some(found) = found {
        return Ok(found);
    }
    // Doubles, as pairs of words.
    let words: Vec<i32> = inv_freq
        .iter()
        .map(|w| w.to_bits())
        .flat_map(|bits| [bits as u32 as i32, (bits >> 32) as u32 as i32])
        .collect();
    let there = Tensor::from_ids(&words, [words.len()])?.to_device(device)?;
    // If the recording fails, a recorded upload was not made, so this copy is not shared.
    if !cuda::is_recorder() {
        known().push((inv_freq.to_vec(), device, there.clone()));
    }
    Ok(there)
}
