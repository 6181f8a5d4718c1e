"""From the setting `YOLO_MODEL` to a network in memory: finding the file, fetching a published one, reading it safely.

It owns the surroundings in which ultralytics is imported, too. What the network is used for is `model.py`'s business.
ultralytics and torch are imported inside the functions, so that importing the service stays cheap.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionstack.model_service import ModelLoadError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DEFAULT_SIDE = 640


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network in fp32 and evaluation mode, with what its file says about it.

    `side` is the square's edge in pixels that it was trained on, `class_names` are its labels by index.
    """

    network: "torch.nn.Module"
    class_names: dict[int, str]
    side: int


def prepare_ultralytics() -> None:
    """Set what ultralytics reads when it is imported; call this before anything imports it.

    Left alone, it asks name servers whether the machine is online, installs packages that it misses, writes its
    settings into the home directory, unpickles whatever a checkpoint holds and logs to stdout. None of it here.
    """
    os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", ULTRALYTICS_SAFE_LOAD="1")
    if "YOLO_CONFIG_DIR" not in os.environ and "ultralytics" not in sys.modules:
        folder = tempfile.mkdtemp(prefix="yolo-config-")
        os.environ["YOLO_CONFIG_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def load_checkpoint(name: str, weights_dir: Path) -> Checkpoint:
    """Read the checkpoint `name`: a file, or the name of a published one, which is fetched into `weights_dir`.

    Raises `ModelLoadError` for a file that is not there, is damaged, or holds more than weights and known layers.
    """
    path = _find(name, weights_dir)
    content = _read(name, path)
    network: Any = content.get("ema") or content.get("model")
    class_names = getattr(network, "names", None)
    if isinstance(class_names, list | tuple):
        class_names = dict(enumerate(class_names))
    if not isinstance(class_names, dict):
        raise ModelLoadError(f"YOLO_MODEL={name} is not an ultralytics model that detects objects; name another one.")
    side = (content.get("train_args") or {}).get("imgsz") or _DEFAULT_SIDE
    return Checkpoint(
        network=_prepared(network.float().eval()),
        class_names={int(index): str(label) for index, label in class_names.items()},
        side=side if isinstance(side, int) else max(side),
    )


def _find(name: str, weights_dir: Path) -> Path:
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    file = Path(check_yolov5u_filename(name, verbose=False))  # yolov5n.pt is published as yolov5nu.pt
    if file.is_file():
        return file
    asset = str(file) if file.suffix == ".pt" else f"{file}.pt"
    local = weights_dir / asset
    if file.name == str(file) and local.is_file():
        return local
    if asset not in GITHUB_ASSETS_NAMES:
        raise ModelLoadError(
            f"YOLO_MODEL={name} is neither a file nor the name of a checkpoint that ultralytics publishes; check it."
        )
    return _download(name, local)


def _download(name: str, target: Path) -> Path:
    from ultralytics.utils.downloads import attempt_download_asset

    logger.info("downloading %s to %s", target.name, target.parent)
    try:
        # its bar is drawn anew ten times a second, which a log cannot bear
        return Path(attempt_download_asset(target, progress=sys.stdout.isatty()))
    except (OSError, MemoryError) as exc:  # MemoryError is its word for a full disk
        logger.debug("download failed", exc_info=exc)
        raise ModelLoadError(
            f"YOLO_MODEL={name} cannot be downloaded to {target.parent}. Check the network and that the folder can be "
            f"written, or put {target.name} there yourself."
        ) from exc


def _read(name: str, path: Path) -> dict[str, Any]:
    from ultralytics.nn.tasks import torch_safe_load

    try:
        content, _ = torch_safe_load(path, safe_only=True)
    except OSError as exc:
        logger.debug("checkpoint cannot be read", exc_info=exc)
        raise ModelLoadError(f"YOLO_MODEL={name}: {path} cannot be read; check its permissions.") from exc
    except Exception as exc:  # unpickling a stranger's file can raise anything
        logger.debug("checkpoint refused", exc_info=exc)
        raise ModelLoadError(
            f"YOLO_MODEL={name}: {path} is damaged, or holds more than the weights and layers of an ultralytics "
            "model, and was not loaded. Delete it if it was downloaded, or name another checkpoint."
        ) from exc
    assert isinstance(content, dict)
    return content


def _prepared(network: "torch.nn.Module") -> "torch.nn.Module":
    """As ultralytics does on loading: activations in place, and what checkpoints of old versions of torch lack."""
    import torch

    module: Any
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
        if isinstance(module, torch.nn.Upsample) and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None
    return network
