"""Device, precision and threads, for a machine with and without what they need."""

import os
import re
import subprocess
import sys

import pytest
import torch

from visionstack.device import choose_device, choose_precision, precision_name, set_threads
from visionstack.machine import available_cores
from visionstack.model_service import ModelLoadError
from visionstack.settings import ModelSettings

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")


def test_cpu_is_the_cpu() -> None:
    assert choose_device("cpu") == CPU


@without_cuda
def test_without_cuda_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert choose_device("auto") == CPU
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ModelLoadError, match=f"^DEVICE={name}, but no CUDA device .* set DEVICE=cpu\\.$"):
            choose_device(name)


@with_cuda
def test_with_cuda_auto_is_the_first_device_and_one_too_many_is_refused() -> None:
    assert choose_device("auto") == choose_device("cuda") == choose_device("cuda:0") == CUDA
    with pytest.raises(ModelLoadError, match=r"^DEVICE=cuda:99, but the devices here are cuda:0"):
        choose_device("cuda:99")


@pytest.mark.parametrize(
    ("setting", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_precision_that_is_set_is_taken(setting: str, dtype: torch.dtype) -> None:
    assert choose_precision(setting, CPU) is choose_precision(setting, CUDA) is dtype
    assert precision_name(dtype) == setting


def test_the_automatic_precision_is_what_the_hardware_multiplies() -> None:
    assert choose_precision("auto", CUDA) is torch.float16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert choose_precision("auto", CPU) is (torch.bfloat16 if fast else torch.float32)


def test_threads_are_the_cores_shared_by_the_services_and_at_least_one() -> None:
    before = torch.get_num_threads()
    cores = available_cores()
    try:
        for settings, expected in (
            (ModelSettings(threads=3), 3),
            (ModelSettings(), cores),
            (ModelSettings(cpu_shared_by=cores), 1),
            (ModelSettings(cpu_shared_by=64), max(1, cores // 64)),
        ):
            assert set_threads(settings) == torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["by default", "as set", "by policy"],
)
def test_an_openmp_thread_that_waits_spins_for_a_short_while(environment: dict[str, str], spins: str) -> None:
    script = (
        "from visionstack.device import set_threads as s; from visionstack.settings import ModelSettings as M; s(M())"
    )
    environment = {**os.environ, **environment, "OMP_DISPLAY_ENV": "VERBOSE"}
    shown = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in shown.stderr:
        pytest.skip("this torch does not run on libgomp")
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown.stderr)) == {spins}
