#!/usr/bin/env bash
# Builds mpatch with CUDA on a machine that needs neither a GPU, nor a driver, nor an installed toolkit, into one
# binary that runs on any machine with an NVIDIA driver for CUDA 13.0 or later and the CUDA runtime libraries.
#
#   tools/cuda-build.sh FOLDER            the result is FOLDER/mpatch, and FOLDER/gpu, the benchmark on a GPU
#   tools/cuda-build.sh FOLDER --clean    removes the toolkit and what was compiled, and leaves those two
#
# It needs cargo, a C++ compiler and python3 with venv, and about 3 GB under FOLDER, where all that it makes stays.
# Run again, it does what is missing. `docs/cuda.md` says why each step is there, and what was measured.
set -euo pipefail

# The toolkit, from PyPI. The wheels for CUDA 12 hold no nvcc; from 13.1 on the kernels would need a newer driver.
readonly TOOLKIT=(
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-curand==10.4.0.35
)
# What the edits below were written for.
readonly CANDLE=0.11.1
# Kernels for 8.0 are compiled by the driver for whatever is newer; 9.0 would become 9.0a, which nothing else runs.
readonly COMPUTE_CAPABILITY=80

main() {
  local root folder
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  [[ $# -ge 1 && $1 != -* ]] || { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
  mkdir -p "$1"
  folder="$(cd "$1" && pwd)"
  if [[ ${2:-} == --clean ]]; then
    rm -rf "$folder/toolkit" "$folder/crates" "$folder/package" "$folder/target"
    return
  fi
  install_toolkit "$folder/toolkit"
  patch_crates "$root" "$folder/crates"
  lay_out_package "$root" "$folder/package"
  build "$folder"
}

install_toolkit() {
  local toolkit=$1
  if [[ "$(cat "$toolkit/installed" 2>/dev/null)" != "${TOOLKIT[*]}" ]]; then
    echo "toolkit: installing ${#TOOLKIT[@]} packages" >&2
    rm -rf "$toolkit"
    python3 -m venv "$toolkit"
    "$toolkit/bin/python" -m pip install --quiet --disable-pip-version-check "${TOOLKIT[@]}"
    echo "${TOOLKIT[*]}" >"$toolkit/installed"
  fi
  CUDA_HOME="$(echo "$toolkit"/lib/python3*/site-packages/nvidia/cu13)"
  export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
  nvcc --version >/dev/null
}

# Copies of two of candle's crates, as cargo has them, with two edits:
# candle-core asks cudarc to load the driver and cuBLAS when they are first used, and not to link to them;
# candle-kernels leaves out the kernels of quantised mixtures of experts, which mpatch has no use for, are most of
# the work of nvcc, and would link to the CUDA runtime.
patch_crates() {
  local root=$1 crates=$2 versions
  # What is locked now: copies of what was locked before are no reason to go on.
  versions="edits for $CANDLE, locked $(grep -A1 -E '^name = "candle-(core|kernels)"$' "$root/Cargo.lock" |
    sed -n 's/^version = "\(.*\)"$/\1/p' | xargs)"
  [[ "$(cat "$crates/patched" 2>/dev/null)" != "$versions" ]] || return 0
  rm -rf "$crates"
  mkdir -p "$crates"
  cargo metadata --locked --format-version 1 --features cuda --manifest-path "$root/Cargo.toml" |
    python3 -c '
import json, pathlib, shutil, sys

version, target = sys.argv[1], pathlib.Path(sys.argv[2])
found = {p["name"]: p for p in json.load(sys.stdin)["packages"]}
for name in "candle-core", "candle-kernels":
    package = found[name]
    locked = package["version"]
    if locked != version:
        sys.exit(f"{name} is {locked}: the edits were written for {version}, see docs/cuda.md")
    shutil.copytree(pathlib.Path(package["manifest_path"]).parent, target / name)

def edit(path, change):
    text = path.read_text()
    edited = change(text)
    if edited == text:
        sys.exit(f"{path} is not as expected, see docs/cuda.md")
    path.write_text(edited)

def without_static_kernels(text):
    begin, end = text.index("    let mut moe_sources"), text.rindex("    Ok(())")
    return text[:begin] + text[end:]

edit(target / "candle-core/Cargo.toml", lambda text: text.replace("\"dynamic-linking\"", "\"dynamic-loading\""))
edit(target / "candle-kernels/build.rs", without_static_kernels)
' "$CANDLE" "$crates"
  echo "$versions" >"$crates/patched"
}

# The package with a lock file of its own: with patched crates cargo writes another one, which is not the repository's.
lay_out_package() {
  local root=$1 package=$2 entry
  mkdir -p "$package"
  for entry in "$root"/*; do
    case "$(basename "$entry")" in
      target | Cargo.toml | Cargo.lock) ;;
      *) ln -sfn "$entry" "$package/$(basename "$entry")" ;;
    esac
  done
  cp "$root/Cargo.toml" "$root/Cargo.lock" "$package"
}

build() {
  local folder=$1
  export NVCC_APPEND_FLAGS="-I$CUDA_HOME/include -I$CUDA_HOME/include/cccl"
  export CUDA_COMPUTE_CAP=$COMPUTE_CAPABILITY CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-1}"
  export CARGO_TARGET_DIR="$folder/target" RUSTFLAGS="--cfg cuda_loading"
  (
    cd "$folder/package"
    cargo build --release --features cuda --bin mpatch --example gpu \
      --config "patch.crates-io.candle-core.path=\"$folder/crates/candle-core\"" \
      --config "patch.crates-io.candle-kernels.path=\"$folder/crates/candle-kernels\""
  )
  cp "$folder/target/release/mpatch" "$folder/target/release/examples/gpu" "$folder"
  echo "built $folder/mpatch and $folder/gpu" >&2
}

main "$@"
