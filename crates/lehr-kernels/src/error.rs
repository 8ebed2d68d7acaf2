//! The errors of the engine.

use crate::{DType, Device, Shape};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error names the operation, what it found and what it expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two operands do not fit together.
    #[error("{op}: found shapes {lhs} and {rhs}: {rule}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Shape of the first operand.
        lhs: Shape,
        /// Shape of the second operand.
        rhs: Shape,
        /// The rule that was broken.
        rule: &'static str,
    },
    /// One operand has a shape the operation cannot take.
    #[error("{op}: found shape {found}, expected {expected}")]
    Rank {
        /// The operation.
        op: &'static str,
        /// The shape found.
        found: Shape,
        /// What was expected, in words.
        expected: String,
    },
    /// An operand has the wrong element type.
    #[error("{op}: found {found} elements, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The type found.
        found: DType,
        /// The type expected.
        expected: DType,
    },
    /// An index points outside of a table.
    #[error("{op}: index {index} at position {position} is outside of 0..{limit}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// Its position in the index tensor.
        position: usize,
        /// One past the largest valid index.
        limit: usize,
    },
    /// A parameter of an operation has a value it cannot take.
    #[error("{op}: {name} is {value}, expected {expected}")]
    Argument {
        /// The operation.
        op: &'static str,
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// What was expected, in words.
        expected: &'static str,
    },
    /// The arena has no room left.
    #[error(
        "allocating {asked_bytes} bytes: {used_bytes} of {limit_bytes} bytes are in use on {device}"
    )]
    OutOfMemory {
        /// Size of the failed request.
        asked_bytes: usize,
        /// Bytes in use at that moment.
        used_bytes: usize,
        /// The arena's limit.
        limit_bytes: usize,
        /// The device whose memory is full.
        device: Device,
    },
    /// Operands live in different memories.
    #[error("{op}: found operands on {found} and {expected}, expected one device")]
    Device {
        /// The operation.
        op: &'static str,
        /// The device of the operand.
        found: Device,
        /// The expected device.
        expected: Device,
    },
    /// The operation has no kernel for this device.
    #[error("{op}: there is no kernel for {device}")]
    NoKernel {
        /// The operation.
        op: &'static str,
        /// The device.
        device: Device,
    },
    /// A GPU, its driver or one of its libraries failed.
    #[error("{doing}: {reason}")]
    Cuda {
        /// What was being done.
        doing: String,
        /// What the driver or the compiler said.
        reason: String,
        /// What may help.
        hint: Option<String>,
    },
    /// A parameter was changed while a graph still needs its value.
    #[error("updating `{name}`: its value is still in use by a recorded graph or a clone")]
    InUse {
        /// Name of the parameter.
        name: String,
    },
    /// Two parameters of one store have one name.
    #[error("adding parameter `{name}`: the store already has a parameter of this name")]
    DuplicateParam {
        /// The name.
        name: String,
    },
    /// A pattern of names selects no parameter.
    #[error("selecting parameters: no name matches `{pattern}`")]
    NoParam {
        /// The pattern.
        pattern: String,
    },
    /// A function without a gradient was given a tensor that wants one.
    #[error("{op}: `{name}` wants a gradient, which in-place functions do not have")]
    WantsGrad {
        /// The function.
        op: &'static str,
        /// Its argument.
        name: &'static str,
    },
    /// A parameter could not be loaded by the model's source.
    #[error("loading parameter `{name}` of shape {shape}: {reason}")]
    Source {
        /// The parameter.
        name: String,
        /// The shape the model expects.
        shape: Shape,
        /// What the source said.
        reason: String,
    },
    /// The machine lacks the instruction set asked for.
    #[error("selecting the {asked} kernels: this processor offers {available}")]
    Isa {
        /// What was asked for.
        asked: String,
        /// What the processor has.
        available: String,
    },
}

impl Error {
    /// Returns what the user can do, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cuda { hint, .. } => hint.clone(),
            Self::OutOfMemory { device: Device::Cuda(_), .. } => Some(
                "use a smaller batch, a shorter context or a smaller model; another program may \
                 hold memory of the GPU: `nvidia-smi` shows it"
                    .to_owned(),
            ),
            Self::OutOfMemory { .. } => Some(
                "use a smaller batch, a shorter context or a smaller model; \
                 LEHR_MEMORY_GB raises the limit"
                    .to_owned(),
            ),
            Self::Isa { .. } => Some("unset LEHR_ISA to choose automatically".to_owned()),
            Self::NoParam { .. } => {
                Some("`*` matches any characters; `lehr inspect MODEL` lists the names".to_owned())
            }
            Self::WantsGrad { .. } => Some("call it within `no_grad`".to_owned()),
            _ => None,
        }
    }
}
