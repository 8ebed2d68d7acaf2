//! NVIDIA GPUs: devices, memory, kernels, matrix products.
//!
//! A build needs nothing of CUDA. The driver, NVRTC and cuBLASLt are opened at the first use of a
//! GPU (`library`). Kernels are CUDA C++ in the folders of the ops (`kernel.cu`), compiled at first
//! use and cached on disk (`compile`). A device has one stream, so launches run in order and a
//! freed block can be reused at once. The host waits only when it reads a result.
//!
//! With `LEHR_CUDA=emulator` device 0 is an emulator: a C++ compiler builds the same kernels, and
//! the same launch code runs them on the CPU (`emulator`). It is slow and tests their logic.

mod arena;
pub mod blas;
mod buffer;
mod compile;
mod devices;
mod driver;
mod emulator;
mod graph;
mod launch;
mod library;
mod lt;
mod offload;
mod side_stream;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

pub use arena::Block;
pub use blas::{FP8_CAPABILITY, FP8_MULTIPLE, with_plain_products};
pub use buffer::CudaBuffer;
pub use compile::Source;
pub use compile::{CompileReport, compile_all};
pub use graph::is_recorder;
pub use graph::{Graph, StepGraph};
pub use launch::{Arg, int};
pub use library::{LibraryReport, libraries};
pub use offload::Offloaded;
use offload::{Offloads, SideStream};

use arena::Arena;
use blas::{Epilogue, Matmul};
use lehr_kernels::free_list::Stats;
use lehr_kernels::{DType, Error, Result};

/// Largest number of devices.
const DEVICES_MAX: usize = 16;

/// Properties of a device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name in the driver.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub n_sms: u32,
    /// Bytes of shared memory that a block may ask for.
    pub shared_bytes: usize,
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// The CUDA version of the driver, 13000 for 13.0; 0 for the emulator.
    pub driver_version: u32,
}

impl DeviceInfo {
    /// Returns the architecture for which kernels are compiled, such as `sm_90a` for a Hopper,
    /// whose own instructions need the `a`.
    #[must_use]
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub struct Function(u64);

/// Blocks of a grid, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// The implementation of a device: the driver or the emulator. Addresses are those of the device.
trait Backend: Send + Sync {
    fn info(&self) -> &DeviceInfo;
    /// Reserves a range of addresses. Returns its start and its length.
    fn reserve(&self) -> Result<(u64, usize)>;
    /// Maps memory to the bytes from `from` to `to` (or a little beyond) of the range at `base`.
    /// Returns the end of the mapped part.
    fn grow(&self, base: u64, from: usize, to: usize) -> Result<usize>;
    /// Copies from the host; `src` may change as soon as this returns.
    fn upload(&self, dst: u64, src: &[u8]) -> Result<()>;
    /// Copies to the host and waits for it.
    fn download(&self, dst: &mut [u8], src: u64) -> Result<()>;
    /// Copies within the device.
    fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()>;
    /// Sets all bytes.
    fn set(&self, dst: u64, byte: u8, bytes: usize) -> Result<()>;
    /// Returns whether a file of kernels is compiled for elements of `dtype`.
    fn is_compiled(&self, source: &Source, dtype: DType) -> Result<bool>;
    /// Compiles it if necessary.
    fn compile(&self, source: &Source, dtype: DType) -> Result<()>;
    /// Compiles and loads a file of kernels for elements of `dtype`.
    fn load(&self, source: &Source, dtype: DType) -> Result<u64>;
    /// Finds a kernel in a loaded file.
    fn function(&self, module: u64, name: &str) -> Result<Function>;
    /// Starts a kernel.
    fn launch(&self, function: Function, extent: Extent, args: &mut [u64]) -> Result<()>;
    /// Starts a matrix product with `workspace` (address, bytes). Returns false, and starts
    /// nothing, if it has an epilogue or 8-bit elements for which there is no algorithm.
    fn matmul(&self, product: &Matmul, workspace: (u64, usize)) -> Result<bool>;
    /// Waits until all work started so far has ended.
    fn synchronize(&self) -> Result<()>;
    /// Creates the side stream for copies.
    fn side_stream(&self) -> Result<Box<dyn SideStream>>;
    /// Starts to record work instead of running it, including uploads if they are
    /// `Uploads::Recorded`.
    fn begin_capture(&self, uploads: Uploads) -> Result<()>;
    /// Ends the recording and returns it. It replaces an earlier recording, if given.
    fn end_capture(&self, earlier: Option<u64>) -> Result<u64>;
    /// Runs a recording.
    fn launch_graph(&self, graph: u64) -> Result<()>;
    /// Drops a recording.
    fn drop_graph(&self, graph: u64);
    /// Creates a timer that uses the clock of the stream.
    fn timer(&self) -> Result<Box<dyn Timer>>;
}

/// Treatment of uploads during a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uploads {
    /// Uploads are errors, because the work will run many times.
    Refused,
    /// Uploads are recorded with their bytes, for one run.
    Recorded,
}

