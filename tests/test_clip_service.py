"""The CLIP service on the real loading path: a small model of random weights, compared with open_clip itself."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clip_service.app import create_app
from clip_service.model import ClipModel, Item, Key
from clip_service.settings import ClipSettings
from clip_service.tagging import Vector, rank_tags
from clip_service.vocabulary import parse_vocabulary
from visionstack.device import choose_precision
from visionstack.model_service import PPM_TYPE, ModelLoadError
from visionstack.openvino_runtime import refuse_other_devices
from visionstack.packed import PackedLinear, pack

Pixels = npt.NDArray[np.uint8]

# 77 positions, as in CLIP's own models, so that there is padding to skip
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
# not the defaults, so that a preprocessing of one's own would be seen
PREPROCESSING = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}
TAGS = "castle = fortress\nsea\n[style]\nsurreal\n"


def save_model(folder: Path, *, seed: int, architecture: dict[str, Any] = ARCHITECTURE) -> Path:
    folder.mkdir()
    config = {"model_cfg": architecture, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    network = open_clip.CLIP(**architecture)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", seed=7)


@pytest.fixture(scope="module")
def tags_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tags") / "tags.txt"
    path.write_text(TAGS)
    return path


def make_settings(folder: Path | str, tags_file: Path, cache_dir: Path, **more: Any) -> ClipSettings:
    values = {"precision": "fp32", "threads": 1, "clip_tags_file": tags_file, "cache_dir": cache_dir}
    return ClipSettings.model_validate({"clip_model": str(folder), **values, **more})


def load(settings: ClipSettings) -> ClipModel:
    model = ClipModel(settings)
    model.load()
    return model


@pytest.fixture(scope="module")
def model(folder: Path, tags_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load(make_settings(folder, tags_file, tmp_path_factory.mktemp("cache")))


class Bare:
    """open_clip called directly."""

    def __init__(self, name: str, pretrained: str | None = None) -> None:
        self.network, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        self.network.eval()
        self.tokenize = open_clip.get_tokenizer(name)

    def images(self, pictures: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = [
                self.network.encode_image(self.preprocess(Image.fromarray(pixels))[None], normalize=True)
                for pixels in pictures
            ]
        result: npt.NDArray[np.float32] = torch.cat(rows).numpy()
        return result

    def texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = [self.network.encode_text(self.tokenize([text]), normalize=True) for text in texts]
        result: npt.NDArray[np.float32] = torch.cat(rows).numpy()
        return result


@pytest.fixture(scope="module")
def bare(folder: Path) -> Bare:
    return Bare(f"local-dir:{folder}")


def make_pictures(sizes: Sequence[tuple[int, int]], seed: int = 1) -> list[Pixels]:
    """Smooth random pictures of these (height, width)."""
    random = np.random.default_rng(seed)
    return [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for height, width in sizes
    ]


PICTURES = make_pictures([(40, 60), (60, 40), (32, 32), (1, 1), (7, 300), (400, 31), (480, 640)])
TEXTS = [
    "a castle by the sea",
    "x",
    "",
    "Ein Schloß am Meer \N{CASTLE}",
    "word " * 200,
    "a photo of a very old red car",
]

BOTH: tuple[tuple[Key, Sequence[Item]], ...] = (("image", PICTURES), ("text", TEXTS))


# --- vectors --------------------------------------------------------------------------------------------------------


def test_picture_vectors_are_open_clips(model: ClipModel, bare: Bare) -> None:
    vectors = np.stack(model.predict("image", PICTURES))

    np.testing.assert_allclose(vectors, bare.images(PICTURES), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors.dtype == np.float32


def test_text_vectors_are_open_clips_though_padding_is_skipped(model: ClipModel, bare: Bare) -> None:
    np.testing.assert_allclose(np.stack(model.predict("text", TEXTS)), bare.texts(TEXTS), atol=1e-5)


def test_the_weights_of_the_image_tower_are_laid_out_once(model: ClipModel) -> None:
    if not isinstance(pack(torch.nn.Linear(64, 64)), PackedLinear):
        pytest.skip("oneDNN has no operators for it here")
    layers = [layer for layer in model._model.visual.modules() if isinstance(layer, torch.nn.Linear | PackedLinear)]
    assert len(layers) == 2 * 4  # in each block: queries, keys and values as one, out of the heads, wider, narrower
    assert all(isinstance(layer, PackedLinear) for layer in layers)


def test_a_batch_gives_what_single_calls_give(model: ClipModel) -> None:
    for key, items in (*BOTH, ("tag", ["sea", "an old castle", "car"])):
        singles = [model.predict(key, [item])[0] for item in items]
        np.testing.assert_allclose(np.stack(model.predict(key, items)), np.stack(singles), atol=1e-5)


def test_more_texts_than_one_pass_takes_keep_their_order(model: ClipModel, bare: Bare) -> None:
    texts = [f"{'very ' * (number % 7)}old thing number {number}" for number in range(150)]

    np.testing.assert_allclose(np.stack(model.predict("text", texts)), bare.texts(texts), atol=1e-5)


def test_bf16_stays_close_to_fp32(model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path) -> None:
    rounded = load(make_settings(folder, tags_file, tmp_path, precision="bf16"))

    for key, items in BOTH:
        exact = np.stack(model.predict(key, items))
        cosines = (np.stack(rounded.predict(key, items)) * exact).sum(axis=1)
        assert cosines.min() >= 0.9995
        assert cosines.min() < 1 - 1e-7, "this is not bf16"


def test_the_temperature_is_the_checkpoints(model: ClipModel, bare: Bare) -> None:
    assert model.logit_scale == pytest.approx(bare.network.logit_scale.exp().item(), rel=1e-6)


def test_an_endless_strip_costs_little_and_shows_its_middle(model: ClipModel) -> None:
    strip = np.zeros((1, 4_000_000, 3), np.uint8)  # scaled by its short side it would need more than there is
    strip[:, 2_000_000 - 10 : 2_000_000 + 10] = make_pictures([(1, 20)])[0]
    middle = strip[:, 2_000_000 - 30 : 2_000_000 + 30]

    np.testing.assert_allclose(model.predict("image", [strip]), model.predict("image", [middle]), atol=1e-5)


# --- tags -----------------------------------------------------------------------------------------------------------


def test_a_tags_vector_is_the_mean_of_its_sentences(model: ClipModel, bare: Bare) -> None:
    assert model.tags == ("castle", "sea", "surreal")
    for vector, tag in zip(model.tag_vectors, parse_vocabulary(TAGS), strict=True):
        mean = bare.texts(tag.prompts).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_callers_tag_gets_the_default_sentences(model: ClipModel, bare: Bare) -> None:
    mean = bare.texts(["a photo of Sea", "a picture of Sea", "Sea"]).mean(axis=0)

    [vector] = model.predict("tag", ["Sea"])

    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_array_equal(model.predict("tag", ["Sea", "Sea"]), [vector, vector])


def test_openvino_computes_in_what_it_says_or_not_at_all(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tags_file, tmp_path, runtime="openvino", precision="bf16")
    if choose_precision("auto", torch.device("cpu")) is torch.bfloat16:
        assert ClipModel(settings).load().precision == "bf16"
    else:
        with pytest.raises(ModelLoadError, match="set PRECISION=fp32"):
            load(settings)


def test_openvino_sees_what_torch_sees(folder: Path, model: ClipModel, tags_file: Path, tmp_path: Path) -> None:
    other = ClipModel(make_settings(folder, tags_file, tmp_path, runtime="openvino"))
    assert other.load().runtime == "openvino"
    pictures = [np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8) for seed in range(5)]
    expected, given = (np.array(each.predict("image", pictures)) for each in (model, other))
    assert (expected * given).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(np.array(other.predict("image", pictures[:1]))[0], given[0], atol=1e-5)
    texts = (np.array(each.predict("text", ["a castle"]))[0] for each in (model, other))
    assert np.dot(*texts) > 0.999


def test_openvino_is_refused_where_it_sees_something_else(
    folder: Path, tags_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_service.model._LEAST_COSINE", 1.1)
    with pytest.raises(ModelLoadError, match="set RUNTIME=torch"):
        load(make_settings(folder, tags_file, tmp_path, runtime="openvino"))


def test_openvino_is_for_the_cpu() -> None:
    with pytest.raises(ModelLoadError, match="DEVICE=cpu, or RUNTIME=torch"):
        refuse_other_devices(torch.device("cuda"))


def cache_files(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.iterdir())


def test_the_second_start_reads_the_tags_vectors_from_disk(
    folder: Path, tags_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(folder, tags_file, tmp_path)
    with caplog.at_level("INFO", "clip_service.model"):
        first = load(settings)
        computed = caplog.text.count("computing the vectors")
        second = load(settings)

    assert (computed, caplog.text.count("computing the vectors")) == (1, 1)
    np.testing.assert_array_equal(second.tag_vectors, first.tag_vectors)
    assert len(cache_files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "replaced"])
def test_a_damaged_cache_is_computed_again(
    model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path, damage: str
) -> None:
    settings = make_settings(folder, tags_file, tmp_path)
    load(settings)
    [path] = cache_files(tmp_path)
    intact = path.read_bytes()
    flipped = bytearray(intact)
    flipped[-5] ^= 1
    path.write_bytes(
        {"cut": intact[:-100], "flipped": bytes(flipped), "emptied": b"", "replaced": pickle.dumps(["anything"])}[
            damage
        ]
    )

    assert load(settings).tag_vectors == pytest.approx(model.tag_vectors, abs=1e-5)
    assert cache_files(tmp_path) == [path]
    assert path.read_bytes() == intact


def test_another_vocabulary_model_or_precision_has_another_cache(
    folder: Path, tags_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_tags = tmp_path_factory.mktemp("tags") / "tags.txt"
    other_tags.write_text(TAGS.replace("fortress", "stronghold"))
    other_model = save_model(tmp_path_factory.mktemp("models") / "tiny", seed=8)
    loaded = [
        load(make_settings(folder, tags_file, tmp_path)),
        load(make_settings(folder, other_tags, tmp_path)),
        load(make_settings(other_model, tags_file, tmp_path)),
        load(make_settings(folder, tags_file, tmp_path, precision="bf16")),
    ]

    assert len(cache_files(tmp_path)) == 4
    assert loaded[0].tags == loaded[1].tags
    assert not np.allclose(loaded[0].tag_vectors[0], loaded[1].tag_vectors[0], atol=1e-3)
    np.testing.assert_allclose(loaded[0].tag_vectors[1], loaded[1].tag_vectors[1], atol=1e-5)


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    loaded = load(make_settings(folder, tags_file, blocked / "cache"))

    np.testing.assert_allclose(loaded.tag_vectors, model.tag_vectors, atol=1e-5)
    assert "cannot be kept" in caplog.text


# --- where a model comes from ---------------------------------------------------------------------------------------


def test_a_local_folder_may_be_given_in_every_way(
    folder: Path, tags_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ClipModel
) -> None:
    monkeypatch.chdir(folder.parent)

    for name in ("tiny", "./tiny", f"local-dir:{folder}", "local-dir:tiny", "tiny/open_clip_model.safetensors"):
        loaded = load(make_settings(name, tags_file, tmp_path))
        assert loaded.identity == model.identity
        np.testing.assert_allclose(loaded.predict("text", ["a castle"]), model.predict("text", ["a castle"]), atol=1e-6)


def test_the_identity_is_equal_for_equal_weights_only(
    model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    copy = Path(shutil.copytree(folder, tmp_path / "a" / "tiny"))
    (tmp_path / "b").mkdir()
    other = save_model(tmp_path / "b" / "tiny", seed=8)

    assert model.identity.startswith("tiny-")
    assert load(make_settings(copy, tags_file, tmp_path / "cache")).identity == model.identity
    assert load(make_settings(other, tags_file, tmp_path / "cache")).identity != model.identity


def test_a_known_name_with_a_file_of_weights(folder: Path, tags_file: Path, tmp_path: Path, model: ClipModel) -> None:
    config = tmp_path / "VisionStack-Test.json"
    config.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(config)
    weights = folder / "open_clip_model.safetensors"

    loaded = ClipModel(make_settings("VisionStack/Test", tags_file, tmp_path / "cache", clip_pretrained=str(weights)))
    info = loaded.load()

    assert info.name == "VisionStack-Test"
    assert loaded.identity.startswith("VisionStack-Test/open_clip_model-")
    expected = Bare("VisionStack-Test", str(weights))  # without the folder's preprocessing
    np.testing.assert_allclose(loaded.predict("image", PICTURES), expected.images(PICTURES), atol=1e-5)
    np.testing.assert_allclose(loaded.predict("text", TEXTS), model.predict("text", TEXTS), atol=1e-5)

    with pytest.raises(ModelLoadError, match=r"^CLIP_PRETRAINED=none is neither a file nor known weights"):
        load(make_settings("VisionStack-Test", tags_file, tmp_path / "cache", clip_pretrained="none"))


@pytest.mark.timeout(300)  # a process that imports torch and transformers anew
def test_a_hub_model_downloads_once_and_its_refusals_say_what_to_do(folder: Path) -> None:
    root = Path(__file__).parent.parent
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "common"), str(root / "clip")])

    done = subprocess.run(
        [sys.executable, str(root / "tests" / "clip_hub.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for name in ("gated", "unknown"):
        assert "HUGGINGFACE_TOKEN" in results[name]
        assert "\n" not in results[name]
    assert results["online"][0] == "hf-hub:here/model"
    assert results["hub gone"] == results["cached"] == results["online"]
    assert results["asked again"] == 0, "a hub that hangs would hold the start for minutes"
    assert results["tokens"] == ["", "Bearer hf_secret"]
    assert "open_clip_model.safetensors: 100%" in done.stderr, "the download's progress is not to be seen"


class _Trap:
    """Unpickled, it would end the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (42,)


