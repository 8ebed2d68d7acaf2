//! Compilation of kernels from CUDA C++ to cubins, cached on disk.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use cudarc::nvrtc::sys;
use sha2::{Digest, Sha256};

use super::{fault, library};
use lehr_kernels::{DType, Error, Result};

/// A file of kernels. It is compiled once per element type.
pub struct Source {
    /// Name of its op, and of the part if the op has several files.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
}

/// Declares a source file in the folder of the calling file.
#[macro_export]
macro_rules! source {
    ($name:literal, $file:literal) => {
        $crate::Source { name: $name, text: include_str!($file) }
    };
}

/// Headers that sources include.
pub(super) const HEADERS: [(&str, &str); 17] = [
    ("common.cuh", include_str!("kernels/common.cuh")),
    ("rows.cuh", include_str!("kernels/rows.cuh")),
    ("best.cuh", include_str!("kernels/best.cuh")),
    ("clip.cuh", include_str!("kernels/clip.cuh")),
    ("sample.cuh", include_str!("kernels/sample.cuh")),
    ("mma.cuh", include_str!("kernels/mma.cuh")),
    ("attention.cuh", include_str!("kernels/attention.cuh")),
    ("decode.cuh", include_str!("kernels/decode.cuh")),
    ("plain.cuh", include_str!("kernels/plain.cuh")),
    ("fp8.cuh", include_str!("kernels/fp8.cuh")),
    ("flash.cuh", include_str!("kernels/flash.cuh")),
    ("curves.cuh", include_str!("kernels/curves.cuh")),
    ("quant.cuh", include_str!("kernels/quant.cuh")),
    ("product.cuh", include_str!("kernels/product.cuh")),
    ("product_copy.cuh", include_str!("kernels/product_copy.cuh")),
    ("product_formats.cuh", include_str!("kernels/product_formats.cuh")),
    ("product_sums.cuh", include_str!("kernels/product_sums.cuh")),
];

/// Element types for which kernels are compiled.
pub(super) const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The macro that selects an element type.
pub(super) fn dtype_macro(dtype: DType) -> Result<String> {
    match DTYPES.iter().position(|d| *d == dtype) {
        Some(index) => Ok(format!("-DLEHR_T={index}")),
        None => {
            Err(fault(format!("compiling kernels for {dtype}"), "they are for f32, bf16 and f16"))
        }
    }
}

/// A compiled file: the cubin and the compiler's log.
pub(super) struct Compiled {
    pub(super) cubin: Vec<u8>,
    pub(super) log: String,
}

/// Compiles `source` for `arch` with NVRTC, which needs no GPU.
pub(super) fn nvrtc(source: &Source, dtype: DType, arch: &str) -> Result<Compiled> {
    let doing = || format!("compiling the kernels of {} for {dtype} and {arch}", source.name);
    check_nvrtc()?;
    let text = |s: &str| CString::new(s).map_err(|_| fault(doing(), "a null byte in the source"));
    let (code, file) = (text(source.text)?, text(source.name)?);
    let names = HEADERS.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
    let bodies = HEADERS.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>>>()?;
    let options = options(dtype, arch)?.iter().map(|o| text(o)).collect::<Result<Vec<_>>>()?;
    let pointers =
        |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
    let (names, bodies, options) = (pointers(&names), pointers(&bodies), pointers(&options));
    let mut program = ptr::null_mut();
    // SAFETY: all strings outlive the calls, the numbers are those of the arrays, the library is
    // there.
    unsafe {
        let (n, h, i) = (names.len() as c_int, bodies.as_ptr(), names.as_ptr());
        check(
            sys::nvrtcCreateProgram(&raw mut program, code.as_ptr(), file.as_ptr(), n, h, i),
            &doing,
        )?;
        let compiled = sys::nvrtcCompileProgram(program, options.len() as c_int, options.as_ptr());
        let log = log_of(program);
        let result = match compiled {
            sys::nvrtcResult::NVRTC_SUCCESS => {
                cubin_of(program, &doing).map(|cubin| Compiled { cubin, log })
            }
            // A failure before the compiler starts may have no log.
            _ => Err(fault(doing(), if log.is_empty() { text_of(compiled) } else { log })),
        };
        sys::nvrtcDestroyProgram(&raw mut program);
        result
    }
}

fn options(dtype: DType, arch: &str) -> Result<Vec<String>> {
    let fixed =
        ["--std=c++17", "-default-device", "--extra-device-vectorization", "--ptxas-options=-v"];
    let mut options = vec![format!("--gpu-architecture={arch}"), dtype_macro(dtype)?];
    options.extend(fixed.map(str::to_owned));
    Ok(options)
}

