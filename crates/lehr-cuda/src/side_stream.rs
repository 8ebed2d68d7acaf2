//! A second stream of a real GPU, for copies in parallel with the first.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;

use super::devices::check;
use super::driver::make_current;
use super::offload::{HostCopy, SideStream};
use super::stream::Event;
use lehr_kernels::Result;

pub(super) struct DriverSideStream {
    ordinal: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
    side: sys::CUstream,
    tickets: Mutex<Tickets>,
}

#[derive(Default)]
struct Tickets {
    n_given: u64,
    /// End events of copies that have not been waited for.
    ends: HashMap<u64, Event>,
    /// Events for reuse.
    free: Vec<Event>,
}

// SAFETY: the driver's handles may be used from any thread; the context is made current first.
unsafe impl Send for DriverSideStream {}
// SAFETY: as above; what changes is behind a mutex.
unsafe impl Sync for DriverSideStream {}

impl DriverSideStream {
    pub(super) fn new(
        ordinal: usize,
        context: sys::CUcontext,
        stream: sys::CUstream,
    ) -> Result<Self> {
        make_current(ordinal, context)?;
        let mut side = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current.
        check(unsafe { sys::cuStreamCreate(&raw mut side, flags) }, "making a stream")?;
        Ok(Self { ordinal, context, stream, side, tickets: Mutex::default() })
    }
}

impl Tickets {
    fn event(&mut self) -> Result<Event> {
        self.free.pop().map_or_else(|| Event::new(false), Ok)
    }
}

impl SideStream for DriverSideStream {
    fn lock_memory(&self, bytes: usize) -> Result<u64> {
        make_current(self.ordinal, self.context)?;
        let mut host: *mut c_void = ptr::null_mut();
        check(
            // SAFETY: the context is current.
            unsafe { sys::cuMemAllocHost_v2(&raw mut host, bytes) },
            "locking memory of the host for activations",
        )?;
        Ok(host as u64)
    }

    fn begin(&self, copy: HostCopy) -> Result<u64> {
        make_current(self.ordinal, self.context)?;
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let (so_far, end) = (tickets.event()?, tickets.event()?);
        so_far.record(self.stream)?;
        so_far.hold_up(self.side)?;
        let HostCopy { host, device, bytes, to_host } = copy;
        // SAFETY: the block of the device lives until the stream has waited for the copy, and the
        // memory of the host for ever.
        let begun = unsafe {
            match to_host {
                true => sys::cuMemcpyDtoHAsync_v2(host as *mut c_void, device, bytes, self.side),
                false => sys::cuMemcpyHtoDAsync_v2(device, host as *const c_void, bytes, self.side),
            }
        };
        check(begun, "copying activations beside the stream")?;
        end.record(self.side)?;
        // An event may be recorded again as soon as the wait for it has been submitted.
        tickets.free.push(so_far);
        tickets.n_given += 1;
        let ticket = tickets.n_given;
        tickets.ends.insert(ticket, end);
        Ok(ticket)
    }

    fn wait(&self, ticket: u64) -> Result<()> {
        make_current(self.ordinal, self.context)?;
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = tickets.ends.remove(&ticket) {
            end.hold_up(self.stream)?;
            tickets.free.push(end);
        }
        Ok(())
    }
}
