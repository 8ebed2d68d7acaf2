//! Recorded work that one launch starts.
//!
//! A launch costs the host a few microseconds. A step of decoding has hundreds of kernels of about
//! that length, so the GPU would wait for the host. While a stream is captured, launches are
//! recorded instead of run; the driver then starts all of them at once.
//!
//! Recorded work differs from other work in two ways:
//!
//! - **Memory.** A kernel in a recording holds addresses. A [`Graph`] runs many times, so no other
//!   work may reuse the blocks it wrote to while it exists. Blocks freed during the recording are
//!   held back from the arena, and only the recording itself may reuse them (each of its kernels
//!   runs after the last reader of the block, as in the stream). A [`StepGraph`] runs once, at its
//!   place in the stream, so it frees as usual.
//! - **The host.** Nothing has run when `body` returns. Reading a result is therefore an error. An
//!   upload is an error in a [`Graph`], whose later runs would copy stale bytes; for a
//!   [`StepGraph`] the bytes are kept in page-locked memory until it has run.
//!
//! A recording stream records the work of every thread, so other threads must not use it. They wait
//! at `Cuda::turn`; only the recording thread may continue.

use std::cell::Cell;
use std::sync::PoisonError;

use super::{Block, Cuda, Uploads};
use lehr_kernels::free_list::Places;
use lehr_kernels::{Error, Result};

thread_local! {
    static IS_RECORDER: Cell<bool> = const { Cell::new(false) };
}

/// A recording by this thread, from `start` to `end`.
struct Recording(&'static Cuda);

impl Recording {
    fn start(cuda: &'static Cuda, uploads: Uploads) -> Result<Self> {
        cuda.backend.begin_capture(uploads)?;
        IS_RECORDER.set(true);
        Ok(Self(cuda))
    }

    /// Ends the recording and returns its handle. If there is an `earlier` one, the driver updates
    /// it in place where it can, which is cheaper than building the executable form again.
    fn end(self, earlier: Option<u64>) -> Result<u64> {
        let cuda = self.0;
        IS_RECORDER.set(false);
        // `drop` would end the capture a second time.
        std::mem::forget(self);
        cuda.backend.end_capture(earlier)
    }
}

/// Runs if the work panics: the stream must stop recording, and held blocks return to the arena.
impl Drop for Recording {
    fn drop(&mut self) {
        IS_RECORDER.set(false);
        if let Ok(handle) = self.0.backend.end_capture(None) {
            self.0.backend.drop_graph(handle);
        }
        self.0.arena.give_back(&self.0.arena.take_held());
    }
}

/// Returns whether this thread is recording.
pub fn is_recorder() -> bool {
    IS_RECORDER.get()
}

/// Work recorded once and run many times: a launch costs the host nothing then.
pub struct Graph {
    cuda: &'static Cuda,
    handle: u64,
    /// Memory of intermediate results, reserved while the graph exists.
    held: Places,
}

impl Graph {
    /// Records what `body` starts on the device, without running it. It must have run once before,
    /// so that its kernels are loaded and there is memory for its results. It must not upload
    /// anything nor read results. What it allocates and frees stays reserved for the graph; what
    /// was allocated before must outlive it. Other threads that use the device wait meanwhile.
    ///
    /// # Errors
    /// Those of `body`, or if something in it cannot be recorded.
    pub fn record(ordinal: usize, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        /// Memory for intermediate results that is mapped before the recording starts.
        const ROOM_BYTES: usize = 256 << 20;
        let cuda = Cuda::get(ordinal)?;
        // The arena grows before the capture, because mapping memory during one depends on the
        // driver. Best effort: less may do.
        drop(Block::take(ordinal, ROOM_BYTES));
        let _others_wait = cuda.recording.write().unwrap_or_else(PoisonError::into_inner);
        let recording = Recording::start(cuda, Uploads::Refused)?;
        cuda.arena.hold();
        let done = body();
        let held = cuda.arena.take_held();
        match recording.end(None) {
            Ok(handle) => {
                // If `body` failed, the graph is forgotten at once.
                let graph = Self { cuda, handle, held };
                done.map(|()| graph)
            }
            Err(error) => {
                cuda.arena.give_back(&held);
                done.and(Err(error))
            }
        }
    }

    /// Returns the bytes reserved for intermediate results.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.all().map(|(_, bytes)| bytes).sum()
    }

    /// Starts the whole recording on the stream.
    ///
    /// # Errors
    /// If the device fails.
    pub fn launch(&self) -> Result<()> {
        let _turn = self.cuda.turn();
        self.cuda.backend.launch_graph(self.handle)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.cuda.backend.drop_graph(self.handle);
        self.cuda.arena.give_back(&self.held);
    }
}

/// Work that is recorded each time and then started by one launch, such as a training step. The GPU
/// runs from kernel to kernel without the host. The work may differ each time. If only addresses,
/// numbers and sizes differ from the last time, the driver updates its graph instead of building it
/// again.
pub struct StepGraph {
    cuda: &'static Cuda,
    handle: Option<u64>,
}

impl StepGraph {
    /// Prepares for work on device `ordinal`.
    ///
    /// # Errors
    /// If the device cannot be opened.
    pub fn new(ordinal: usize) -> Result<Self> {
        Ok(Self { cuda: Cuda::get(ordinal)?, handle: None })
    }

    /// Records what `body` starts on the device and runs it. It must not read results. It should
    /// have run once before without this, so that kernels are loaded. Other threads that use the
    /// device wait meanwhile.
    ///
    /// # Errors
    /// Those of `body`, or if something in it cannot be recorded. Then none of its work has run,
    /// and its results on the device are invalid.
    pub fn run<T, E: From<Error>>(
        &mut self,
        body: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let cuda = self.cuda;
        let _others_wait = cuda.recording.write().unwrap_or_else(PoisonError::into_inner);
        let recording = Recording::start(cuda, Uploads::Recorded)?;
        // What is freed inside may be used again inside and after: the work runs once, in its place
        // in the stream.
        let done = body();
        // What was recorded before is replaced, or forgotten.
        let recorded = recording.end(self.handle.take());
        self.handle = recorded.as_ref().ok().copied();
        let value = done?;
        cuda.backend.launch_graph(recorded?)?;
        Ok(value)
    }
}

impl Drop for StepGraph {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            self.cuda.backend.drop_graph(handle);
        }
    }
}
