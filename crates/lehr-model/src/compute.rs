//! The device and element type of a model's computation.

use std::fmt;
use std::str::FromStr;

use lehr_tensor::{DType, Device, bf16, cuda, tile16};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The requested device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU if one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with that number. It is an error if it is unusable.
    Cuda(usize),
}

/// The requested element type of activations. Trained parameters, statistics and sums are always
/// f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DTypeChoice {
    /// bf16 on a GPU, f32 on the CPU. In training also bf16 on a CPU that multiplies it faster.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16. On the CPU operands of products and what backward keeps are bf16; sums, other
    /// operations and activations in between are f32.
    Bf16,
    /// 16-bit IEEE floats, on a GPU. Training scales the loss, because their range is small.
    F16,
}

/// The device and type that were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The device.
    pub device: Device,
    /// The element type of activations; on the CPU that of the operands of products.
    pub dtype: DType,
    /// Why `auto` skipped a GPU, if one exists but is unusable, or what a chosen type costs.
    pub note: Option<String>,
}

/// Smallest side of a block matrix that is multiplied in fp8. At this size, rounding x, W and dy to
/// 8 bits costs about half the time that the products save; at 1,024 it costs all of it
/// (`docs/experiments.md`).
pub const FP8_SIDE_MIN: usize = 2048;

impl Compute {
    /// The CPU, in f32.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32, note: None };

    /// Chooses the device and checks that it supports the type.
    ///
    /// # Errors
    /// If a GPU was named and is unusable, or f16 was requested on the CPU.
    pub fn choose(device: DeviceChoice, dtype: DTypeChoice) -> Result<Self> {
        Self::choose_and_say(device, dtype, &mut |_| ())
    }

    /// Chooses like [`Compute::choose`], and calls `begin` with the number of kernel files to
    /// compile first. That takes seconds and happens once.
    ///
    /// # Errors
    /// As [`Compute::choose`].
    pub fn choose_and_say(
        device: DeviceChoice,
        dtype: DTypeChoice,
        begin: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (device, mut note) = match device {
            DeviceChoice::Cpu => (Device::Cpu, None),
            DeviceChoice::Cuda(ordinal) => {
                cuda::device_info(ordinal)?;
                (Device::Cuda(ordinal), None)
            }
            DeviceChoice::Auto => match cuda::usable() {
                Ok(true) => (Device::Cuda(0), None),
                Ok(false) => (Device::Cpu, None),
                Err(error) => (Device::Cpu, Some(format!("the GPU is not used: {error}"))),
            },
        };
        let dtype = match dtype {
            DTypeChoice::Auto if device.is_cuda() => DType::BF16,
            DTypeChoice::Auto | DTypeChoice::F32 => DType::F32,
            DTypeChoice::Bf16 => DType::BF16,
            DTypeChoice::F16 => DType::F16,
        };
        if let Device::Cuda(ordinal) = device {
            // Operations that always run in f32 have kernels of their own.
            let both = if dtype == DType::F32 { &[DType::F32][..] } else { &[dtype, DType::F32] };
            cuda::prepare(ordinal, both, begin)?;
        }
        if dtype == DType::F16 && !device.is_cuda() {
            let (op, value) = ("choosing the element type", dtype.to_string());
            let expected = "f32, bf16 or auto, because the device is the CPU";
            return Err(lehr_tensor::Error::Argument { op, name: "dtype", value, expected }.into());
        }
        if dtype == DType::BF16 && !device.is_cuda() && !tile16::chosen().is_fast() {
            note = Some(format!(
                "this processor has no fast products in bf16: one of 512 x 512 x 512 took {:.1} \
                 times as long as in f32",
                bf16::time_against_f32()?
            ));
        }
        Ok(Self { device, dtype, note })
    }

    /// Chooses for training like [`Compute::choose_and_say`], but `auto` on the CPU gives bf16 if
    /// its products are faster there.
    ///
    /// # Errors
    /// As [`Compute::choose`].
    pub fn choose_for_training(
        device: DeviceChoice,
        dtype: DTypeChoice,
        begin: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut compute = Self::choose_and_say(device, dtype, begin)?;
        if dtype == DTypeChoice::Auto && !compute.device.is_cuda() && tile16::chosen().is_fast() {
            compute.dtype = DType::BF16;
        }
        Ok(compute)
    }

