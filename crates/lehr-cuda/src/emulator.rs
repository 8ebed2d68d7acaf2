//! An emulated device: a C++ compiler builds kernels for the CPU, to test their logic and the code
//! that launches them.
//!
//! Each file of kernels becomes a shared library by `g++` (or what `CXX` names) with
//! `emulator/shim.h` before it. Addresses are the host's, matrix products are
//! [`lehr_kernels::gemm`] (`emulator/product.rs`). Results equal those of a GPU up to the order of
//! sums in matrix products. The emulator does not measure speed.

mod product;

mod side_stream;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use libloading::Library;

use super::blas::Matmul;
use super::compile::{HEADERS, Source, cache_dir, dtype_macro, key, unique};
use super::offload::SideStream;
use super::{Backend, DeviceInfo, Extent, Function, Timer, Uploads, fault};
use lehr_kernels::{DType, Error, Result};
use side_stream::LateSideStream;

const SHIM: &str = include_str!("emulator/shim.h");
/// Reserved address space; memory is mapped at the first access.
const RANGE_BYTES: usize = 64 << 30;

pub(super) struct Emulator {
    info: DeviceInfo,
    /// Libraries in the order they were loaded: a module is an index.
    modules: Mutex<Vec<Library>>,
    /// The mappings behind reserved ranges.
    ranges: Mutex<Vec<memmap2::MmapMut>>,
    /// The current recording, and finished recordings by number.
    recording: Mutex<Option<Vec<Work>>>,
    uploads: Mutex<Uploads>,
    graphs: Mutex<Vec<Option<Arc<Vec<Work>>>>>,
}

/// An operation of a stream.
#[derive(Clone)]
enum Work {
    Launch(Function, Extent, Vec<u64>),
    Matmul(Matmul),
    Copy { dst: u64, src: u64, bytes: usize },
    Upload { dst: u64, bytes: Arc<[u8]> },
    Set { dst: u64, byte: u8, bytes: usize },
}

type Launcher = unsafe extern "C" fn(*const u32, *const u32, usize, *mut *mut c_void);

impl Emulator {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        if ordinal != 0 {
            return Err(fault("opening the emulator", "it has one device, number 0"));
        }
        let info = DeviceInfo {
            name: "emulated by a C++ compiler".to_owned(),
            capability: (9, 0),
            n_sms: 2,
            shared_bytes: 227 << 10,
            memory_bytes: RANGE_BYTES,
            driver_version: 0,
        };
        Ok(Self {
            info,
            modules: Mutex::default(),
            ranges: Mutex::default(),
            recording: Mutex::default(),
            uploads: Mutex::new(Uploads::Refused),
            graphs: Mutex::default(),
        })
    }
}

/// Locks a mutex, even after a panic of its last holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Emulator {
    /// Runs the work, or records it.
    fn submit(&self, mut work: Work) -> Result<()> {
        if let Some(recorded) = lock(&self.recording).as_mut() {
            recorded.push(work);
            return Ok(());
        }
        Self::run(&mut work)
    }

    fn run(work: &mut Work) -> Result<()> {
        match work {
            Work::Launch(function, extent, args) => launch(*function, *extent, args),
            Work::Matmul(product) => product::matmul(product)?,
            // SAFETY: addresses are the host's, and the callers own the blocks.
            Work::Copy { dst, src, bytes } => unsafe {
                std::ptr::copy(*src as *const u8, *dst as *mut u8, *bytes);
            },
            // SAFETY: as above.
            Work::Upload { dst, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), *dst as *mut u8, bytes.len());
            },
            // SAFETY: as above.
            Work::Set { dst, byte, bytes } => unsafe {
                std::ptr::write_bytes(*dst as *mut u8, *byte, *bytes);
            },
        }
        Ok(())
    }

    /// Returns an error during a recording, in which the host cannot take part.
    fn refuse_while_recording(&self, doing: &str) -> Result<()> {
        match *lock(&self.recording) {
            Some(_) => Err(fault(doing, "work is being recorded")),
            None => Ok(()),
        }
    }
}

/// Starts a kernel.
fn launch(function: Function, extent: Extent, args: &mut [u64]) {
    let mut pointers: Vec<_> = args.iter_mut().map(|arg| std::ptr::from_mut(arg).cast()).collect();
    // SAFETY: the address is that of a launcher; the arguments are as the launching code gives
    // them.
    unsafe {
        let launcher: Launcher = std::mem::transmute(function.0 as usize);
        let (grid, block) = (extent.grid.as_ptr(), extent.block.as_ptr());
        launcher(grid, block, extent.shared_bytes as usize, pointers.as_mut_ptr());
    }
}

