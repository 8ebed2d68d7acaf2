//! Finding the weights among the contents of a file.
//!
//! The weights are the outermost dict, unless it has no tensors itself but has an entry of
//! [`WRAPPERS`]. The first such entry is then searched in the same way. So `{"module": {…}, "args":
//! …}` of a training program yields the weights below `module`, and the other entries are ignored.
//! Nested dicts of the weights are joined with dots: `{"a": {"b": tensor}}` is `a.b`. Numbers, text
//! and lists beside tensors are skipped.

use super::Fault;
use super::tensor::View;
use super::value::{Heap, Id, Value};

/// Entries that hold the weights in files with settings and optimiser state.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// Maximum nesting of dicts.
const MAX_DEPTH: usize = 32;

/// Objects other than weights that may occur among them.
const HARMLESS: [(&str, &str); 8] = [
    ("argparse", "Namespace"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
];

/// Lists the tensors of the file's weights, by name. `n_bytes` is the length of the pickle.
///
/// # Errors
/// If there are none, or an object among them is unknown.
pub(super) fn tensors<'a>(
    heap: &Heap<'a>,
    root: Id,
    n_bytes: usize,
) -> Result<Vec<(String, View<'a>)>, Fault> {
    let weights = weights(heap, root)?;
    let mut walk = Walk {
        heap,
        found: Vec::new(),
        // A dict may occur under two names, but a few nested ones could expand to millions.
        pairs_left: 4 * heap.n_pairs,
        name_bytes_left: 64 * n_bytes,
    };
    walk.dict(weights, "", 0)?;
    if walk.found.is_empty() {
        return Err(Fault::hinted("it holds no tensors", save_hint()));
    }
    Ok(walk.found)
}

fn save_hint() -> &'static str {
    "save the weights with torch.save(model.state_dict(), PATH)"
}

/// Finds the dict of the weights.
fn weights(heap: &Heap<'_>, root: Id) -> Result<Id, Fault> {
    let mut id = root;
    for _ in 0..WRAPPERS.len() {
        let Some(pairs) = dict(heap, id) else {
            let what = foreign(heap, id).unwrap_or_else(|| "no dict".to_owned());
            return Err(Fault::hinted(format!("it holds {what}, expected weights"), save_hint()));
        };
        if pairs.iter().any(|(_, value)| matches!(View::of(heap, *value), Ok(Some(_)) | Err(_))) {
            return Ok(id);
        }
        let below = |name: &&str| {
            let found = pairs.iter().rev().find(|(key, _)| heap.str(*key) == Some(name));
            found.map(|(_, value)| *value).filter(|value| dict(heap, *value).is_some())
        };
        match WRAPPERS.iter().find_map(below) {
            Some(value) => id = value,
            None => return Ok(id),
        }
    }
    Ok(id)
}

/// Returns the pairs of a dict of any class.
fn dict<'h>(heap: &'h Heap<'_>, id: Id) -> Option<&'h [(Id, Id)]> {
    match heap.get(id) {
        Value::Dict(pairs) => Some(pairs),
        Value::Call(call) => match heap.global(call.callable) {
            Some(("collections", "OrderedDict" | "defaultdict")) => Some(&call.pairs),
            _ => None,
        },
        _ => None,
    }
}

/// Describes an object that only its own program could create: a call, or a class or function.
fn foreign(heap: &Heap<'_>, id: Id) -> Option<String> {
    let global = match heap.get(id) {
        Value::Call(call) => heap.global(call.callable),
        Value::Global(..) => heap.global(id),
        Value::Persistent(_) => return Some("an object outside of the pickle".to_owned()),
        _ => return None,
    };
    match global {
        Some(global) if HARMLESS.contains(&global) => None,
        // Types, such as torch.float16.
        Some(("torch", _)) if matches!(heap.get(id), Value::Global(..)) => None,
        Some((module, name)) => Some(format!("`{module}.{name}`")),
        None => Some("what a computed function would give".to_owned()),
    }
}

struct Walk<'h, 'a> {
    heap: &'h Heap<'a>,
    found: Vec<(String, View<'a>)>,
    pairs_left: usize,
    name_bytes_left: usize,
}

impl Walk<'_, '_> {
    fn dict(&mut self, id: Id, prefix: &str, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::new(format!("dicts are nested more than {MAX_DEPTH} deep")));
        }
        let heap = self.heap;
        for (key, value) in dict(heap, id).unwrap_or_default() {
            let Some(left) = self.pairs_left.checked_sub(1) else {
                return Err(Fault::new("the same dicts are repeated too often"));
            };
            self.pairs_left = left;
            let name = match heap.get(*key) {
                Value::Str(text) => self.join(prefix, text)?,
                Value::Int(number) => self.join(prefix, &number.to_string())?,
                _ => continue,
            };
            let tensor = View::of(heap, *value).map_err(|fault| fault.within(&name))?;
            if let Some(view) = tensor {
                self.found.push((name, view));
            } else if dict(heap, *value).is_some() {
                self.dict(*value, &name, depth + 1)?;
            } else if let Some(what) = foreign(heap, *value) {
                return Err(Fault::hinted(
                    format!("`{name}` is {what}, which lehr does not know and does not run"),
                    "weights do not need it: open the file only where you trust it, and save \
                     model.state_dict() or convert it to safetensors there",
                ));
            }
        }
        Ok(())
    }

    fn join(&mut self, prefix: &str, part: &str) -> Result<String, Fault> {
        let len = prefix.len() + part.len() + 1;
        let Some(left) = self.name_bytes_left.checked_sub(len) else {
            return Err(Fault::new("the names of the tensors are longer than the whole pickle"));
        };
        self.name_bytes_left = left;
        Ok(if prefix.is_empty() { part.to_owned() } else { format!("{prefix}.{part}") })
    }
}
