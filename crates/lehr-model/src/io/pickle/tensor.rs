//! Torch's tensors, which are views of storages.

use std::collections::HashMap;
use std::ops::Range;

use lehr_tensor::quant::WeightFormat::{BF16, F16, F32};

use super::Fault;
use super::value::{Heap, Id, Value};
use crate::io::change::Change;
use crate::io::entry::{Entry, FileDtype};
use crate::io::strided::Strides;

/// Element types: the name in `torch`, the name of the storage class, the type in lehr, and the
/// bytes per element.
const DTYPES: [(&str, &str, FileDtype, usize); 19] = [
    ("float32", "FloatStorage", FileDtype::Weights(F32), 4),
    ("float16", "HalfStorage", FileDtype::Weights(F16), 2),
    ("bfloat16", "BFloat16Storage", FileDtype::Weights(BF16), 2),
    ("float64", "DoubleStorage", FileDtype::F64, 8),
    ("int64", "LongStorage", FileDtype::I64, 8),
    ("int32", "IntStorage", FileDtype::I32, 4),
    ("int16", "ShortStorage", FileDtype::Other("I16"), 2),
    ("int8", "CharStorage", FileDtype::Other("I8"), 1),
    ("uint8", "ByteStorage", FileDtype::Other("U8"), 1),
    ("bool", "BoolStorage", FileDtype::Other("BOOL"), 1),
    ("complex64", "ComplexFloatStorage", FileDtype::Other("C64"), 8),
    ("complex128", "ComplexDoubleStorage", FileDtype::Other("C128"), 16),
    ("uint16", "", FileDtype::Other("U16"), 2),
    ("uint32", "", FileDtype::Other("U32"), 4),
    ("uint64", "", FileDtype::Other("U64"), 8),
    ("float8_e4m3fn", "", FileDtype::Other("F8_E4M3"), 1),
    ("float8_e5m2", "", FileDtype::Other("F8_E5M2"), 1),
    ("float8_e4m3fnuz", "", FileDtype::Other("F8_E4M3FNUZ"), 1),
    ("float8_e5m2fnuz", "", FileDtype::Other("F8_E5M2FNUZ"), 1),
];

/// Maximum number of nested wrappers around a tensor.
const MAX_WRAPPERS: usize = 8;

/// A view of a storage. Offsets and strides count elements.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// The storage.
    pub(super) key: &'a str,
    dtype: FileDtype,
    /// Bytes per element.
    element: usize,
    start: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// The elements of a storage.
struct Storage<'a> {
    key: &'a str,
    /// `None`: untyped bytes.
    dtype: Option<(FileDtype, usize)>,
    /// Start of a view of the storage (files before PyTorch 0.4).
    start: usize,
}

impl<'a> View<'a> {
    /// Reads the tensor that `id` describes; `None` if it describes something else.
    ///
    /// # Errors
    /// If it is a tensor but invalid.
    pub(super) fn of(heap: &Heap<'a>, id: Id) -> Result<Option<Self>, Fault> {
        let Value::Call(call) = heap.get(id) else { return Ok(None) };
        let (mut callable, mut args) = (call.callable, call.args);
        for _ in 0..MAX_WRAPPERS {
            let (Some((module, name)), Some(parts)) = (heap.global(callable), heap.sequence(args))
            else {
                return Ok(None);
            };
            match (module, name, parts) {
                ("torch._utils", "_rebuild_tensor_v2", [_, _, _, _, ..])
                | ("torch._utils", "_rebuild_tensor", [_, _, _, _]) => {
                    return Self::rebuilt(heap, parts, None).map(Some);
                }
                ("torch._utils", "_rebuild_tensor_v3", [_, _, _, _, _, _, dtype, ..]) => {
                    return Self::rebuilt(heap, parts, Some(*dtype)).map(Some);
                }
                (
                    "torch._utils",
                    "_rebuild_parameter" | "_rebuild_parameter_with_state",
                    [data, ..],
                ) => {
                    let Value::Call(inner) = heap.get(*data) else { return Ok(None) };
                    (callable, args) = (inner.callable, inner.args);
                }
                // `func(*args)`, then attributes or a subclass.
                ("torch._tensor", "_rebuild_from_type_v2", [func, _, inner, ..]) => {
                    (callable, args) = (*func, *inner);
                }
                _ => return Ok(None),
            }
        }
        Err(Fault::new("a tensor has too many nested wrappers"))
    }