impl Backend for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn reserve(&self) -> Result<(u64, usize)> {
        let mut bytes = RANGE_BYTES;
        loop {
            if let Ok(mut range) =
                memmap2::MmapOptions::new().len(bytes).no_reserve_swap().map_anon()
            {
                let base = range.as_mut_ptr() as u64;
                self.ranges.lock().unwrap_or_else(PoisonError::into_inner).push(range);
                return Ok((base, bytes));
            }
            bytes /= 2;
            if bytes < 64 << 20 {
                return Err(fault("reserving memory for the emulator", "the system refuses"));
            }
        }
    }

    fn grow(&self, _: u64, _: usize, to: usize) -> Result<usize> {
        Ok(to)
    }

    fn upload(&self, dst: u64, src: &[u8]) -> Result<()> {
        if *lock(&self.uploads) == Uploads::Refused {
            self.refuse_while_recording("copying to the GPU")?;
        }
        self.submit(Work::Upload { dst, bytes: src.into() })
    }

    fn download(&self, dst: &mut [u8], src: u64) -> Result<()> {
        self.refuse_while_recording("copying from the GPU")?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        self.submit(Work::Copy { dst, src, bytes })
    }

    fn set(&self, dst: u64, byte: u8, bytes: usize) -> Result<()> {
        self.submit(Work::Set { dst, byte, bytes })
    }

    fn is_compiled(&self, source: &Source, dtype: DType) -> Result<bool> {
        Ok(library_path(source, dtype)?.exists())
    }

    fn compile(&self, source: &Source, dtype: DType) -> Result<()> {
        compiled(source, dtype).map(drop)
    }

    fn load(&self, source: &Source, dtype: DType) -> Result<u64> {
        let path = compiled(source, dtype)?;
        // SAFETY: the library was built from our own source and has no initialisers.
        let library = unsafe { Library::new(&path) }
            .map_err(|e| fault(format!("opening {}", path.display()), e.to_string()))?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.push(library);
        Ok(modules.len() as u64 - 1)
    }

    fn function(&self, module: u64, name: &str) -> Result<Function> {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: every kernel has a launcher of this type, written below.
        let symbol = unsafe {
            modules[module as usize].get::<Launcher>(format!("launch_{name}").as_bytes())
        };
        let launcher =
            symbol.map_err(|e| fault(format!("finding the kernel {name}"), e.to_string()))?;
        Ok(Function(*launcher as usize as u64))
    }

    fn launch(&self, function: Function, extent: Extent, args: &mut [u64]) -> Result<()> {
        self.submit(Work::Launch(function, extent, args.to_vec()))
    }

    fn matmul(&self, product: &Matmul, _: (u64, usize)) -> Result<bool> {
        self.submit(Work::Matmul(*product)).map(|()| true)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn side_stream(&self) -> Result<Box<dyn SideStream>> {
        Ok(Box::new(LateSideStream::default()))
    }

    fn begin_capture(&self, uploads: Uploads) -> Result<()> {
        self.refuse_while_recording("recording a graph")?;
        *lock(&self.uploads) = uploads;
        *lock(&self.recording) = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, earlier: Option<u64>) -> Result<u64> {
        earlier.into_iter().for_each(|earlier| self.drop_graph(earlier));
        let recorded = lock(&self.recording).take();
        let recorded =
            recorded.ok_or_else(|| fault("recording a graph", "nothing is being recorded"))?;
        let mut graphs = lock(&self.graphs);
        graphs.push(Some(Arc::new(recorded)));
        Ok(graphs.len() as u64 - 1)
    }

    fn launch_graph(&self, graph: u64) -> Result<()> {
        let works = lock(&self.graphs).get(graph as usize).cloned().flatten();
        let works =
            works.ok_or_else(|| fault("running a graph", "there is none of that number"))?;
        works.iter().cloned().try_for_each(|mut work| Self::run(&mut work))
    }

    fn drop_graph(&self, graph: u64) {
        if let Some(works) = lock(&self.graphs).get_mut(graph as usize) {
            *works = None;
        }
    }

    fn timer(&self) -> Result<Box<dyn Timer>> {
        Ok(Box::new(WallClock(Instant::now())))
    }
}

struct WallClock(Instant);

impl Timer for WallClock {
    fn stop(&self) -> Result<f64> {
        Ok(self.0.elapsed().as_secs_f64())
    }
}

fn options(dtype: DType) -> Result<[String; 4]> {
    let fixed = ["-std=c++17", "-O2", "-ffp-contract=off"].map(str::to_owned);
    let [standard, level, contract] = fixed;
    Ok([dtype_macro(dtype)?, standard, level, contract])
}

