//! What can go wrong with bundled files.

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
        /// The path asked for.
        path: String,
    },
    /// The bundled bytes do not unpack to what was packed: the program file is damaged.
    #[error("unpacking the bundled file `{path}`")]
    Damaged {
        /// Its path.
        path: &'static str,
        /// What the decompressor says.
        source: std::io::Error,
    },
    /// The bundled file is not UTF-8 text.
    #[error("reading the bundled file `{path}` as text: not UTF-8")]
    NotText {
        /// Its path.
        path: &'static str,
        /// Where the text breaks.
        source: std::string::FromUtf8Error,
    },
    /// A file of the folder to unpack into could not be made.
    #[error("writing {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// What the user may do about it.
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

/// A bundled file of the same last name in another folder, or one the path is a part of.
fn closest(path: &str) -> Option<&'static str> {
    let wanted = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let matches = |file: &&'static str| {
        let last = file.rsplit('/').next().unwrap_or(file).to_lowercase();
        !wanted.is_empty() && (last == wanted || last.starts_with(&wanted))
    };
    crate::files().iter().map(|f| f.path).find(matches)
}
