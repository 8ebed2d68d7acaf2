//! Gathering rows on a GPU and its transpose. Ids are on the CPU, where they were checked.

use crate::cuda::{Extent, Source, args, int, source};
use crate::ops::rows_cuda::lanes;
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("embedding", "kernel.cu");
const OP: &str = "embedding";

/// `y[i] = table[ids[i]]`.
pub(crate) fn gather(table: &Tensor, ids: &Tensor, y: &mut Tensor) -> Result<()> {
    let (n, d) = (ids.shape().n_elements(), table.shape().last_dim());
    let columns = d.div_ceil(4 * lanes(table.dtype())).next_power_of_two().min(256);
    let mut extent = Extent::line(n.div_ceil(256 / columns), 0);
    extent.block = [columns as u32, (256 / columns) as u32, 1];
    let ids = ids.to_device(table.device())?;
    let args = args![table, &ids, &*y, int(OP, n)?, int(OP, d)?];
    table.cuda()?.launch(&KERNELS, table.dtype(), "embedding_gather", extent, args)
}

/// `table[ids[i]] += dy[i]`, or `=` with 0 in all other rows, for a table in f32. The places of an
/// id are added in their order.
pub(crate) fn scatter_add(
    dy: &Tensor,
    ids: &[i32],
    table: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let &[n_rows, d] = &*table.shape() else { unreachable!("a table has two dimensions") };
    let cuda = dy.cuda()?;
    if !accumulate {
        table.fill_zero()?;
    }
    let runs = Runs::new(ids, n_rows);
    let place = |values: &[i32]| Tensor::from_ids(values, [values.len()])?.to_device(dy.device());
    let (order, starts, target) =
        (place(&runs.order)?, place(&runs.segment_starts)?, place(&runs.segment_target)?);
    let (n_segments, n_long) = (runs.segment_target.len(), runs.long_ids.len());
    let n_work = runs.long_starts.last().map_or(0, |n| *n as usize);
    let work = dy.like_f32([n_work, d])?;
    let columns = d.div_ceil(lanes(dy.dtype())).next_power_of_two().min(256);
    let mut extent = Extent::line(n_segments.div_ceil(256 / columns), 0);
    extent.grid[1] = d.div_ceil(lanes(dy.dtype()) * columns).min(65_535) as u32;
    extent.block = [columns as u32, (256 / columns) as u32, 1];
    let d = int(OP, d)?;
    let args =
        args![dy, &order, &starts, &target, &*table, &work, int(OP, n_segments)?, d, accumulate];
    cuda.launch(&KERNELS, dy.dtype(), "embedding_add_segments", extent, args)?;
    if n_long == 0 {
        return Ok(());
    }
    let (ids, starts) = (place(&runs.long_ids)?, place(&runs.long_starts)?);
    let mut extent = Extent::line(n_long, 128);
    extent.grid[1] = (d as usize).div_ceil(128).min(65_535) as u32;
    let args = args![&work, &ids, &starts, &*table, int(OP, n_long)?, d, accumulate];
    cuda.launch(&KERNELS, DType::F32, "embedding_add_long", extent, args)
}

/// The places of each id, cut into segments that one row of threads adds up: what the kernels'
/// comments call by these names.
struct Runs {
    order: Vec<i32>,
    segment_starts: Vec<i32>,
    segment_target: Vec<i32>,
    long_ids: Vec<i32>,
    long_starts: Vec<i32>,
}

impl Runs {
    fn new(ids: &[i32], n_rows: usize) -> Self {
        /// A run of up to this many places is one segment.
        const SEGMENT: usize = 64;
        // A counting sort: stable, and linear in places and rows.
        let mut next = vec![0usize; n_rows + 1];
        ids.iter().for_each(|id| next[*id as usize + 1] += 1);
        (0..n_rows).for_each(|row| next[row + 1] += next[row]);
        let starts = next.clone();
        let mut order = vec![0; ids.len()];
        for (position, id) in ids.iter().enumerate() {
            order[next[*id as usize]] = position as i32;
            next[*id as usize] += 1;
        }
        let mut runs = Self {
            order,
            segment_starts: Vec::new(),
            segment_target: Vec::new(),
            long_ids: Vec::new(),
            long_starts: vec![0],
        };
        let mut n_work = 0;
        for id in 0..n_rows {
            let (from, to) = (starts[id], starts[id + 1]);
            let len = to - from;
            if len == 0 {
                continue;
            }
            if len <= SEGMENT {
                runs.segment_starts.push(from as i32);
                runs.segment_target.push(id as i32);
                continue;
            }
            let step = SEGMENT.max(len.isqrt());
            for start in (from..to).step_by(step) {
                runs.segment_starts.push(start as i32);
                runs.segment_target.push(-1 - n_work);
                n_work += 1;
            }
            runs.long_ids.push(id as i32);
            runs.long_starts.push(n_work);
        }
        runs.segment_starts.push(ids.len() as i32);
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_all_places_in_order() {
        let mut ids = vec![3; 200];
        ids.extend([1, 0, 1]);
        let runs = Runs::new(&ids, 5);
        assert_eq!(runs.order[..3], [201, 200, 202]);
        assert_eq!(runs.segment_starts, [0, 1, 3, 67, 131, 195, 203]);
        assert_eq!(runs.segment_target, [0, 1, -1, -2, -3, -4]);
        assert_eq!((runs.long_ids, runs.long_starts), (vec![3], vec![0, 4]));
    }
}
