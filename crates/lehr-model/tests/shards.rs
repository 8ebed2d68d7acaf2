//! A tensor-parallel checkpoint of GLM-130B in 2, 4 and 8 parts, against the whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::Model;
use lehr_model::io::{Checkpoint, ShardRule, Shards, TensorFile, write_parts};
use lehr_tensor::{Shape, Tensor};

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/glm-130b")
}

/// Selects some columns of the given ranges of rows of a matrix. A vector has one column.
fn cut(whole: &Tensor, rows: &[(usize, usize)], columns: (usize, usize)) -> Tensor {
    let width = if whole.shape().len() == 2 { whole.shape()[1] } else { 1 };
    let row = |r: usize| &whole.data()[r * width..][columns.0..columns.1];
    let values: Vec<f32> = rows.iter().flat_map(|r| r.0..r.1).flat_map(row).copied().collect();
    let n_rows = rows.iter().map(|r| r.1 - r.0).sum();
    match whole.shape().len() {
        2 => Tensor::from_slice(&values, [n_rows, columns.1 - columns.0]).unwrap(),
        _ => Tensor::from_slice(&values, [n_rows]).unwrap(),
    }
}

/// Returns the part of rank `rank` of `n`, by Megatron's rules. The outputs of qkv and of the wide
/// layer are split (the latter per half), as are the inputs of the two other layers and the rows of
/// the embedding. Everything else is copied.
fn part(name: &str, whole: &Tensor, rank: usize, n: usize) -> Tensor {
    let n_rows = whole.shape()[0];
    let width = if whole.shape().len() == 2 { whole.shape()[1] } else { 1 };
    let piece = |of: usize, offset: usize| (offset + rank * of / n, offset + (rank + 1) * of / n);
    if name.contains("word_embeddings") || name.contains("query_key_value") {
        return cut(whole, &[piece(n_rows, 0)], (0, width));
    }
    if name.contains("h_to_4h") && !name.contains("4h_to_h") {
        let half = n_rows / 2;
        return cut(whole, &[piece(half, 0), piece(half, half)], (0, width));
    }
    if name.ends_with("attention.dense.weight") || name.ends_with("4h_to_h.weight") {
        return cut(whole, &[(0, n_rows)], piece(width, 0));
    }
    whole.clone()
}

fn part_path(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("mp_rank_{rank:02}_model_states.safetensors"))
}

/// Writes config.json and the parts.
fn split(dir: &Path, n: usize) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::copy(golden_dir().join("config.json"), dir.join("config.json")).unwrap();
    let whole = Checkpoint::open(&golden_dir()).unwrap();
    for rank in 0..n {
        let tensor = |name: &str| {
            let shape = Shape::from(whole.shape(name).unwrap());
            (name.to_owned(), part(name, &whole.tensor(name, shape).unwrap(), rank, n))
        };
        let file = TensorFile::new(whole.names().map(tensor).collect(), &[]).unwrap();
        write_parts(&part_path(dir, rank), file.parts()).unwrap();
    }
}

#[test]
fn parts_give_the_whole_bit_by_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = Model::load(&golden_dir()).unwrap();
    for n in [1, 2, 4, 8] {
        let dir = scratch.path().join(n.to_string());
        split(&dir, n);
        assert_eq!(Shards::open(&dir).unwrap().unwrap().n_parts(), n);
        let merged = Model::load(&dir).unwrap();
        assert_eq!(merged.params().params().len(), whole.params().params().len());
        for (a, b) in merged.params().params().iter().zip(whole.params().params()) {
            let same = a.tensor().to_vec() == b.tensor().to_vec();
            assert!(a.name() == b.name() && same, "{} from {n} parts", a.name());
        }
    }
}

#[test]
fn parts_of_pytorch_give_the_whole() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shards");
    let (whole, merged) = (Model::load(&dir.join("whole")), Model::load(&dir.join("two")));
    let (whole, merged) = (whole.unwrap(), merged.unwrap());
    for (a, b) in merged.params().params().iter().zip(whole.params().params()) {
        assert_eq!((a.name(), a.tensor().to_vec()), (b.name(), b.tensor().to_vec()));
    }
    // No parameter is constant, so a missing half would show.
    assert!(whole.params().params().iter().all(|p| p.tensor().data()[0] != p.tensor().data()[1]));
}

#[test]
fn the_whole_is_preferred_to_parts() {
    let scratch = tempfile::tempdir().unwrap();
    split(scratch.path(), 2);
    let from = golden_dir().join("model.safetensors");
    std::fs::copy(from, scratch.path().join("model.safetensors")).unwrap();
    assert!(Shards::open(scratch.path()).unwrap().is_none());
}

#[test]
fn parts_that_do_not_belong_together_give_errors_that_name_the_fault() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let says = |text: &str| {
        let error = Model::load(dir).err().unwrap();
        assert!(error.to_string().contains(text), "{error} does not say {text:?}");
        assert!(error.hint().is_some());
    };
    split(dir, 4);
    assert!(Model::load(dir).is_ok());
    std::fs::rename(part_path(dir, 2), dir.join("aside")).unwrap();
    says("look at 02");
    // Two parts of four: the pieces are too small.
    std::fs::remove_file(part_path(dir, 3)).unwrap();
    says("[40, 64], the model expects [80, 64]");
    let bytes = std::fs::read(part_path(dir, 1)).unwrap();
    std::fs::write(part_path(dir, 1), &bytes[..bytes.len() - 100]).unwrap();
    says("not a whole safetensors file");
    // Three parts are impossible: 160 rows are not a multiple of 3.
    for rank in 0..3 {
        std::fs::write(part_path(dir, rank), &bytes).unwrap();
    }
    says("cannot be in 3 parts");
}

#[test]
fn rules_put_numbers_where_they_belong() {
    let scratch = tempfile::tempdir().unwrap();
    for (rank, values) in [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]].iter().enumerate() {
        let x = Tensor::from_slice(values, [2, 2]).unwrap();
        let y = Tensor::from_slice(values, [4]).unwrap();
        let file = TensorFile::new(vec![("x".to_owned(), x), ("y".to_owned(), y)], &[]).unwrap();
        write_parts(&part_path(scratch.path(), rank), file.parts()).unwrap();
    }
    let shards = Shards::open(scratch.path()).unwrap().unwrap();
    let read = |name, shape: &[usize], rule| {
        shards.tensor(name, Shape::from(shape), rule).map(|x| x.to_vec())
    };
    let by_rows = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    assert_eq!(read("x", &[4, 2], ShardRule::Rows).unwrap(), by_rows);
    assert_eq!(read("y", &[8], ShardRule::Rows).unwrap(), by_rows);
    let by_halves = [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0];
    assert_eq!(read("x", &[4, 2], ShardRule::RowsOfHalves).unwrap(), by_halves);
    assert_eq!(read("y", &[8], ShardRule::RowsOfHalves).unwrap(), by_halves);
    assert_eq!(read("x", &[2, 4], ShardRule::Columns).unwrap(), by_halves);
    assert_eq!(read("x", &[2, 2], ShardRule::Replicated).unwrap(), by_rows[..4]);
    for (shape, rule) in [([3, 2], ShardRule::Rows), ([2, 3], ShardRule::Columns)] {
        assert!(read("x", &shape, rule).is_err());
    }
    assert!(read("x", &[2, 2], ShardRule::RowsOfHalves).is_err());
    assert!(read("y", &[8], ShardRule::Columns).is_err());
}
