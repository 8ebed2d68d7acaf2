//! Tensors that wait in the host's memory, copied there and back beside the stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Cuda, fault};
use crate::{DType, Device, Result, Shape, Tensor};

/// A copy between a device and memory of the host that the lane gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostCopy {
    pub(super) host: u64,
    pub(super) device: u64,
    pub(super) bytes: usize,
    pub(super) to_host: bool,
}

/// What makes copies beside the stream, in their own order.
pub(super) trait Lane: Send + Sync {
    /// Memory of the host that the device can reach while the host does other things. It is used
    /// again, and never given back.
    fn lock_memory(&self, bytes: usize) -> Result<u64>;
    /// Begins a copy as soon as the stream has done what it was told so far. The ticket is for one
    /// [`Lane::wait`].
    fn begin(&self, copy: HostCopy) -> Result<u64>;
    /// Lets the stream wait for a copy before it does what it is told next. The host does not wait.
    fn wait(&self, ticket: u64) -> Result<()>;
}

/// The lane of a device with what is under way.
pub(super) struct Offloads {
    lane: Box<dyn Lane>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Memory of the host that nothing lies in, by size.
    free: HashMap<usize, Vec<u64>>,
    /// The tensor that left last: its copy may still be read from the device.
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
            let made = Offloads { lane: self.backend.lane()?, state: Mutex::default() };
            // If another thread was faster, this lane is not used.
            let _ = self.offloads.set(made);
        }
        self.offloads.get().ok_or_else(|| fault("copying beside the stream", "there is no lane"))
    }

    fn begin_aside(&self, copy: HostCopy) -> Result<u64> {
        let _turn = self.turn();
        self.offloads()?.lane.begin(copy)
    }

    fn wait_aside(&self, ticket: u64) -> Result<()> {
        let _turn = self.turn();
        self.offloads()?.lane.wait(ticket)
    }
}

/// A tensor that is, or was, brought to the host's memory.
pub(crate) struct Offloaded(Arc<Slot>);

struct Slot {
    cuda: &'static Cuda,
    host: u64,
    bytes: usize,
    /// What it is on the device.
    kind: (Device, Shape, DType),
    place: Mutex<Place>,
    /// The one that left before: it is wanted next.
    before: Weak<Self>,
}

enum Place {
    /// On the device, with the copy to the host under way.
    Leaving { tensor: Tensor, ticket: u64 },
    /// On the host alone.
    Away,
    /// On the device, when the copy there is done.
    Arriving { tensor: Tensor, ticket: u64 },
    /// On the device.
    Back(Tensor),
}

impl Offloaded {
    /// Begins to bring a tensor of a GPU to the host. Its room on the device is free as soon as the
    /// next one leaves.
    pub(crate) fn new(tensor: &Tensor) -> Result<Self> {
        let cuda = tensor.cuda()?;
        let offloads = cuda.offloads()?;
        let bytes = tensor.shape().n_elements() * tensor.dtype().size();
        let before = offloads.state().last.clone();
        before.upgrade().map_or(Ok(()), |slot| slot.finish_leaving())?;
        let free = offloads.state().free.get_mut(&bytes).and_then(Vec::pop);
        let host = free.map_or_else(|| offloads.lane.lock_memory(bytes), Ok)?;
        let copy = HostCopy { host, device: tensor.device_ptr(), bytes, to_host: true };
        let ticket = cuda.begin_aside(copy)?;
        let place = Mutex::new(Place::Leaving { tensor: tensor.detach(), ticket });
        let kind = (tensor.device(), tensor.shape(), tensor.dtype());
        let slot = Arc::new(Slot { cuda, host, bytes, kind, place, before });
        offloads.state().last = Arc::downgrade(&slot);
        Ok(Self(slot))
    }

    /// The tensor, on the device. The one that left before it begins to come back too, because
    /// backward wants it next.
    pub(crate) fn fetch(&self) -> Result<Tensor> {
        let tensor = self.0.arrive()?;
        if let Some(before) = self.0.before.upgrade() {
            before.begin_to_come()?;
        }
        Ok(tensor)
    }
}

impl Slot {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the room on the device: what the stream does from now on comes after the copy.
    fn finish_leaving(&self) -> Result<()> {
        let mut place = self.place();
        if let Place::Leaving { ticket, .. } = &*place {
            self.cuda.wait_aside(*ticket)?;
            *place = Place::Away;
        }
        Ok(())
    }

    /// Begins the copy back, if the tensor is away.
    fn begin_to_come(&self) -> Result<()> {
        let mut place = self.place();
        if let Place::Away = &*place {
            let (device, shape, dtype) = self.kind;
            let tensor = Tensor::uninit_on(device, shape, dtype)?;
            let (host, bytes) = (self.host, self.bytes);
            let copy = HostCopy { host, device: tensor.device_ptr(), bytes, to_host: false };
            let ticket = self.cuda.begin_aside(copy)?;
            *place = Place::Arriving { tensor, ticket };
        }
        Ok(())
    }

    fn arrive(&self) -> Result<Tensor> {
        self.begin_to_come()?;
        let mut place = self.place();
        let (tensor, ticket) = match &*place {
            Place::Leaving { tensor, ticket } | Place::Arriving { tensor, ticket } => {
                (tensor.clone(), Some(*ticket))
            }
            Place::Back(tensor) => (tensor.clone(), None),
            Place::Away => unreachable!("it has begun to come"),
        };
        if let Some(ticket) = ticket {
            self.cuda.wait_aside(ticket)?;
            *place = Place::Back(tensor.clone());
        }
        Ok(tensor)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Ok(offloads) = self.cuda.offloads() else { return };
        let place = self.place.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Place::Leaving { ticket, .. } | Place::Arriving { ticket, .. } = place {
            // The room on the device goes to whoever comes next, who must come after the copy.
            let _ = self.cuda.wait_aside(*ticket);
        }
        offloads.state().free.entry(self.bytes).or_default().push(self.host);
    }
}
