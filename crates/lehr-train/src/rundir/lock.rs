//! The lock of a run directory.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A held lock: the system's lock on the file `lock`, which names the process. The system releases
/// it when the process ends in any way, so the lock of a dead process is free.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// The holder of a lock.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Holder {
    pid: u32,
    host: String,
}

impl Lock {
    /// Locks the run directory `dir`.
    ///
    /// # Errors
    /// If another process holds the lock, or the file cannot be written.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let mut open = File::options();
        open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(&path).map_err(Error::io("opening", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let Holder { pid, host } = read(&mut file);
                return Err(Error::InUse { path: dir.to_owned(), pid, host });
            }
            // A file system without locks: the file still names a process of this machine.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                let Holder { pid, host } = read(&mut file);
                let process = PathBuf::from(format!("/proc/{pid}"));
                if pid != 0 && (host != this_host() || process.exists()) {
                    return Err(Error::InUse { path: dir.to_owned(), pid, host });
                }
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", &path)(e)),
        }
        let holder = Holder { pid: std::process::id(), host: this_host() };
        let text = serde_json::to_string(&holder).expect("a number and text") + "\n";
        let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(Error::io("writing", &path))?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file stays, because another process may be about to lock it. Empty, it names nobody.
        let _ = self.file.set_len(0);
    }
}

/// Reads the holder, who may be about to write it.
fn read(file: &mut File) -> Holder {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    serde_json::from_str(&text).unwrap_or_default()
}

fn this_host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.unwrap_or_else(|_| std::env::var("HOSTNAME").unwrap_or_default());
    host.trim().to_owned()
}
