//! The format before PyTorch 1.6: several pickles, then the values.
//!
//! The order is: a magic number, a version, system information, the object, the keys of its
//! storages. Then, for each key in that order: its number of elements (i64) and the elements.

use std::collections::HashMap;
use std::ops::Range;

use super::machine::{Unpickled, unpickle};
use super::tensor::{View, storages};
use super::value::Value;
use super::{Fault, state_dict};
use crate::io::entry::Entry;

/// `0x1950a86a20f9469cfc6c`.
const MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];
const VERSION: i64 = 1001;

pub(super) fn entries(bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>, Fault> {
    let mut at = 0;
    let mut next = |what: &str| {
        let unpickled = unpickle(&bytes[at..]).map_err(|fault| fault.within(what))?;
        let len = unpickled.len;
        at += len;
        Ok((unpickled, len, at))
    };
    let (magic, ..) = next("the magic number")?;
    if *magic.heap.get(magic.root) != Value::Long(&MAGIC) {
        return Err(Fault::hinted(
            "it is a pickle without the magic number of torch.save",
            "save the weights with torch.save(model.state_dict(), PATH)",
        ));
    }
    let (version, ..) = next("the version")?;
    if *version.heap.get(version.root) != Value::Int(VERSION) {
        return Err(Fault::new(format!("its version is not {VERSION}")));
    }
    let (machine, ..) = next("the system information")?;
    check_byte_order(&machine)?;
    let (object, len, _) = next("the object")?;
    let (keys, _, end) = next("the keys of the storages")?;
    let found = state_dict::tensors(&object.heap, object.root, len)?;
    let places = places(bytes, end, &keys, &storages(&object.heap)?)?;
    let place = |key: &str| places.get(key).cloned();
    let entry = |(name, view): (String, View<'_>)| {
        let place = place(view.key);
        view.named_entry(name, file, place)
    };
    found.into_iter().map(entry).collect()
}

/// Checks that the values are little-endian.
fn check_byte_order(machine: &Unpickled<'_>) -> Result<(), Fault> {
    let Value::Dict(facts) = machine.heap.get(machine.root) else {
        return Err(Fault::new("the system information is not a dict"));
    };
    let fact = facts.iter().find(|(key, _)| machine.heap.str(*key) == Some("little_endian"));
    match fact.map(|(_, value)| machine.heap.get(*value)) {
        Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) => Err(Fault::hinted(
            "its numbers are not little-endian",
            "load and save it with PyTorch on a little-endian machine (x86-64, ARM)",
        )),
        _ => Err(Fault::new("it does not say whether its numbers are little-endian")),
    }
}

/// Returns the byte range of each storage from offset `at`.
fn places<'a>(
    bytes: &[u8],
    mut at: usize,
    keys: &Unpickled<'a>,
    sizes: &HashMap<&str, usize>,
) -> Result<HashMap<&'a str, Range<usize>>, Fault> {
    let Some(ids) = keys.heap.sequence(keys.root) else {
        return Err(Fault::new("the keys of the storages are not a list"));
    };
    let mut places = HashMap::new();
    for id in ids {
        let Some(key) = keys.heap.str(*id) else {
            return Err(Fault::new("the key of a storage is not a string"));
        };
        let Some(element) = sizes.get(key) else {
            return Err(Fault::new(format!("the object has no storage {key}")));
        };
        let rest = bytes.get(at..).unwrap_or_default();
        let Some((count, numbers)) = rest.split_first_chunk() else {
            return Err(Fault::cut(8, rest.len()));
        };
        let count = u64::from_le_bytes(*count);
        let wanted = count.saturating_mul(*element as u64);
        let len = usize::try_from(wanted).ok().filter(|len| *len <= numbers.len());
        let Some(len) = len else {
            return Err(Fault::cut(wanted, numbers.len()).within(format_args!("storage {key}")));
        };
        let start = at + 8;
        at = start + len;
        places.insert(key, start..at);
    }
    Ok(places)
}
