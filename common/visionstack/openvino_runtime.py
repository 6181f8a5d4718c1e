"""Networks on OpenVINO, for the setting `RUNTIME=openvino`: the same weights, laid out once for this CPU.

It converts what torch has loaded, in memory. That the answers agree is for the caller to check: it knows what counts.
openvino and torch are imported inside the functions, so that importing a service stays cheap.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .model_service import ModelLoadError

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float32]
CompiledNetwork = Callable[[Array], list[Array]]

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def compile_network(
    network: "torch.nn.Module", example: "torch.Tensor", shape: Sequence[int], *, precision: str, threads: int
) -> CompiledNetwork:
    """The fp32 `network` compiled for inputs of `shape`, in which -1 is any size; it takes and gives fp32 arrays.

    `network` answers with a tensor or a tuple of them, and is traced with `example`. `precision` is the setting's word
    for what is computed in. Raises `ModelLoadError` for a network that OpenVINO cannot run, and for a precision that
    this CPU does not have.
    """
    import torch

    openvino, decoder = _import_openvino()
    # Pinned threads of several services would all sit on the first cores.
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            # tracing is deprecated, but the one form of a network whose pictures may have any size
            traced = torch.jit.trace(network, example, check_trace=False)
        frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
        graph = decoder(traced)  # the frontend itself does not keep it
        model = frontend.convert(frontend.load(graph))
        model.reshape({model.inputs[0]: openvino.PartialShape(list(shape))})
        compiled = openvino.Core().compile_model(model, "CPU", options)
        request = compiled.create_infer_request()
    except Exception as exc:  # whatever its frontend and its plugin do not know
        raise ModelLoadError("RUNTIME=openvino cannot run this model; set RUNTIME=torch.") from exc
    # it takes another in silence where the hardware lacks the one that is asked for
    if compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != _PRECISIONS[precision]:
        raise ModelLoadError(
            f"OpenVINO does not compute in {precision} on this CPU; set PRECISION=fp32, or RUNTIME=torch."
        )

    def run(inputs: Array) -> list[Array]:
        # copies: its own buffers are written anew by the next call
        return list(request.infer([np.ascontiguousarray(inputs)]).values())

    return run


def refuse_other_devices(device: "torch.device") -> None:
    """Raises `ModelLoadError` for anything but a CPU."""
    if device.type != "cpu":
        raise ModelLoadError("RUNTIME=openvino runs on the CPU alone; set DEVICE=cpu, or RUNTIME=torch.")


def _import_openvino() -> tuple[Any, Any]:
    # openvino's converter reports its use over the network with this package, and does without where there is none
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    return openvino, TorchScriptPythonDecoder
