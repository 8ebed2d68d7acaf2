//! A strict reader of the few protobuf features that SentencePiece models use.
//!
//! Source of the wire format: <https://protobuf.dev/programming-guides/encoding/>.

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// Iterates over the fields of one message in file order: number and value, or an error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    failed: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message, failed: false }
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        (key >> 3 != 0).then_some((key >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for index in 0..10 {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7F).checked_shl(7 * index)?;
            if byte & 0x80 == 0 {
                return (index < 9 || byte <= 1).then_some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() || self.failed {
            return None;
        }
        let left = self.rest.len();
        Some(self.field().ok_or_else(|| {
            self.failed = true;
            format!("a damaged field {left} bytes before its end")
        }))
    }
}

impl<'a> Value<'a> {
    /// A yes or no.
    pub(super) fn flag(self) -> Result<bool, String> {
        match self {
            Value::Varint(value) => Ok(value != 0),
            other => Err(format!("{other:?} where a flag was expected")),
        }
    }

    /// A whole number; negative ones take ten bytes in the file.
    pub(super) fn integer(self) -> Result<i64, String> {
        match self {
            Value::Varint(value) => Ok(value.cast_signed()),
            other => Err(format!("{other:?} where a number was expected")),
        }
    }

    /// A finite number.
    pub(super) fn float(self) -> Result<f32, String> {
        match self {
            Value::Fixed32(bits) if f32::from_bits(bits).is_finite() => Ok(f32::from_bits(bits)),
            other => Err(format!("{other:?} where a finite f32 was expected")),
        }
    }

    /// Bytes, or a message.
    pub(super) fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(format!("{other:?} where bytes were expected")),
        }
    }

    /// Text.
    pub(super) fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_all_kinds_are_read() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1D, 0, 0, 0x80, 0x3F];
        let fields: Vec<_> = Fields::of(&message).map(Result::unwrap).collect();
        assert_eq!(fields[0].1.integer(), Ok(150));
        assert_eq!(fields[1].1.text(), Ok("hi"));
        assert_eq!(fields[2].1.float(), Ok(1.0));
        assert_eq!(fields.iter().map(|field| field.0).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn damaged_fields_are_errors_once() {
        let long = [0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F];
        for bad in [&[0x12_u8, 5, b'h'] as &[u8], &[0x08, 0x80], &[0x0B], &[0x00, 0x01], &long] {
            let results: Vec<_> = Fields::of(bad).collect();
            assert_eq!(results.len(), 1, "{bad:?}");
            assert!(results[0].is_err(), "{bad:?}");
        }
    }
}