/// Returns an error if NVRTC cannot be called.
fn check_nvrtc() -> Result<()> {
    let doing = "compiling kernels";
    if let Some((reason, hint)) = library::missing(&["nvrtc", "nvrtc-builtins"]) {
        return Err(Error::Cuda { doing: doing.to_owned(), reason, hint: Some(hint) });
    }
    // SAFETY: opening NVRTC has no conditions.
    match unsafe { sys::is_culib_present() } {
        true => Ok(()),
        false => Err(fault(doing, "libnvrtc was found, but cannot be opened again by its name")),
    }
}

/// # Safety
/// `program` is alive.
unsafe fn log_of(program: sys::nvrtcProgram) -> String {
    let mut n = 0;
    // SAFETY: the buffer has the size the library asked for.
    unsafe {
        sys::nvrtcGetProgramLogSize(program, &raw mut n);
        let mut log = vec![0u8; n.max(1)];
        sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned()
    }
}

/// # Safety
/// `program` is alive and was compiled.
unsafe fn cubin_of(program: sys::nvrtcProgram, doing: &dyn Fn() -> String) -> Result<Vec<u8>> {
    let mut n = 0;
    // SAFETY: the buffer has the size the library asked for.
    unsafe {
        check(sys::nvrtcGetCUBINSize(program, &raw mut n), doing)?;
        let mut cubin = vec![0u8; n];
        check(sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()), doing)?;
        Ok(cubin)
    }
}

fn check(result: sys::nvrtcResult, doing: &dyn Fn() -> String) -> Result<()> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(fault(doing(), text_of(result)))
}

fn text_of(result: sys::nvrtcResult) -> String {
    // SAFETY: the library is there, and gives a string of its own for every result.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    text.to_string_lossy().into_owned()
}

/// Returns the version of NVRTC, major and minor.
pub(super) fn nvrtc_version() -> Result<(i32, i32)> {
    check_nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there.
    check(unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }, &|| {
        "asking NVRTC's version".into()
    })?;
    Ok((major, minor))
}

/// Compiles with [`nvrtc`] and keeps the result on disk, so only the first start of a program
/// compiles.
pub(super) fn cubin(source: &Source, dtype: DType, arch: &str) -> Result<Vec<u8>> {
    let path = cache_path(source, dtype, arch)?;
    // A machine that lost power may have left an empty file.
    if let Ok(cubin) = std::fs::read(&path)
        && cubin.starts_with(b"\x7fELF")
    {
        return Ok(cubin);
    }
    let cubin = nvrtc(source, dtype, arch)?.cubin;
    // Without a writable cache, kernels are only compiled more often.
    let _ = keep(&path, &cubin);
    Ok(cubin)
}

/// Returns the path of a compiled file. Its name depends on everything that goes into it.
pub(super) fn cache_path(source: &Source, dtype: DType, arch: &str) -> Result<PathBuf> {
    let version = nvrtc_version()?;
    let key = key(source, &format!("{version:?} {:?}", options(dtype, arch)?));
    Ok(cache_dir().join(format!("{}-{dtype}-{arch}-{key}.cubin", source.name)))
}

/// Finds the headers that a text includes, and those that they include, in the order of
/// [`HEADERS`].
fn headers_of(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (mut needed, mut unread) = (Vec::new(), vec![text]);
    while let Some(text) = unread.pop() {
        for (name, body) in HEADERS {
            if !needed.contains(&name) && text.contains(&format!("#include \"{name}\"")) {
                needed.push(name);
                unread.push(body);
            }
        }
    }
    HEADERS.into_iter().filter(move |(name, _)| needed.contains(name))
}

/// Names a compiled file by everything that goes into it. Headers that it does not include do not
/// count, so a changed header recompiles only the files that include it.
pub(super) fn key(source: &Source, how: &str) -> String {
    let mut hash = Sha256::new();
    for (name, body) in headers_of(source.text) {
        hash.update(name);
        hash.update(body);
    }
    hash.update(source.text);
    hash.update(how);
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the folder of compiled kernels: `LEHR_CACHE`, or `lehr` in the user's cache.
pub(super) fn cache_dir() -> PathBuf {
    let of = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = of("LEHR_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|dir| dir.join("lehr")))
        .or_else(|| of("HOME").map(|dir| dir.join(".cache/lehr")))
        .unwrap_or_else(|| std::env::temp_dir().join("lehr"));
    cache.join("kernels")
}

/// Returns a temporary name that is unique to this process and call.
pub(super) fn unique() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Writes a file completely or not at all, because several programs may start at once.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let beside = path.with_extension(format!("{}.tmp", unique()));
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, path)
}

