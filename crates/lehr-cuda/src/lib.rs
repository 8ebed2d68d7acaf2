//! NVIDIA GPUs: devices, memory, kernels, matrix products.
//!
//! Nothing of CUDA is needed to build. The driver, NVRTC and cuBLASLt are opened when a GPU is
//! first asked for (`library`); kernels are CUDA C++ in the folders of the ops (`kernel.cu`),
//! compiled at first use and kept on disk (`compile`). A device has one stream, so whatever is
//! launched runs in that order and a freed block may be handed out again at once; the host waits
//! only where it reads a result.
//!
//! With `LEHR_CUDA=emulator` device 0 is not a GPU but a C++ compiler: the same launch code and the
//! same kernels run on the CPU (`emulator`), slowly, to test their logic.

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

/// Devices that are looked for.
const DEVICES_MAX: usize = 16;

/// What a device is.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// As the driver calls it.
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
    /// The architecture kernels are compiled for: `sm_90a` for a Hopper, whose own instructions
    /// need the `a`.
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

/// What makes a device: the driver, or the emulator. Addresses are the device's.
trait Backend: Send + Sync {
    fn info(&self) -> &DeviceInfo;
    /// Reserves a range of addresses: its start and its length.
    fn reserve(&self) -> Result<(u64, usize)>;
    /// Puts memory behind the bytes from `from` to `to` (or a little beyond) of the range at
    /// `base`; says up to where.
    fn grow(&self, base: u64, from: usize, to: usize) -> Result<usize>;
    /// Copies from the host; `src` may change as soon as this returns.
    fn upload(&self, dst: u64, src: &[u8]) -> Result<()>;
    /// Copies to the host and waits for it.
    fn download(&self, dst: &mut [u8], src: u64) -> Result<()>;
    /// Copies within the device.
    fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()>;
    /// Sets all bytes.
    fn set(&self, dst: u64, byte: u8, bytes: usize) -> Result<()>;
    /// Whether a file of kernels was compiled before, for elements of `dtype`.
    fn is_compiled(&self, source: &Source, dtype: DType) -> Result<bool>;
    /// Compiles it, if it was not.
    fn compile(&self, source: &Source, dtype: DType) -> Result<()>;
    /// Compiles and loads a file of kernels for elements of `dtype`.
    fn load(&self, source: &Source, dtype: DType) -> Result<u64>;
    /// Finds a kernel in a loaded file.
    fn function(&self, module: u64, name: &str) -> Result<Function>;
    /// Starts a kernel.
    fn launch(&self, function: Function, extent: Extent, args: &mut [u64]) -> Result<()>;
    /// Starts a matrix product with `workspace` (address, bytes). False if it has an epilogue or
    /// 8-bit elements and there is no algorithm: then nothing was started.
    fn matmul(&self, product: &Matmul, workspace: (u64, usize)) -> Result<bool>;
    /// Waits until everything started so far has ended.
    fn synchronize(&self) -> Result<()>;
    /// What copies beside the stream.
    fn side_stream(&self) -> Result<Box<dyn SideStream>>;
    /// Begins to record instead of to run, uploads too if they are `Uploads::Recorded`.
    fn begin_capture(&self, uploads: Uploads) -> Result<()>;
    /// Ends that and gives what was recorded, in the place of an earlier recording if there is one.
    fn end_capture(&self, earlier: Option<u64>) -> Result<u64>;
    /// Runs what was recorded.
    fn launch_graph(&self, graph: u64) -> Result<()>;
    /// Forgets what was recorded.
    fn drop_graph(&self, graph: u64);
    /// Seconds between two moments of the stream, in its own clock.
    fn timer(&self) -> Result<Box<dyn Timer>>;
}

/// What becomes of uploads while work is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uploads {
    /// They are errors: the work is to run many times.
    Refused,
    /// They are recorded with their bytes, for one run.
    Recorded,
}

/// Measures what runs on the stream.
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
    /// Held for reading by threads that give the stream work, and for writing by the thread that
    /// records: work of other threads waits until the recording ends.
    recording: RwLock<()>,
    /// Scratch of matrix products, for all: they run one after another.
    workspace: OnceLock<(Block, usize)>,
    /// Made when the first tensor is brought to the host.
    offloads: OnceLock<Offloads>,
}

/// A device, or why it could not be opened and what may help.
type Opened = std::result::Result<Cuda, (String, Option<String>)>;

impl Cuda {
    /// The device of that number, opened at the first call.
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

    /// Held while the stream is given work, unless this thread is the one that records.
    fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let others = || self.recording.read().unwrap_or_else(PoisonError::into_inner);
        (!is_recorder()).then(others)
    }

    /// Returns what the device is.
    pub fn info(&self) -> &DeviceInfo {
        self.backend.info()
    }

    /// Streaming multiprocessors, for the sizes of grids.
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
    /// If the device fails, or work is being recorded that is to run many times.
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

    /// Waits until everything started so far has ended.
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

    /// Starts a matrix product; false if there is no algorithm for its epilogue or 8-bit elements,
    /// and then nothing was started.
    pub fn matmul(&self, product: &Matmul) -> Result<bool> {
        /// What cuBLAS asks for on Hopper.
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

/// Whether tests asked for the emulator.
static EMULATE: AtomicBool = AtomicBool::new(false);

/// From now on device 0 is the emulator, unless `LEHR_CUDA=driver`: for tests, which then run on a
/// GPU if they are told to. Devices that are open stay what they are.
pub fn use_emulator() {
    EMULATE.store(true, Ordering::Relaxed);
}

/// Whether devices are emulated: by `LEHR_CUDA`, or because a test asked for it.
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

/// How many GPUs can be used.
///
/// # Errors
/// If there is no driver, or it does not start: the error says which and why.
pub fn device_count() -> Result<usize> {
    if is_emulated()? {
        return Ok(1);
    }
    devices::device_count()
}

/// Whether there is a GPU that everything is there for: driver, NVRTC and cuBLASLt. The emulator
/// does not count.
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

/// Compiles those kernels of `sources` that are not in the cache yet for a device and these element
/// types, on all cores. Otherwise the first step would compile them one by one. `begin` gets the
/// number of files, if there are any.
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

/// What device `ordinal` is.
///
/// # Errors
/// If it cannot be opened.
pub fn device_info(ordinal: usize) -> Result<DeviceInfo> {
    Cuda::get(ordinal).map(|cuda| cuda.info().clone())
}

/// The counters of a device's arena.
///
/// # Errors
/// If the device cannot be opened.
pub fn arena_stats(ordinal: usize) -> Result<Stats> {
    Cuda::get(ordinal).map(|cuda| cuda.arena.stats())
}

/// Starts the peak counter of a device's arena anew from what is in use now.
///
/// # Errors
/// If the device cannot be opened.
pub fn reset_peak(ordinal: usize) -> Result<()> {
    Cuda::get(ordinal).map(|cuda| cuda.arena.reset_peak())
}

/// Waits until a device has done everything it was told.
///
/// # Errors
/// If something on the device failed.
pub fn synchronize(ordinal: usize) -> Result<()> {
    Cuda::get(ordinal)?.synchronize()
}

/// Runs `body` and gives the seconds its work took on the device, by the device's own clock.
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
