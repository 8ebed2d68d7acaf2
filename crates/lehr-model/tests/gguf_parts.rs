//! GGUF files in several parts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::Model;
use lehr_model::io::gguf::{FileType, GgufOptions, Metadata};

/// A GGUF file in its pieces, as bytes.
struct Pieces {
    /// Keys with their values.
    keys: Vec<Vec<u8>>,
    /// Name, dimensions and type of each tensor, and its values.
    tensors: Vec<(Vec<u8>, Vec<u8>)>,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, n: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head.to_vec()
    }

    fn number(&mut self, bytes: usize) -> usize {
        let mut all = [0; 8];
        all[..bytes].copy_from_slice(&self.take(bytes));
        usize::try_from(u64::from_le_bytes(all)).unwrap()
    }

    fn skip_text(&mut self) {
        let n = self.number(8);
        self.take(n);
    }

    fn skip_value(&mut self, kind: usize) {
        match kind {
            8 => self.skip_text(),
            9 => {
                let (kind, n) = (self.number(4), self.number(8));
                (0..n).for_each(|_| self.skip_value(kind));
            }
            kind => drop(self.take([1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind])),
        }
    }
}

/// Cuts a file of f32 tensors into its pieces.
fn pieces(file: &[u8]) -> Pieces {
    let mut cursor = Cursor(&file[8..]);
    let (n_tensors, n_keys) = (cursor.number(8), cursor.number(8));
    let cut = |before: &[u8], cursor: &Cursor<'_>| before[..before.len() - cursor.0.len()].to_vec();
    let keys = (0..n_keys).map(|_| {
        let before = cursor.0;
        cursor.skip_text();
        let kind = cursor.number(4);
        cursor.skip_value(kind);
        cut(before, &cursor)
    });
    let keys: Vec<_> = keys.collect();
    let infos = (0..n_tensors).map(|_| {
        let before = cursor.0;
        cursor.skip_text();
        let n_dims = cursor.number(4);
        let n: usize = (0..n_dims).map(|_| cursor.number(8)).product();
        assert_eq!(cursor.number(4), 0, "f32");
        let head = cut(before, &cursor);
        (head, cursor.number(8), 4 * n)
    });
    let infos: Vec<_> = infos.collect();
    let data = (file.len() - cursor.0.len()).next_multiple_of(32);
    let values = |at: usize, n: usize| file[data + at..data + at + n].to_vec();
    let tensors = infos.into_iter().map(|(head, at, n)| (head, values(at, n))).collect();
    Pieces { keys, tensors }
}

fn key(name: &str, number: u32) -> Vec<u8> {
    let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes
}

fn join(keys: &[Vec<u8>], tensors: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    out.extend(keys.concat());
    let mut offset = 0u64;
    for (head, values) in tensors {
        out.extend(head);
        out.extend(offset.to_le_bytes());
        offset += (values.len() as u64).next_multiple_of(32);
    }
    for (_, values) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(values);
    }
    out
}

/// Writes a model in `n` parts, and returns their paths.
fn split(dir: &Path, whole: &Path, n: u32) -> Vec<PathBuf> {
    let Pieces { keys, tensors } = pieces(&fs::read(whole).unwrap());
    let size = tensors.len().div_ceil(n as usize);
    let parts = tensors.chunks(size).zip(0u32..);
    let write = |(part, i): (&[_], u32)| {
        let mut keys = if i == 0 { keys.clone() } else { Vec::new() };
        keys.push(key("split.no", i));
        keys.push(key("split.count", n));
        keys.push(key("split.tensors.count", tensors.len() as u32));
        let path = dir.join(format!("m-{:05}-of-{n:05}.gguf", i + 1));
        fs::write(&path, join(&keys, part)).unwrap();
        path
    };
    parts.map(write).collect()
}

#[test]
fn the_parts_of_a_file_are_one_model() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-rope-scaled");
    let options = GgufOptions {
        name: "m",
        file_type: FileType::F32,
        tokenizer: Metadata::default(),
        more: Metadata::default(),
    };
    let whole = dir.join("whole.gguf");
    Model::load(&golden).unwrap().save_gguf(&whole, &options).unwrap();
    let want = Model::load(&whole).unwrap();
    let parts = split(dir, &whole, 3);
    // Any part names the others.
    for part in [&parts[0], &parts[2]] {
        let found = Model::load(part).unwrap();
        assert_eq!(found.warnings(), [""; 0]);
        for param in want.params().params() {
            let other = found.params().get(param.name()).unwrap();
            assert_eq!(other.tensor().to_vec(), param.tensor().to_vec(), "{}", param.name());
        }
    }
    let error = |path: &Path| {
        let error = Model::load(path).err().unwrap();
        assert!(error.hint().is_some());
        error.to_string()
    };
    // Parts in the wrong order, a renamed part, and a missing one.
    fs::rename(&parts[1], dir.join("kept")).unwrap();
    let text = error(&parts[0]);
    assert!(text.contains("missing: m-00002-of-00003.gguf"), "{text}");
    fs::copy(&parts[2], &parts[1]).unwrap();
    let text = error(&parts[0]);
    assert!(text.contains("it is part 3 of 3") && text.contains("expected part 2"), "{text}");
    let renamed = dir.join("renamed.gguf");
    fs::copy(&parts[0], &renamed).unwrap();
    let text = error(&renamed);
    assert!(text.contains("it is part 1 of 3"), "{text}");
}
