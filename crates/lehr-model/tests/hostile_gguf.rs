//! GGUF files with false claims: each gives an error, none a panic or excessive memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lehr_model::io::Checkpoint;
use proptest::prelude::*;

/// A tensor's description: name, dimensions with the innermost first, type, offset.
type Tensor<'a> = (&'a str, &'a [u64], u32, u64);

/// The contents of a file.
#[derive(Clone)]
struct File<'a> {
    version: u32,
    /// Replaces the true numbers of keys and tensors.
    counts: Option<(u64, u64)>,
    /// Keys beyond those of a Llama with one head.
    keys: Vec<Vec<u8>>,
    tensors: Vec<Tensor<'a>>,
    n_data: usize,
}

const F32: u32 = 0;
const Q4_0: u32 = 2;

impl Default for File<'_> {
    fn default() -> Self {
        let tensors =
            vec![("token_embd.weight", &[8u64, 4][..], F32, 0), ("odd", &[32, 2], Q4_0, 128)];
        Self { version: 3, counts: None, keys: Vec::new(), tensors, n_data: 192 }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A key with a value of type `type_id`.
fn key(name: &str, type_id: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &type_id.to_le_bytes(), value].concat()
}

fn integer(name: &str, value: u32) -> Vec<u8> {
    key(name, 4, &value.to_le_bytes())
}

fn array(name: &str, type_id: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    key(name, 9, &[&type_id.to_le_bytes()[..], &n.to_le_bytes(), elements].concat())
}

impl File<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut keys = vec![key("general.architecture", 8, &text("llama"))];
        for name in [
            "embedding_length",
            "attention.head_count",
            "feed_forward_length",
            "block_count",
            "context_length",
        ] {
            keys.push(integer(
                &format!("llama.{name}"),
                if name == "embedding_length" { 8 } else { 1 },
            ));
        }
        keys.push(key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()));
        keys.push(array("tokenizer.ggml.tokens", 8, 2, &[text("a"), text("ö")].concat()));
        keys.extend(self.keys.clone());
        let counts = self.counts.unwrap_or((self.tensors.len() as u64, keys.len() as u64));
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(counts.0.to_le_bytes());
        out.extend(counts.1.to_le_bytes());
        out.extend(keys.concat());
        for (name, dims, type_id, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(type_id.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend((0..self.n_data).map(|i| i as u8));
        out
    }
}

fn open(bytes: &[u8]) -> Result<Checkpoint, lehr_model::Error> {
    Checkpoint::from_bytes(Path::new("hostile.gguf"), bytes)
}

fn fails(file: &File<'_>, says: &str) {
    let error = open(&file.bytes()).err().unwrap_or_else(|| panic!("{says}: it was read"));
    assert!(error.to_string().contains(says), "{error:?} does not say {says:?}");
}

fn with_key(key: Vec<u8>) -> File<'static> {
    File { keys: vec![key], ..File::default() }
}