/// A timer of work on the stream.
trait Timer {
    fn stop(&self) -> Result<f64>;
}

type KernelKey = (&'static str, DType, &'static str);

/// A device in use.
pub struct Cuda {
    ordinal: usize,
    backend: Box<dyn Backend>,
    arena: Arena,
    modules: Mutex<HashMap<(&'static str, DType), u64>>,
    functions: Mutex<HashMap<KernelKey, Function>>,
    /// Read-locked by threads that submit work, and write-locked by the thread that records: other
    /// threads wait until the recording ends.
    recording: RwLock<()>,
    /// Workspace of all matrix products, which run one after another.
    workspace: OnceLock<(Block, usize)>,
    /// Created when the first tensor is offloaded.
    offloads: OnceLock<Offloads>,
}

/// A device, or the reason why it could not be opened, with a hint.
type Opened = std::result::Result<Cuda, (String, Option<String>)>;

impl Cuda {
    /// Returns the device with this number. The first call opens it.
    pub fn get(ordinal: usize) -> Result<&'static Self> {
        static DEVICES: [OnceLock<Opened>; DEVICES_MAX] = [const { OnceLock::new() }; DEVICES_MAX];
        let doing = || format!("opening CUDA device {ordinal}");
        let Some(cell) = DEVICES.get(ordinal) else {
            let reason = format!("devices are numbered from 0 to {}", DEVICES_MAX - 1);
            return Err(Error::Cuda { doing: doing(), reason, hint: None });
        };
        let opened = cell.get_or_init(|| {
            Self::open(ordinal).map_err(|error| match error {
                Error::Cuda { reason, hint, .. } => (reason, hint),
                other => (other.to_string(), other.hint()),
            })
        });
        opened.as_ref().map_err(|(reason, hint)| Error::Cuda {
            doing: doing(),
            reason: reason.clone(),
            hint: hint.clone(),
        })
    }

    fn open(ordinal: usize) -> Result<Self> {
        let backend: Box<dyn Backend> = match is_emulated()? {
            true => Box::new(emulator::Emulator::open(ordinal)?),
            false => Box::new(driver::Driver::open(ordinal)?),
        };
        let arena = Arena::new(ordinal, backend.reserve()?);
        Ok(Self {
            ordinal,
            backend,
            arena,
            modules: Mutex::default(),
            functions: Mutex::default(),
            recording: RwLock::default(),
            workspace: OnceLock::new(),
            offloads: OnceLock::new(),
        })
    }

