"""File systems of a test's own: one that can be filled, and one that can lose power. They need root."""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSHING_THE_JOURNAL = 2


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of that size, mounted at `folder`. Skips the test where that cannot be done."""
    folder.mkdir()
    _mount_or_skip("-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class PowerDisk:
    """An ext4 file system in a file. Skips the test where it cannot be mounted."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self._image, self.path = folder / "disk.img", folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(mebibytes * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", str(self._image)], check=True)
        self.mount()

    def mount(self) -> None:
        _mount_or_skip("-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    def remove(self) -> None:
        """At the end, whoever still has a file open."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def fail(self) -> None:
        """Lose the power: what is not on the disk by now never gets there."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_FLUSHING_THE_JOURNAL))
        finally:
            os.close(descriptor)


def _mount_or_skip(*arguments: str) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs Linux and root, to mount a file system of its own")
    result = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"cannot mount a file system of its own here: {result.stderr.strip()}")