    /// Checks that training can multiply in fp8 here.
    ///
    /// # Errors
    /// Unless the type is bf16 and the device is a GPU whose tensor cores multiply 8-bit floats.
    pub fn check_fp8(&self) -> Result<()> {
        let (capability, place) = match self.device {
            Device::Cpu => (None, "the CPU".to_owned()),
            Device::Cuda(ordinal) => {
                let info = cuda::device_info(ordinal)?;
                let (major, minor) = info.capability;
                let place = format!("{} of compute capability {major}.{minor}", info.name);
                (Some(info.capability), place)
            }
        };
        if has_fp8(capability, self.dtype) {
            return Ok(());
        }
        let (major, minor) = cuda::FP8_CAPABILITY;
        Err(lehr_tensor::Error::Cuda {
            doing: "choosing fp8 for the products of training".to_owned(),
            reason: format!(
                "found {} on {place}, expected bf16 on a GPU of compute capability \
                 {major}.{minor} or more",
                self.dtype
            ),
            hint: Some("do without it: `--set run.fp8=false`, or no --fp8".to_owned()),
        }
        .into())
    }
}

/// Returns whether a GPU of that compute capability has fp8 for activations of that type.
fn has_fp8(capability: Option<(u32, u32)>, dtype: DType) -> bool {
    dtype == DType::BF16 && capability.is_some_and(|c| c >= cuda::FP8_CAPABILITY)
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (text, number) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => Err(format!("device is {text:?}, expected auto, cpu, cuda or cuda:1")),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl FromStr for DTypeChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(format!("dtype is {text:?}, expected auto, f32, bf16 or f16")),
        }
    }
}

impl fmt::Display for DTypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_as_they_are_written() {
        for choice in
            [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(3)]
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!(
            "cuda:x".parse::<DeviceChoice>().is_err() && "gpu".parse::<DeviceChoice>().is_err()
        );
    }

    #[test]
    fn fp8_is_for_bf16_on_gpus_from_ada_on() {
        let gpus =
            [(None, false), (Some((8, 0)), false), (Some((8, 9)), true), (Some((9, 0)), true)];
        for (capability, want) in gpus {
            assert_eq!(has_fp8(capability, DType::BF16), want, "{capability:?}");
            assert!(!has_fp8(capability, DType::F32) && !has_fp8(capability, DType::F16));
        }
        let error = Compute::CPU.check_fp8().err().map(|e| (e.to_string(), e.hint()));
        let (text, hint) = error.expect("the CPU has no fp8");
        assert!(text.contains("found f32 on the CPU, expected bf16 on a GPU"), "{text}");
        assert!(hint.is_some_and(|hint| hint.contains("run.fp8=false")));
    }

    #[test]
    fn the_cpu_computes_in_f32_or_bf16() {
        assert_eq!(Compute::choose(DeviceChoice::Cpu, DTypeChoice::Auto).ok(), Some(Compute::CPU));
        let bf16 = Compute::choose(DeviceChoice::Cpu, DTypeChoice::Bf16).unwrap();
        assert_eq!(bf16.dtype, DType::BF16);
        // Where it is slow, a note says what it costs.
        assert_eq!(bf16.note.is_none(), tile16::chosen().is_fast(), "{:?}", bf16.note);
        let auto = |choice| Compute::choose_for_training(DeviceChoice::Cpu, choice, &mut |_| ());
        let expected = if tile16::chosen().is_fast() { DType::BF16 } else { DType::F32 };
        assert_eq!(auto(DTypeChoice::Auto).unwrap().dtype, expected);
        assert_eq!(auto(DTypeChoice::F32).unwrap().dtype, DType::F32);
        let error =
            Compute::choose(DeviceChoice::Cpu, DTypeChoice::F16).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("dtype is f16")));
    }
}
