//! A real device: [`Backend`] by the functions of the driver.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use cudarc::driver::sys::{self, CUresult};

use super::blas::Matmul;
use super::compile::{Source, cache_path, cubin, nvrtc_version};
use super::devices::{check, describe, device_count};
use super::lt::Lt;
use super::offload::SideStream;
use super::side_stream::DriverSideStream;
use super::stream::{Event, Events, HostClock, Recorded, Staging};
use super::{Backend, DeviceInfo, Extent, Function, Timer, Uploads, fault, library};
use lehr_kernels::{DType, Device, Error, Result};

/// Bytes by which the memory of the arena grows.
const GROW_BYTES: usize = 64 << 20;

thread_local! {
    /// The device whose context is current on this thread.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

pub(super) struct Driver {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    info: DeviceInfo,
    staging: Mutex<Staging>,
    /// Uploads of the work that was recorded last.
    recorded: OnceLock<Mutex<Recorded>>,
    /// Whether the current or last recording includes its uploads.
    records_uploads: AtomicBool,
    /// Dynamic shared memory granted to each kernel so far, in bytes.
    shared: Mutex<HashMap<u64, u32>>,
    lt: Lt,
}

// SAFETY: the driver's handles may be used from any thread; `Driver::bind` makes the context
// current first.
unsafe impl Send for Driver {}
// SAFETY: as above; what changes is behind mutexes.
unsafe impl Sync for Driver {}

/// Makes the context of a device current on this thread.
pub(super) fn make_current(ordinal: usize, context: sys::CUcontext) -> Result<()> {
    if CURRENT.get() == Some(ordinal) {
        return Ok(());
    }
    // SAFETY: the context lives as long as the process.
    check(unsafe { sys::cuCtxSetCurrent(context) }, "choosing a GPU")?;
    CURRENT.set(Some(ordinal));
    Ok(())
}

impl Driver {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let n = device_count()?;
        if ordinal >= n {
            let found = if n == 0 { "there is none".to_owned() } else { format!("there are {n}") };
            return Err(fault(format!("opening GPU {ordinal}"), found));
        }
        let (mut device, mut context, mut stream) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: the driver has started; the handles are kept for the life of the process.
        unsafe {
            check(sys::cuDeviceGet(&raw mut device, ordinal as c_int), "opening a GPU")?;
        }
        let info = describe(device)?;
        if info.capability < (8, 0) {
            let (major, minor) = info.capability;
            let reason = format!(
                "{} has compute capability {major}.{minor}, expected 8.0 or more",
                info.name
            );
            let hint = Some(
                "GPUs from Ampere (2020) on are supported; device = \"cpu\" works anywhere"
                    .to_owned(),
            );
            return Err(Error::Cuda { doing: format!("opening GPU {ordinal}"), reason, hint });
        }
        // SAFETY: as above.
        unsafe {
            check(sys::cuDevicePrimaryCtxRetain(&raw mut context, device), "opening a GPU")?;
            check(sys::cuCtxSetCurrent(context), "opening a GPU")?;
            CURRENT.set(Some(ordinal));
            let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            check(sys::cuStreamCreate(&raw mut stream, flags), "opening a GPU")?;
        }
        let staging = Mutex::new(Staging::new(stream)?);
        let shared = Mutex::default();
        let lt = Lt::new(info.driver_version);
        Ok(Self {
            ordinal,
            device,
            context,
            stream,
            info,
            staging,
            recorded: OnceLock::new(),
            records_uploads: AtomicBool::new(false),
            shared,
            lt,
        })
    }

    fn bind(&self) -> Result<()> {
        make_current(self.ordinal, self.context)
    }

    fn location(&self) -> sys::CUmemLocation {
        let type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        sys::CUmemLocation { type_, id: self.device }
    }

    fn allocation(&self) -> sys::CUmemAllocationProp {
        // SAFETY: all fields are numbers or pointers, for which zeros are valid.
        let mut prop: sys::CUmemAllocationProp = unsafe { MaybeUninit::zeroed().assume_init() };
        prop.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        prop.location = self.location();
        prop
    }

    fn granularity(&self) -> Result<usize> {
        let (prop, mut bytes) = (self.allocation(), 0);
        let option = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        // SAFETY: the property is whole.
        let result =
            unsafe { sys::cuMemGetAllocationGranularity(&raw mut bytes, &raw const prop, option) };
        check(result, "asking for the size of memory pages")?;
        Ok(bytes.max(1))
    }

    fn recorded(&self) -> Result<MutexGuard<'_, Recorded>> {
        if self.recorded.get().is_none() {
            let _ = self.recorded.set(Mutex::new(Recorded::new()?));
        }
        let recorded = self.recorded.get().ok_or_else(|| fault("recording", "no memory for it"))?;
        Ok(recorded.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants a kernel this much dynamic shared memory. Without a grant it has 48 KiB, static
    /// memory included. A grant is never reduced, so that no other thread can take it away before
    /// the launch.
    fn allow_shared(&self, function: Function, bytes: u32) -> Result<()> {
        let mut allowed = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let most = allowed.entry(function.0).or_insert(0);
        if bytes > *most {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let function = function.0 as sys::CUfunction;
            // SAFETY: the kernel was loaded and is never unloaded.
            let result = unsafe { sys::cuFuncSetAttribute(function, attribute, bytes as c_int) };
            check(result, "asking for shared memory")?;
            *most = bytes;
        }
        Ok(())
    }
}

impl Backend for Driver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn reserve(&self) -> Result<(u64, usize)> {
        self.bind()?;
        let (mut base, bytes) =
            (0, self.info.memory_bytes.next_multiple_of(self.granularity()?.max(GROW_BYTES)));
        // SAFETY: a reservation touches nothing.
        let result = unsafe { sys::cuMemAddressReserve(&raw mut base, bytes, 0, 0, 0) };
        check(result, "reserving addresses on the GPU")?;
        Ok((base, bytes))
    }

    fn grow(&self, base: u64, from: usize, to: usize) -> Result<usize> {
        self.bind()?;
        let to = to.next_multiple_of(self.granularity()?.max(GROW_BYTES));
        let (bytes, at, prop) = (to - from, base + from as u64, self.allocation());
        let access = sys::CUmemAccessDesc {
            location: self.location(),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let mut handle = 0;
        // SAFETY: `at` to `at + bytes` is reserved and has no memory yet: the arena grows from its
        // end.
        unsafe {
            let created = sys::cuMemCreate(&raw mut handle, bytes, &raw const prop, 0);
            if created == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                // The arena fills in its own numbers.
                let device = Device::Cuda(self.ordinal);
                return Err(Error::OutOfMemory {
                    asked_bytes: bytes,
                    used_bytes: 0,
                    limit_bytes: 0,
                    device,
                });
            }
            check(created, "allocating memory of the GPU")?;
            let mapped = sys::cuMemMap(at, bytes, 0, handle, 0);
            // The mapping keeps the memory; without one it is freed.
            let released = sys::cuMemRelease(handle);
            check(mapped, "mapping memory of the GPU")?;
            check(released, "mapping memory of the GPU")?;
            let open = sys::cuMemSetAccess(at, bytes, &raw const access, 1);
            if open != CUresult::CUDA_SUCCESS {
                sys::cuMemUnmap(at, bytes);
            }
            check(open, "opening memory of the GPU to its kernels")?;
        }
        Ok(to)
    }

    fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        self.bind()?;
        let doing = "copying to the GPU";
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream lives as long as the process.
        check(unsafe { sys::cuStreamIsCapturing(self.stream, &raw mut status) }, doing)?;
        if status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            if self.records_uploads.load(Ordering::Relaxed) {
                return self.recorded()?.upload(self.stream, dst, src);
            }
            return Err(fault(
                doing,
                "a graph is being recorded, and would copy other bytes later",
            ));
        }
        self.staging().upload(self.stream, dst, src)
    }

    fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        self.bind()?;
        let doing = "copying from the GPU";
        // SAFETY: `dst` is alive until the wait below is over; the source is a live block.
        unsafe {
            check(
                sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src, dst.len(), self.stream),
                doing,
            )?;
            check(sys::cuStreamSynchronize(self.stream), doing)
        }
    }

    fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        check(
            // SAFETY: both are live blocks.
            unsafe { sys::cuMemcpyDtoDAsync_v2(dst, src, bytes, self.stream) },
            "copying on the GPU",
        )
    }

    fn set(&self, dst: u64, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        check(
            // SAFETY: a live block.
            unsafe { sys::cuMemsetD8Async(dst, byte, bytes, self.stream) },
            "filling memory of the GPU",
        )
    }

    fn is_compiled(&self, source: &Source, dtype: DType) -> Result<bool> {
        Ok(cache_path(source, dtype, &self.info.arch())?.exists())
    }

    fn compile(&self, source: &Source, dtype: DType) -> Result<()> {
        cubin(source, dtype, &self.info.arch()).map(drop)
    }

    fn load(&self, source: &Source, dtype: DType) -> Result<u64> {
        self.bind()?;
        let cubin = cubin(source, dtype, &self.info.arch())?;
        let mut module = ptr::null_mut();
        let doing = format!("loading the kernels of {} for {dtype}", source.name);
        // SAFETY: the cubin is whole: the compiler wrote it, and the cache keeps whole files.
        let status = unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) };
        if let Err(error) = check(status, &doing) {
            let compiler = nvrtc_version()?.0.max(0) as u32;
            return Err(library::too_new_for(self.info.driver_version, compiler, error));
        }
        Ok(module as u64)
    }

    fn function(&self, module: u64, name: &str) -> Result<Function> {
        self.bind()?;
        let doing = format!("finding the kernel {name}");
        let symbol =
            CString::new(name).map_err(|_| fault(doing.clone(), "a null byte in its name"))?;
        let mut function = ptr::null_mut();
        check(
            // SAFETY: the module was loaded and is never unloaded.
            unsafe {
                sys::cuModuleGetFunction(
                    &raw mut function,
                    module as sys::CUmodule,
                    symbol.as_ptr(),
                )
            },
            &doing,
        )?;
        Ok(Function(function as u64))
    }

    fn launch(&self, function: Function, extent: Extent, args: &mut [u64]) -> Result<()> {
        self.bind()?;
        let Extent { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes } = extent;
        if shared_bytes > 0 {
            self.allow_shared(function, shared_bytes)?;
        }
        let function = function.0 as sys::CUfunction;
        let mut pointers: Vec<*mut c_void> =
            args.iter_mut().map(|arg| ptr::from_mut(arg).cast()).collect();
        // SAFETY: the arguments have the kernel's types (the tests of the ops run every launch),
        // and live longer than this call, which copies them.
        unsafe {
            let params = pointers.as_mut_ptr();
            let started = sys::cuLaunchKernel(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shared_bytes,
                self.stream,
                params,
                ptr::null_mut(),
            );
            check(started, "starting a kernel")
        }
    }

    fn matmul(&self, product: &Matmul, workspace: (u64, usize)) -> Result<bool> {
        self.bind()?;
        self.lt.matmul(product, workspace, self.stream.cast())
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as the process.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "waiting for the GPU")
    }

    fn side_stream(&self) -> Result<Box<dyn SideStream>> {
        Ok(Box::new(DriverSideStream::new(self.ordinal, self.context, self.stream)?))
    }

    fn begin_capture(&self, uploads: Uploads) -> Result<()> {
        self.bind()?;
        let records = uploads == Uploads::Recorded;
        self.records_uploads.store(records, Ordering::Relaxed);
        if records {
            self.recorded()?.begin()?;
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: as above.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) }, "recording a graph")
    }

    fn end_capture(&self, earlier: Option<u64>) -> Result<u64> {
        self.bind()?;
        let doing = "recording a graph";
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: as above; the graph is not needed once it can be run, and the earlier one is
        // alive and nobody else's.
        unsafe {
            let ended = check(sys::cuStreamEndCapture(self.stream, &raw mut graph), doing);
            if let Some(earlier) = earlier.map(|e| e as sys::CUgraphExec) {
                let mut result = MaybeUninit::zeroed().assume_init();
                let fits = ended.is_ok()
                    && sys::cuGraphExecUpdate_v2(earlier, graph, &raw mut result)
                        == CUresult::CUDA_SUCCESS;
                if fits {
                    sys::cuGraphDestroy(graph);
                    return Ok(earlier as u64);
                }
                // The number or order of nodes differs, so the graph is built again.
                sys::cuGraphExecDestroy(earlier);
            }
            ended?;
            let made = sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0);
            sys::cuGraphDestroy(graph);
            check(made, doing)?;
        }
        Ok(exec as u64)
    }

    fn launch_graph(&self, graph: u64) -> Result<()> {
        self.bind()?;
        check(
            // SAFETY: the graph is alive.
            unsafe { sys::cuGraphLaunch(graph as sys::CUgraphExec, self.stream) },
            "running a graph",
        )?;
        if self.records_uploads.load(Ordering::Relaxed) {
            self.recorded()?.launched(self.stream)?;
        }
        Ok(())
    }

    fn drop_graph(&self, graph: u64) {
        let _ = self.bind();
        // SAFETY: nobody runs it again.
        let _ = unsafe { sys::cuGraphExecDestroy(graph as sys::CUgraphExec) };
    }

    fn timer(&self) -> Result<Box<dyn Timer>> {
        self.bind()?;
        // The function that reads events requires CUDA 12.8.
        if self.info.driver_version < 12_080 {
            self.synchronize()?;
            return Ok(Box::new(HostClock { start: Instant::now(), stream: self.stream }));
        }
        let [start, stop] = [Event::new(true)?, Event::new(true)?];
        start.record(self.stream)?;
        Ok(Box::new(Events { start, stop, stream: self.stream }))
    }
}
