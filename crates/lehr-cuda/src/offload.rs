//! Buffers that wait in the host's memory, copied there and back beside the stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Cuda, CudaBuffer, fault};
use lehr_kernels::{DType, Result};

/// A copy between a device and memory of the host that the side stream gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostCopy {
    pub(super) host: u64,
    pub(super) device: u64,
    pub(super) bytes: usize,
    pub(super) to_host: bool,
}

/// What makes copies beside the stream, in their own order.
pub(super) trait SideStream: Send + Sync {
    /// Memory of the host that the device can reach while the host does other things. It is used
    /// again, and never given back.
    fn lock_memory(&self, bytes: usize) -> Result<u64>;
    /// Begins a copy as soon as the stream has done what it was told so far. The ticket is for one
    /// [`SideStream::wait`].
    fn begin(&self, copy: HostCopy) -> Result<u64>;
    /// Lets the stream wait for a copy before it does what it is told next. The host does not wait.
    fn wait(&self, ticket: u64) -> Result<()>;
}

/// The side stream of a device with what is under way.
pub(super) struct Offloads {
    side_stream: Box<dyn SideStream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Memory of the host that nothing lies in, by size.
    free: HashMap<usize, Vec<u64>>,
    /// The buffer that left last: its copy may still be read from the device.
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
            // If another thread was faster, this side stream is not used.
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

/// A buffer that is, or was, brought to the host's memory.
pub struct Offloaded(Arc<Slot>);

struct Slot {
    cuda: &'static Cuda,
    host: u64,
    bytes: usize,
    dtype: DType,
    progress: Mutex<Progress>,
    /// The one that left before: it is wanted next.
    before: Weak<Self>,
}

/// Where an offloaded buffer is, or which way it is going.
enum Progress {
    /// On the device, with the copy to the host under way.
    Leaving { buffer: Arc<CudaBuffer>, ticket: u64 },
    /// On the host alone.
    Away,
    /// On the device, when the copy there is done.
    Arriving { buffer: Arc<CudaBuffer>, ticket: u64 },
    /// On the device.
    Back(Arc<CudaBuffer>),
}

impl Offloaded {
    /// Begins to bring a buffer of a GPU to the host. Its room on the device is free as soon as the
    /// next one leaves.
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

    /// The buffer, on the device. The one that left before it begins to come back too, because
    /// backward wants it next.
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

    /// Frees the room on the device: what the stream does from now on comes after the copy.
    fn finish_leaving(&self) -> Result<()> {
        let mut progress = self.progress();
        if let Progress::Leaving { ticket, .. } = &*progress {
            self.cuda.wait_aside(*ticket)?;
            *progress = Progress::Away;
        }
        Ok(())
    }

    /// Begins the copy back, if the buffer is away.
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