def test_what_cannot_be_loaded_stops_the_start_with_one_line(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    (tmp_path / "empty").mkdir()
    unarmed = copy("no weights")
    (unarmed / "open_clip_model.safetensors").unlink()
    cut = copy("cut weights")
    os.truncate(cut / "open_clip_model.safetensors", 1000)
    pickled = copy("pickled weights")
    (pickled / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": _Trap()}, pickled / "open_clip_pytorch_model.bin")
    foreign = copy("foreign weights")
    save_file({"weight": torch.zeros(3)}, foreign / "open_clip_model.safetensors")
    two = copy("two weights")
    shutil.copy(two / "open_clip_model.safetensors", two / "other.safetensors")
    greedy = copy("greedy")
    text_cfg = ARCHITECTURE["text_cfg"] | {"tokenizer_kwargs": {"trust_remote_code": True}}
    (greedy / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE | {"text_cfg": text_cfg}}))

    for name, sentence in {
        "ViT-Z-99": "neither a local folder nor a model that open_clip knows",
        str(tmp_path / "empty"): "no open_clip_config.json in the folder",
        str(unarmed): "the folder holds no weights",
        str(cut): "cannot be loaded: ",
        str(pickled): "cannot be loaded: ",
        str(foreign): "cannot be loaded: ",
        str(two / "other.safetensors"): "must be the only weights",
        str(greedy): "wants to run code of its own",
    }.items():
        with pytest.raises(ModelLoadError, match=sentence) as caught:
            load(make_settings(name, tags_file, tmp_path / "cache"))
        assert str(caught.value).startswith("CLIP_MODEL")
        assert "\n" not in str(caught.value)


