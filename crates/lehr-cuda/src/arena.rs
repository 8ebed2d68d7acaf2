//! The memory of a device: one range of addresses. Memory is mapped to the part that was ever used.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Cuda, is_recorder};
use lehr_kernels::free_list::{FreeList, Places, Stats};
use lehr_kernels::{Device, Error, Result};

/// Alignment of every block, which cuBLASLt needs for its fastest products.
const ALIGN: usize = 256;

/// The free list of a device.
pub(super) struct Arena {
    ordinal: usize,
    base: u64,
    state: Mutex<State>,
}

struct State {
    list: FreeList,
    /// Bytes from the start that have memory.
    mapped: usize,
    /// Blocks freed during a recording. The recorded work uses them whenever it runs, so they are
    /// reused only by work that is recorded later.
    held: Option<Places>,
}

/// A live block. It returns to the arena when dropped. The stream runs in order, so its next owner
/// writes after its last reader.
#[derive(Debug)]
pub struct Block {
    ordinal: usize,
    ptr: u64,
    bytes: usize,
}

impl Arena {
    pub(super) fn new(ordinal: usize, (base, limit): (u64, usize)) -> Self {
        let state = State { list: FreeList::new(limit, ALIGN), mapped: 0, held: None };
        Self { ordinal, base, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> Stats {
        self.lock().list.stats
    }

    /// Starts to hold back freed blocks.
    pub(super) fn hold(&self) {
        self.lock().held = Some(Places::default());
    }

    /// Stops holding back, and returns the held blocks for [`Arena::give_back`].
    pub(super) fn take_held(&self) -> Places {
        self.lock().held.take().unwrap_or_default()
    }

    pub(super) fn give_back(&self, held: &Places) {
        let mut state = self.lock();
        held.all().for_each(|(offset, bytes)| state.list.give(offset, bytes));
    }

    pub(super) fn reset_peak(&self) {
        let stats = &mut self.lock().list.stats;
        stats.used_peak_bytes = stats.used_bytes;
    }
}

impl Block {
    /// Allocates `bytes` bytes on device `ordinal`. The contents are unspecified.
    pub fn take(ordinal: usize, bytes: usize) -> Result<Self> {
        let cuda = Cuda::get(ordinal)?;
        let arena = &cuda.arena;
        let mut state = arena.lock();
        let bytes = state.list.rounded(bytes);
        let full = |state: &State| Error::OutOfMemory {
            asked_bytes: bytes,
            used_bytes: state.list.stats.used_bytes,
            limit_bytes: state.list.limit,
            device: Device::Cuda(arena.ordinal),
        };
        // Other threads may allocate meanwhile; blocks freed here are for this thread's work.
        let again = state.held.as_mut().filter(|_| is_recorder()).and_then(|held| held.take(bytes));
        let Some(offset) = again.or_else(|| state.list.take(bytes)) else {
            return Err(full(&state));
        };
        if offset + bytes > state.mapped {
            match cuda.backend.grow(arena.base, state.mapped, offset + bytes) {
                Ok(mapped) => state.mapped = mapped,
                Err(error) => {
                    state.list.give(offset, bytes);
                    return Err(match error {
                        Error::OutOfMemory { .. } => full(&state),
                        other => other,
                    });
                }
            }
        }
        Ok(Self { ordinal, ptr: arena.base + offset as u64, bytes })
    }

    /// Returns its address on the device.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Returns the number of its device.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Ok(cuda) = Cuda::get(self.ordinal) {
            let offset = (self.ptr - cuda.arena.base) as usize;
            let mut state = cuda.arena.lock();
            match &mut state.held {
                Some(held) => held.give(offset, self.bytes),
                None => state.list.give(offset, self.bytes),
            }
        }
    }
}
