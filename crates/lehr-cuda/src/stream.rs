//! Events and timers of a device's stream, and its uploads.

use std::ptr;
use std::time::Instant;

use cudarc::driver::sys;

use super::Timer;
use super::devices::check;
use lehr_kernels::Result;

/// An event of the stream.
pub(super) struct Event(sys::CUevent);

impl Event {
    pub(super) fn new(timing: bool) -> Result<Self> {
        let flags =
            if timing { 0 } else { sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32 };
        let mut event = ptr::null_mut();
        // SAFETY: the context is current.
        check(unsafe { sys::cuEventCreate(&raw mut event, flags) }, "making an event")?;
        Ok(Self(event))
    }

    pub(super) fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both are alive.
        check(unsafe { sys::cuEventRecord(self.0, stream) }, "recording an event")
    }

    /// Makes a stream wait for the event; the host does not wait.
    pub(super) fn hold_up(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: both are alive.
        check(unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }, "waiting for a stream")
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        check(unsafe { sys::cuEventSynchronize(self.0) }, "waiting for the GPU")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody waits for it any more.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

pub(super) struct Events {
    pub(super) start: Event,
    pub(super) stop: Event,
    pub(super) stream: sys::CUstream,
}

impl Timer for Events {
    fn stop(&self) -> Result<f64> {
        self.stop.record(self.stream)?;
        self.stop.wait()?;
        let mut ms = 0.0;
        check(
            // SAFETY: both events were recorded with timing.
            unsafe { sys::cuEventElapsedTime_v2(&raw mut ms, self.start.0, self.stop.0) },
            "reading a timer",
        )?;
        Ok(f64::from(ms) / 1e3)
    }
}

/// The timer for older drivers: the host's clock, while the host waits for the stream.
pub(super) struct HostClock {
    pub(super) start: Instant,
    pub(super) stream: sys::CUstream,
}

impl Timer for HostClock {
    fn stop(&self) -> Result<f64> {
        // SAFETY: the stream lives as long as the process.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "waiting for the GPU")?;
        Ok(self.start.elapsed().as_secs_f64())
    }
}

/// Page-locked memory for the uploads of recorded work. Its contents stay until that work has run.
pub(super) struct Recorded {
    parts: Vec<*mut u8>,
    /// Position of the next bytes.
    part: usize,
    filled: usize,
    /// Event after the work that was recorded last.
    done: Event,
}

impl Recorded {
    const PART_BYTES: usize = 8 << 20;

    pub(super) fn new() -> Result<Self> {
        Ok(Self { parts: Vec::new(), part: 0, filled: 0, done: Event::new(false)? })
    }

    /// Frees all of it, after waiting for work that still reads it.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.done.wait()?;
        (self.part, self.filled) = (0, 0);
        Ok(())
    }

    /// Records the copies of `src` to the device.
    pub(super) fn upload(&mut self, stream: sys::CUstream, dst: u64, src: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < src.len() {
            if self.filled == Self::PART_BYTES {
                (self.part, self.filled) = (self.part + 1, 0);
            }
            if self.part == self.parts.len() {
                let mut part = ptr::null_mut();
                check(
                    // SAFETY: the context is current.
                    unsafe { sys::cuMemAllocHost_v2(&raw mut part, Self::PART_BYTES) },
                    "locking memory",
                )?;
                self.parts.push(part.cast());
            }
            let n = (src.len() - done).min(Self::PART_BYTES - self.filled);
            // SAFETY: the part is free from `filled` on, and stays as it is until `begin`.
            unsafe {
                let at = self.parts[self.part].add(self.filled);
                ptr::copy_nonoverlapping(src.as_ptr().add(done), at, n);
                check(
                    sys::cuMemcpyHtoDAsync_v2(dst + done as u64, at.cast(), n, stream),
                    "recording a copy to the GPU",
                )?;
            }
            self.filled += n;
            done += n;
        }
        Ok(())
    }

    /// Notes that the work which reads it has been started.
    pub(super) fn launched(&self, stream: sys::CUstream) -> Result<()> {
        self.done.record(stream)
    }
}

/// Page-locked memory for uploads, so that the host need not wait for the stream. Its parts are
/// used in turn; each is free again when the stream has passed its event.
pub(super) struct Staging {
    base: *mut u8,
    events: Vec<Event>,
    next: usize,
    /// Bytes used of the current part.
    filled: usize,
}

impl Staging {
    const PART_BYTES: usize = 8 << 20;
    const PARTS: usize = 4;

    pub(super) fn new(stream: sys::CUstream) -> Result<Self> {
        let mut base = ptr::null_mut();
        check(
            // SAFETY: the context is current.
            unsafe { sys::cuMemAllocHost_v2(&raw mut base, Self::PARTS * Self::PART_BYTES) },
            "locking memory",
        )?;
        let events = (0..Self::PARTS).map(|_| Event::new(false)).collect::<Result<Vec<_>>>()?;
        events.iter().try_for_each(|event| event.record(stream))?;
        Ok(Self { base: base.cast(), events, next: 0, filled: 0 })
    }

    pub(super) fn upload(&mut self, stream: sys::CUstream, dst: u64, src: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < src.len() {
            if self.filled == Self::PART_BYTES {
                self.events[self.next].record(stream)?;
                self.next = (self.next + 1) % Self::PARTS;
                self.filled = 0;
                self.events[self.next].wait()?;
            }
            let n = (src.len() - done).min(Self::PART_BYTES - self.filled);
            // SAFETY: the part is free from `filled` on, and the stream reads it before it is used
            // again.
            unsafe {
                let at = self.base.add(self.next * Self::PART_BYTES + self.filled);
                ptr::copy_nonoverlapping(src.as_ptr().add(done), at, n);
                check(
                    sys::cuMemcpyHtoDAsync_v2(dst + done as u64, at.cast(), n, stream),
                    "copying to the GPU",
                )?;
            }
            self.filled += n;
            done += n;
        }
        Ok(())
    }
}