    /// Reads `(storage, offset, size, stride, …)`.
    fn rebuilt(heap: &Heap<'a>, args: &[Id], dtype: Option<Id>) -> Result<Self, Fault> {
        let sizes = |id: Id| -> Option<Vec<usize>> {
            let items = match heap.get(id) {
                // torch.Size((…))
                Value::Call(call) => heap.sequence(*heap.sequence(call.args)?.first()?)?,
                _ => heap.sequence(id)?,
            };
            items.iter().map(|id| heap.size(*id)).collect()
        };
        let Value::Persistent(storage) = heap.get(args[0]) else {
            return Err(Fault::new("a tensor has no storage"));
        };
        let storage = Storage::of(heap, *storage)?;
        let (Some(start), Some(shape), Some(strides)) =
            (heap.size(args[1]), sizes(args[2]), sizes(args[3]))
        else {
            return Err(Fault::new("the offset, size or stride of a tensor is not a count"));
        };
        if shape.len() != strides.len() {
            return Err(Fault::new(format!(
                "a tensor of size {shape:?} has {} strides",
                strides.len()
            )));
        }
        let dtype = match dtype {
            Some(id) => of_dtype(heap, id).or(storage.dtype),
            None => storage.dtype,
        };
        let Some((dtype, element)) = dtype else {
            return Err(Fault::new("a tensor has an unknown element type"));
        };
        let start = start
            .checked_add(storage.start)
            .ok_or_else(|| Fault::new("the offset of a tensor is too large"))?;
        Ok(Self { key: storage.key, dtype, element, start, shape, strides })
    }

    /// Returns the name and the place of the tensor in the file. `storage` is the byte range of its
    /// storage.
    ///
    /// # Errors
    /// If it extends beyond the storage.
    pub(super) fn named_entry(
        self,
        name: String,
        file: usize,
        storage: Option<Range<usize>>,
    ) -> Result<(String, Entry), Fault> {
        let Some(storage) = storage else {
            let reason = format!("`{name}`: the file has no storage {}", self.key);
            return Err(Fault::new(reason));
        };
        let Some(n_bytes) = self.extent().filter(|bytes| *bytes <= storage.len()) else {
            return Err(Fault::new(format!(
                "`{name}`: size {:?} and strides {:?} from element {} exceed its storage of {} \
                 bytes, or repeat elements",
                self.shape,
                self.strides,
                self.start,
                storage.len()
            )));
        };
        let skipped = if n_bytes == 0 { 0 } else { self.start * self.element };
        let strides = match self.is_contiguous() {
            true => None,
            false => Some(Strides { elements: self.strides, element_bytes: self.element }),
        };
        let entry = Entry {
            file,
            dtype: self.dtype,
            shape: self.shape,
            offset: storage.start + skipped,
            n_bytes: n_bytes - skipped,
            change: Change::None,
            strides,
        };
        Ok((name, entry))
    }

    /// Returns the bytes from the storage's first to the tensor's last. Returns `None` on overflow,
    /// or if the tensor has more elements than that: a row repeated many times would need memory
    /// out of proportion to the file.
    fn extent(&self) -> Option<usize> {
        let mut some = self.shape.iter().filter(|d| **d > 0);
        let count = some.try_fold(1usize, |n, d| n.checked_mul(*d))?;
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = self.start;
        for (dim, stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((dim - 1).checked_mul(*stride)?)?;
        }
        let end = last.checked_add(1)?;
        (count <= end - self.start).then_some(end.checked_mul(self.element)?)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (dim, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *dim != 1 && *stride != expected {
                return self.shape.contains(&0);
            }
            expected = expected.saturating_mul(*dim);
        }
        true
    }
}

impl<'a> Storage<'a> {
    /// Reads `('storage', class, key, location, count)`. The old format appends `(key, start,
    /// count)` or None.
    fn of(heap: &Heap<'a>, id: Id) -> Result<Self, Fault> {
        let Some([kind, class, key, _, _, rest @ ..]) = heap.sequence(id) else {
            return Err(Fault::new("a reference to a storage does not have five parts"));
        };
        let (Some("storage"), Some(key), Some((module, class))) =
            (heap.str(*kind), heap.str(*key), heap.global(*class))
        else {
            return Err(Fault::new("the pickle refers to something other than a storage"));
        };
        let known = DTYPES.iter().find(|(_, name, ..)| module == "torch" && *name == class);
        let dtype = known.map(|(_, _, dtype, bytes)| (*dtype, *bytes));
        if dtype.is_none() && class != "UntypedStorage" {
            return Err(Fault::new(format!("a storage has the unknown class {module}.{class}")));
        }
        let view = rest.first().and_then(|id| heap.sequence(*id));
        let start = match view {
            Some([_, start, _]) => heap.size(*start),
            Some(_) => None,
            None => Some(0),
        };
        let start =
            start.ok_or_else(|| Fault::new("the view of a storage does not have three parts"))?;
        Ok(Self { key, dtype, start })
    }
}

/// Returns the bytes per element of every storage named in the pickle, by key.
pub(super) fn storages<'a>(heap: &Heap<'a>) -> Result<HashMap<&'a str, usize>, Fault> {
    let mut sizes = HashMap::new();
    for id in heap.persistent() {
        // Other persistent ids, such as the source of a class, have no values.
        if heap.sequence(id).and_then(|parts| heap.str(*parts.first()?)) == Some("storage") {
            let storage = Storage::of(heap, id)?;
            sizes.insert(storage.key, storage.dtype.map_or(1, |(_, bytes)| bytes));
        }
    }
    Ok(sizes)
}

/// Returns the element type `torch.NAME`.
fn of_dtype(heap: &Heap<'_>, id: Id) -> Option<(FileDtype, usize)> {
    let ("torch", name) = heap.global(id)? else { return None };
    let known = DTYPES.iter().find(|(known, ..)| *known == name);
    known.map(|(_, _, dtype, bytes)| (*dtype, *bytes))
}
