//! Devices: which there are, which one a name means, and what their failures mean.
//!
//! A GPU is taken where one opens, and the processor otherwise; [`Choice`] says which it became and why. What needs
//! CUDA itself stands in `cuda.rs`, beside a stand-in for builds without it.

use candle_core::{Device, Error};

use super::ModelError;
#[cfg(feature = "cuda")]
use super::cuda;

/// A device, and how it came to be chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The device.
    pub device: Device,
    /// Why it is this one, where there was a choice: a clause without a period.
    pub reason: Option<String>,
}

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gpu {
    /// The name that `--device` takes, e.g. `cuda:0`.
    pub name: String,
    /// The product's name.
    pub product: String,
    /// Compute capability, e.g. `9.0`.
    pub capability: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// What is free of it now.
    pub free_bytes: u64,
}

/// Versions of what runs a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CudaVersions {
    /// The CUDA version that the driver supports, e.g. `13.0`.
    pub driver: Option<String>,
    /// The CUDA version that the kernels in this program were compiled with.
    pub kernels: Option<String>,
    /// Least compute capability that these kernels run on, e.g. `8.0`.
    pub capability_min: Option<String>,
    /// cuBLAS's own version, where a device is open.
    pub cublas: Option<String>,
}

/// The device called `name`: `cpu`, `cuda` or `cuda:N`; without a name, a GPU where one opens.
///
/// # Errors
/// [`ModelError::NoDevice`] says what is missing.
pub fn device(name: Option<&str>) -> Result<Device, ModelError> {
    choose(name).map(|choice| choice.device)
}

/// As [`device`], with the reason for the choice.
///
/// # Errors
/// As [`device`].
pub fn choose(name: Option<&str>) -> Result<Choice, ModelError> {
    match name {
        Some("cpu") => Ok(Choice { device: Device::Cpu, reason: None }),
        Some(name) => {
            let device = open_cuda(index(name)?)
                .map_err(|what| ModelError::NoDevice { what: format!("`{name}`: {what}") })?;
            Ok(Choice { device, reason: None })
        }
        // There is nothing to choose from.
        None if !cfg!(feature = "cuda") => Ok(Choice { device: Device::Cpu, reason: None }),
        None => Ok(match open_cuda(0) {
            Ok(device) => Choice { device, reason: Some("the first GPU".to_owned()) },
            Err(what) => Choice { device: Device::Cpu, reason: Some(what) },
        }),
    }
}

/// Whether `name` is that of a device, be it there or not.
pub fn is_device_name(name: &str) -> bool {
    name == "cpu" || index(name).is_ok()
}

/// The number in `cuda` or `cuda:N`.
fn index(name: &str) -> Result<usize, ModelError> {
    let index = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        // Not every number that Rust reads is a name: `cuda:+1` is a slip.
        Some(rest) => rest
            .strip_prefix(':')
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok()),
        None => None,
    };
    index.ok_or_else(|| ModelError::NoDevice {
        what: format!("`{name}` is no device: expected `cpu`, `cuda` or `cuda:N`"),
    })
}

/// Opens a GPU, or says in words why not; candle by itself panics where a library is missing.
#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, String> {
    let count = cuda::count()?;
    if index >= count {
        return Err(match count {
            0 => "the driver finds no GPU".to_owned(),
            _ => format!("there is no such GPU, the last one is `cuda:{}`", count - 1),
        });
    }
    let device =
        Device::new_cuda(index).map_err(|error| format!("the GPU does not open: {}", first_line(&error)))?;
    match cuda::capabilities(&device)? {
        Some([found, needed]) => runs_kernels(found, needed).map(|()| device),
        None => Ok(device),
    }
}

/// Refuses a GPU with a compute capability below the one that the kernels need, as it does not run them.
#[cfg(any(feature = "cuda", test))]
fn runs_kernels(found: (u32, u32), needed: (u32, u32)) -> Result<(), String> {
    if found >= needed {
        return Ok(());
    }
    Err(format!(
        "the GPU has compute capability {}.{}, this mpatch's kernels need {}.{}",
        found.0, found.1, needed.0, needed.1
    ))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_index: usize) -> Result<Device, String> {
    Err(WITHOUT_CUDA.to_owned())
}

#[cfg(not(feature = "cuda"))]
const WITHOUT_CUDA: &str = "this mpatch was built without CUDA (feature `cuda`)";

/// The GPUs that the driver finds, or of each why it cannot be asked; asking takes a little memory on each of them for
/// a moment.
///
/// # Errors
/// Says what keeps this program from using any: the build, a library or the driver.
pub fn gpus() -> Result<Vec<Result<Gpu, String>>, String> {
    #[cfg(feature = "cuda")]
    return Ok((0..cuda::count()?).map(cuda::gpu).collect());
    #[cfg(not(feature = "cuda"))]
    Err(WITHOUT_CUDA.to_owned())
}

