#!/usr/bin/env bash
# Kills apply (a copy, in place), revert, add and init at every one of their system calls, and apply and revert at
# random times; refuses add, tag and undo each call that changes a history. The first argument is how often at random
# times. It needs strace, and takes about half an hour.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export MPATCH_KILL_STRIDE=1 MPATCH_RANDOM_KILLS="${1:-10000}"
exec cargo test --test durability -- killed_at refused_at --nocapture --test-threads 1
