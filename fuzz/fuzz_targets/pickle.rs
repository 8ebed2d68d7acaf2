//! A PyTorch file, and every tensor it claims to have. Seeds: `crates/lehr-model/tests/pickle`.

#![no_main]

use lehr_model::io::Checkpoint;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::from_bytes("fuzz.pt".as_ref(), bytes) {
        let _ = checkpoint.read_all();
    }
});
