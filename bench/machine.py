"""What was measured on and with what: the machine, the versions, the commit, and how busy the machine was otherwise."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from processes import ROOT
from visionstack.machine import available_cores

_TELLING_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "open_clip_torch", "transformers", "ultralytics", "openvino", "qdrant-edge-py", "fastapi",
             "uvicorn", "pillow", "numpy", "aiohttp")  # fmt: skip


def describe() -> dict[str, Any]:
    """The same for all parts of one run."""
    cpu = _cpu()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": f"{cpu.get('vendor_id', '')} {cpu.get('model name', platform.processor())}".strip(),
        "cores": available_cores(),
        "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": _versions(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }


def state_of_files() -> dict[str, Any]:
    """Each part of a run has its own: what is compared is compared within a part."""
    lines = _git("status", "--porcelain", strip=False).splitlines()
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "changed_files": sorted(line[3:] for line in lines)}


def _cpu() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


def _git(*arguments: str, strip: bool = True) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if strip else done.stdout


@dataclass(frozen=True, slots=True)
class Clock:
    """CPU time of the whole machine and of this process with all that it started, since some moment."""

    at: float
    busy_s: float
    own_s: float
    load_average: float

    @classmethod
    def now(cls) -> "Clock":
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        return cls(time.monotonic(), busy, _own_seconds(), os.getloadavg()[0])

    def others_since(self) -> float:
        """How many cores others kept busy since then, on average."""
        now = Clock.now()
        used = (now.busy_s - self.busy_s) - (now.own_s - self.own_s)
        return max(0.0, used / (now.at - self.at))


def _own_seconds() -> float:
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
