//! The caching arena: one reserved range of addresses that holds all tensors.
//!
//! Blocks are allocated first-fit in address order and merge when they are freed. A training step
//! frees everything except parameters and optimiser state, so every step starts from the same free
//! list. Steps of equal shapes repeat the same addresses, and from the second step on the arena
//! does not grow ([`Stats::n_growths`] stays constant). If the number of labels differs between
//! batches, so do the buffers of the loss, and the arena may still grow by a few per cent.
//! Gradients reuse the memory of activations that backward has consumed.

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use memmap2::{MmapMut, MmapOptions};

use crate::free_list::FreeList;
use crate::{Device, Error, Result};

/// Every block starts on a cache line, which is also the widest vector.
const ALIGN: usize = 64;

pub use crate::free_list::Stats;

struct State {
    base: NonNull<u8>,
    list: FreeList,
    /// Keeps the reservation mapped for the life of the process.
    _range: MmapMut,
}

// SAFETY: `base` points into `_range`, which moves with it; blocks are handed out once each.
unsafe impl Send for State {}

static STATE: OnceLock<Option<Mutex<State>>> = OnceLock::new();

/// A live block. It returns to the arena when dropped.
#[derive(Debug)]
pub struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is a unique range of memory; sharing it follows the rules of `&` and `&mut`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Allocates `bytes` bytes (rounded up to whole cache lines). The contents are unspecified.
    pub fn take(bytes: usize) -> Result<Self> {
        let Some(mut state) = lock() else {
            return Err(Error::OutOfMemory {
                asked_bytes: bytes,
                used_bytes: 0,
                limit_bytes: 0,
                device: Device::Cpu,
            });
        };
        let bytes = state.list.rounded(bytes);
        let Some(offset) = state.list.take(bytes) else {
            return Err(Error::OutOfMemory {
                asked_bytes: bytes,
                used_bytes: state.list.stats.used_bytes,
                limit_bytes: state.list.limit,
                device: Device::Cpu,
            });
        };
        // SAFETY: `offset + bytes` lies within the reservation, whose base is not null.
        let ptr = unsafe { state.base.add(offset) };
        Ok(Self { ptr, bytes })
    }

    /// Start of the block, aligned to 64 bytes.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(mut state) = lock() else { return };
        let offset = self.ptr.as_ptr() as usize - state.base.as_ptr() as usize;
        state.list.give(offset, self.bytes);
    }
}

/// The arena's counters at this moment.
#[must_use]
pub fn stats() -> Stats {
    lock().map(|state| state.list.stats).unwrap_or_default()
}

/// Resets the peak counter to the bytes now in use.
pub fn reset_peak() {
    if let Some(mut state) = lock() {
        state.list.stats.used_peak_bytes = state.list.stats.used_bytes;
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
            return Some(State { base, list: FreeList::new(limit, ALIGN), _range: range });
        }
        // A system that counts reservations as use may refuse. Half is better than nothing.
        limit /= 2;
        if limit < 64 << 20 {
            return None;
        }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(range: &MmapMut) {
    // Best effort: pages of 4 KiB also work, but more slowly.
    let _ = range.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &MmapMut) {}

/// Limit of the bytes of all tensors on the CPU: `LEHR_MEMORY_GB`, or else the physical memory, or
/// what the control group of the process allows.
#[must_use]
pub fn limit_bytes() -> usize {
    const GIB: f64 = (1u64 << 30) as f64;
    if let Some(gib) = std::env::var("LEHR_MEMORY_GB").ok().and_then(|v| v.parse::<f64>().ok())
        && gib > 0.0
    {
        return ((gib * GIB) as usize).next_multiple_of(ALIGN);
    }
    crate::memory::usable_bytes() / ALIGN * ALIGN
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
