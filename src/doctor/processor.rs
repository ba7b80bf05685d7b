//! The processor: threads, instruction sets, and what the arithmetic makes of them.

/// What the processor is to mpatch.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Processor {
    /// Extensions that the arithmetic can use, as far as the processor has them.
    pub extensions: Vec<&'static str>,
    /// What the matrix products run on.
    pub products: &'static str,
    /// Threads that work is spread over.
    pub threads: usize,
}

/// Looks at the processor that this runs on.
pub fn processor() -> Processor {
    let extensions = extensions();
    let has = |name: &str| extensions.contains(&name);
    // As the gemm crate chooses, under candle's products and ours.
    let products = match () {
        () if has("avx512f") => "AVX-512",
        () if has("avx2") && has("fma") => "AVX2 with FMA",
        () if has("neon") => "NEON",
        () => "plain instructions",
    };
    Processor { extensions, products, threads: rayon::current_num_threads() }
}

#[cfg(target_arch = "x86_64")]
fn extensions() -> Vec<&'static str> {
    let there = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    there.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn extensions() -> Vec<&'static str> {
    let there = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    there.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn extensions() -> Vec<&'static str> {
    Vec::new()
}
