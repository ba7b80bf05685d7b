//! What a device reaches at best: the figures that a speed is a share of.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use rayon::prelude::*;

use crate::model::ModelError;

/// Speeds of a device, each the best of several runs.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// Floating-point operations per second of a square f32 product, as the model's forward and reverse passes use.
    pub f32_product_per_second: f64,
    /// The same in f64, as the solve uses; on the processor, where it runs.
    pub f64_product_per_second: Option<f64>,
    /// Bytes read and written per second by the simplest pass over memory.
    pub memory_bytes_per_second: f64,
    /// Bytes hashed per second by BLAKE3 on one core; on the processor.
    pub hash_bytes_per_second: Option<f64>,
}

/// Each figure is the best run within this time.
const MEASURED: Duration = Duration::from_millis(250);

/// Measures `device`; takes about a second.
///
/// # Errors
/// [`ModelError::Device`], e.g. where its memory does not suffice for three matrices.
pub fn ceilings(device: &Device) -> Result<Ceilings, ModelError> {
    let on_processor = device.is_cpu();
    Ok(Ceilings {
        f32_product_per_second: f32_product(device, if on_processor { 1024 } else { 8192 })?,
        f64_product_per_second: on_processor.then(|| f64_product(1024)),
        memory_bytes_per_second: if on_processor { copy() } else { pass_over_memory(device)? },
        hash_bytes_per_second: on_processor.then(hash),
    })
}

/// The shortest time of `work`, which is run once before and then until [`MEASURED`] is over.
fn shortest<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    work()?;
    let begun = Instant::now();
    let mut shortest = f64::INFINITY;
    while shortest.is_infinite() || begun.elapsed() < MEASURED {
        let started = Instant::now();
        work()?;
        shortest = shortest.min(started.elapsed().as_secs_f64());
    }
    Ok(shortest)
}

/// As [`shortest`], for work that cannot fail.
fn shortest_of(mut work: impl FnMut()) -> f64 {
    let Ok(seconds) = shortest(|| {
        work();
        Ok::<_, std::convert::Infallible>(())
    });
    seconds
}

/// Operations of a product of square matrices: a multiplication and an addition for each term.
fn operations(side: usize) -> f64 {
    2.0 * (side as f64).powi(3)
}

fn f32_product(device: &Device, side: usize) -> Result<f64, ModelError> {
    let left = Tensor::rand(-1_f32, 1.0, (side, side), device)?;
    let right = Tensor::rand(-1_f32, 1.0, (side, side), device)?;
    let seconds = shortest(|| {
        left.matmul(&right.t()?)?;
        // A GPU works on while the processor goes ahead.
        device.synchronize()
    })?;
    Ok(operations(side) / seconds)
}

fn f64_product(side: usize) -> f64 {
    let left = Mat::from_fn(side, side, |row, column| ((row * 7 + column * 3) % 11) as f64 - 5.0);
    let mut product = Mat::<f64>::zeros(side, side);
    let seconds = shortest_of(|| product = std::hint::black_box(&left) * &left);
    operations(side) / seconds
}

/// Reads and writes 512 MiB each on the device.
fn pass_over_memory(device: &Device) -> Result<f64, ModelError> {
    let values = 128 << 20;
    let tensor = Tensor::zeros(values, DType::F32, device)?;
    let seconds = shortest(|| {
        tensor.affine(1.0, 1.0)?;
        device.synchronize()
    })?;
    Ok((2 * values * size_of::<f32>()) as f64 / seconds)
}

/// Copies 128 MiB on all threads, more than a processor's caches hold as a rule.
fn copy() -> f64 {
    const SIZE_BYTES: usize = 128 << 20;
    const PIECE_BYTES: usize = 1 << 20;
    let from = vec![1_u8; SIZE_BYTES];
    let mut to = vec![0_u8; SIZE_BYTES];
    let seconds = shortest_of(|| {
        to.par_chunks_mut(PIECE_BYTES)
            .zip(from.par_chunks(PIECE_BYTES))
            .for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&to);
    });
    2.0 * SIZE_BYTES as f64 / seconds
}

/// Hashes 64 MiB on this core.
fn hash() -> f64 {
    let bytes = vec![1_u8; 64 << 20];
    let seconds = shortest_of(|| {
        std::hint::black_box(blake3::hash(&bytes));
    });
    bytes.len() as f64 / seconds
}
