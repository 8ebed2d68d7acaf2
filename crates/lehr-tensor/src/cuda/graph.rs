//! Work that is recorded once and run many times.

use std::cell::Cell;
use std::sync::PoisonError;

use super::{Block, Cuda};
use crate::{Error, Result, Tensor};

thread_local! {
    static IS_RECORDER: Cell<bool> = const { Cell::new(false) };
}

/// This thread records as long as it lives.
struct Recording;

impl Recording {
    fn start() -> Self {
        IS_RECORDER.set(true);
        Self
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        IS_RECORDER.set(false);
    }
}

/// Whether this thread is recording.
pub(super) fn is_recorder() -> bool {
    IS_RECORDER.get()
}

/// Work recorded once and run many times: a launch costs the host nothing then.
pub struct Graph {
    cuda: &'static Cuda,
    handle: u64,
    /// The memory of intermediate results, which stays reserved as long as the graph is there.
    held: Vec<(usize, usize)>,
}

impl Graph {
    /// Records what `body` starts on the device, without running it. It must have run once before, so that its kernels are loaded
    /// and there is memory for its results. It must not upload anything nor read results. What it allocates and frees stays
    /// reserved for the graph. Other threads that use the device wait meanwhile.
    ///
    /// # Errors
    /// Those of `body`, or if something in it cannot be recorded.
    pub fn record(ordinal: usize, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        /// Room for intermediate results that is there before recording begins, because none of it is used twice.
        const ROOM_BYTES: usize = 256 << 20;
        let cuda = Cuda::get(ordinal)?;
        // Best effort: where it is not to be had, less may do.
        drop(Block::take(ordinal, ROOM_BYTES));
        let _others_wait = cuda.recording.write().unwrap_or_else(PoisonError::into_inner);
        cuda.backend.begin_capture()?;
        cuda.arena.hold();
        let recording = Recording::start();
        let done = body();
        drop(recording);
        let held = cuda.arena.take_held();
        match cuda.backend.end_capture() {
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

    /// Runs it.
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

/// Writes integers over those of a tensor on a GPU, whoever shares it: the inputs of recorded work.
///
/// # Errors
/// If the tensor is not an integer tensor of that size on a GPU, or the device fails.
pub fn overwrite_ids(tensor: &Tensor, values: &[i32]) -> Result<()> {
    tensor.expect_ids("overwrite_ids")?;
    if tensor.shape().n_elements() != values.len() {
        let expected = format!("{} numbers", values.len());
        return Err(Error::Rank { op: "overwrite_ids", found: tensor.shape(), expected });
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    tensor.cuda()?.upload(tensor.device_ptr(), &bytes)
}
