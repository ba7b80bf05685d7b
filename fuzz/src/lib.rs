//! What all fuzz targets share.

/// Makes this thread the only one that works, so that a run costs no hand-over to another and repeats exactly.
pub fn one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("no other pool has been built");
}
