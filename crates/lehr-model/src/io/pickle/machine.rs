//! The unpickling machine: opcodes to plain values.
//!
//! Python's pickle is a program for a stack machine, and some of its opcodes call any function of
//! any module. This machine calls no function: a class or function is only its name, and a call is
//! a value with the callable and its arguments. Opcodes: `pickletools` of CPython. Of protocols 0
//! and 1, only opcodes also used by protocols 2 to 5 are supported.

use std::collections::HashMap;

use super::Fault;
use super::value::{Call, Heap, Id, Value};

/// Maximum length of a pickle. A model's takes some megabytes; the values are stored outside it.
const MAX_BYTES: usize = 1 << 26;

/// The object described by one pickle.
pub(super) struct Unpickled<'a> {
    pub(super) heap: Heap<'a>,
    pub(super) root: Id,
    /// Length of the pickle in bytes. Another may follow.
    pub(super) len: usize,
}

/// Runs the pickle at the start of `bytes`.
pub(super) fn unpickle(bytes: &[u8]) -> Result<Unpickled<'_>, Fault> {
    let mut machine = Machine {
        bytes: &bytes[..bytes.len().min(MAX_BYTES)],
        at: 0,
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let mut start = 0;
    let run = |machine: &mut Machine<'_>, start: &mut usize| {
        machine.check_protocol()?;
        loop {
            *start = machine.at;
            let opcode = machine.byte()?;
            if opcode == b'.' {
                return machine.pop();
            }
            machine.step(opcode)?;
        }
    };
    match run(&mut machine, &mut start) {
        Ok(root) => Ok(Unpickled { root, len: machine.at, heap: machine.heap }),
        Err(fault) => Err(fault.within(format_args!("at byte {start} of the pickle"))),
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap<'a>,
    stack: Vec<Id>,
    /// Stack heights of open marks. Nothing below the last mark is popped.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn check_protocol(&mut self) -> Result<(), Fault> {
        match (self.byte()?, self.byte()?) {
            (0x80, 2..=5) => Ok(()),
            (0x80, version) => {
                Err(Fault::new(format!("pickle protocol {version}, expected 2 to 5")))
            }
            _ => Err(Fault::new("not a pickle of protocol 2 to 5")),
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b'0' => match self.stack.len() == self.floor() {
                true => drop(self.take_to_mark()?),
                false => drop(self.pop()?),
            },
            b'1' => drop(self.take_to_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'q' | b'r' | 0x94 => self.put(opcode)?,
            b'h' | b'j' => self.recall(opcode)?,
            b'N' | b'G' | 0x88 | 0x89 | b'J' | b'K' | b'M' | b'I' | 0x8a | 0x8b => {
                self.number(opcode)?;
            }
            b'X' | b'T' | b'U' | b'B' | b'C' | 0x8c..=0x8e | 0x96 => self.text(opcode)?,
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | 0x8f | 0x91 | b'}' | b'd' => {
                self.container(opcode)?;
            }
            b'a' | b'e' | 0x90 | b's' | b'u' => self.fill(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.object(opcode)?,
            // A frame is a read-ahead hint, which a reader of the whole file ignores.
            0x95 => drop(self.take(8)?),
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    fn number(&mut self, opcode: u8) -> Result<(), Fault> {
        let value = match opcode {
            b'N' => Value::Plain,
            b'G' => {
                self.take(8)?;
                Value::Plain
            }
            0x88 | 0x89 => Value::Bool(opcode == 0x88),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'I' => match self.line()? {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                text => Value::Int(
                    text.parse().map_err(|_| Fault::new(format!("{text:?} is not a number")))?,
                ),
            },
            _ => {
                let len = match opcode {
                    0x8a => u64::from(self.byte()?),
                    _ => u64::from(u32::from_le_bytes(self.array()?)),
                };
                let digits = self.take(len)?;
                match digits.len() {
                    0 => Value::Int(0),
                    1..=8 => {
                        let negative = digits.last().is_some_and(|d| d & 0x80 != 0);
                        let mut wide = [if negative { 0xFF } else { 0 }; 8];
                        wide[..digits.len()].copy_from_slice(digits);
                        Value::Int(i64::from_le_bytes(wide))
                    }
                    _ => Value::Long(digits),
                }
            }
        };
        self.push(value)
    }

    fn text(&mut self, opcode: u8) -> Result<(), Fault> {
        let len = match opcode {
            b'U' | b'C' | 0x8c => u64::from(self.byte()?),
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.array()?),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        let bytes = self.take(len)?;
        let value = match (opcode, std::str::from_utf8(bytes)) {
            // Text of Python 2 is bytes; names are plain ASCII.
            (b'X' | 0x8c | 0x8d | b'T' | b'U', Ok(text)) => Value::Str(text),
            (b'X' | 0x8c | 0x8d, Err(_)) => return Err(Fault::new("a string is not UTF-8")),
            _ => Value::Bytes(bytes),
        };
        self.push(value)
    }

    fn container(&mut self, opcode: u8) -> Result<(), Fault> {
        let value = match opcode {
            b')' => Value::Tuple(Vec::new()),
            b't' => Value::Tuple(self.take_to_mark()?),
            0x85..=0x87 => {
                let mut items = vec![0; usize::from(opcode - 0x84)];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                Value::Tuple(items)
            }
            b']' | 0x8f => Value::List(Vec::new()),
            b'l' | 0x91 => Value::List(self.take_to_mark()?),
            b'}' => Value::Dict(Vec::new()),
            _ => {
                let items = self.take_to_mark()?;
                Value::Dict(self.pairs(&items)?)
            }
        };
        self.push(value)
    }

    /// Adds elements to an existing list, set or dict.
    fn fill(&mut self, opcode: u8) -> Result<(), Fault> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.take_to_mark()?,
        };
        let target = self.top()?;
        if matches!(opcode, b's' | b'u') {
            let new = self.pairs(&items)?;
            match self.heap.get_mut(target) {
                Value::Dict(pairs) => pairs.extend(new),
                Value::Call(call) => call.pairs.extend(new),
                _ => return Err(Fault::new("pairs are added to a value that is not a dict")),
            }
        } else {
            match self.heap.get_mut(target) {
                Value::List(list) => list.extend(items),
                // A list subclass; tensors never need one.
                Value::Call(_) => {}
                _ => return Err(Fault::new("items are added to a value that is not a list")),
            }
        }
        Ok(())
    }

    fn pairs(&mut self, items: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
        let (pairs, []) = items.as_chunks() else {
            return Err(Fault::new("a key has no value"));
        };
        self.heap.n_pairs += pairs.len();
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    }

    fn global(&mut self, opcode: u8) -> Result<(), Fault> {
        let (module, name) = if opcode == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            (module, self.heap.add(Value::Str(name))?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.heap.str(module), self.heap.str(name)) {
                (Some(module), Some(_)) => (module, name),
                _ => return Err(Fault::new("the name of a global is not a string")),
            }
        };
        self.push(Value::Global(module, name))
    }

    /// Records a function call that Python would make.
    fn object(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            // The state of an object: attributes that no tensor needs.
            b'b' => {
                self.pop()?;
                self.top().map(drop)
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            _ => {
                if opcode == 0x92 {
                    // Keyword arguments.
                    self.pop()?;
                }
                let (args, callable) = (self.pop()?, self.pop()?);
                self.push(Value::Call(Box::new(Call { callable, args, pairs: Vec::new() })))
            }
        }
    }

    fn put(&mut self, opcode: u8) -> Result<(), Fault> {
        let key = match opcode {
            b'q' => u32::from(self.byte()?),
            b'r' => u32::from_le_bytes(self.array()?),
            // A memo never has more entries than the pickle has bytes.
            _ => self.memo.len() as u32,
        };
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), Fault> {
        let key = match opcode {
            b'h' => u32::from(self.byte()?),
            _ => u32::from_le_bytes(self.array()?),
        };
        let Some(value) = self.memo.get(&key) else {
            return Err(Fault::new(format!("value {key} is used before it is stored")));
        };
        self.stack.push(*value);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Fault> {
        let id = self.heap.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err(Fault::new("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    /// Pops all values above the last mark, and the mark.
    fn take_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let Some(mark) = self.marks.pop() else {
            return Err(Fault::new("the stack has no mark"));
        };
        // `split_off` would move the capacity of the whole stack to the result.
        let items = self.stack[mark..].to_vec();
        self.stack.truncate(mark);
        Ok(items)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N as u64)?;
        bytes.first_chunk().copied().ok_or_else(|| Fault::cut(N as u64, bytes.len()))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(Fault::cut(len, rest.len())),
        }
    }

    /// Returns the text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n');
        let end = end.ok_or_else(|| Fault::cut(rest.len() as u64 + 1, rest.len()))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| Fault::new("a name is not UTF-8"))
    }
}

fn unknown(opcode: u8) -> Fault {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'p' => "PUT",
        b'g' => "GET",
        0x97 | 0x98 => "BUFFER",
        0x80 => "PROTO",
        _ => return Fault::new(format!("{opcode:#04x} is not an opcode")),
    };
    Fault::new(format!("it has the opcode {name}, which PyTorch does not write"))
}
