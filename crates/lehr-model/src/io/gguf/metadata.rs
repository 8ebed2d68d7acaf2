//! The key-value pairs at the head of a GGUF file.

use crate::{Error, Result};

/// Defines [`Value`] and [`Array`] from the list of number types.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($number:ty) = $id:literal,)*) => {
        /// A metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $($(#[$doc])* $name($number),)*
            /// True or false.
            Bool(bool),
            /// UTF-8 text.
            String(String),
            /// Values of one type.
            Array(Array),
        }

        /// Values of one type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $($(#[$doc])* $name(Vec<$number>),)*
            /// True or false.
            Bool(Vec<bool>),
            /// UTF-8 texts.
            String(Vec<String>),
            /// Arrays.
            Array(Vec<Array>),
        }

        impl Value {
            /// Returns the type's number in files.
            pub(super) fn type_id(&self) -> u32 {
                match self {
                    $(Self::$name(_) => $id,)*
                    Self::Bool(_) => BOOL,
                    Self::String(_) => STRING,
                    Self::Array(_) => ARRAY,
                }
            }

            /// Decodes a value of the number type `id`; `None` if there is no such number type.
            pub(super) fn number(id: u32, bytes: &[u8]) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name(<$number>::from_le_bytes(bytes.try_into().ok()?))),)*
                    _ => None,
                }
            }

            /// Returns the bytes of a number or boolean, and none for other values.
            pub(super) fn write_number(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(v) => out.extend(v.to_le_bytes()),)*
                    Self::Bool(v) => out.push(u8::from(*v)),
                    Self::String(_) | Self::Array(_) => {}
                }
            }
        }

        impl Array {
            /// Returns the number of the element type in files.
            pub(super) fn type_id(&self) -> u32 {
                match self {
                    $(Self::$name(_) => $id,)*
                    Self::Bool(_) => BOOL,
                    Self::String(_) => STRING,
                    Self::Array(_) => ARRAY,
                }
            }

            /// Returns the number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$name(v) => v.len(),)*
                    Self::Bool(v) => v.len(),
                    Self::String(v) => v.len(),
                    Self::Array(v) => v.len(),
                }
            }

            /// Decodes values of the number type `id`; `None` if there is no such number type.
            pub(super) fn numbers(id: u32, bytes: &[u8]) -> Option<Self> {
                match id {
                    $($id => {
                        let each = bytes.as_chunks().0.iter();
                        Some(Self::$name(each.map(|b| <$number>::from_le_bytes(*b)).collect()))
                    })*
                    _ => None,
                }
            }

            /// Returns the bytes of numbers, and none for other elements.
            pub(super) fn write_numbers(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),)*
                    Self::Bool(_) | Self::String(_) | Self::Array(_) => {}
                }
            }
        }

        /// Returns the bytes per value of the number type `id`; `None` if there is no such number
        /// type.
        pub(super) fn number_bytes(id: u32) -> Option<usize> {
            match id {
                $($id => Some(size_of::<$number>()),)*
                _ => None,
            }
        }

        $(impl From<$number> for Value {
            fn from(value: $number) -> Self {
                Self::$name(value)
            }
        })*
    };
}

numbers! {
    /// 8 bits.
    U8(u8) = 0,
    /// 8 bits, signed.
    I8(i8) = 1,
    /// 16 bits.
    U16(u16) = 2,
    /// 16 bits, signed.
    I16(i16) = 3,
    /// 32 bits.
    U32(u32) = 4,
    /// 32 bits, signed.
    I32(i32) = 5,
    /// 32-bit float.
    F32(f32) = 6,
    /// 64 bits.
    U64(u64) = 10,
    /// 64 bits, signed.
    I64(i64) = 11,
    /// 64-bit float.
    F64(f64) = 12,
}

pub(super) const BOOL: u32 = 7;
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Self {
        Self::Array(value)
    }
}

impl Array {
    /// Returns whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the elements as integers, if they are integers.
    fn integers(&self) -> Option<Vec<i64>> {
        let wide = |v: &u64| i64::try_from(*v).ok();
        Some(match self {
            Self::U8(v) => v.iter().map(|v| i64::from(*v)).collect(),
            Self::I8(v) => v.iter().map(|v| i64::from(*v)).collect(),
            Self::U16(v) => v.iter().map(|v| i64::from(*v)).collect(),
            Self::I16(v) => v.iter().map(|v| i64::from(*v)).collect(),
            Self::U32(v) => v.iter().map(|v| i64::from(*v)).collect(),
            Self::I32(v) => v.iter().map(|v| i64::from(*v)).collect(),
            Self::I64(v) => v.clone(),
            Self::U64(v) => v.iter().map(wide).collect::<Option<_>>()?,
            _ => return None,
        })
    }
}

impl Value {
    /// Returns a non-negative integer of any width.
    pub(super) fn integer(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// Returns a float. A 32-bit one is converted through its shortest decimal form.
    pub(super) fn float(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => v.to_string().parse().ok(),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// Describes the value for an error.
    pub(super) fn brief(&self) -> String {
        match self {
            Self::Array(array) => format!("an array of {} elements", array.len()),
            Self::String(text) => {
                format!("the text {:?}", text.chars().take(40).collect::<String>())
            }
            other => format!("{other:?}"),
        }
    }
}

/// The key-value pairs of a GGUF file, in file order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    pub(super) fn from_entries(entries: Vec<(String, Value)>) -> Self {
        Self { entries }
    }

    /// Returns all pairs.
    #[must_use]
    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// Sets a key. A new key is appended.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Returns the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| Error::config(key, value.brief(), expected))
    }

    /// Returns a text.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Returns a non-negative integer. An array of one repeated value, which some files have per
    /// layer, counts as that value.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer, the same for all layers", |value| match value {
            Value::Array(array) => {
                let all = array.integers()?;
                let first = *all.first()?;
                all.iter().all(|v| *v == first).then_some(first)?.try_into().ok()
            }
            value => value.integer(),
        })
    }

    /// Returns a float.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", Value::float)
    }

    /// Returns a boolean.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// Returns a list of texts.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of texts", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// Returns a list of integers of any width.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a list of integers", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }

    /// Returns a list of 32-bit floats.
    ///
    /// # Errors
    /// If the key has another type.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "a list of floats", |value| match value {
            Value::Array(Array::F32(values)) => Some(values.as_slice()),
            _ => None,
        })
    }
}
