//! The format of event files: protocol buffers in the record files of TensorFlow.
//!
//! Four small messages are written and one field is read, so they are encoded here: a library for
//! protocol buffers would be larger than this file and would need their definitions.

/// The contents of an event.
pub(super) enum Content {
    /// The version of the format, the first event of a file.
    Version(&'static str),
    /// Named values.
    Summary(Vec<Value>),
    /// A process begins. Readers drop events of earlier files at this step and after it.
    Start,
}

/// A named value.
pub(super) struct Value {
    tag: String,
    data: Data,
}

enum Data {
    Scalar(f32),
    Text(String),
}

impl Value {
    pub(super) fn scalar(tag: &str, value: f64) -> Self {
        Self { tag: tag.to_owned(), data: Data::Scalar(value as f32) }
    }

    pub(super) fn text(tag: &str, text: &str) -> Self {
        Self { tag: tag.to_owned(), data: Data::Text(text.to_owned()) }
    }
}

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

/// How the bytes of a field are delimited.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.key(field, VARINT);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, FIXED_64);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, FIXED_32);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.key(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn message(self, field: u64, inner: &Self) -> Self {
        self.bytes(field, &inner.0)
    }
}

/// `DT_STRING` of TensorFlow.
const STRING: u64 = 7;
/// `SessionLog::START`.
const START: u64 = 1;

/// `Summary.Value`: tag = 1, simple_value = 2, tensor = 8, metadata = 9.
fn value(value: &Value) -> Message {
    let message = Message::default().bytes(1, value.tag.as_bytes());
    match &value.data {
        Data::Scalar(scalar) => message.float(2, *scalar),
        Data::Text(text) => {
            // TensorProto: dtype = 1, tensor_shape = 2 of dimensions = 2 of size = 1,
            // string_val = 8.
            let one = Message::default().number(1, 1);
            let shape = Message::default().message(2, &one);
            let tensor = Message::default().number(1, STRING).message(2, &shape);
            let tensor = tensor.bytes(8, text.as_bytes());
            // SummaryMetadata: plugin_data = 1 with plugin_name = 1.
            let plugin = Message::default().bytes(1, b"text");
            let metadata = Message::default().message(1, &plugin);
            message.message(8, &tensor).message(9, &metadata)
        }
    }
}

/// Encodes an event as a record. `Event`: wall_time = 1, step = 2, file_version = 3, summary = 5,
/// session_log = 7.
pub(super) fn encode(wall_time: f64, step: u64, content: &Content) -> Vec<u8> {
    let mut event = Message::default().double(1, wall_time);
    if step > 0 {
        event = event.number(2, step);
    }
    let event = match content {
        Content::Version(text) => event.bytes(3, text.as_bytes()),
        Content::Summary(values) => {
            let add = |summary: Message, v: &Value| summary.message(1, &value(v));
            event.message(5, &values.iter().fold(Message::default(), add))
        }
        Content::Start => event.message(7, &Message::default().number(1, START)),
    };
    record(&event.0)
}

/// Frames a message: length, checksum of the length, message, checksum of the message.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(data);
    bytes.extend(masked_crc(data).to_le_bytes());
    bytes
}

/// A record of a file.
pub(super) struct Record<'a> {
    /// The message.
    pub(super) data: &'a [u8],
    /// The message with its frame.
    pub(super) bytes: &'a [u8],
}

/// Splits a file into its records, up to the first one that is incomplete or damaged.
pub(super) fn records(mut bytes: &[u8]) -> Vec<Record<'_>> {
    let mut found = Vec::new();
    while let Some(record) = first_record(bytes) {
        bytes = &bytes[record.bytes.len()..];
        found.push(record);
    }
    found
}

fn first_record(bytes: &[u8]) -> Option<Record<'_>> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let n = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (data, rest) = rest.split_at_checked(n)?;
    let data_check = rest.first_chunk::<4>()?;
    let is_whole = u32::from_le_bytes(*check) == masked_crc(length)
        && u32::from_le_bytes(*data_check) == masked_crc(data);
    is_whole.then_some(Record { data, bytes: &bytes[..n + 16] })
}

/// Reads the step of an event; `None` if it is no message.
pub(super) fn step_of(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while !event.is_empty() {
        let key = take_varint(&mut event)?;
        let value = match key & 7 {
            VARINT => take_varint(&mut event)?,
            FIXED_64 => skip(&mut event, 8)?,
            BYTES => {
                let n = take_varint(&mut event)?;
                skip(&mut event, usize::try_from(n).ok()?)?
            }
            FIXED_32 => skip(&mut event, 4)?,
            _ => return None,
        };
        step = if key == 2 << 3 { value } else { step };
    }
    Some(step)
}

fn skip(bytes: &mut &[u8], n: usize) -> Option<u64> {
    *bytes = bytes.get(n..)?;
    Some(0)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The checksum of TensorFlow's records: CRC-32C, rotated and shifted by a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bytewise. It checks a few hundred bytes per step, so these lines replace
/// a dependency.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn damaged_records_end_a_file() {
        let events: Vec<Vec<u8>> = (1..4).map(|step| encode(1.5, step, &Content::Start)).collect();
        let file = events.concat();
        let steps = |bytes: &[u8]| -> Vec<Option<u64>> {
            records(bytes).iter().map(|record| step_of(record.data)).collect()
        };
        assert_eq!(steps(&file), [Some(1), Some(2), Some(3)]);
        for cut in events[0].len()..file.len() {
            assert_eq!(steps(&file[..cut]).len(), cut / events[0].len(), "cut at {cut}");
        }
        for at in events[0].len()..2 * events[0].len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(steps(&damaged), [Some(1)], "byte {at}");
        }
        assert_eq!(step_of(&[0xff; 20]), None);
    }
}
