//! Checkpoint files.

mod base;
mod change;
mod checkpoint;
mod entry;
mod files;
mod folder;
pub mod gguf;
pub(crate) mod leftover;
mod manifest;
mod pickle;
mod raw_json;
mod safetensors_file;
mod shards;
mod source;
mod strided;
mod tensor_file;
mod verified;
mod weight_files;
mod wrapped;

pub use base::{BASE, BaseModel, model_files};
pub use checkpoint::Checkpoint;
pub use entry::StoredTensor;
pub use files::{read_json, sync_dir, write_file, write_json, write_parts, write_stream};
pub use folder::FloatFormat;
pub(crate) use folder::{Extra, FolderContents, write_folder};
pub use manifest::{
    MANIFEST, Manifest, ManifestFile, Scrutiny, check_checkpoint, checkpoints, hash_file, hex,
    newest_checkpoint,
};
pub use raw_json::RawObject;
pub use shards::{ShardRule, Shards};
pub use source::ModelSource;
pub use tensor_file::TensorFile;
pub use weight_files::{ADAPTER_CONFIG, weight_files};
