//! Packs every file below `data/` at the root of the repository into `archive.bin` (the zlib
//! streams one after another, in the order of the paths) and writes their list as `entries.rs`.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use flate2::{Compression, write::ZlibEncoder};

/// Level 9 would make the archive 0.6 % smaller.
const LEVEL: Compression = Compression::new(6);

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../data");
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let (mut archive, mut entries) = (Vec::new(), String::from("&[\n"));
    for file in &files {
        let bytes = fs::read(file).map_err(|e| format!("reading {}: {e}", file.display()))?;
        let mut encoder = ZlibEncoder::new(Vec::new(), LEVEL);
        encoder.write_all(&bytes)?;
        let packed = encoder.finish()?;
        let path = name(&root, file)?;
        let (start, end) = (archive.len(), archive.len() + packed.len());
        let n_bytes = bytes.len();
        writeln!(
            entries,
            "    Entry {{ path: {path:?}, n_bytes: {n_bytes}, start: {start}, end: {end} }},"
        )?;
        archive.extend(packed);
    }
    entries.push(']');
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("archive.bin"), archive)?;
    fs::write(out.join("entries.rs"), entries)?;
    Ok(())
}

/// The path below `data/`, with `/` on every system.
fn name(root: &Path, file: &Path) -> Result<String, Box<dyn Error>> {
    let parts = file.strip_prefix(root)?.iter().map(|part| part.to_str());
    let parts: Option<Vec<_>> = parts.collect();
    Ok(parts.ok_or_else(|| format!("{} is not UTF-8", file.display()))?.join("/"))
}

/// Appends all files below `folder`. Hidden ones belong to an editor or the system.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    // Cargo watches the folder for new files and each file for new content.
    println!("cargo::rerun-if-changed={}", folder.display());
    let read = fs::read_dir(folder).map_err(|e| format!("reading {}: {e}", folder.display()))?;
    for entry in read {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
    Ok(())
}