/// What the driver says of the GPU that `device` is; nothing for a processor.
pub fn gpu_of(device: &Device) -> Option<Gpu> {
    #[cfg(feature = "cuda")]
    if let candle_core::DeviceLocation::Cuda { gpu_id } = device.location() {
        return cuda::gpu(gpu_id).ok();
    }
    let _ = device;
    None
}

/// The versions of driver, kernels and cuBLAS, as far as they can be told.
pub fn cuda_versions(device: Option<&Device>) -> CudaVersions {
    #[cfg(feature = "cuda")]
    return cuda::versions(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        CudaVersions::default()
    }
}

/// Bytes of a GPU's memory that are taken, by whomever, and all there are; nothing for a processor.
pub fn memory_taken(device: &Device) -> Option<(u64, u64)> {
    #[cfg(feature = "cuda")]
    return cuda::memory_taken(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// Bytes of a GPU's memory that nobody has taken once its work so far is done; nothing for a processor.
pub fn memory_free(device: &Device) -> Option<u64> {
    // What was let go of is given back only then, and how much that is would depend on how far the work is.
    device.synchronize().ok()?;
    memory_taken(device).map(|(taken, all)| all.saturating_sub(taken))
}

/// The name that `--device` takes for `device`.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// Whether a device failed for lack of memory, so that less at a time may work.
///
/// candle hands on the driver's and cuBLAS's errors as text: `DriverError(CUDA_ERROR_OUT_OF_MEMORY, ..)` from an
/// allocation, `CUBLAS_STATUS_ALLOC_FAILED` from a product's workspace. Both leave the device usable. On a processor
/// nothing is reported: the system ends the process.
pub fn is_out_of_memory(error: &Error) -> bool {
    const SIGNS: [&str; 3] =
        ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CURAND_STATUS_ALLOCATION_FAILED"];
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } | Error::WithPath { inner, .. } => {
            is_out_of_memory(inner)
        }
        Error::Cuda(_) | Error::Wrapped(_) | Error::WrappedContext { .. } | Error::Msg(_) => {
            let text = error.to_string();
            SIGNS.iter().any(|sign| text.contains(sign))
        }
        _ => false,
    }
}

/// candle's errors may carry a backtrace, which is nothing for users.
pub(super) fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc writes it, which cannot be made without a driver.
    #[derive(Debug, thiserror::Error)]
    #[error("DriverError({0}, \"{1}\")")]
    struct DriverError(&'static str, &'static str);

    fn cuda(name: &'static str, words: &'static str) -> Error {
        Error::Cuda(Box::new(DriverError(name, words)))
    }

    #[test]
    fn lack_of_memory_is_told_from_other_failures() {
        let lack = || cuda("CUDA_ERROR_OUT_OF_MEMORY", "out of memory");
        assert!(is_out_of_memory(&lack()));
        assert!(is_out_of_memory(&lack().context("matmul")));
        assert!(is_out_of_memory(&lack().with_path("model.safetensors")));
        assert!(is_out_of_memory(&Error::wrap("CublasError(CUBLAS_STATUS_ALLOC_FAILED)")));
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        assert!(is_out_of_memory(&Error::WithBacktrace { inner: Box::new(lack()), backtrace }));
        assert!(!is_out_of_memory(&cuda("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected")));
        assert!(!is_out_of_memory(&Error::NotCompiledWithCudaSupport));
        // A path or a backtrace may name anything.
        let named = cuda("CUDA_ERROR_ILLEGAL_ADDRESS", "").with_path("CUDA_ERROR_OUT_OF_MEMORY");
        assert!(!is_out_of_memory(&named));
    }

    #[test]
    fn a_name_that_is_no_device_is_refused_with_those_that_are() {
        for name in
            ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda0", "cuda:-1", "cuda:+1", "cuda:99999999999999999999"]
        {
            let error = device(Some(name)).expect_err(name).to_string();
            assert_eq!(error, format!("`{name}` is no device: expected `cpu`, `cuda` or `cuda:N`"));
        }
        assert_eq!(index("cuda").ok(), Some(0));
        assert_eq!(index("cuda:12").ok(), Some(12));
    }

    #[test]
    fn a_gpu_older_than_the_kernels_is_refused() {
        for found in [(8, 0), (8, 6), (9, 0), (12, 0)] {
            assert_eq!(runs_kernels(found, (8, 0)), Ok(()), "{found:?}");
        }
        let expected = "the GPU has compute capability 7.5, this mpatch's kernels need 8.0";
        assert_eq!(runs_kernels((7, 5), (8, 0)), Err(expected.to_owned()));
        assert!(runs_kernels((8, 6), (8, 9)).is_err());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_cuda_the_processor_is_the_device_and_a_gpu_is_refused_in_words() {
        assert!(device(None).expect("a processor is there").is_cpu());
        let error = device(Some("cuda:1")).expect_err("there is no CUDA").to_string();
        assert_eq!(error, "`cuda:1`: this mpatch was built without CUDA (feature `cuda`)");
    }
}
