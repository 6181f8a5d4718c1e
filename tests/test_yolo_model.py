"""The detector: ultralytics' own answers, from checkpoints that are read without trust, threads or a network."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from visionstack.model_service import ModelLoadError
from visionstack.schemas import Detection
from yolo_networks import CLASS_NAMES, SIDE, assert_alike, blocks, make_network, write_checkpoint
from yolo_service import network
from yolo_service.detections import suppress_overlaps, to_detections
from yolo_service.model import DetectionTask, YoloModel
from yolo_service.settings import YoloSettings

ROOT = Path(__file__).resolve().parents[1]
YOLO_FOLDER = ROOT / "yolo"
BUNDLED = ROOT / "demo" / "models" / "yolo.pt"

Checkpoints = Callable[[str], Path]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The order of summation depends on the threads, and more of them only wait on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """The checkpoint of a configuration, made on first use."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(config: str) -> Path:
        path = folder / f"{config}.pt"
        return path if path.exists() else write_checkpoint(make_network(config), path)

    return get


def make_model(checkpoint: Path | str, **values: Any) -> YoloModel:
    values = {"precision": "fp32", "device": "cpu", "threads": 1} | values
    return YoloModel(YoloSettings.model_validate({"yolo_model": str(checkpoint)} | values))


@pytest.fixture(scope="module")
def model(checkpoints: Checkpoints) -> YoloModel:
    model = make_model(checkpoints("yolo11n"))
    model.load()
    return model


def detect(model: YoloModel, pixels: Any, conf: float = 0.25) -> list[Detection]:
    return model.predict(model.batch_key(pixels), [DetectionTask(pixels, conf)])[0]


@cache
def reference(checkpoint: Path) -> Any:
    from ultralytics.models import RTDETR, YOLO

    model = (RTDETR if checkpoint.stem == "rtdetr" else YOLO)(checkpoint)
    model.predict(np.zeros((32, 32, 3), np.uint8), device="cpu", verbose=False)
    torch.set_num_threads(1)  # the first call has set more
    return model


def predicted(checkpoint: Path, pixels: Any, conf: float) -> Any:
    """Rows of ultralytics' own answer: x1, y1, x2, y2, confidence, class index."""
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    return reference(checkpoint).predict(bgr, conf=conf, device="cpu", verbose=False)[0].boxes.data.numpy()


def assert_same(found: list[Detection], rows: Any, pixels: Any, names: dict[int, str] = CLASS_NAMES) -> None:
    """`found` is what the rows say, save boxes without area and corners outside the picture."""
    height, width, _ = pixels.shape
    rows[:, :4] = rows[:, :4].clip(0, [width, height, width, height])
    corners = rows[:, :4].round(2)
    rows = rows[(corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])]
    assert len(found) == len(rows)
    np.testing.assert_allclose(np.reshape([d.bbox for d in found], (-1, 4)), rows[:, :4], atol=0.01)
    np.testing.assert_allclose([d.confidence for d in found], rows[:, 4], atol=2e-6)
    assert [d.class_name for d in found] == [names[int(i)] for i in rows[:, 5]]


def bundled_pictures() -> list[Any]:
    paths = sorted((ROOT / "demo" / "pictures").iterdir())
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


# --- the answers --------------------------------------------------------------------------------------------------

SIZES = [(240, 320), (320, 213), (167, 500), (900, 1600), (320, 320), (33, 31), (1, 1), (20, 3000), (3000, 20)]


@pytest.mark.parametrize(("height", "width", "conf"), [*((*size, 0.25) for size in SIZES), (240, 320, 0.001)])
def test_the_answer_is_that_of_predict(
    model: YoloModel, checkpoints: Checkpoints, height: int, width: int, conf: float
) -> None:
    pixels = blocks(height, width)
    expected = predicted(checkpoints("yolo11n"), pixels, conf)
    if min(height, width) > 100:
        assert len(expected) >= 5  # else the comparison says little
    assert_same(detect(model, pixels, conf), expected, pixels)


@pytest.mark.parametrize("config", ["yolo26n", "yolov10n", "yolov8n-seg", "yolo11n-pose", "rtdetr"])
def test_other_kinds_of_network_answer_as_predict_does(checkpoints: Checkpoints, config: str) -> None:
    pixels = blocks(240, 400)
    expected = predicted(checkpoints(config), pixels, 0.2)
    assert len(expected) >= 5
    other = make_model(checkpoints(config))
    other.load()
    assert_same(detect(other, pixels, 0.2), expected, pixels)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_bundled_detector_answers_as_predict_does(runtime: str) -> None:
    bundled = make_model(BUNDLED, runtime=runtime)
    assert bundled.load().runtime == runtime
    names = reference(BUNDLED).names
    count = 0
    for pixels in bundled_pictures():
        expected = predicted(BUNDLED, pixels, 0.25)
        count += len(expected)
        assert_same(detect(bundled, pixels), expected, pixels, names)
    assert count >= 5


