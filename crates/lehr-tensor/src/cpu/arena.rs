//! The caching arena: one reserved range of addresses from which all tensors are cut.
//!
//! Blocks are taken first-fit in address order and merge when they are freed. A training step
//! frees all it took except parameters and optimiser state, so every step starts from the same
//! free list; steps of equal shapes repeat the same addresses, and from the second on nothing is
//! asked of the system ([`Stats::n_growths`] stands still). Where the number of labels changes from
//! batch to batch, so do the buffers of the loss, and the mark may still creep up by a few per
//! cent. Gradients reuse the room of activations that backward has consumed.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use memmap2::{MmapMut, MmapOptions};

use crate::{Error, Result};

/// Every block starts on a cache line, which is also the widest vector.
const ALIGN: usize = 64;

/// Counters of the arena, in bytes and calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes in live blocks.
    pub used_bytes: usize,
    /// Largest `used_bytes` so far.
    pub used_peak_bytes: usize,
    /// End of the highest block so far: what the arena holds of the system's memory.
    pub high_water_bytes: usize,
    /// How often the high-water mark rose: the only time memory is asked of the system.
    pub n_growths: u64,
    /// How many blocks were handed out.
    pub n_blocks: u64,
}

struct State {
    base: NonNull<u8>,
    limit: usize,
    /// Free blocks by offset; neighbours are always merged.
    free: BTreeMap<usize, usize>,
    stats: Stats,
    /// Keeps the reservation mapped for the life of the process.
    _range: MmapMut,
}

// SAFETY: `base` points into `_range`, which moves with it; blocks are handed out once each.
unsafe impl Send for State {}

static STATE: OnceLock<Option<Mutex<State>>> = OnceLock::new();

/// A live block. It returns to the arena when dropped.
#[derive(Debug)]
pub(crate) struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is a unique range of memory; sharing it follows the rules of `&` and `&mut`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Takes `bytes` bytes (rounded up to whole cache lines). The contents are unspecified.
    pub(crate) fn take(bytes: usize) -> Result<Self> {
        // What overflows is more than there is, as it stands.
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGN).unwrap_or(bytes);
        let Some(mut state) = lock() else {
            return Err(Error::OutOfMemory { asked_bytes: bytes, used_bytes: 0, limit_bytes: 0 });
        };
        let Some((offset, room)) =
            state.free.iter().find(|(_, room)| **room >= bytes).map(|(o, r)| (*o, *r))
        else {
            return Err(Error::OutOfMemory {
                asked_bytes: bytes,
                used_bytes: state.stats.used_bytes,
                limit_bytes: state.limit,
            });
        };
        state.free.remove(&offset);
        if room > bytes {
            state.free.insert(offset + bytes, room - bytes);
        }
        state.stats.n_blocks += 1;
        state.stats.used_bytes += bytes;
        state.stats.used_peak_bytes = state.stats.used_peak_bytes.max(state.stats.used_bytes);
        if offset + bytes > state.stats.high_water_bytes {
            state.stats.high_water_bytes = offset + bytes;
            state.stats.n_growths += 1;
        }
        // SAFETY: `offset + bytes` lies within the reservation, whose base is not null.
        let ptr = unsafe { state.base.add(offset) };
        Ok(Self { ptr, bytes })
    }

    /// Start of the block, aligned to 64 bytes.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(mut state) = lock() else { return };
        state.stats.used_bytes -= self.bytes;
        let mut offset = self.ptr.as_ptr() as usize - state.base.as_ptr() as usize;
        let mut bytes = self.bytes;
        if let Some((&before, &room)) = state.free.range(..offset).next_back()
            && before + room == offset
        {
            state.free.remove(&before);
            offset = before;
            bytes += room;
        }
        if let Some(room) = state.free.remove(&(offset + bytes)) {
            bytes += room;
        }
        state.free.insert(offset, bytes);
    }
}

/// The arena's counters at this moment.
#[must_use]
pub fn stats() -> Stats {
    lock().map(|state| state.stats).unwrap_or_default()
}

/// Starts the peak counter anew from what is in use now.
pub fn reset_peak() {
    if let Some(mut state) = lock() {
        state.stats.used_peak_bytes = state.stats.used_bytes;
    }
}

fn lock() -> Option<MutexGuard<'static, State>> {
    let state = STATE.get_or_init(|| reserve().map(Mutex::new));
    state.as_ref().map(|mutex| mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

fn reserve() -> Option<State> {
    let mut limit = limit_bytes();
    loop {
        if let Ok(mut range) = MmapOptions::new().len(limit).no_reserve_swap().map_anon() {
            advise_huge_pages(&range);
            let base = NonNull::new(range.as_mut_ptr())?;
            let free = BTreeMap::from([(0, limit)]);
            return Some(State { base, limit, free, stats: Stats::default(), _range: range });
        }
        // A system that counts reservations as use may refuse; half is better than nothing.
        limit /= 2;
        if limit < 64 << 20 {
            return None;
        }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(range: &MmapMut) {
    // Best effort: pages of 4 KiB work too, only slower to walk.
    let _ = range.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &MmapMut) {}

/// The physical memory, or `LEHR_MEMORY_GB`.
fn limit_bytes() -> usize {
    const GIB: f64 = (1u64 << 30) as f64;
    if let Some(gib) = std::env::var("LEHR_MEMORY_GB").ok().and_then(|v| v.parse::<f64>().ok())
        && gib > 0.0
    {
        return ((gib * GIB) as usize).next_multiple_of(ALIGN);
    }
    let total_kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        text.lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok())
    });
    total_kib.map_or(16 << 30, |kib: usize| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_merge_and_are_reused() {
        let a = Block::take(1 << 20).unwrap();
        let b = Block::take(1 << 20).unwrap();
        assert_eq!(a.ptr() as usize % ALIGN, 0);
        assert_ne!(a.ptr(), b.ptr());
        drop(a);
        drop(b);
        let before = stats().n_blocks;
        assert!(before >= 2);
    }

    #[test]
    fn an_impossible_request_is_an_error() {
        assert!(matches!(Block::take(1 << 60), Err(Error::OutOfMemory { .. })));
        assert!(matches!(Block::take(usize::MAX), Err(Error::OutOfMemory { .. })));
    }
}