/// Resources of one kernel, as the compiler reports them.
#[derive(Clone, Debug)]
pub struct CompileReport {
    /// The file.
    pub source: &'static str,
    /// Element type.
    pub dtype: DType,
    /// Architecture.
    pub arch: String,
    /// The kernel.
    pub kernel: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of spilled registers and local arrays.
    pub spill_bytes: u32,
    /// Bytes of fixed shared memory.
    pub shared_bytes: u32,
}

/// Compiles every kernel of `sources` for each of `archs` (such as `sm_90a`) and each element type,
/// on several threads. It needs NVRTC, but no GPU. The compiler's log is kept beside the compiled
/// kernels, so only what has changed is compiled again.
///
/// # Errors
/// If NVRTC is missing or a kernel does not compile.
pub fn compile_all(sources: &[&Source], archs: &[&str]) -> Result<Vec<CompileReport>> {
    let jobs: Vec<_> = archs
        .iter()
        .flat_map(|arch| sources.iter().map(move |source| (*arch, *source)))
        .flat_map(|(arch, source)| DTYPES.map(|dtype| (arch, source, dtype)))
        .collect();
    nvrtc_version()?;
    let logs = in_parallel(&jobs, |&(arch, source, dtype)| log_of_kept(source, dtype, arch));
    let mut reports = Vec::new();
    for (&(arch, source, dtype), log) in jobs.iter().zip(logs) {
        let of = |(kernel, registers, spill_bytes, shared_bytes)| CompileReport {
            source: source.name,
            dtype,
            arch: arch.to_owned(),
            kernel,
            registers,
            spill_bytes,
            shared_bytes,
        };
        reports.extend(parse(&log?).map(of));
    }
    reports.sort_by(|a, b| (&a.arch, a.source, &a.kernel).cmp(&(&b.arch, b.source, &b.kernel)));
    Ok(reports)
}

/// Runs `work` for each job on all cores, and returns the results in order.
pub(super) fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let take = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return };
            let result = work(job);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    std::thread::scope(|scope| {
        let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..n_threads.min(jobs.len())).for_each(|_| drop(scope.spawn(take)));
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Returns the compiler's log for a file, from the cache or by compiling it.
fn log_of_kept(source: &Source, dtype: DType, arch: &str) -> Result<String> {
    let path = cache_path(source, dtype, arch)?.with_extension("log");
    if let Ok(log) = std::fs::read_to_string(&path) {
        return Ok(log);
    }
    let Compiled { cubin, log } = nvrtc(source, dtype, arch)?;
    let _ = keep(&path.with_extension("cubin"), &cubin);
    let _ = keep(&path, log.as_bytes());
    Ok(log)
}

/// Reads the output of `ptxas -v`: for each kernel its name, registers, spilled and local bytes,
/// and shared bytes.
fn parse(log: &str) -> impl Iterator<Item = (String, u32, u32, u32)> + use<'_> {
    let before = |line: &str, what: &str| -> u32 {
        let number = line
            .split(what)
            .next()
            .and_then(|text| text.split([' ', ',']).rfind(|w| !w.is_empty()));
        if line.contains(what) { number.and_then(|n| n.parse().ok()).unwrap_or(0) } else { 0 }
    };
    log.split("Compiling entry function '").skip(1).map(move |entry| {
        let kernel = entry.split('\'').next().unwrap_or_default().to_owned();
        let (mut registers, mut spill, mut shared) = (0, 0, 0);
        for line in entry.lines() {
            let line = line.strip_prefix("ptxas info    : ").unwrap_or(line);
            registers += line.split("Used ").nth(1).map_or(0, |rest| before(rest, " registers"));
            spill += before(line, " bytes stack frame") + before(line, " bytes spill stores");
            shared += before(line, " bytes smem");
        }
        (kernel, registers, spill, shared)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiled_file_is_named_by_the_headers_it_includes_and_theirs() {
        let names = |text| headers_of(text).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names("#include \"rows.cuh\"\n"), ["common.cuh", "rows.cuh"]);
        assert_eq!(names("int x;"), [""; 0]);
    }

    #[test]
    fn the_numbers_of_ptxas_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'a_kernel' for 'sm_90a'\n\
            ptxas info    : Function properties for a_kernel\n\
                8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
            ptxas info    : Used 255 registers, used 1 barriers, 144 bytes smem\n\
            ptxas info    : Compiling entry function 'b' for 'sm_90a'\n\
                0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 16 registers\n";
        let entries: Vec<_> = parse(log).collect();
        assert_eq!(entries, [("a_kernel".to_owned(), 255, 20, 144), ("b".to_owned(), 16, 0, 0)]);
    }
}
