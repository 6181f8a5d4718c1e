"""The blip service on the bundled model: transformers' own captions, batched, different, without loops, over HTTP."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.modeling_blip import BlipVisionModel

from blip_networks import MOST_TOKENS, make_network, write_folder
from blip_service.app import create_app
from blip_service.captions import has_loop
from blip_service.model import BlipModel, CaptionKey
from blip_service.settings import BlipSettings
from visionstack.images import to_ppm
from visionstack.model_service import PPM_TYPE, ModelLoadError, Pixels
from visionstack.schemas import Caption

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "demo" / "models" / "blip"
FILES = sorted((ROOT / "demo" / "pictures").iterdir())[:6]


@pytest.fixture(scope="module", autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_settings(folder: Path | str = MODEL, **values: Any) -> BlipSettings:
    return BlipSettings.model_validate(
        {"blip_model": str(folder), "device": "cpu", "precision": "fp32", "threads": 1, **values}
    )


def load(folder: Path | str = MODEL, **values: Any) -> BlipModel:
    model = BlipModel(make_settings(folder, **values))
    model.load()
    return model


@pytest.fixture(scope="module")
def model() -> BlipModel:
    return load()


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    return [np.asarray(Image.open(file).convert("RGB")) for file in FILES]


@pytest.fixture(scope="module")
def looping_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(make_network(spread=0.3, end_bias=-2.0), tmp_path_factory.mktemp("looping"))


def texts(captions: Sequence[Caption]) -> list[str]:
    return [caption.caption for caption in captions]


Reference = Callable[..., list[tuple[str, float]]]


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Texts and scores as transformers alone has them."""
    processor = BlipProcessor.from_pretrained(MODEL)
    network = BlipForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()

    def captions(pixels: Pixels, **options: Any) -> list[tuple[str, float]]:
        inputs = processor(images=Image.fromarray(pixels), return_tensors="pt")
        answer = network.generate(
            **inputs, do_sample=False, max_new_tokens=50, return_dict_in_generate=True, output_scores=True, **options
        )
        found = processor.batch_decode(answer.sequences, skip_special_tokens=True)
        if "num_beams" in options:
            return list(zip(found, answer.sequences_scores.exp().tolist(), strict=True))
        log_probs = [float(step.log_softmax(-1).max()) for step in answer.scores]
        return [(found[0], math.exp(sum(log_probs) / len(log_probs)))]

    return captions


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/maps")
def test_the_weights_file_does_not_stay_in_memory(looping_folder: Path) -> None:
    model = load(looping_folder)  # in its own precision, in which transformers copies nothing
    assert str(looping_folder) not in Path("/proc/self/maps").read_text()
    del model


@pytest.mark.parametrize("variants", [1, 4])
def test_captions_are_those_of_transformers(
    model: BlipModel, reference: Reference, pictures: list[Pixels], variants: int
) -> None:
    options = {"num_beams": variants, "num_return_sequences": variants} if variants > 1 else {}
    expected = [reference(pixels, **options) for pixels in pictures]
    assert not any(has_loop(text) for captions in expected for text, _ in captions), "the reference should not loop"
    found = model.predict(CaptionKey(variants, 50), pictures)
    assert [texts(captions) for captions in found] == [[text for text, _ in captions] for captions in expected]
    assert [caption.score for captions in found for caption in captions] == pytest.approx(
        [score for captions in expected for _, score in captions], rel=1e-4
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variants", [1, 3])
def test_batched_is_single(pictures: list[Pixels], precision: str, variants: int) -> None:
    model = load(precision=precision)
    key = CaptionKey(variants, 50)
    together = model.predict(key, pictures)
    assert together == [model.predict(key, [pixels])[0] for pixels in pictures]
    assert len({tuple(texts(captions)) for captions in together}) > 1, "the pictures should get different captions"


@pytest.mark.parametrize("max_length", [5, 50])
def test_ten_variants_are_different_and_ordered(model: BlipModel, pictures: list[Pixels], max_length: int) -> None:
    key = CaptionKey(10, max_length)
    found = model.predict(key, pictures)
    for captions in found:
        assert len(set(texts(captions))) == 10
        scores = [caption.score for caption in captions]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in scores)
        assert not any(has_loop(text) for text in texts(captions))
    assert model.predict(key, pictures) == found


def test_max_length_counts_tokens(model: BlipModel, pictures: list[Pixels]) -> None:
    tokenizer = BlipProcessor.from_pretrained(MODEL).tokenizer

    def lengths(max_length: int) -> list[int]:
        found = model.predict(CaptionKey(3, max_length), pictures)
        return [len(tokenizer.tokenize(text)) for captions in found for text in texts(captions)]

    assert max(lengths(5)) == 5
    assert max(lengths(6)) == 6
    assert max(lengths(50)) > 6


@contextmanager
def vision_passes() -> Iterator[list[int]]:
    """How many pictures each pass of a vision tower saw."""
    seen: list[int] = []

    def note(module: torch.nn.Module, _: object, output: Any) -> None:
        if isinstance(module, BlipVisionModel):
            seen.append(len(output.last_hidden_state))

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    yield seen
    hook.remove()


def test_one_vision_pass_for_all_variants_and_pictures(model: BlipModel, pictures: list[Pixels]) -> None:
    with vision_passes() as seen:
        model.predict(CaptionKey(10, 20), pictures[:1])
        model.predict(CaptionKey(2, 20), pictures)
    assert seen == [1, len(pictures)]


