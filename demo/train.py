"""Retrains every demo model from nothing and writes the model card.

    python demo/train.py [--work FOLDER] [--out demo/models]

Draws the training pictures, trains CLIP and BLIP in two processes and YOLO in a third, moves the results into place,
measures them on unseen pictures and writes README.md. Everything follows from fixed seeds. A work folder that is kept
lets a later run skip the drawing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PASSES = {"sight": 6.5, "yolo": 4.0}
"""How often each training sees its pictures."""
SIGHT_PROCESSES = 2
"""Of one thread each: the threads of a small model mostly wait for each other."""


def note_time(work: Path, name: str, seconds: float) -> None:
    """Remember the processor time of a step for the model card."""
    folder = work / "times"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text(f"{seconds:.0f}\n")


def noted_times(work: Path) -> dict[str, float] | None:
    """What was noted of each step, or None where not all of them were run in this folder."""
    steps = ("drawing", *PASSES, "measuring")
    files = {step: work / "times" / f"{step}.txt" for step in steps}
    if not all(file.exists() for file in files.values()):
        return None
    return {step: float(file.read_text()) for step, file in files.items()}


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def run_sight(rank: int, work: Path, passes: float) -> None:
    """CLIP and BLIP, in a process of its own that is one of `SIGHT_PROCESSES`."""
    import torch
    from torch import distributed

    from render import TRAIN_PICTURES, YOLO_PICTURES, render
    from train_sight import train_sight

    torch.set_num_threads(1)
    began = time.process_time()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # otherwise it looks for this machine's name in the network
    meeting = work / "meeting"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=SIGHT_PROCESSES)
    train_sight(
        render(work, "train", 0, TRAIN_PICTURES, yolo_files=YOLO_PICTURES), work / "models", passes=passes, seed=1
    )
    distributed.destroy_process_group()
    if rank == 0:
        note_time(work, "sight", SIGHT_PROCESSES * (time.process_time() - began))


def run_yolo(work: Path, passes: float) -> None:
    """The detector, in a process of its own."""
    import torch

    from train_yolo import train_yolo

    torch.set_num_threads(1)
    began = time.process_time()
    pictures, others = work / "train-yolo", work / "watch-yolo"
    train_yolo(pictures, others, work / "yolo", work / "models" / "yolo.pt", epochs=max(1, round(passes)))
    note_time(work, "yolo", time.process_time() - began)


def train_all(work: Path, scale: float) -> None:
    """Everything at once; the first that fails ends the run."""
    context = multiprocessing.get_context("spawn")
    (work / "meeting").unlink(missing_ok=True)
    jobs = [
        *(
            context.Process(target=run_sight, args=(rank, work, PASSES["sight"] * scale))
            for rank in range(SIGHT_PROCESSES)
        ),
        context.Process(target=run_yolo, args=(work, PASSES["yolo"] * scale)),
    ]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs) and not any(job.exitcode for job in jobs):
        time.sleep(1)
    if any(job.exitcode for job in jobs):
        for job in jobs:
            job.kill()
        sys.exit("a training failed")


def put_in_place(trained: Path, out: Path) -> None:
    """Swap the new models in one by one, so that a reader never meets half a model."""
    out.mkdir(parents=True, exist_ok=True)
    for fresh in sorted(trained.iterdir()):
        target, staged = out / fresh.name, out / f".{fresh.name}.new"
        if fresh.is_file():
            shutil.copy(fresh, staged)
            staged.replace(target)
            continue
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(fresh, staged)
        old = out / f".{fresh.name}.old"
        if target.exists():
            target.rename(old)
        staged.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="pictures and checkpoints; kept when given")
    parser.add_argument("--out", type=Path, default=HERE / "models", help="the models; card and samples go beside it")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full training")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure what --out holds")
    return parser.parse_args()


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = "1"
    work: Path = options.work or Path(tempfile.mkdtemp(prefix="demo-models-"))
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    # Imported only now, because torch reads the number of threads when it is first imported.
    from card import write_card
    from evaluate import evaluate
    from render import TRAIN_PICTURES, YOLO_PICTURES, render
    from samples import write_samples
    from tags import write_tags

    if not options.measure and not (work / "train.json").exists():
        began = processor_seconds()
        render(work, "train", 0, TRAIN_PICTURES, yolo_files=YOLO_PICTURES)
        # ultralytics insists on a look at other pictures when it ends; few keep that short.
        render(work, "watch", 900_000, 64, yolo_files=64)
        note_time(work, "drawing", processor_seconds() - began)
    if not options.measure:
        shutil.rmtree(work / "models", ignore_errors=True)
        (work / "models").mkdir()
        train_all(work, options.scale)
        put_in_place(work / "models", options.out)
    write_tags(options.out / "tags.txt")
    write_samples(options.out.parent / "pictures")
    began = processor_seconds()
    figures = evaluate(options.out, work)
    note_time(work, "measuring", processor_seconds() - began)
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_card(options.out.parent / "README.md", options.out, figures, noted_times(work))
    if not options.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