    /// Returns the lock for submitting work, unless this thread is the one that records.
    fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let others = || self.recording.read().unwrap_or_else(PoisonError::into_inner);
        (!is_recorder()).then(others)
    }

    /// Returns the properties of the device.
    pub fn info(&self) -> &DeviceInfo {
        self.backend.info()
    }

    /// Returns the number of streaming multiprocessors, for the sizes of grids.
    pub fn n_sms(&self) -> u32 {
        self.info().n_sms.max(1)
    }

    /// Bytes of shared memory that a block may ask for.
    pub fn shared_max(&self) -> usize {
        self.info().shared_bytes
    }

    /// Copies `src` from the host to the address `dst`. It may change as soon as this returns.
    ///
    /// # Errors
    /// If the device fails, or work that will run many times is being recorded.
    pub fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        let _turn = self.turn();
        if src.is_empty() { Ok(()) } else { self.backend.upload(dst, src) }
    }

    /// Copies from the address `src` to the host, and waits for it.
    ///
    /// # Errors
    /// If the device fails, or work is being recorded.
    pub fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        let _turn = self.turn();
        if dst.is_empty() { Ok(()) } else { self.backend.download(dst, src) }
    }

    /// Copies `bytes` bytes within the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        let _turn = self.turn();
        if bytes == 0 { Ok(()) } else { self.backend.copy(dst, src, bytes) }
    }

    /// Sets `bytes` bytes from the address `dst` on to `byte`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn set(&self, dst: u64, byte: u8, bytes: usize) -> Result<()> {
        let _turn = self.turn();
        if bytes == 0 { Ok(()) } else { self.backend.set(dst, byte, bytes) }
    }

    /// Waits until all work started so far has ended.
    ///
    /// # Errors
    /// If something on the device failed.
    pub fn synchronize(&self) -> Result<()> {
        let _turn = self.turn();
        self.backend.synchronize()
    }

    /// Starts the kernel `name` of `source`, compiled for elements of `dtype`. A grid without
    /// blocks starts nothing.
    pub fn launch(
        &self,
        source: &'static Source,
        dtype: DType,
        name: &'static str,
        extent: Extent,
        args: &[Arg],
    ) -> Result<()> {
        if extent.grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(source, dtype, name)?;
        let mut values: Vec<u64> = args.iter().map(Arg::bits).collect();
        let _turn = self.turn();
        let started = self.backend.launch(function, extent, &mut values);
        started.map_err(|error| match error {
            Error::Cuda { reason, hint, .. } => {
                let doing = format!("starting the kernel {name} ({dtype}, {extent:?})");
                Error::Cuda { doing, reason, hint }
            }
            other => other,
        })
    }

    fn function(
        &self,
        source: &'static Source,
        dtype: DType,
        name: &'static str,
    ) -> Result<Function> {
        let key = (source.name, dtype, name);
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&key) {
            return Ok(*function);
        }
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(&(source.name, dtype)) {
            Some(module) => *module,
            None => {
                let module = self.backend.load(source, dtype)?;
                modules.insert((source.name, dtype), module);
                module
            }
        };
        let function = self.backend.function(module, name)?;
        functions.insert(key, function);
        Ok(function)
    }

    /// Starts a matrix product. Returns false, and starts nothing, if there is no algorithm for its
    /// epilogue or 8-bit elements.
    pub fn matmul(&self, product: &Matmul) -> Result<bool> {
        /// The size that cuBLAS recommends for Hopper.
        const WORKSPACE_BYTES: usize = 32 << 20;
        if product.is_empty() {
            return Ok(true);
        }
        if product.k == 0 {
            let is_plain = matches!(product.epilogue, Epilogue::None | Epilogue::Bias(_));
            return if is_plain { product.put_empty_sums(self).map(|()| true) } else { Ok(false) };
        }
        if self.workspace.get().is_none() {
            let block = Block::take(self.ordinal, WORKSPACE_BYTES)?;
            // If another thread was faster, the block goes back.
            let _ = self.workspace.set((block, WORKSPACE_BYTES));
        }
        let workspace = self.workspace.get().map_or((0, 0), |(block, bytes)| (block.ptr(), *bytes));
        let _turn = self.turn();
        self.backend.matmul(product, workspace)
    }
}

/// Whether tests have requested the emulator.
static EMULATE: AtomicBool = AtomicBool::new(false);

/// Makes the emulator device 0, unless `LEHR_CUDA=driver`. For tests, which thus run on a GPU only
/// if told to. Open devices do not change.
pub fn use_emulator() {
    EMULATE.store(true, Ordering::Relaxed);
}