@pytest.mark.parametrize("variants", [1, 3, 10])
def test_no_loops_from_a_model_that_loops(looping_folder: Path, pictures: list[Pixels], variants: int) -> None:
    network = BlipForConditionalGeneration.from_pretrained(looping_folder).eval()
    processor = BlipProcessor.from_pretrained(looping_folder)
    inputs = processor(images=Image.fromarray(pictures[0]), return_tensors="pt")
    (plain,) = processor.batch_decode(network.generate(**inputs, max_new_tokens=20), skip_special_tokens=True)
    assert has_loop(plain), "the model should loop"

    model = load(looping_folder)
    key = CaptionKey(variants, 20)
    with vision_passes() as seen:
        found = model.predict(key, pictures)
    assert seen == [len(pictures)]
    for captions in found:
        assert len(set(texts(captions))) == variants
    # Where random weights find no other text with eight times the beams, one with a loop is better than none.
    assert sum(any(has_loop(text) for text in texts(captions)) for captions in found) <= 1
    assert found == [model.predict(key, [pixels])[0] for pixels in pictures]


def test_captions_end_where_the_positions_do(looping_folder: Path, pictures: list[Pixels]) -> None:
    model = load(looping_folder)
    key = CaptionKey(1, 200)
    assert model.predict(key, pictures) == model.predict(CaptionKey(1, MOST_TOKENS), pictures)


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (2, 3)])
def test_odd_pictures(model: BlipModel, shape: tuple[int, int]) -> None:
    (captions,) = model.predict(CaptionKey(2, 10), [np.full((*shape, 3), 200, np.uint8)])
    assert len(captions) == 2


def test_info_names_the_folder_and_not_its_place() -> None:
    info = BlipModel(make_settings()).load()
    assert (info.name, info.device, info.precision) == ("blip", "cpu", "fp32")


def test_warm_up_leaves_no_trace(model: BlipModel, pictures: list[Pixels]) -> None:
    key = CaptionKey(2, 20)
    before = model.predict(key, pictures)
    model.warm_up()
    assert model.predict(key, pictures) == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path / "nothing")
    message = str(caught.value)
    assert message.startswith(f"BLIP_MODEL={tmp_path / 'nothing'} cannot be loaded: ")
    assert "\n" not in message


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^BLIP_MODEL=\S+ cannot be loaded: [^\n]+$"):
        load(tmp_path)


def test_weights_that_are_not_all_there(tmp_path: Path) -> None:
    """transformers would fill up with random weights and go on."""
    network = make_network()
    weights = {name: tensor for name, tensor in network.state_dict().items() if "crossattention" not in name}
    write_folder(network, tmp_path)
    network.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelLoadError, match=r"is no BLIP captioning model: \d+ of the network's weights"):
        load(tmp_path)


def test_a_folder_without_a_vocabulary(tmp_path: Path) -> None:
    write_folder(make_network(), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"^BLIP_MODEL=\S+ cannot be loaded: its tokenizer has no vocabulary$"):
        load(tmp_path)


def test_weights_that_overflow(tmp_path: Path) -> None:
    network = make_network()
    with torch.no_grad():
        network.text_decoder.bert.embeddings.LayerNorm.weight.fill_(math.nan)
    model = load(write_folder(network, tmp_path))
    with pytest.raises(ModelLoadError, match="set PRECISION=fp32"):
        model.warm_up()


def test_the_hub_and_its_absence() -> None:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = str(ROOT / "tests/support/blip_hub.py")
    path = os.pathsep.join(str(ROOT / folder) for folder in ("common", "blip"))
    done = subprocess.run(
        [sys.executable, code, str(MODEL)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert "HUGGINGFACE_TOKEN" in results["gated"]
    assert len(results["online"]) == 2
    assert results["cached"] == results["offline"] == results["online"]
    assert results["asked again"] == 0, "a hub that hangs would hold the start for minutes"
    assert results["tokens"] == ["Bearer hf_secret"]
    assert "hf_secret" not in done.stderr


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    settings = make_settings()
    app = create_app(settings, BlipModel(settings))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://blip", timeout=60) as client,
    ):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - HTTP is all that tells
            await asyncio.sleep(0.05)
        yield client


@pytest.mark.anyio
async def test_over_http(client: httpx2.AsyncClient, model: BlipModel, pictures: list[Pixels]) -> None:
    ppm, headers = to_ppm(pictures[0]), {"Content-Type": PPM_TYPE}
    answer = await client.post("/analyze", content=ppm, headers=headers)
    assert answer.status_code == 200
    assert answer.json() == [caption.model_dump() for caption in model.predict(CaptionKey(1, 50), pictures[:1])[0]]

    params: dict[str, int] = {"variants": 3, "max_length": 8}
    answer = await client.post("/analyze", content=ppm, headers=headers, params=params)
    assert answer.json() == [caption.model_dump() for caption in model.predict(CaptionKey(3, 8), pictures[:1])[0]]

    file = FILES[0].read_bytes()
    answer = await client.post("/analyze", content=file, headers={"Content-Type": "image/webp"}, params=params)
    assert len(answer.json()) == 3

    status = (await client.get("/readyz")).json()
    assert (status["status"], status["model"], status["precision"]) == ("ok", "blip", "fp32")

    for query, field in (
        ("variants=0", "variants"),
        ("variants=11", "variants"),
        ("max_length=4", "max_length"),
        ("max_length=201", "max_length"),
        ("variant=2", "variant"),
    ):
        answer = await client.post(f"/analyze?{query}", content=ppm, headers=headers)
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    answer = await client.post("/analyze", content=b"no picture", headers={"Content-Type": "image/webp"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