fn with_tensor(tensor: Tensor<'_>) -> File<'_> {
    File { tensors: vec![("token_embd.weight", &[8, 4], F32, 0), tensor], ..File::default() }
}

#[test]
fn the_frame_of_these_tests_is_a_file_that_can_be_read() {
    for version in [2, 3] {
        let checkpoint = open(&File { version, ..File::default() }.bytes()).unwrap();
        assert_eq!(checkpoint.shape("model.embed_tokens.weight"), Some(&[4, 8][..]));
        assert_eq!(checkpoint.tensor("odd", [2, 32].into()).unwrap().shape()[..], [2, 32]);
        assert_eq!(checkpoint.read_all(), 2);
        let tokens = checkpoint.gguf_metadata().unwrap().strings("tokenizer.ggml.tokens");
        assert_eq!(tokens.unwrap().unwrap(), ["a", "ö"]);
    }
}

#[test]
fn a_cut_file_is_an_error_wherever_it_is_cut() {
    let whole = File::default().bytes();
    // The padding after the last tensor, whose numbers end at byte 128 + 36, need not be there.
    for len in 0..whole.len() - 192 + 164 {
        let error = open(&whole[..len]).err().unwrap_or_else(|| panic!("{len} bytes were read"));
        assert!(error.to_string().contains("hostile.gguf"), "{error}");
    }
    assert!(open(&whole).is_ok());
}

#[test]
fn other_byte_orders_and_versions_are_named() {
    fails(&File { version: 3u32.swap_bytes(), ..File::default() }, "big-endian");
    fails(&File { version: 1, ..File::default() }, "version 1");
    fails(&File { version: 4, ..File::default() }, "version 4");
}

#[test]
fn counts_beyond_the_file_are_errors() {
    let huge = u64::MAX;
    for counts in [(huge, 8), (2, huge), (1 << 40, 8), (2, 1 << 40)] {
        assert!(open(&File { counts: Some(counts), ..File::default() }.bytes()).is_err());
    }
    for type_id in 0..=12 {
        for n in [huge, huge / 2, 1 << 40, 1 << 20] {
            fails(&with_key(array("k", type_id, n, &[])), "k has");
        }
    }
    fails(&with_key(key("k", 8, &huge.to_le_bytes())), "ends within k");
    fails(&with_key(huge.to_le_bytes().to_vec()), "ends within a key");
}

#[test]
fn arrays_in_arrays_end_somewhere() {
    let level = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    let deep = [level.repeat(100_000), 0u32.to_le_bytes().to_vec()].concat();
    fails(&with_key(key("k", 9, &deep)), "nests arrays");
}

#[test]
fn values_that_are_none_are_errors() {
    fails(&with_key(key("k", 13, &[0; 8])), "type 13");
    fails(&with_key(array("k", 77, 1, &[0; 8])), "type 77");
    fails(&with_key(key("k", 7, &[2])), "0 or 1");
    fails(&with_key(key("k", 8, &[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())), "UTF-8");
    fails(&with_key(integer("llama.block_count", 1)), "occurs twice");
    for alignment in [0, 1, 7, 48, 1 << 20] {
        fails(&with_key(integer("general.alignment", alignment)), "general.alignment");
    }
}

#[test]
fn tensors_out_of_place_are_errors() {
    let data = 192;
    let huge = u64::MAX;
    fails(&with_tensor(("t", &[8], F32, 16)), "no multiple of 32");
    fails(&with_tensor(("t", &[8], F32, data)), "beyond the end");
    fails(&with_tensor(("t", &[8], F32, huge - 31)), "beyond the end");
    fails(&with_tensor(("t", &[1 << 40], F32, 128)), "beyond the end");
    fails(&with_tensor(("t", &[1 << 40, 1 << 40], F32, 128)), "dimensions");
    fails(&with_tensor(("t", &[1 << 62, 2], F32, 128)), "too many");
    fails(&with_tensor(("t", &[1 << 61], F32, 128)), "beyond the end");
    fails(&with_tensor(("t", &[8, 0], F32, 128)), "dimensions");
    fails(&with_tensor(("t", &[], F32, 128)), "0 dimensions");
    fails(&with_tensor(("t", &[1, 1, 1, 1, 1], F32, 128)), "5 dimensions");
    fails(&with_tensor(("t", &[8], F32, 96)), "overlap");
    fails(&with_tensor(("t", &[48], Q4_0, 128)), "whole blocks");
    fails(&with_tensor(("token_embd.weight", &[8], F32, 128)), "occurs twice");
    // Two names in the file for one name of the family.
    let twice = with_tensor(("model.embed_tokens.weight", &[8], F32, 128));
    fails(&twice, "occurs twice");
    // A head has eight rows here.
    fails(&with_tensor(("blk.0.attn_q.weight", &[4, 3], F32, 128)), "whole heads");
}

#[test]
fn a_type_that_cannot_be_read_is_named_when_it_is_read() {
    let checkpoint = open(&with_tensor(("t", &[256], 16, 128)).bytes()).unwrap();
    let error = checkpoint.tensor("t", [256].into()).err().unwrap().to_string();
    assert!(error.contains("`t` holds IQ2_XXS"), "{error}");
}

#[test]
fn other_architectures_are_named() {
    let mut bytes = File::default().bytes();
    let at = bytes.windows(5).position(|w| w == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"mamba");
    let error = open(&bytes).err().unwrap().to_string();
    assert!(error.contains("general.architecture is mamba"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bytes change, reading ends with all values or an error.
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = File::default().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(checkpoint) = open(&bytes) {
            let n = checkpoint.read_all();
            prop_assert!(n <= 2);
        }
    }
}
