//! Plain values that a pickle describes.

use super::Fault;

/// The index of a value in its [`Heap`].
pub(super) type Id = u32;

/// Maximum number of values of one pickle. A large model has some hundred thousand.
const MAX_VALUES: usize = 1 << 22;

/// A value. It refers to others by index, so shared and cyclic ones cost nothing, and dropping them
/// needs no recursion. Text and bytes stay in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// `None`, `True`, `False`, and numbers irrelevant to tensors: floats.
    Plain,
    Int(i64),
    /// An integer beyond i64, little-endian two's complement.
    Long(&'a [u8]),
    Bool(bool),
    Str(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<Id>),
    /// Lists and sets.
    List(Vec<Id>),
    /// In writing order. A repeated key overrides the earlier one.
    Dict(Vec<(Id, Id)>),
    /// `module.name`, a class or function: its name only.
    Global(&'a str, Id),
    /// The result of `callable(*args)`, which is not called.
    Call(Box<Call>),
    /// A persistent id of the program: a storage.
    Persistent(Id),
}

/// A call that is not executed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) callable: Id,
    pub(super) args: Id,
    /// Items added to the object afterwards, as pairs.
    pub(super) pairs: Vec<(Id, Id)>,
}

/// All values of one pickle.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    values: Vec<Value<'a>>,
    /// Number of pairs in all dicts.
    pub(super) n_pairs: usize,
}

impl<'a> Heap<'a> {
    pub(super) fn add(&mut self, value: Value<'a>) -> Result<Id, Fault> {
        if self.values.len() >= MAX_VALUES {
            return Err(Fault::new(format!("the pickle has more than {MAX_VALUES} values")));
        }
        self.values.push(value);
        Ok((self.values.len() - 1) as Id)
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Value<'a> {
        &mut self.values[id as usize]
    }

    /// Returns the contents of all persistent ids.
    pub(super) fn persistent(&self) -> impl Iterator<Item = Id> {
        self.values.iter().filter_map(|value| match value {
            Value::Persistent(id) => Some(*id),
            _ => None,
        })
    }

    /// Returns the text of a string.
    pub(super) fn str(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a non-negative integer.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Returns the values of a tuple or list.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Returns module and name of a class or function.
    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((module, self.str(*name)?)),
            _ => None,
        }
    }
}