def test_a_batch_answers_as_its_pictures_do_singly(model: YoloModel) -> None:
    tasks = [
        DetectionTask(blocks(240, 320, 1), 0.5),
        DetectionTask(blocks(480, 640, 2), 0.1),
        DetectionTask(blocks(235, 320, 3), 0.9),
    ]
    key = model.batch_key(tasks[0].pixels)
    assert {model.batch_key(task.pixels) for task in tasks} == {key}
    singly = [model.predict(key, [task])[0] for task in tasks]
    assert len({len(found) for found in singly}) == 3
    for together, alone in zip(model.predict(key, tasks), singly, strict=True):
        assert_alike(together, alone)


def test_the_confidence_threshold_only_cuts_the_list(model: YoloModel) -> None:
    pixels = blocks(240, 320)
    everything = detect(model, pixels, 0.0)
    assert len(everything) == 300
    confidences = [d.confidence for d in everything]
    assert confidences == sorted(confidences, reverse=True)
    for conf in (0.05, (confidences[100] + confidences[101]) / 2, 0.5, 0.9, 1.0):
        assert detect(model, pixels, conf) == [d for d in everything if d.confidence > conf]


def test_boxes_lie_inside_the_picture(model: YoloModel) -> None:
    for height, width in SIZES:
        for found in detect(model, blocks(height, width, 5), 0.0):
            x1, y1, x2, y2 = found.bbox
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height


def test_a_picture_whose_memory_is_read_only_is_taken(model: YoloModel) -> None:
    pixels = blocks(SIDE, SIDE)
    frozen = np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape)
    assert detect(model, frozen) == detect(model, pixels)


