//! Finding CUDA's libraries: the loader's path, a toolkit's folder, a Python environment.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use lehr_kernels::Error;

/// A library and where it was found.
#[derive(Clone, Debug)]
pub struct LibraryReport {
    /// Its name, without `lib` and `.so`.
    pub name: &'static str,
    /// What needs it.
    pub purpose: &'static str,
    /// The file, or only its name if the loader found it; `None` if it is missing.
    pub found: Option<String>,
}

struct Wanted {
    name: &'static str,
    purpose: &'static str,
    /// File names, the best first.
    files: &'static [&'static str],
}

/// In the order in which they must be opened. An open library is found by its name: cuBLASLt by
/// later calls, and the builtins by NVRTC.
const WANTED: [Wanted; 4] = [
    Wanted {
        name: "cuda",
        purpose: "the driver: everything",
        files: &["libcuda.so.1", "libcuda.so"],
    },
    Wanted {
        name: "nvrtc-builtins",
        purpose: "compiling kernels",
        files: &["libnvrtc-builtins.so.13.*", "libnvrtc-builtins.so.12.*", "libnvrtc-builtins.so"],
    },
    Wanted {
        name: "nvrtc",
        purpose: "compiling kernels",
        files: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    },
    Wanted {
        name: "cublasLt",
        purpose: "matrix products",
        files: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    },
];

/// Finds and opens the libraries.
pub fn libraries() -> Vec<LibraryReport> {
    let report = |(index, wanted): (usize, &Wanted)| LibraryReport {
        name: wanted.name,
        purpose: wanted.purpose,
        found: found(index).cloned(),
    };
    WANTED.iter().enumerate().map(report).collect()
}

/// Returns where a library was found, and opens it at the first call: cuBLASLt alone takes a
/// quarter of a second.
fn found(index: usize) -> Option<&'static String> {
    static FOUND: [OnceLock<Option<String>>; WANTED.len()] =
        [const { OnceLock::new() }; WANTED.len()];
    FOUND[index].get_or_init(|| open(&WANTED[index], &folders())).as_ref()
}

/// Returns a hint for missing libraries, or `None` if all of `names` are found.
pub(super) fn missing(names: &[&str]) -> Option<(String, String)> {
    let missing: Vec<_> = WANTED
        .iter()
        .enumerate()
        .filter(|(index, wanted)| names.contains(&wanted.name) && found(*index).is_none())
        .map(|(_, wanted)| format!("lib{}", wanted.name))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let hint = match missing.iter().any(|name| name == "libcuda") {
        true => {
            "it comes with NVIDIA's driver, and `nvidia-smi` says whether that is installed; with \
             the device cpu or auto there is no need for it"
        }
        false => {
            "install the CUDA toolkit, or set LEHR_CUDA_LIBS to the folders that hold it, for \
             instance the nvidia/*/lib folders of a Python environment"
        }
    };
    Some((format!("{} not found", missing.join(", ")), hint.to_owned()))
}

/// Returns a hint if a library is of a later CUDA (`major`) than the driver supports (`driver`,
/// 13000 for 13.0).
pub(super) fn too_new_for(driver: u32, major: u32, error: Error) -> Error {
    match error {
        Error::Cuda { doing, reason, hint: None } if major > driver / 1000 => {
            let hint = format!(
                "the library found is of CUDA {major}, the driver for CUDA {}.{}: update the \
                 driver, or set LEHR_CUDA_LIBS to the folders of CUDA {}'s libraries",
                driver / 1000,
                driver % 1000 / 10,
                driver / 1000
            );
            Error::Cuda { doing, reason, hint: Some(hint) }
        }
        other => other,
    }
}

fn open(wanted: &Wanted, folders: &[PathBuf]) -> Option<String> {
    for folder in folders {
        for file in wanted.files {
            for path in matching(folder, file) {
                if keep_open(path.as_os_str()) {
                    return Some(path.display().to_string());
                }
            }
        }
    }
    wanted.files.iter().flat_map(|file| names(file)).find(|name| keep_open(name.as_ref()))
}

/// Returns the names for the loader, which cannot expand a name that ends in `*`.
fn names(file: &str) -> Vec<String> {
    match file.strip_suffix('*') {
        Some(start) => (0..20).rev().map(|minor| format!("{start}{minor}")).collect(),
        None => vec![file.to_owned()],
    }
}

/// Returns the files of a folder with a name that may end in `*`.
fn matching(folder: &Path, file: &str) -> Vec<PathBuf> {
    let Some(start) = file.strip_suffix('*') else { return vec![folder.join(file)] };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(start))
        })
        .collect();
    paths.sort();
    paths
}

/// Opens a library permanently, so that the loader then finds it by its name.
fn keep_open(path: &std::ffi::OsStr) -> bool {
    // SAFETY: these are CUDA's own libraries, whose initialisation has no conditions.
    let opened = unsafe { Library::new(path) };
    opened.map(std::mem::forget).is_ok()
}

/// Returns the folders to search besides the loader's path. `LEHR_CUDA_LIBS` comes first.
fn folders() -> Vec<PathBuf> {
    let of = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(list) = of("LEHR_CUDA_LIBS") {
        folders.extend(std::env::split_paths(&list));
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(of).map(PathBuf::from);
    folders.extend(toolkits.flat_map(|root| [root.join("lib64"), root.join("lib")]));
    folders.extend(["/usr/local/cuda/lib64", "/usr/lib/wsl/lib"].map(PathBuf::from));
    for key in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(root) = of(key) {
            let root = PathBuf::from(root);
            folders.push(root.join("lib"));
            folders
                .extend(children(&root.join("lib")).into_iter().flat_map(|d| python_folders(&d)));
        }
    }
    let roots = ["/usr/local/lib", "/usr/lib", "/opt/conda/lib"].map(PathBuf::from);
    let of_user = of("HOME").map(|home| PathBuf::from(home).join(".local/lib"));
    for root in of_user.into_iter().chain(roots) {
        folders.extend(children(&root).into_iter().flat_map(|d| python_folders(&d)));
    }
    folders
}

/// Returns the folders `nvidia/*/lib` of a Python installation.
fn python_folders(python: &Path) -> Vec<PathBuf> {
    let is_python =
        python.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("python3"));
    if !is_python {
        return Vec::new();
    }
    ["site-packages", "dist-packages"]
        .into_iter()
        .flat_map(|packages| children(&python.join(packages).join("nvidia")))
        .map(|package| package.join("lib"))
        .collect()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_later_than_the_driver_are_named() {
        let error = || Error::Cuda { doing: "loading".into(), reason: "no".into(), hint: None };
        let hint = too_new_for(12_080, 13, error()).hint().unwrap_or_default();
        assert!(hint.contains("CUDA 13, the driver for CUDA 12.8"), "{hint}");
        assert_eq!(too_new_for(13_000, 13, error()).hint(), None);
        assert_eq!(too_new_for(13_000, 12, error()).hint(), None);
    }
}
