//! Files that `torch.save` wrote, against the same tensors as safetensors;
//! `tools/golden/pickles.py` makes both.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::Model;
use lehr_model::io::Checkpoint;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle")
}

fn golden_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama")
}

fn bits(checkpoint: &Checkpoint, name: &str) -> Option<Vec<u32>> {
    let shape = checkpoint.shape(name).unwrap();
    let floats = checkpoint.tensor(name, shape.into()).ok();
    floats.map(|t| t.data().iter().map(|v| v.to_bits()).collect())
}

fn assert_equal(found: &Checkpoint, wanted: &Checkpoint, what: &str) {
    let names = |checkpoint: &Checkpoint| checkpoint.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(found), names(wanted), "{what}");
    for name in wanted.names() {
        assert_eq!(found.shape(name), wanted.shape(name), "{what}: {name}");
        match (bits(found, name), bits(wanted, name)) {
            (None, None) => {
                let (found, wanted) = (found.ids(name).unwrap(), wanted.ids(name).unwrap());
                assert_eq!(found.ids(), wanted.ids(), "{what}: {name}");
            }
            (found, wanted) => assert_eq!(found, wanted, "{what}: {name}"),
        }
    }
}

#[test]
fn every_file_of_torch_has_the_tensors_it_was_given() {
    let mut n_files = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "pt") {
            let wanted = Checkpoint::open(&path.with_extension("safetensors")).unwrap();
            let found = Checkpoint::open(&path).unwrap();
            assert_equal(&found, &wanted, &path.display().to_string());
            n_files += 1;
        }
    }
    assert_eq!(n_files, 10);
}

#[test]
fn files_that_lehr_does_not_read_say_why() {
    for (name, says) in [
        ("whole_module", "`__main__.Module`"),
        ("path_beside", "`args` is `pathlib."),
        ("list", "no dict"),
        ("expanded", "or repeat elements"),
        ("sparse", "`torch._utils._rebuild_sparse_tensor`"),
        ("plain_pickle", "without the magic number of torch.save"),
        ("compressed", "is compressed"),
        ("big_endian", "not little-endian"),
        ("legacy_big_endian", "not little-endian"),
    ] {
        let error = Checkpoint::open(&folder().join(format!("refused/{name}.pt"))).err().unwrap();
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(error.to_string().contains(&format!("{name}.pt")), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.len() > 20), "{name}: {error}");
    }
}

#[test]
fn a_model_saved_by_torch_has_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden_llama().join("config.json"), dir.path().join("config.json")).unwrap();
    let bin = folder().join("llama/pytorch_model.bin");
    fs::copy(&bin, dir.path().join("pytorch_model.bin")).unwrap();
    let (found, wanted) = (Model::load(dir.path()).unwrap(), Model::load(&golden_llama()).unwrap());
    assert_eq!(found.params().n_values(), wanted.params().n_values());
    for (found, wanted) in found.params().params().iter().zip(wanted.params().params()) {
        assert_eq!(found.name(), wanted.name());
        assert_eq!(found.tensor().data(), wanted.tensor().data(), "{}", found.name());
    }
}

#[test]
fn shards_of_an_index_are_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("pytorch_model.bin.index.json");
    let shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    fs::copy(folder().join("views.pt"), dir.path().join(shards[0])).unwrap();
    fs::copy(folder().join("dtypes.pt"), dir.path().join(shards[1])).unwrap();
    let map = format!(
        r#"{{"weight_map": {{"base": "{}", "f32": "{}", "f16": "{}"}}}}"#,
        shards[0], shards[1], shards[1]
    );
    fs::write(&index, map).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.has("base") && checkpoint.has("f32"));

    fs::write(&index, r#"{"weight_map": {"base": "../secret.bin"}}"#).unwrap();
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("`../secret.bin` is not a plain file name"), "{error}");
}

#[test]
fn safetensors_come_before_pytorch_and_consolidated_last() {
    let dir = tempfile::tempdir().unwrap();
    let put = |from: &str, name: &str| fs::copy(folder().join(from), dir.path().join(name));
    put("module.pt", "consolidated.00.pth").unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().has("a.weight"));
    put("nested.pt", "pytorch_model.bin").unwrap();
    let name = "language_model.embedding.word_embeddings.weight";
    assert!(Checkpoint::open(dir.path()).unwrap().has(name));
    put("dtypes.safetensors", "model.safetensors").unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().has("f32"));
}

#[test]
fn a_model_cut_for_parallel_machines_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["consolidated.00.pth", "consolidated.01.pth"] {
        fs::copy(folder().join("module.pt"), dir.path().join(name)).unwrap();
    }
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("every tensor is cut in parts"), "{error}");
}
