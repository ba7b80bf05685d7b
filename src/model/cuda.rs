//! What only the CUDA driver can tell, asked so that whatever is missing is an error in words.
//!
//! There are two builds. Candle's stock crates link to the driver and to cuBLAS: such a program does not start where
//! they are missing. With the crates as `tools/cuda-build.sh` patches them (`cfg(cuda_loading)`), the libraries are
//! loaded on first use, and cudarc panics where one is missing: so that is asked first, here.
#![allow(unsafe_code, reason = "the driver's C functions; each block says why it holds")]

use candle_core::Device;
use candle_core::cuda_backend::cudarc::{cublas, driver};
use candle_core::cuda_backend::kernels;

use super::device::{CudaVersions, Gpu};

/// How many GPUs the driver finds, or why none can be used.
pub(super) fn count() -> Result<usize, String> {
    if let Some((library, package)) = missing_library() {
        return Err(format!("{library} is missing: {package}"));
    }
    let count = match driver::CudaContext::device_count() {
        // A driver without a GPU does not even begin.
        Err(driver::DriverError(driver::sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
        outcome => outcome.map_err(|error| format!("the CUDA driver says: {}", in_words(&error)))?,
    };
    check_version()?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A library that is needed and is not there, and what brings it.
#[cfg(cuda_loading)]
fn missing_library() -> Option<(&'static str, &'static str)> {
    use candle_core::cuda_backend::cudarc::curand;
    const RUNTIME: &str = "install the CUDA runtime libraries, or name their folder in LD_LIBRARY_PATH";
    // SAFETY: these open the library under its usual names and close it again, which runs NVIDIA's initialisers and
    // nothing else; no symbol is taken from it.
    let there = unsafe {
        [
            ("libcuda", driver::sys::is_culib_present(), "no NVIDIA driver is installed"),
            ("libcublas", cublas::sys::is_culib_present(), RUNTIME),
            ("libcurand", curand::sys::is_culib_present(), RUNTIME),
        ]
    };
    there.into_iter().find(|(_, present, _)| !present).map(|(library, _, package)| (library, package))
}

/// A program that is linked to its libraries has them, or it would not have started.
#[cfg(not(cuda_loading))]
fn missing_library() -> Option<(&'static str, &'static str)> {
    None
}

/// An older driver cannot compile the kernels, and may lack functions that cudarc panics without.
fn check_version() -> Result<(), String> {
    let (Some(driver), Some(kernels)) = (driver_version(), kernels_version()) else { return Ok(()) };
    // Within a major version NVIDIA keeps older drivers usable for what newer toolkits compile, but not for PTX.
    if driver >= kernels {
        return Ok(());
    }
    Err(format!(
        "the NVIDIA driver is for CUDA {}.{}, this mpatch for {}.{}: a newer driver is needed",
        driver.0, driver.1, kernels.0, kernels.1
    ))
}

/// What the driver says of its own error.
fn in_words(error: &driver::DriverError) -> String {
    error.error_string().map_or_else(|_| error.to_string(), |words| words.to_string_lossy().into_owned())
}

/// The compute capability of an open GPU, and the least that the kernels run on, where both can be told.
pub(super) fn capabilities(device: &Device) -> Result<Option<[(u32, u32); 2]>, String> {
    let (Device::Cuda(device), Some(needed)) = (device, capability_min()) else { return Ok(None) };
    let found = device.cuda_stream().context().compute_capability();
    let (major, minor) = found.map_err(|error| format!("the CUDA driver says: {}", in_words(&error)))?;
    Ok(Some([(u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)), needed]))
}

/// A GPU that has been counted.
pub(super) fn gpu(index: usize) -> Result<Gpu, String> {
    let failed = |error: driver::DriverError| format!("`cuda:{index}` does not open: {}", in_words(&error));
    let context = driver::CudaContext::new(index).map_err(failed)?;
    let (major, minor) = context.compute_capability().map_err(failed)?;
    let (free, all) = context.mem_get_info().map_err(failed)?;
    Ok(Gpu {
        name: format!("cuda:{index}"),
        product: context.name().map_err(failed)?,
        capability: format!("{major}.{minor}"),
        memory_bytes: all as u64,
        free_bytes: free as u64,
    })
}

pub(super) fn memory_taken(device: &Device) -> Option<(u64, u64)> {
    let Device::Cuda(device) = device else { return None };
    let (free, all) = device.cuda_stream().context().mem_get_info().ok()?;
    Some(((all - free) as u64, all as u64))
}

pub(super) fn versions(device: Option<&Device>) -> CudaVersions {
    let dotted = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    CudaVersions {
        driver: if missing_library().is_none() { driver_version().map(dotted) } else { None },
        kernels: kernels_version().map(dotted),
        capability_min: capability_min().map(dotted),
        cublas: device.and_then(cublas_version),
    }
}

/// The least compute capability that the kernels run on.
fn capability_min() -> Option<(u32, u32)> {
    ptx_header(".target sm_").map(|number| (number / 10, number % 10))
}

/// The CUDA version that the driver supports.
fn driver_version() -> Option<(u32, u32)> {
    let mut version = 0;
    // SAFETY: writes one integer through the pointer, and may be called before anything else; callers have made sure
    // that the library is there.
    let outcome = unsafe { driver::sys::cuDriverGetVersion(&mut version) };
    outcome.result().ok()?;
    let version = u32::try_from(version).ok()?;
    Some((version / 1000, version % 1000 / 10))
}

/// The CUDA version whose assembly language the kernels are written in: PTX 9.x came with CUDA 13.x, 8.x with 12.x;
/// within a major version its numbers lag behind by at most one.
fn kernels_version() -> Option<(u32, u32)> {
    let major = ptx_header(".version ")?;
    let text = kernels::AFFINE.ptx();
    let (_, rest) = text.split_once(".version ")?;
    let minor = leading_number(rest.split_once('.')?.1)?;
    Some((major + 4, minor))
}

/// The number after `key` in the header of the kernels' text.
fn ptx_header(key: &str) -> Option<u32> {
    leading_number(kernels::AFFINE.ptx().split_once(key)?.1)
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn cublas_version(device: &Device) -> Option<String> {
    let Device::Cuda(device) = device else { return None };
    let handle = device.cublas_handle();
    let mut version = 0;
    // SAFETY: the handle is open for as long as `handle` lives, and one integer is written through the pointer.
    let outcome = unsafe { cublas::sys::cublasGetVersion_v2(*handle.handle(), &mut version) };
    outcome.result().ok()?;
    Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}
