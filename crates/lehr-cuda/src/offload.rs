//! Offloading: buffers that wait in host memory, copied there and back by a second stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Cuda, CudaBuffer, fault};
use lehr_kernels::{DType, Result};

/// A copy between a device and host memory of the side stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostCopy {
    pub(super) host: u64,
    pub(super) device: u64,
    pub(super) bytes: usize,
    pub(super) to_host: bool,
}

/// A second stream for copies, with an order of its own.
pub(super) trait SideStream: Send + Sync {
    /// Allocates host memory that the device can access on its own. It is reused and never freed.
    fn lock_memory(&self, bytes: usize) -> Result<u64>;
    /// Starts a copy after the work that is on the stream so far. The ticket is for one
    /// [`SideStream::wait`].
    fn begin(&self, copy: HostCopy) -> Result<u64>;
    /// Makes the following work on the stream wait for a copy. The host does not wait.
    fn wait(&self, ticket: u64) -> Result<()>;
}

/// The side stream of a device with its pending copies.
pub(super) struct Offloads {
    side_stream: Box<dyn SideStream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Unused host memory, by size.
    free: HashMap<usize, Vec<u64>>,
    /// The buffer offloaded last: its copy may still read the device.
    last: Weak<Slot>,
}

impl Offloads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cuda {
    fn offloads(&self) -> Result<&Offloads> {
        if self.offloads.get().is_none() {
            let made =
                Offloads { side_stream: self.backend.side_stream()?, state: Mutex::default() };
            // If another thread was faster, its side stream is used.
            let _ = self.offloads.set(made);
        }
        self.offloads
            .get()
            .ok_or_else(|| fault("copying beside the stream", "there is no side stream"))
    }

    fn begin_aside(&self, copy: HostCopy) -> Result<u64> {
        let _turn = self.turn();
        self.offloads()?.side_stream.begin(copy)
    }

    fn wait_aside(&self, ticket: u64) -> Result<()> {
        let _turn = self.turn();
        self.offloads()?.side_stream.wait(ticket)
    }
}

/// A buffer that is, or was, offloaded to host memory.
pub struct Offloaded(Arc<Slot>);

struct Slot {
    cuda: &'static Cuda,
    host: u64,
    bytes: usize,
    dtype: DType,
    progress: Mutex<Progress>,
    /// The buffer offloaded before this one: backward needs it next.
    before: Weak<Self>,
}

/// State of an offloaded buffer.
enum Progress {
    /// On the device, while it is copied to the host.
    Leaving { buffer: Arc<CudaBuffer>, ticket: u64 },
    /// On the host only.
    Away,
    /// On the device as soon as the copy has ended.
    Arriving { buffer: Arc<CudaBuffer>, ticket: u64 },
    /// On the device.
    Back(Arc<CudaBuffer>),
}

impl Offloaded {
    /// Starts to copy a buffer of a GPU to the host. Its memory on the device is freed when the
    /// next buffer is offloaded.
    pub fn new(buffer: Arc<CudaBuffer>) -> Result<Self> {
        let cuda = Cuda::get(buffer.ordinal())?;
        let offloads = cuda.offloads()?;
        let (dtype, bytes) = (buffer.dtype(), buffer.n_bytes());
        let before = offloads.state().last.clone();
        before.upgrade().map_or(Ok(()), |slot| slot.finish_leaving())?;
        let free = offloads.state().free.get_mut(&bytes).and_then(Vec::pop);
        let host = free.map_or_else(|| offloads.side_stream.lock_memory(bytes), Ok)?;
        let copy = HostCopy { host, device: buffer.ptr(), bytes, to_host: true };
        let ticket = cuda.begin_aside(copy)?;
        let progress = Mutex::new(Progress::Leaving { buffer, ticket });
        let slot = Arc::new(Slot { cuda, host, bytes, dtype, progress, before });
        offloads.state().last = Arc::downgrade(&slot);
        Ok(Self(slot))
    }

    /// Returns the buffer on the device. It also starts to copy back the buffer offloaded before,
    /// which backward needs next.
    pub fn fetch(&self) -> Result<Arc<CudaBuffer>> {
        let buffer = self.0.arrive()?;
        if let Some(before) = self.0.before.upgrade() {
            before.begin_to_come()?;
        }
        Ok(buffer)
    }
}

impl Slot {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the memory on the device. All later work on the stream runs after the copy.
    fn finish_leaving(&self) -> Result<()> {
        let mut progress = self.progress();
        if let Progress::Leaving { ticket, .. } = &*progress {
            self.cuda.wait_aside(*ticket)?;
            *progress = Progress::Away;
        }
        Ok(())
    }

    /// Starts the copy back if the buffer is on the host.
    fn begin_to_come(&self) -> Result<()> {
        let mut progress = self.progress();
        if let Progress::Away = &*progress {
            let len = self.bytes / self.dtype.size();
            let buffer = Arc::new(CudaBuffer::uninit(self.cuda.ordinal, self.dtype, len)?);
            let (host, bytes) = (self.host, self.bytes);
            let copy = HostCopy { host, device: buffer.ptr(), bytes, to_host: false };
            let ticket = self.cuda.begin_aside(copy)?;
            *progress = Progress::Arriving { buffer, ticket };
        }
        Ok(())
    }

    fn arrive(&self) -> Result<Arc<CudaBuffer>> {
        self.begin_to_come()?;
        let mut progress = self.progress();
        let (buffer, ticket) = match &*progress {
            Progress::Leaving { buffer, ticket } | Progress::Arriving { buffer, ticket } => {
                (Arc::clone(buffer), Some(*ticket))
            }
            Progress::Back(buffer) => (Arc::clone(buffer), None),
            Progress::Away => unreachable!("it has begun to come"),
        };
        if let Some(ticket) = ticket {
            self.cuda.wait_aside(ticket)?;
            *progress = Progress::Back(Arc::clone(&buffer));
        }
        Ok(buffer)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Ok(offloads) = self.cuda.offloads() else { return };
        let progress = self.progress.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Leaving { ticket, .. } | Progress::Arriving { ticket, .. } = progress {
            // The next owner of this memory on the device must write after the copy.
            let _ = self.cuda.wait_aside(*ticket);
        }
        offloads.state().free.entry(self.bytes).or_default().push(self.host);
    }
}
