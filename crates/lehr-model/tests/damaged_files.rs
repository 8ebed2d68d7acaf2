//! Whole files with bytes changed, cut, repeated or moved. Each is read completely or rejected.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lehr_model::io::Checkpoint;
use proptest::prelude::*;
use proptest::sample::Index;

/// Small files of weights in every format.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
});

/// A kind of damage.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    /// Eight bytes become a number, such as a length or offset.
    Number(Index, u64),
    Cut(Index),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 32),
        0..4096u64,
        any::<u64>()
    ];
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        2 => (any::<Index>(), numbers).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), 1..64usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => (any::<Index>(), 1..64usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
    ]
}

impl Damage {
    fn happen(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let n = bytes.len();
        let range = |at: &Index, len: usize| at.index(n)..(at.index(n) + len).min(n);
        match self {
            Self::Byte(at, byte) => bytes[at.index(n)] = *byte,
            Self::Number(at, number) => {
                let range = range(at, 8);
                let len = range.len();
                bytes[range].copy_from_slice(&number.to_le_bytes()[..len]);
            }
            Self::Cut(at) => bytes.truncate(at.index(n)),
            Self::Remove(at, len) => drop(bytes.drain(range(at, *len))),
            Self::Repeat(at, len) => {
                let range = range(at, *len);
                let again = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, again);
            }
        }
    }
}

#[test]
fn the_undamaged_files_are_read_whole() {
    assert!(FILES.len() >= 20);
    for file in FILES.iter() {
        let checkpoint = Checkpoint::from_bytes(Path::new("whole"), file).unwrap();
        assert_eq!(checkpoint.read_all(), checkpoint.names().count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_damaged_file_is_read_or_refused(
        file in any::<Index>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let mut bytes = file.get(&FILES).clone();
        damages.iter().for_each(|damage| damage.happen(&mut bytes));
        match Checkpoint::from_bytes(Path::new("damaged.bin"), &bytes) {
            Ok(checkpoint) => {
                let largest: usize = checkpoint
                    .names()
                    .filter_map(|name| checkpoint.shape(name))
                    .map(|shape| shape.iter().product::<usize>())
                    .max()
                    .unwrap_or(0);
                prop_assert!(largest <= bytes.len(), "{largest} of {}", bytes.len());
                prop_assert!(checkpoint.read_all() <= checkpoint.names().count());
            }
            Err(error) => prop_assert!(error.to_string().contains("damaged.bin"), "{error}"),
        }
    }
}
