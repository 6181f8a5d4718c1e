"""Where a model runs, in which precision, and on how many threads.

torch is imported inside the functions, so that importing a service stays cheap.
"""

import os
from typing import TYPE_CHECKING

from .machine import available_cores
from .model_service import ModelLoadError
from .settings import ModelSettings

if TYPE_CHECKING:
    import torch

# libgomp's own 300,000 rounds make a model that is alone on its cores 3 to 10 % faster. But while anything else holds
# one of these cores, they burn the others, and three services together do a quarter of what one does alone.
_SPIN_COUNT = "10000"
_SPIN_SETTINGS = frozenset({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"})


def choose_device(name: str) -> "torch.device":
    """The torch device for the setting `DEVICE`: `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` is the first CUDA device where there is one. Raises `ModelLoadError` for a CUDA device that is not there.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelLoadError(
            f"DEVICE={name}, but no CUDA device is usable here. Install a CUDA build of torch and give the service a "
            "GPU, or set DEVICE=cpu."
        )
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ModelLoadError(f"DEVICE={name}, but the devices here are cuda:0 to cuda:{count - 1}.")
    return device


def choose_precision(setting: str, device: "torch.device") -> "torch.dtype":
    """The dtype for the setting `PRECISION`: `fp32`, `bf16`, `fp16`, or `auto`.

    `auto` is fp16 on CUDA and, on a CPU, bf16 where the hardware multiplies it (AMX or AVX512-BF16); elsewhere bf16
    would be emulated and slower than fp32.
    """
    import torch

    if setting == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[setting]


def precision_name(dtype: "torch.dtype") -> str:
    """The setting's word for a dtype: `fp32`, `bf16` or `fp16`."""
    import torch

    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def set_threads(settings: ModelSettings) -> int:
    """Give torch its CPU threads, and say how many; call it in the thread that runs the model, before it loads.

    Services that together run more threads than there are cores slow each other down several times over, because an
    OpenMP thread that waits for its siblings spins. So it spins for a short while only, unless the environment says
    otherwise; libgomp reads that once, when torch is imported.
    """
    if not _SPIN_SETTINGS & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT

    import torch

    threads = settings.threads or max(1, available_cores() // settings.cpu_shared_by)
    torch.set_num_threads(threads)
    return threads


def _cpu_multiplies_bf16() -> bool:
    import torch

    # private names of torch, without a public one for the same question
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(probe() for probe in probes if probe is not None)
