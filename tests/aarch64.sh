#!/usr/bin/env bash
# The same patch on the same base gives the same bytes on another architecture: a small program is built for this
# machine and for aarch64, the second runs in an emulator, and both must print the same digests.
#
# It needs `qemu-aarch64` and `aarch64-linux-gnu-gcc` (Debian: qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross),
# and Rust's standard library for aarch64-unknown-linux-gnu: from `rustup target add`, or built here from the source in
# RUST_LIBRARY (the folder `library` of rustc's source of the same version) or in the toolchain's `rust-src`.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
target=aarch64-unknown-linux-gnu
folder="$repository/target/aarch64"
sysroot="$(rustc --print sysroot)"

for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do
  command -v "$tool" >/dev/null || { echo "skipped: $tool is not installed"; exit 0; }
done
std=()
if [[ ! -d $sysroot/lib/rustlib/$target/lib ]]; then
  library="${RUST_LIBRARY:-$sysroot/lib/rustlib/src/rust/library}"
  [[ -d $library/std ]] || { echo "skipped: no standard library for $target, nor its source"; exit 0; }
  export RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$library"
  std=(-Zbuild-std=std,panic_abort)
fi

mkdir -p "$folder/src"
cat >"$folder/Cargo.toml" <<EOF
[package]
name = "emulated"
version = "0.0.0"
edition = "2024"
[dependencies]
blake3 = "1.8"
rayon = "1.12"
modelpatch = { path = "$repository", default-features = false }
[profile.dev]
opt-level = 1
[workspace]
EOF
cp "$repository/Cargo.lock" "$folder/Cargo.lock"
cat >"$folder/src/main.rs" <<'EOF'
//! Prints digests of what updates make of weights, for every element type and one to eight threads.
use mpatch::checkpoint::Checkpoint;
use mpatch::factors::{IntegerMatrix, Integers, Term, UndoWriter, Update, check_kernels};
use mpatch::patch::Patch;
use mpatch::tensor::Dtype;

fn main() {
    check_kernels().expect("the fast product is the defined one");
    for (seed, dtype) in [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().enumerate() {
        for threads in 1..=8 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let (after, undo) = pool.install(|| edit(seed as u64, dtype));
            println!("{dtype} {} {}", blake3::hash(&after), blake3::hash(&undo));
        }
    }
    example(&std::env::args().nth(1).expect("the repository"));
}

/// The example's patch on its base, there and back.
fn example(repository: &str) {
    let vectors = format!("{repository}/fixtures/vectors");
    let patch = std::fs::read(format!("{repository}/fixtures/patches/tiny.mpatch")).expect("the example");
    let patch = Patch::decode(patch).expect("the example");
    let target = std::env::temp_dir().join(format!("emulated-{}", std::process::id()));
    std::fs::create_dir(&target).expect("a folder");
    let (base, edited) = (format!("{vectors}/base.safetensors"), format!("{vectors}/edited.safetensors"));
    let checkpoint = Checkpoint::open(&base).expect("the base");
    let mpatch::apply::Answer::Applies(plan) = mpatch::apply::plan(&checkpoint, &patch).expect("readable") else { panic!("it applies") };
    plan.execute(&checkpoint, &patch, &target.join("edited"), &|_| ()).expect("written");
    assert_eq!(std::fs::read(target.join("edited")).expect("there"), std::fs::read(&edited).expect("there"));
    let checkpoint = Checkpoint::open(&edited).expect("edited");
    let mpatch::revert::Answer::Reverts(plan) = mpatch::revert::plan(&checkpoint, &patch).expect("readable") else { panic!("it reverts") };
    plan.execute(&checkpoint, &patch, &target.join("base"), &|_| ()).expect("written");
    assert_eq!(std::fs::read(target.join("base")).expect("there"), std::fs::read(&base).expect("there"));
    std::fs::remove_dir_all(&target).expect("removed");
    println!("the example applies and reverts");
}

/// Pseudo-random weights after a term of low rank and a dense one, and the undo log.
fn edit(seed: u64, dtype: Dtype) -> (Vec<u8>, Vec<u8>) {
    let (rows, columns, rank) = (190, 700, 9);
    let mut state = seed;
    let mut next = |limit: i64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as i64 % (2 * limit + 1) - limit
    };
    let mut matrix = |rows: usize, columns: usize, bits: u8| {
        let limit = i64::from((1_i32 << (bits - 1)) - 1);
        let values = (0..rows * columns).map(|_| next(limit) as i16).collect();
        IntegerMatrix::new("a matrix", rows, columns, bits, values).expect("in range")
    };
    let low_rank = Integers::LowRank { left: matrix(rows, rank, 7), right: matrix(rank, columns, 16) };
    let dense = Integers::Dense(matrix(rows, columns, 5));
    let numbers = matrix(rows, columns, 16);
    let scales = |count: usize, size: f32| (0..count).map(|index| size * (1.0 + index as f32 / 7.0)).collect();
    let terms = [low_rank, dense].map(|integers| Term::new(integers, scales(rows, 1e-9), scales(columns, 0.3)).expect("fits"));
    let update = Update::new(terms.to_vec()).expect("fits");
    let weight = |value: i16| (f32::from(value) / 65_536.0).to_bits();
    let before: Vec<u8> = numbers.values().iter().flat_map(|value| match dtype {
        Dtype::F32 => weight(*value).to_le_bytes().to_vec(),
        // Any finite pattern will do.
        Dtype::F16 => (*value as u16 & 0xbbff).to_le_bytes().to_vec(),
        Dtype::BF16 => ((weight(*value) >> 16) as u16).to_le_bytes().to_vec(),
    }).collect();
    let mut after = before.clone();
    update.apply_rows(dtype, 0..rows, &mut after).expect("no overflow");
    let mut writer = UndoWriter::new(rows, columns);
    let mut logged = before;
    writer.apply_rows(&update, dtype, 0..rows, &mut logged).expect("as above");
    assert!(logged == after);
    (after, writer.finish().expect("all rows"))
}
EOF

cd "$folder"
export CARGO_TARGET_DIR="$folder/build"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
cargo build --target "$target" "${std[@]}"
qemu-aarch64 -L /usr/aarch64-linux-gnu "build/$target/debug/emulated" "$repository" >emulated.txt
env -u RUSTC_BOOTSTRAP -u __CARGO_TESTS_ONLY_SRC_ROOT cargo run --quiet -- "$repository" >here.txt
diff here.txt emulated.txt
# Each element type has one result, eight times.
found="$(grep '^B\?F' here.txt | LC_ALL=C sort | uniq --count | awk '{ print $1, $2 }')"
if [[ $found != $'8 BF16\n8 F16\n8 F32' ]]; then
  printf 'not every number of threads gives the same result:\n%s\n' "$(<here.txt)" >&2
  exit 1
fi
echo "3 results, the same on $(uname -m) and aarch64, on 1 to 8 threads"
