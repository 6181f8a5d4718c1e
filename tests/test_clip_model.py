"""What the CLIP model sees, on the real loading path, is what open_clip sees; and the tags' vectors, computed once."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_networks import BOTH, PICTURES, TAGS, TEXTS, Bare, load, make_pictures, make_settings, save_model
from clip_networks import bare as bare
from clip_networks import folder as folder
from clip_networks import model as model
from clip_networks import tags_file as tags_file
from clip_service.model import ClipModel
from clip_service.vocabulary import parse_vocabulary
from visionstack.device import choose_precision
from visionstack.model_service import ModelLoadError
from visionstack.openvino_runtime import refuse_other_devices
from visionstack.packed import PackedLinear, pack


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(model: ClipModel, folder: Path, tags_file: Path, tmp_path: Path) -> None:
    for precision, least in (("fp32", 0.99999), ("auto", 0.999)):
        other = load(make_settings(folder, tags_file, tmp_path, device="cuda", precision=precision))
        for key, items in BOTH:
            expected = np.stack(model.predict(key, items))
            cosines = (np.stack(other.predict(key, items)) * expected).sum(axis=1)
            assert cosines.min() >= least
