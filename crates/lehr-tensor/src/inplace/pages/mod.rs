//! What is done in place with keys and values in pages.

use super::refuse_grad;
use crate::cuda::{Extent, Source, args, int, source};
use crate::pages::Pages;
use crate::{DType, Error, Result, Tensor};

#[cfg(test)]
mod tests;

pub(crate) static KERNELS: Source = source!("pages", "kernel.cu");
const OP: &str = "write_pages";

/// Writes new keys and values `new`, `[B, T, K, E]` each, over the last T tokens of each text in
/// `pools` `[n_pages, P, K, E]`; of a text that is shorter, the last rows over all of it.
///
/// # Errors
/// If shapes, types or devices do not fit together, a tensor wants a gradient, on the CPU if a page
/// is not one of the pool, or if the device fails.
///
/// # Panics
/// If a pool is shared and on the CPU.
pub fn write_pages(pools: [&mut Tensor; 2], new: [&Tensor; 2], pages: &Pages) -> Result<()> {
    let shape = new[0].shape();
    let mut shift = 0;
    for (pool, new) in pools.iter().zip(new) {
        refuse_grad(OP, "new", new)?;
        refuse_grad(OP, "pool", pool)?;
        pool.expect_float(OP)?;
        pool.expect_beside(OP, new)?;
        pool.expect_beside(OP, &*pools[0])?;
        let (to, from) = (pool.shape(), new.shape());
        let fits =
            from.len() == 4 && from == shape && to == pools[0].shape() && to[2..] == from[2..];
        if !fits {
            let rule = "pools are [n_pages, P, K, E], what is new is [B, T, K, E]";
            return Err(Error::Shape { op: OP, lhs: to, rhs: from, rule });
        }
        shift = pages.check(OP, pool, shape[0])?;
    }
    let width = shape[2] * shape[3];
    let [k_pool, v_pool] = pools;
    if k_pool.is_cuda() {
        let n = shape[0] * shape[1];
        let args = args![
            new[0],
            new[1],
            &*k_pool,
            &*v_pool,
            pages.table(),
            pages.lengths(),
            int(OP, pages.max_pages())?,
            shift,
            int(OP, shape[1])?,
            int(OP, n)?,
            int(OP, width)?,
        ];
        let cuda = new[0].cuda()?;
        let mut extent = Extent::line(n.min(16 * cuda.n_sms() as usize), 128);
        extent.grid[1] = 2;
        return cuda.launch(&KERNELS, k_pool.dtype(), "write_pages", extent, args);
    }
    for (pool, new) in [(k_pool, new[0]), (v_pool, new[1])] {
        let (pool, rows) = (pool.data_mut(), new.data().chunks_exact(width.max(1)));
        for (i, row) in rows.enumerate() {
            let (b, t) = (i / shape[1], i % shape[1]);
            let token = (pages.lengths().ids()[b] as usize + t).checked_sub(shape[1]);
            if let Some(token) = token {
                let page = pages.table().ids()[b * pages.max_pages() + (token >> shift)] as usize;
                let at = (page << shift) + token % (1 << shift);
                pool[at * width..][..width].copy_from_slice(row);
            }
        }
    }
    Ok(())
}

/// Brings the keys and values in `pools` `[n_pages, P, K, E]` on a GPU in the order of the tokens,
/// `[B, n, K, E]` each, with zeros behind the last token of a text. `n` is at most the tokens that
/// the table has room for.
///
/// # Errors
/// If shapes, types or devices do not fit together, memory runs out or the device fails.
pub(crate) fn gather_pages(pools: [&Tensor; 2], pages: &Pages, n: usize) -> Result<[Tensor; 2]> {
    const OP: &str = "gather_pages";
    let (shape, batch) = (pools[0].shape(), pages.batch());
    let shift = pages.check(OP, pools[0], batch)?;
    let is_outside = n > pages.max_pages() << shift;
    if is_outside || pools[1].shape() != shape {
        let rule = "two pools of one shape, and a table with room for the tokens";
        return Err(Error::Shape { op: OP, lhs: shape, rhs: pools[1].shape(), rule });
    }
    let width = shape[2] * shape[3];
    let room = |pool: &Tensor| pool.like([batch, n, shape[2], shape[3]]);
    let [k, v] = [room(pools[0])?, room(pools[1])?];
    if k.shape().n_elements() == 0 {
        return Ok([k, v]);
    }
    let args = args![
        pools[0],
        pools[1],
        &k,
        &v,
        pages.table(),
        pages.lengths(),
        int(OP, pages.max_pages())?,
        shift,
        int(OP, n)?,
        int(OP, batch * n)?,
        int(OP, width)?,
    ];
    let cuda = k.cuda()?;
    let mut extent = Extent::line((batch * n).min(16 * cuda.n_sms() as usize), 128);
    extent.grid[1] = 2;
    cuda.launch(&KERNELS, k.dtype(), "gather_pages", extent, args)?;
    Ok([k, v])
}

/// Advances each sequence that has tokens by one: adds 1 to `positions` `[B, 1]` and `lengths`
/// `[B]` where the length is not 0. Both are i32 on one GPU and change for all who share them.
///
/// # Errors
/// If they are not integers of these shapes on one GPU, or it fails.
pub fn advance_texts(positions: &Tensor, lengths: &Tensor) -> Result<()> {
    const OP: &str = "advance_texts";
    for numbers in [positions, lengths] {
        numbers.expect_ids(OP)?;
        numbers.expect_on(OP, lengths.device())?;
    }
    let n = lengths.shape().n_elements();
    if positions.shape().n_elements() != n {
        let rule = "there must be a position for each length";
        return Err(Error::Shape { op: OP, lhs: positions.shape(), rhs: lengths.shape(), rule });
    }
    let args = args![positions, lengths, int(OP, n)?];
    lengths.cuda()?.launch(&KERNELS, DType::F32, "advance_texts", Extent::line(1, 128), args)
}
