"""Cuts the power of a file system in a file, again and again, while mpatch works on it; see power_cut.sh."""

import ctypes
import fcntl
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# FS_IOC_SHUTDOWN
SHUTDOWN = 0x8004587D
SIZE_BYTES = {"ext4": 32 << 20, "xfs": 320 << 20}


def call(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def call_patiently(*words):
    """Loop devices and mounts are the whole machine's, and whoever looks at one just then keeps it busy."""
    for _ in range(100):
        ended = subprocess.run(words, capture_output=True, text=True)
        if ended.returncode == 0:
            return
        time.sleep(0.1)
    raise SystemExit(f"{' '.join(map(str, words))}: {ended.stderr}")


def contents(folder):
    """Every file below a folder and its bytes; lost+found is the file system's own."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "lost+found" not in path.parts}


class Disk:
    """A file system in a file."""

    def __init__(self, kind, place):
        self.kind, self.image, self.folder = kind, place / "image", place / "mount"
        self.folder.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(SIZE_BYTES[kind])

    def make(self):
        options = ["-f"] if self.kind == "xfs" else ["-F", "-q"]
        call(f"mkfs.{self.kind}", *options, self.image)

    def mount(self):
        call_patiently("mount", "-o", "loop", self.image, self.folder)

    def unmount(self):
        call_patiently("umount", self.folder)

    def cut(self, flag):
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, bytes(ctypes.c_uint32(flag)))
        finally:
            os.close(handle)


class Scene:
    """A command, the command after the cut, and what may be there in the end."""

    def __init__(self, mpatch, command, following):
        self.command = [mpatch, *command.split()]
        self.following = [mpatch, *following.split()]

    def run(self, folder):
        # Standard output is no file of the file system that goes away.
        return subprocess.Popen(self.command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scenes(mpatch):
    check = "verify shards.mpatch --base shards --digests-only"
    copy = "apply shards shards.mpatch -o new"
    return [
        Scene(mpatch, copy, copy),
        Scene(mpatch, "apply shards shards.mpatch --in-place", check),
        Scene(mpatch, "revert edited shards.mpatch --in-place", check.replace("shards --", "edited --")),
    ]


def lay_out(disk, material):
    """Fills the file system anew, all of it on disk."""
    call("cp", "-a", f"{material}/.", disk.folder)
    call("sync", "-f", disk.folder)


def cycle(disk, scene, material, flag, before, after, seconds):
    """One cut; returns what was found, in a word."""
    disk.make()
    disk.mount()
    try:
        lay_out(disk, material)
        child = scene.run(disk.folder)
        delay = random.uniform(0, seconds * 1.3)
        time.sleep(delay)
        done = child.poll()
        disk.cut(flag)
        child.kill()
        ended = child.wait()
    finally:
        disk.unmount()
    disk.mount()
    try:
        following = subprocess.run(scene.following, cwd=disk.folder, capture_output=True, text=True)
        left = contents(disk.folder)
    finally:
        disk.unmount()
    words = f"{' '.join(scene.command[1:])}: cut after {delay:.4f} s, exit {done}, flag {flag}"
    taken = following.returncode == 11 and scene.following == scene.command
    if following.returncode != 0 and not taken:
        raise SystemExit(f"{words}: the next command says {following.stderr}")
    if left not in (before, after):
        raise SystemExit(f"{words}: neither state: {sorted(left)}")
    if done == 0 and left != after:
        raise SystemExit(f"{words}: it had succeeded, and is gone")
    if "recovered from" in following.stderr:
        return "recovered"
    if done == 0:
        return "cut after success"
    return "new state" if left == after else "old state"


def main():
    mpatch, material, kind, flag, count = sys.argv[1:]
    material, flag, count = Path(material), int(flag), int(count)
    random.seed(flag)
    with tempfile.TemporaryDirectory() as place:
        disk = Disk(kind, Path(place))
        for scene in scenes(mpatch):
            disk.make()
            disk.mount()
            lay_out(disk, material)
            before = contents(disk.folder)
            started = time.monotonic()
            assert scene.run(disk.folder).wait() == 0
            seconds = time.monotonic() - started
            after = contents(disk.folder)
            disk.unmount()
            tally = {}
            for _ in range(count):
                found = cycle(disk, scene, material, flag, before, after, seconds)
                tally[found] = tally.get(found, 0) + 1
            print(f"{kind}, flag {flag}, {' '.join(scene.command[1:])}: {count} cuts, {tally}", flush=True)


if __name__ == "__main__":
    main()