def test_an_unusable_tags_file_stops_the_start(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^CLIP_TAGS_FILE: .* does not exist"):
        load(make_settings(folder, tmp_path / "none.txt", tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_stops_the_start(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^DEVICE=cuda, but no CUDA device"):
        load(make_settings(folder, tags_file, tmp_path, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path) -> None:
    for precision, least in (("fp32", 0.99999), ("auto", 0.999)):
        other = load(make_settings(folder, tags_file, tmp_path, device="cuda", precision=precision))
        for key, items in BOTH:
            expected = np.stack(model.predict(key, items))
            cosines = (np.stack(other.predict(key, items)) * expected).sum(axis=1)
            assert cosines.min() >= least


# --- the routes -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    settings: ClipSettings, model: ClipModel | None = None
) -> AsyncIterator[tuple[httpx2.AsyncClient, ClipModel]]:
    model = model or ClipModel(settings)
    app = create_app(settings, model)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://clip", timeout=60) as client,
    ):
        with anyio.fail_after(60):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - HTTP is all that tells
                await anyio.sleep(0.01)
        yield client, model


@pytest.fixture
async def service(
    folder: Path, tags_file: Path, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[tuple[httpx2.AsyncClient, ClipModel]]:
    async with serving(make_settings(folder, tags_file, tmp_path)) as running:
        yield running


def as_file(pixels: Pixels, format: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


PICTURE = PICTURES[0]
PNG = as_file(PICTURE, "PNG")
PPM = as_file(PICTURE, "PPM")


def scores(tags: Sequence[str], confidences: Sequence[float]) -> list[dict[str, object]]:
    return [
        {"tag": tag, "confidence": pytest.approx(confidence, abs=1e-5)}
        for tag, confidence in zip(tags, confidences, strict=True)
    ]


@pytest.mark.anyio
async def test_analyze_ranks_the_vocabulary(service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare) -> None:
    client, model = service
    expected = rank_tags(bare.images([PICTURE])[0], model.tags, model.tag_vectors, model.logit_scale, 3)

    for body, content_type in ((PNG, "image/png"), (PPM, PPM_TYPE)):
        response = await client.post("/analyze", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 200
        assert response.json() == scores(*zip(*expected, strict=True))
    limited = await client.post("/analyze", params={"limit": 1}, content=PPM, headers={"Content-Type": PPM_TYPE})
    assert limited.json() == scores([expected[0][0]], [expected[0][1]])


@pytest.mark.anyio
async def test_a_callers_own_tags_come_back_as_sent_each_once(
    service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare
) -> None:
    client, model = service
    tags = ["Dog", "dogs", "dog", "red, green & blue", "dog"]
    vectors = np.stack(model.predict("tag", tags[:4]))
    expected = rank_tags(bare.images([PICTURE])[0], tags[:4], vectors, model.logit_scale, 100)

    in_query = await client.post("/analyze", params={"tags": tags, "limit": 100}, content=PNG)
    in_form = await client.post(
        "/analyze/tags", data={"tags": tags, "limit": "100"}, files={"file": ("p.ppm", PPM, PPM_TYPE)}
    )

    assert in_query.json() == in_form.json() == scores(*zip(*expected, strict=True))
    assert sum(tag["confidence"] for tag in in_form.json()) == pytest.approx(1, abs=1e-6)


@pytest.mark.anyio
async def test_a_thousand_tags_fit_though_the_queue_is_short(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    tags = [f"thing {number} \N{CASTLE}{'x' * 100}" for number in range(1000)]

    async with serving(make_settings(folder, tags_file, tmp_path, max_queue=8)) as (client, _):
        response = await client.post(
            "/analyze/tags", data={"tags": tags, "limit": "100"}, files={"file": ("p.png", PNG, "image/png")}
        )
        too_many = await client.post(
            "/analyze/tags", data={"tags": [*tags, "one more"]}, files={"file": ("p.png", PNG, "image/png")}
        )

    assert response.status_code == 200
    assert len({tag["tag"] for tag in response.json()} & set(tags)) == 100
    assert (too_many.status_code, too_many.json()["code"]) == (422, "invalid_request")


class SlowWithTags(ClipModel):
    """Each tag fits into the time that a caller waits, but not all of them."""

    def predict(self, key: Key, items: Sequence[Item]) -> list[Vector]:
        if key == "tag":
            time.sleep(0.1)
        return super().predict(key, items)


@pytest.mark.anyio
async def test_tags_that_take_too_long_together_are_given_up(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tags_file, tmp_path, max_batch=1)

    async with serving(settings, SlowWithTags(settings)) as (client, _):
        response = await client.post(
            "/analyze",
            params={"tags": [f"thing {number}" for number in range(30)]},
            content=PPM,
            headers={"Content-Type": PPM_TYPE, "X-Timeout-Ms": "1000"},
        )

    assert (response.status_code, response.json()["code"]) == (504, "upstream_timeout")


@pytest.mark.anyio
async def test_embed_gives_the_unit_vector_and_names_its_space(
    service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare
) -> None:
    client, model = service

    picture = (await client.post("/embed", content=PPM, headers={"Content-Type": PPM_TYPE})).json()
    text = (await client.post("/embed/text", json={"text": "  a castle by the sea "})).json()

    assert (picture["model"], picture["dim"]) == (text["model"], text["dim"]) == (model.identity, 32)
    np.testing.assert_allclose(picture["vector"], bare.images([PICTURE])[0], atol=1e-5)
    np.testing.assert_allclose(text["vector"], bare.texts(["a castle by the sea"])[0], atol=1e-5)


@pytest.mark.anyio
async def test_requests_at_once_do_not_mix(service: tuple[httpx2.AsyncClient, ClipModel], bare: Bare) -> None:
    client, _ = service
    pictures = make_pictures([(20 + number, 40) for number in range(24)], seed=3)
    found: dict[int, list[float]] = {}

    async def embed(number: int) -> None:
        body = as_file(pictures[number], "PPM")
        response = await client.post("/embed", content=body, headers={"Content-Type": PPM_TYPE})
        found[number] = response.json()["vector"]

    async with anyio.create_task_group() as tasks:
        for number in range(len(pictures)):
            tasks.start_soon(embed, number)

    np.testing.assert_allclose([found[number] for number in range(24)], bare.images(pictures), atol=1e-5)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "request_", "status", "code"),
    [
        ("/analyze", {"content": b""}, 422, "invalid_image"),
        ("/analyze", {"content": b"no picture"}, 415, "unsupported_media_type"),
        ("/analyze", {"content": PNG, "params": {"limit": 0}}, 422, "invalid_request"),
        ("/analyze", {"content": PNG, "params": {"limit": 101}}, 422, "invalid_request"),
        ("/analyze", {"content": PNG, "params": {"tags": ["ok", " "]}}, 422, "invalid_request"),
        ("/analyze", {"content": PNG, "params": {"tags": ["x" * 201]}}, 422, "invalid_request"),
        ("/analyze/tags", {"files": {"file": ("p.png", PNG)}}, 422, "invalid_request"),
        ("/analyze/tags", {"data": {"tags": ["a"]}}, 422, "invalid_request"),
        ("/analyze/tags", {"data": {"tags": ["a"]}, "files": {"file": ("p", b"")}}, 422, "invalid_image"),
        ("/embed", {"content": PNG[:60]}, 422, "invalid_image"),
        ("/embed/text", {"json": {"text": " "}}, 422, "invalid_request"),
        ("/embed/text", {"json": {"text": "x", "lang": "en"}}, 422, "invalid_request"),
    ],
)
async def test_bad_requests_are_refused_in_the_stacks_shape(
    service: tuple[httpx2.AsyncClient, ClipModel], path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    client, _ = service

    response = await client.post(path, **request_)

    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.anyio
async def test_readyz_names_the_model(service: tuple[httpx2.AsyncClient, ClipModel]) -> None:
    client, _ = service

    state = (await client.get("/readyz")).json()

    assert {name: state[name] for name in ("status", "model", "device", "precision")} == {
        "status": "ok",
        "model": "tiny",
        "device": "cpu",
        "precision": "fp32",
    }
