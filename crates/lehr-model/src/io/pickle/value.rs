//! What a pickle describes, as plain values.

use super::Fault;

/// The number of a value in its [`Heap`].
pub(super) type Id = u32;

/// Values of one pickle. A large model has some hundred thousand.
const MAX_VALUES: usize = 1 << 22;

/// A value. Others are meant by number, so that shared and cyclic ones cost nothing and dropping
/// them needs no recursion. Text and bytes stay in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// `None`, `True`, `False`, and numbers that no tensor needs: floats.
    Plain,
    Int(i64),
    /// A whole number beyond i64, little-endian two's complement.
    Long(&'a [u8]),
    Bool(bool),
    Str(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<Id>),
    /// Lists and sets.
    List(Vec<Id>),
    /// In the order of writing; a key may come again, the last one counts.
    Dict(Vec<(Id, Id)>),
    /// `module.name`, a class or function: its name only.
    Global(&'a str, Id),
    /// What `callable(*args)` would give, had it been called.
    Call(Box<Call>),
    /// What the file's program would look up under this id: a storage.
    Persistent(Id),
}

/// A call that is not made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) callable: Id,
    pub(super) args: Id,
    /// What was added to the object afterwards: pairs as to a dict.
    pub(super) pairs: Vec<(Id, Id)>,
}

/// All values of one pickle.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    values: Vec<Value<'a>>,
    /// Pairs in all dicts.
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

    /// What every persistent id says.
    pub(super) fn persistent(&self) -> impl Iterator<Item = Id> {
        self.values.iter().filter_map(|value| match value {
            Value::Persistent(id) => Some(*id),
            _ => None,
        })
    }

    /// The text of a string.
    pub(super) fn str(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A number that is no less than 0.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The values of a tuple or list.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((module, self.str(*name)?)),
            _ => None,
        }
    }
}
