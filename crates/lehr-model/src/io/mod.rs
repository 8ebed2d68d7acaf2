//! Checkpoint files.

mod checkpoint;
mod files;
mod tensor_file;

pub use checkpoint::Checkpoint;
pub use files::{read_json, write_file, write_json, write_parts};
pub use tensor_file::TensorFile;