/// Returns the path of the shared library of a source.
fn library_path(source: &Source, dtype: DType) -> Result<PathBuf> {
    let key = key(source, &format!("{SHIM}{:?}", options(dtype)?));
    Ok(cache_dir().join(format!("{}-{dtype}-emulated-{key}.so", source.name)))
}

/// Returns the shared library of a source, compiled if it is not in the cache.
fn compiled(source: &Source, dtype: DType) -> Result<PathBuf> {
    let (options, path) = (options(dtype)?, library_path(source, dtype)?);
    // Threads that want the same library wait for the first of them.
    static BUILDING: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let building = Arc::clone(lock(&BUILDING).entry(path.clone()).or_default());
    let _held = lock(&building);
    if path.exists() {
        return Ok(path);
    }
    let doing = || format!("compiling the kernels of {} for {dtype} and the emulator", source.name);
    let io = |e: std::io::Error| fault(doing(), e.to_string());
    let dir = cache_dir().join(format!("build-{}-{}-{dtype}", unique(), source.name));
    std::fs::create_dir_all(&dir).map_err(io)?;
    for (name, body) in HEADERS.iter().chain(&[("shim.h", SHIM), ("kernels.cpp", source.text)]) {
        std::fs::write(dir.join(name), body).map_err(io)?;
    }
    let result = expand(&dir, &options, &doing).and_then(|text| {
        std::fs::write(dir.join("launch.cpp"), launchers(&text)).map_err(io)?;
        build(&dir, &options, &path, &doing)
    });
    let _ = std::fs::remove_dir_all(&dir);
    result.map(|()| path)
}

/// Returns the kernels with macros expanded, because macros define some of them.
fn expand(dir: &Path, options: &[String], doing: &dyn Fn() -> String) -> Result<String> {
    let mut command = compiler();
    command
        .args(options)
        .args(["-E", "-P", "-DLEHR_EMULATED=1", "-I"])
        .arg(dir)
        .arg(dir.join("kernels.cpp"));
    run(command, doing)
}

fn build(dir: &Path, options: &[String], path: &Path, doing: &dyn Fn() -> String) -> Result<()> {
    let (mut command, out) = (compiler(), dir.join("out.so"));
    command.args(options).args(["-shared", "-fPIC", "-Wno-unknown-pragmas", "-I"]).arg(dir);
    command.arg("-o").arg(&out).arg(dir.join("launch.cpp"));
    run(command, doing)?;
    std::fs::rename(&out, path).map_err(|e| fault(doing(), e.to_string()))
}

fn compiler() -> Command {
    Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned()))
}

/// Runs the compiler and returns its output.
fn run(mut command: Command, doing: &dyn Fn() -> String) -> Result<String> {
    let output = command.output().map_err(|e| Error::Cuda {
        doing: doing(),
        reason: format!("starting {}: {e}", command.get_program().display()),
        hint: Some("install a C++ compiler (`apt-get install g++`), or name one in CXX".to_owned()),
    })?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(fault(doing(), String::from_utf8_lossy(&output.stderr))),
    }
}

/// Returns the kernels, and for each a function that starts it with an array of pointers to its
/// arguments.
fn launchers(text: &str) -> String {
    let mut out = String::from("#include \"shim.h\"\n#include \"kernels.cpp\"\n");
    for name in kernel_names(text) {
        let _ = writeln!(
            out,
            "extern \"C\" void launch_{name}(const unsigned* grid, const unsigned* block, \
             size_t shared, void** args) {{ emu::launch({name}, grid, block, shared, args); }}"
        );
    }
    out
}

/// Returns the names after `__global__`.
fn kernel_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for after in text.split("extern \"C\" __global__").skip(1) {
        // `void __launch_bounds__(…) name(`
        let mut rest = after.trim_start();
        rest = rest.strip_prefix("void").unwrap_or(rest).trim_start();
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            rest = after_parentheses(bounds).trim_start();
            rest = rest.strip_prefix("void").unwrap_or(rest).trim_start();
        }
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if !name.is_empty() && rest[name.len()..].trim_start().starts_with('(') {
            names.push(name);
        }
    }
    names
}

/// Returns the text after its leading parentheses.
fn after_parentheses(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 && c == ')' {
            return &text[at + 1..];
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kernels_are_found() {
        let text = "extern \"C\" __global__ void plain(int n) {}\n\
            extern \"C\" __global__ void __launch_bounds__(256, 2) bounded(int n) {}\n\
            extern \"C\" __global__ void __launch_bounds__((16 * 16), 2) by_macro(int n) {}\n";
        assert_eq!(kernel_names(text), ["plain", "bounded", "by_macro"]);
    }
}
