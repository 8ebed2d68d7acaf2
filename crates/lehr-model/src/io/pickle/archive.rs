//! The zip container of PyTorch 1.6 and later, read in place.
//!
//! `NAME/data.pkl` is the pickle. `NAME/data/KEY` holds the values of the storage `KEY`,
//! uncompressed. `NAME/byteorder` is `little` or `big` (absent: little).

use std::collections::HashMap;
use std::ops::Range;

use rawzip::{CompressionMethod, ZipArchive, ZipSliceArchive};

use super::machine::unpickle;
use super::tensor::View;
use super::{Fault, state_dict};
use crate::io::entry::Entry;

/// Byte range of each file in an archive.
type Places<'a> = HashMap<&'a str, Range<usize>>;

pub(super) fn entries(bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>, Fault> {
    let archive = ZipArchive::from_slice(bytes).map_err(|e| damaged(&e))?;
    let places = places(&archive)?;
    let is_pickle = |name: &&str| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl");
    let mut pickles = places.keys().copied().filter(is_pickle);
    let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
        return Err(Fault::new("the zip file has no NAME/data.pkl, or several"));
    };
    let prefix = pickle.trim_end_matches("data.pkl");
    let contents = |name: &str| bytes.get(places.get(&*format!("{prefix}{name}"))?.clone());
    if contents("byteorder").is_some_and(|order| order.trim_ascii() != b"little") {
        return Err(Fault::hinted(
            "its numbers are not little-endian",
            "load and save it with PyTorch on a little-endian machine (x86-64, ARM)",
        ));
    }
    let pickle = contents("data.pkl")
        .ok_or_else(|| Fault::new("data.pkl extends beyond the end of the file"))?;
    let unpickled = unpickle(pickle).map_err(|fault| fault.within("data.pkl"))?;
    let found = state_dict::tensors(&unpickled.heap, unpickled.root, pickle.len())?;
    let place = |key: &str| places.get(&*format!("{prefix}data/{key}")).cloned();
    let entry = |(name, view): (String, View<'_>)| {
        let place = place(view.key);
        view.named_entry(name, file, place)
    };
    found.into_iter().map(entry).collect()
}

fn damaged(e: &rawzip::Error) -> Fault {
    let hint = "copy or download the file again: it may be truncated";
    Fault::hinted(format!("its zip container is damaged: {e}"), hint)
}

fn places<'a>(archive: &'a ZipSliceArchive<&[u8]>) -> Result<Places<'a>, Fault> {
    let mut places = HashMap::new();
    let mut entries = archive.entries();
    while let Some(header) = entries.next_entry().map_err(|e| damaged(&e))? {
        if header.is_dir() {
            continue;
        }
        let Ok(name) = std::str::from_utf8(header.file_path().as_bytes()) else {
            return Err(Fault::new("a name in the zip container is not UTF-8"));
        };
        let method = header.compression_method();
        if method != CompressionMethod::STORE {
            return Err(Fault::hinted(
                format!("{name} is compressed ({method})"),
                "torch.save does not compress: unpack the file and pack it with `zip -0`, or load \
                 and save it with PyTorch",
            ));
        }
        let entry = archive.get_entry(header.wayfinder()).map_err(|e| damaged(&e))?;
        if header.uncompressed_size_hint() != entry.data().len() as u64 {
            return Err(Fault::new(format!("{name} is encrypted or has two sizes")));
        }
        let start = usize::try_from(entry.compressed_data_range().0);
        let start = start.map_err(|_| {
            Fault::new(format!("{name} starts beyond what this machine can address"))
        })?;
        places.insert(name, start..start + entry.data().len());
    }
    Ok(places)
}