def test_the_input_size_is_the_checkpoints(tmp_path: Path, model: YoloModel) -> None:
    square = blocks(50, 50)
    assert model.batch_key(square) == (SIDE, SIDE)
    assert model.batch_key(blocks(50, 100)) == (SIDE // 2, SIDE)
    network = make_network("yolo11n", finds=False)
    for imgsz, side in ((200, 224), ([64, 96], 96), (None, 640)):
        path = write_checkpoint(network, tmp_path / f"{side}.pt", imgsz=imgsz)
        other = make_model(path)
        other.load()
        assert other.batch_key(square) == (side, side)


def test_what_the_model_says_of_itself(checkpoints: Checkpoints) -> None:
    other = make_model(checkpoints("yolo11n"), max_batch=8)
    info = other.load()
    assert (info.name, info.device, info.precision, info.max_batch) == ("yolo11n.pt", "cpu", "fp32", 1)
    other.warm_up()


@pytest.mark.parametrize("config", ["yolo11n", "yolov8n-seg", "yolo11n-pose", "yolo26n"])
def test_bf16_keeps_boxes_and_confidences_finer_than_bf16(checkpoints: Checkpoints, config: str) -> None:
    exact, reduced = make_model(checkpoints(config)), make_model(checkpoints(config), precision="bf16")
    exact.load()
    assert reduced.load().precision == "bf16"
    pixels = blocks(240, 320)
    found = detect(reduced, pixels, 0.01)
    for numbers in ([d.confidence for d in found], [x for d in found for x in d.bbox]):
        values = torch.tensor([number for number in numbers if 0.1 < number < 0.98 or 1 < number % 32 < 31])
        assert len(values) > 50
        assert (values.to(torch.bfloat16).float() == values).float().mean() < 0.5
    best, counterpart = detect(exact, pixels, 0.01)[0], found[0]
    assert abs(best.confidence - counterpart.confidence) < 0.1


def test_bf16_finds_what_fp32_finds_with_the_bundled_detector() -> None:
    exact, reduced = make_model(BUNDLED), make_model(BUNDLED, precision="bf16")
    exact.load()
    reduced.load()
    shifts, differences = [], []
    for pixels in bundled_pictures():
        found = detect(reduced, pixels, 0.1)
        for one in detect(exact, pixels, 0.25):
            alike = [other for other in found if other.class_name == one.class_name]
            other = min(alike, key=lambda other: abs(np.subtract(other.bbox, one.bbox)).max())
            shifts.append(abs(np.subtract(other.bbox, one.bbox)).max())
            differences.append(abs(other.confidence - one.confidence))
    assert np.median(shifts) < 1
    assert np.median(differences) < 0.01


def test_auto_is_fp32_where_the_hardware_has_bf16_too(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionstack.device._cpu_multiplies_bf16", lambda: True)
    assert make_model(checkpoints("yolo11n"), precision="auto").load().precision == "fp32"


def test_a_network_without_exact_decoding_stays_in_fp32(checkpoints: Checkpoints) -> None:
    assert make_model(checkpoints("rtdetr"), precision="bf16").load().precision == "fp32"


# --- its surroundings ---------------------------------------------------------------------------------------------


def test_openvino_answers_as_torch_does(checkpoints: Checkpoints) -> None:
    path = checkpoints("yolov8n-seg")  # of its output, boxes are only a part
    on_torch, on_openvino = (make_model(path, runtime=runtime) for runtime in ("torch", "openvino"))
    on_torch.load()
    assert on_openvino.load().runtime == "openvino"
    pictures = [blocks(240, 400), blocks(480, 800)]
    for pixels in (*pictures, blocks(320, 213)):
        expected = detect(on_torch, pixels, 0.2)
        assert len(expected) >= 5
        # random weights make much of small differences; the bundled ones answer as predict() does
        assert_alike(detect(on_openvino, pixels, 0.2), expected, pixels=0.5, confidence=2e-3)
    key = on_openvino.batch_key(pictures[0])
    assert key == on_openvino.batch_key(pictures[1])
    together = on_openvino.predict(key, [DetectionTask(pixels, 0.2) for pixels in pictures])
    for found, pixels in zip(together, pictures, strict=True):
        assert_alike(found, detect(on_openvino, pixels, 0.2), pixels=0.5, confidence=2e-3)


def test_openvino_is_refused_where_it_answers_differently(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(network._AGREEMENT, "fp32", (-1.0, -1.0))
    assert "set RUNTIME=torch" in load_error(checkpoints("yolo11n"), runtime="openvino")


def test_rtdetr_stays_with_torch(checkpoints: Checkpoints) -> None:
    assert make_model(checkpoints("rtdetr"), runtime="openvino").load().runtime == "torch"


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_keeps_its_threads(checkpoints: Checkpoints, threads: int) -> None:
    other = make_model(checkpoints("yolo11n"), threads=threads)
    try:
        other.load()
        other.warm_up()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(
        command, cwd=YOLO_FOLDER, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


_WATCHED_RUN = """
import sys
watched = []
def watch(event, args):
    starts_program = event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
    if event.startswith("socket.") or starts_program and "ldconfig" not in str(args):  # ctypes looks libraries up
        watched.append((event, str(args)))
sys.addaudithook(watch)
import numpy as np
from yolo_service.model import DetectionTask, YoloModel
from yolo_service.settings import YoloSettings
model = YoloModel(YoloSettings(yolo_model=sys.argv[1], runtime=sys.argv[2], device="cpu", threads=1))
model.load()
model.warm_up()
assert "torchvision" not in sys.modules  # 160 MB
assert model.predict((320, 320), [DetectionTask(np.zeros((320, 320, 3), np.uint8), 0.0)])[0]
sys.exit(f"{watched}" if watched else 0)
"""


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_loading_and_predicting_touch_no_network_and_write_nothing_at_home(
    checkpoints: Checkpoints, tmp_path: Path, runtime: str
) -> None:
    ended = python(_WATCHED_RUN, str(checkpoints("yolo11n")), runtime, HOME=str(tmp_path))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_no_package_of_ours_shadows_the_clip_that_ultralytics_looks_for() -> None:
    ended = python("import clip")
    assert ended.returncode == 1
    assert "ModuleNotFoundError: No module named 'clip'" in ended.stderr


def test_importing_the_service_imports_neither_torch_nor_ultralytics() -> None:
    ended = python("import sys, yolo_service.app; sys.exit(str({'torch', 'ultralytics'} & set(sys.modules)))")
    assert ended.stderr == "set()\n"


# --- checkpoints that cannot be used ------------------------------------------------------------------------------


def load_error(name: Path | str, **values: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        make_model(name, **values).load()
    message = str(caught.value)
    assert "\n" not in message
    assert f"YOLO_MODEL={name}" in message
    return message


@pytest.mark.parametrize(
    "name", ["no-such-model", "no/such/file.pt", "no/such/yolo11n.pt", "https://a.test/yolo11n.pt"]
)
def test_a_name_that_means_nothing(tmp_path: Path, name: str) -> None:
    assert "neither a file nor the name of a checkpoint" in load_error(name, weights_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["yolo11n.pt", "yolo11n"])
def test_a_published_checkpoint_that_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    message = load_error(name, weights_dir=tmp_path / "weights")
    assert "cannot be downloaded" in message
    assert "put yolo11n.pt there yourself" in message
    assert not list((tmp_path / "weights").iterdir())


def test_a_published_checkpoint_is_taken_from_the_weights_folder(checkpoints: Checkpoints) -> None:
    assert make_model("yolo11n", weights_dir=checkpoints("yolo11n").parent).load().name == "yolo11n"


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "bomb.pt"
    torch.save({"model": make_network("yolo11n", finds=False).half(), "train_args": {"imgsz": Bomb(trace)}}, path)
    assert "was not loaded" in load_error(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it was a live one


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"\0" * 100])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    assert "is damaged" in load_error(path)


def test_a_truncated_file(tmp_path: Path, checkpoints: Checkpoints) -> None:
    path = tmp_path / "truncated.pt"
    path.write_bytes(checkpoints("yolo11n").read_bytes()[:-5000])
    assert "is damaged" in load_error(path)


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    for i, content in enumerate([{"model": {"a": torch.zeros(1)}}, {"weights": torch.zeros(1)}, torch.zeros(3)]):
        path = tmp_path / f"{i}.pt"
        torch.save(content, path)
        load_error(path)


@pytest.mark.parametrize("config", ["yolo11n-cls", "yolo11n-obb"])
def test_a_network_that_finds_no_upright_boxes(checkpoints: Checkpoints, config: str) -> None:
    assert "name a detection model" in load_error(checkpoints(config))


def test_a_network_that_was_fused_to_its_other_head(tmp_path: Path) -> None:
    network = make_network("yolo26n", finds=False).fuse(verbose=False)
    assert "saved after fusing" in load_error(write_checkpoint(network, tmp_path / "fused.pt"))


def test_a_network_for_other_pictures_than_rgb(tmp_path: Path) -> None:
    network = make_network("yolo11n", finds=False)
    network.yaml["channels"] = 1
    assert "1 colour channels" in load_error(write_checkpoint(network, tmp_path / "grey.pt"))


# --- rows to detections -------------------------------------------------------------------------------------------


def rows_of(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, np.float32).reshape(-1, 6)


def test_rows_become_detections_best_first() -> None:
    rows = rows_of((1.234, 2, 30.006, 40.5, 0.5, 1), (0, 0, 10, 10, 0.75, 0), (0, 0, 5, 5, 0.5, 7))
    found = to_detections(rows, CLASS_NAMES, width=100, height=50)
    assert [d.model_dump() for d in found] == [
        {"class": "cat", "confidence": 0.75, "bbox": (0.0, 0.0, 10.0, 10.0)},
        {"class": "dog", "confidence": 0.5, "bbox": (1.23, 2.0, 30.01, 40.5)},
        {"class": "class7", "confidence": 0.5, "bbox": (0.0, 0.0, 5.0, 5.0)},
    ]


def test_boxes_are_clipped_and_those_without_area_dropped() -> None:
    nan = float("nan")
    rows = rows_of(
        (-5, -5, 200, 200, 0.9, 0),
        (100, 10, 130, 20, 0.8, 0),
        (10, 10, 10.001, 20, 0.8, 0),
        (20, 20, 10, 30, 0.8, 0),
        (nan, 0, 10, 10, 0.8, 0),
    )
    found = to_detections(rows, CLASS_NAMES, width=100, height=50)
    assert [d.bbox for d in found] == [(0.0, 0.0, 100.0, 50.0)]
    assert to_detections(rows_of(), CLASS_NAMES, width=100, height=50) == []


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300), limit=st.integers(1, 300))
def test_suppression_keeps_what_torchvision_keeps(seed: int, count: int, limit: int) -> None:
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(seed)
    origins, sizes = rng.integers(0, 40, (count, 2)), rng.integers(0, 30, (count, 2))
    confidences, classes = rng.integers(1, 20, (count, 1)) / 20, rng.integers(0, 3, (count, 1))
    rows = np.hstack([origins, origins + sizes, confidences, classes]).astype(np.float32)
    tensor = torch.from_numpy(rows)
    expected = rows[batched_nms(tensor[:, :4], tensor[:, 4], tensor[:, 5], 0.7).numpy()[:limit]]
    np.testing.assert_array_equal(suppress_overlaps(rows, max_iou=0.7, limit=limit), expected)


@settings(max_examples=200, deadline=None)
@given(
    corners=arrays(np.float32, st.tuples(st.integers(0, 8), st.just(4)), elements=st.floats(width=32)),
    width=st.integers(1, 10_000),
    height=st.integers(1, 10_000),
)
def test_whatever_the_rows_say_boxes_are_boxes_of_the_picture(corners: Any, width: int, height: int) -> None:
    rows = np.hstack([corners, np.full((len(corners), 2), (0.5, 1), np.float32)])
    for found in to_detections(rows, CLASS_NAMES, width=width, height=height):
        x1, y1, x2, y2 = found.bbox
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
