#!/usr/bin/env bash
# Cuts the power of a real file system while mpatch works on it: `power_cut.sh [COUNT] [FILE SYSTEM...]`.
#
# The file systems (ext4 and xfs) are made in files and mounted through loop devices, which needs root. A cut is the
# ioctl that shuts a file system down: once without its journal (flag 2), once with its journal but without data
# (flag 1). After each cut the file system is mounted again, the next command runs, and the bytes are compared.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
count="${1:-40}"
shift || true
cargo build --bin mpatch
material="$(mktemp -d)"
trap 'rm -rf "$material"' EXIT
MPATCH_MATERIAL="$material" cargo test --quiet --test durability lays_out_material -- --ignored --exact
[ $# -gt 0 ] || set -- ext4 xfs
for kind in "$@"; do
  for flag in 1 2; do
    MPATCH_CONFIG_DIR="$material/config" python3 tests/crash/power_cut.py \
      "$PWD/target/debug/mpatch" "$material" "$kind" "$flag" "$count"
  done
done