/// Returns whether devices are emulated, because of `LEHR_CUDA` or a test.
///
/// # Errors
/// If `LEHR_CUDA` is neither `driver` nor `emulator`.
pub fn is_emulated() -> Result<bool> {
    match std::env::var("LEHR_CUDA").as_deref() {
        Err(_) | Ok("") => Ok(EMULATE.load(Ordering::Relaxed)),
        Ok("driver") => Ok(false),
        Ok("emulator") => Ok(true),
        Ok(other) => Err(Error::Cuda {
            doing: "choosing how CUDA runs".to_owned(),
            reason: format!(
                "the environment variable LEHR_CUDA is {other:?}, expected driver or emulator"
            ),
            hint: Some("remove it with `unset LEHR_CUDA`".to_owned()),
        }),
    }
}

/// Returns the number of usable GPUs.
///
/// # Errors
/// If the driver is missing or does not start; the error says why.
pub fn device_count() -> Result<usize> {
    if is_emulated()? {
        return Ok(1);
    }
    devices::device_count()
}

/// Returns whether there is a GPU with all it needs: driver, NVRTC and cuBLASLt. The emulator does
/// not count.
///
/// # Errors
/// If there is a GPU, but something it needs is missing.
pub fn usable() -> Result<bool> {
    if is_emulated()? || library::missing(&["cuda"]).is_some() {
        return Ok(false);
    }
    match devices::device_count() {
        Ok(0) => return Ok(false),
        Ok(_) => (),
        Err(error) => return Err(error),
    }
    match library::missing(&["nvrtc", "nvrtc-builtins", "cublasLt"]) {
        None => Cuda::get(0).map(|_| true),
        Some((reason, hint)) => {
            Err(Error::Cuda { doing: "preparing the GPU".to_owned(), reason, hint: Some(hint) })
        }
    }
}

/// Compiles the kernels of `sources` that are not in the cache, for a device and these element
/// types, on all cores. Otherwise the first step would compile them one by one. `begin` gets the
/// number of files, unless it is 0.
///
/// # Errors
/// If the device cannot be opened or a kernel does not compile.
pub fn prepare(
    sources: &[&Source],
    ordinal: usize,
    dtypes: &[DType],
    begin: &mut dyn FnMut(usize),
) -> Result<()> {
    let backend = &*Cuda::get(ordinal)?.backend;
    let mut jobs = Vec::new();
    for &dtype in dtypes {
        for &source in sources {
            if !backend.is_compiled(source, dtype)? {
                jobs.push((source, dtype));
            }
        }
    }
    if jobs.is_empty() {
        return Ok(());
    }
    begin(jobs.len());
    compile::in_parallel(&jobs, |(source, dtype)| backend.compile(source, *dtype))
        .into_iter()
        .collect()
}

/// Returns the properties of device `ordinal`.
///
/// # Errors
/// If it cannot be opened.
pub fn device_info(ordinal: usize) -> Result<DeviceInfo> {
    Cuda::get(ordinal).map(|cuda| cuda.info().clone())
}

/// Returns the counters of a device's arena.
///
/// # Errors
/// If the device cannot be opened.
pub fn arena_stats(ordinal: usize) -> Result<Stats> {
    Cuda::get(ordinal).map(|cuda| cuda.arena.stats())
}

/// Resets the peak counter of a device's arena to the bytes now in use.
///
/// # Errors
/// If the device cannot be opened.
pub fn reset_peak(ordinal: usize) -> Result<()> {
    Cuda::get(ordinal).map(|cuda| cuda.arena.reset_peak())
}

/// Waits until a device has done all submitted work.
///
/// # Errors
/// If something on the device failed.
pub fn synchronize(ordinal: usize) -> Result<()> {
    Cuda::get(ordinal)?.synchronize()
}

/// Runs `body` and returns the seconds that its work took, by the device's clock.
///
/// # Errors
/// Those of `body`, or of the device.
pub fn timed(ordinal: usize, body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let timer = Cuda::get(ordinal)?.backend.timer()?;
    body()?;
    timer.stop()
}

/// An error of CUDA.
fn fault(doing: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Cuda { doing: doing.into(), reason: reason.into(), hint: None }
}
