"""Trains the small detector on the drawn world and saves it as one .pt file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from learning import autocast
from render import YOLO_SIDE
from world import OBJECTS

HERE = Path(__file__).resolve().parent
BATCH = 16


def quiet_ultralytics(folder: Path) -> None:
    """Keep ultralytics off the network; call before its first import.

    It would ask the network for a font, so one is put where it looks for it.
    """
    import matplotlib

    home = folder / "Ultralytics"
    home.mkdir(parents=True, exist_ok=True)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shutil.copyfile(fonts / "DejaVuSans.ttf", home / "Arial.ttf")
    os.environ.update(YOLO_CONFIG_DIR=str(folder), YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="true")


def fast_on_cpu() -> None:
    """Let the training passes of the network run in bfloat16 where that is faster; the trainer never does on CPUs."""
    from ultralytics.nn import tasks

    network: Any = tasks.DetectionModel

    plain = network.predict

    def predict(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return plain(self, x, *args, **kwargs)
        with autocast():
            found = plain(self, x.to(memory_format=torch.channels_last), *args, **kwargs)
        return _as_float(found)

    network.predict = predict


def _as_float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float()
    if isinstance(value, dict):
        return {key: _as_float(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_as_float(item) for item in value)
    return value


def data_file(work: Path, train: Path, val: Path) -> Path:
    """The dataset description ultralytics wants."""
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(OBJECTS))
    path = work / "data.yaml"
    path.write_text(f"path: {work}\ntrain: {train}/images\nval: {val}/images\nnames:\n{names}\n")
    return path


def train_yolo(train: Path, val: Path, work: Path, out: Path, *, epochs: int, seed: int = 3) -> None:
    """Train on the pictures under `train`, watch on `val`, and write the checkpoint `out`."""
    quiet_ultralytics(work / "config")
    import ultralytics

    library: Any = ultralytics
    library.settings.update({"sync": False})
    fast_on_cpu()
    data = data_file(work, train, val)
    model = library.YOLO(str(HERE / "yolo11n-demo.yaml"))
    model.train(
        data=str(data),
        imgsz=YOLO_SIDE,
        epochs=epochs,
        batch=BATCH,
        nbs=BATCH,
        optimizer="AdamW",
        lr0=2e-3,
        lrf=0.02,
        cos_lr=True,
        warmup_epochs=1.0,
        weight_decay=0.0005,
        mosaic=0.0,
        fliplr=0.5,
        scale=0.3,
        translate=0.1,
        hsv_h=0.01,
        hsv_s=0.3,
        hsv_v=0.3,
        erasing=0.0,
        pretrained=False,
        workers=0,
        cache="ram",
        plots=False,
        val=False,
        seed=seed,
        deterministic=False,
        device="cpu",
        project=str(work),
        name="yolo",
        exist_ok=True,
        amp=False,
    )
    save(work / "yolo" / "weights" / "last.pt", out)


def save(checkpoint: Path, out: Path) -> None:
    """Keep what prediction needs; drop paths, dates and everything about the training machine."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=False)
    model = stored["model"]
    args = {
        "task": "detect",
        "mode": "train",
        "imgsz": YOLO_SIDE,
        "model": "yolo11n-demo.yaml",
        "data": "demo",
        "single_cls": False,
    }
    model.yaml["yaml_file"] = "yolo11n-demo.yaml"
    model.args = dict(args)
    kept = {
        "epoch": -1,
        "best_fitness": None,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "model": model.half(),
        "train_args": args,
        "version": stored["version"],
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept, out)
    out.chmod(0o644)
