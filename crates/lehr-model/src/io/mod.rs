//! Checkpoint files.

mod base;
mod change;
mod checkpoint;
mod entry;
mod files;
mod folder;
pub mod gguf;
mod manifest;
mod pickle;
mod raw_json;
mod safetensors_file;
mod shards;
mod source;
mod strided;
mod tensor_file;

pub use base::{BASE, BaseModel};
pub use checkpoint::{Checkpoint, weight_files};
pub use entry::StoredTensor;
pub use files::{read_json, write_file, write_json, write_parts, write_stream};
pub use folder::FloatFormat;
pub(crate) use folder::{Extra, FolderContents, write_folder};
pub use manifest::{
    MANIFEST, Manifest, ManifestFile, Scrutiny, checkpoints, hash_file, hex, newest_checkpoint,
};
pub use raw_json::RawObject;
pub use shards::{ShardRule, Shards};
pub use source::ModelSource;
pub use tensor_file::TensorFile;
