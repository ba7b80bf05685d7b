#!/usr/bin/env bash
# The same patch on the same base gives the same bytes on another architecture: tests of the product and of whole files
# run as aarch64 programs in an emulator. They hold the kernels to the plain product, and results to digests that other
# machines computed, those in `fixtures/vectors` among others.
#
# It needs `qemu-aarch64` and `aarch64-linux-gnu-gcc` (Debian: qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross),
# and Rust's standard library for aarch64-unknown-linux-gnu, which it asks rustup for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=aarch64-unknown-linux-gnu

for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do
  command -v "$tool" >/dev/null || { echo "skipped: $tool is not installed"; exit 0; }
done
if [[ ! -d $(rustc --print sysroot)/lib/rustlib/$target/lib ]] && ! rustup target add "$target"; then
  echo "skipped: no standard library for $target"
  exit 0
fi

export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu'
test=(cargo test --locked --no-default-features --target "$target")
"${test[@]}" --lib factors::
"${test[@]}" --test format --test round_trip --test vectors
