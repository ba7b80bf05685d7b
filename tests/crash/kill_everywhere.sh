#!/usr/bin/env bash
# Kills apply (a copy, in place), revert and add at every one of their system calls, and then at random times.
# The first argument is how often at random times. It needs strace, and takes about fifteen minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export MPATCH_KILL_STRIDE=1 MPATCH_RANDOM_KILLS="${1:-10000}"
exec cargo test --test durability killed_at -- --nocapture --test-threads 1
