//! Errors about bundled files.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error about a bundled file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no bundled file of that path.
    #[error("reading the bundled file `{path}`: there is none of that name")]
    NotFound {
        /// The requested path.
        path: String,
    },
    /// The bundled bytes do not unpack to the original: the program file is damaged.
    #[error("unpacking the bundled file `{path}`")]
    Damaged {
        /// Its path.
        path: &'static str,
        /// The error of the decompressor.
        source: std::io::Error,
    },
    /// The bundled file is not UTF-8 text.
    #[error("reading the bundled file `{path}` as text: not UTF-8")]
    NotText {
        /// Its path.
        path: &'static str,
        /// The position of the fault.
        source: std::string::FromUtf8Error,
    },
    /// A file could not be written into the target folder.
    #[error("writing {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

impl Error {
    /// Returns a remedy for the user.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { path } => Some(match closest(path) {
                Some(other) => format!("did you mean `{other}`?"),
                None => {
                    let all: Vec<_> = crate::files().iter().map(|f| f.path).collect();
                    format!("the bundled files are {}", all.join(", "))
                }
            }),
            Self::Damaged { .. } | Self::NotText { .. } => {
                Some("the program file is damaged: install it again".to_owned())
            }
            Self::Write { path, .. } => Some(format!(
                "check that {} may be written and the disk is not full",
                path.display()
            )),
        }
    }
}

/// Finds a bundled file with the same name in another folder, or one whose path contains this one.
fn closest(path: &str) -> Option<&'static str> {
    let wanted = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let matches = |file: &&'static str| {
        let last = file.rsplit('/').next().unwrap_or(file).to_lowercase();
        !wanted.is_empty() && (last == wanted || last.starts_with(&wanted))
    };
    crate::files().iter().map(|f| f.path).find(matches)
}
