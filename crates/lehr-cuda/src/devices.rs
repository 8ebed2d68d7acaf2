//! Discovery of GPUs: starts the driver, counts its devices and describes them.

use std::ffi::{CStr, c_int};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::{DeviceInfo, fault, library};
use lehr_kernels::{Error, Result};

/// Returns an error unless the call succeeded.
pub(super) fn check(result: CUresult, doing: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (mut name, mut text) = (ptr::null(), ptr::null());
    // SAFETY: the driver gives strings of its own, or null for a number it does not know.
    let reason = unsafe {
        sys::cuGetErrorName(result, &raw mut name);
        sys::cuGetErrorString(result, &raw mut text);
        let read = |p: *const std::ffi::c_char| match p.is_null() {
            true => String::new(),
            false => CStr::from_ptr(p).to_string_lossy().into_owned(),
        };
        format!("{} ({})", read(text), read(name))
    };
    Err(fault(doing, reason))
}

/// Starts the driver, and returns whether it has a GPU.
fn start() -> Result<bool> {
    let doing = "starting CUDA";
    if let Some((reason, hint)) = library::missing(&["cuda"]) {
        return Err(Error::Cuda { doing: doing.to_owned(), reason, hint: Some(hint) });
    }
    // SAFETY: the library is there.
    unsafe {
        if !sys::is_culib_present() {
            return Err(fault(doing, "libcuda was found, but cannot be opened again by its name"));
        }
        match sys::cuInit(0) {
            // There is none, or CUDA_VISIBLE_DEVICES hides it.
            CUresult::CUDA_ERROR_NO_DEVICE => Ok(false),
            result => check(result, doing).map(|()| true),
        }
    }
}

pub(super) fn device_count() -> Result<usize> {
    if !start()? {
        return Ok(0);
    }
    let mut n = 0;
    // SAFETY: the driver has started.
    check(unsafe { sys::cuDeviceGetCount(&raw mut n) }, "counting GPUs")?;
    Ok(n.max(0) as usize)
}

/// Properties of a device.
pub(super) fn describe(device: sys::CUdevice) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute as Attribute;
    let doing = "asking what a GPU is";
    let number = |attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the driver has started and `device` is one of its devices.
        check(unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) }, doing)?;
        Ok(value.max(0) as u32)
    };
    let mut name = [0u8; 128];
    let (mut memory_bytes, mut version) = (0, 0);
    // SAFETY: as above; the driver writes at most the given length with a null at its end.
    unsafe {
        check(sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device), doing)?;
        check(sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, device), doing)?;
        check(sys::cuDriverGetVersion(&raw mut version), doing)?;
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        n_sms: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        memory_bytes,
        driver_version: version.max(0) as u32,
    })
}
