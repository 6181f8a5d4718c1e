"""`/health` and `/analyze/*` over real HTTP, on real processes with the bundled models."""

import io
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from image_host import ImageHost
from local_stack import Stack
from problems import assert_problem
from scenes import encoded, picture, scene, webp
from visionstack import __version__

KINDS = ("clip", "blip", "yolo", "all")


def upload(api: httpx2.Client, path: str, data: bytes, **form: Any) -> httpx2.Response:
    return api.post(path, files={"file": ("picture", data)}, data={k: v for k, v in form.items() if v is not None})


def ok(response: httpx2.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def test_health_needs_no_key_and_names_every_service(stack: Stack, api: httpx2.Client) -> None:
    response = httpx2.get(f"{stack.url}/health", trust_env=False)
    health = ok(response)
    assert (health["status"], health["version"]) == ("ok", __version__)
    assert set(health["services"]) == {"clip", "blip", "yolo", "qdrant"}
    for name, service in health["services"].items():
        assert service["status"] == "ok"
        assert service["model"]
        if name != "qdrant":
            assert service["device"] == "cpu"
    assert response.headers["x-request-id"]


def test_tags_by_file(api: httpx2.Client) -> None:
    tags = ok(upload(api, "/analyze/clip/file", webp(1), limit=3))
    assert len(tags) == 3
    assert [set(tag) for tag in tags] == [{"tag", "confidence"}] * 3
    confidences = [tag["confidence"] for tag in tags]
    assert confidences == sorted(confidences, reverse=True)
    assert 0 < confidences[-1] <= confidences[0] <= 1
    assert len(ok(upload(api, "/analyze/clip/file", webp(1)))) == 5


def test_the_whole_vocabularys_confidences_are_a_softmax(api: httpx2.Client) -> None:
    tags = ok(upload(api, "/analyze/clip/file", webp(1), limit=100))
    names = [tag["tag"] for tag in tags]
    assert len(set(names)) == len(names)
    assert sum(tag["confidence"] for tag in tags) == pytest.approx(1, abs=1e-3)  # the demo vocabulary is that small


def test_own_tags_replace_the_vocabulary(api: httpx2.Client, image_host: ImageHost) -> None:
    land = scene(1).land
    other = next(scene(number).land for number in range(2, 50) if scene(number).land != land)
    url = image_host.put("/own-tags.webp", webp(1), "image/webp")
    for tags in (
        ok(api.post("/analyze/clip", json={"url": url, "tags": [other, land]})),
        ok(upload(api, "/analyze/clip/file", webp(1), tags=[other, land])),
    ):
        assert [tag["tag"] for tag in tags] == [land, other]
        assert sum(tag["confidence"] for tag in tags) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("variants", [1, 3, 10])
def test_captions(api: httpx2.Client, variants: int) -> None:
    captions = ok(upload(api, "/analyze/blip/file", webp(2), variants=variants, max_length=60))
    assert len(captions) == variants
    assert len({caption["caption"] for caption in captions}) == variants
    scores = [caption["score"] for caption in captions]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    assert captions == ok(upload(api, "/analyze/blip/file", webp(2), variants=variants, max_length=60))


def test_one_caption_is_the_default_and_max_length_shortens_it(api: httpx2.Client) -> None:
    (long,) = ok(upload(api, "/analyze/blip/file", webp(2)))
    (short,) = ok(upload(api, "/analyze/blip/file", webp(2), max_length=5))
    assert len(short["caption"].split()) <= 5 < len(long["caption"].split())


def test_boxes(api: httpx2.Client) -> None:
    low = ok(upload(api, "/analyze/yolo/file", webp(3), conf=0))
    high = ok(upload(api, "/analyze/yolo/file", webp(3), conf=0.5))
    assert len(low) > len(high) >= 1
    assert high == [box for box in low if box["confidence"] >= 0.5]
    for box in low:
        assert set(box) == {"class", "confidence", "bbox"}
        x1, y1, x2, y2 = box["bbox"]
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 400
    confidences = [box["confidence"] for box in low]
    assert confidences == sorted(confidences, reverse=True)
    assert ok(upload(api, "/analyze/yolo/file", webp(3), conf=1)) == []


def test_boxes_are_in_pixels_of_the_picture_as_sent(api: httpx2.Client) -> None:
    """A picture twice or six times as large has the same boxes, twice or six times as large."""
    small = ok(upload(api, "/analyze/yolo/file", encoded(picture(3)), conf=0.5))
    for factor in (2, 6):
        large = ok(
            upload(api, "/analyze/yolo/file", webp_of(picture(3).resize((640 * factor, 400 * factor))), conf=0.5)
        )
        assert [box["class"] for box in large][:1] == [box["class"] for box in small][:1]
        np.testing.assert_allclose(np.array(large[0]["bbox"]) / factor, small[0]["bbox"], atol=6)


def webp_of(image: Image.Image) -> bytes:
    return encoded(image, "WEBP", quality=90)


def test_a_turned_photo_is_seen_upright(api: httpx2.Client) -> None:
    """EXIF orientation 6: stored lying on its side, shown upright."""
    upright = picture(4)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    turned = ok(upload(api, "/analyze/all/file", buffer.getvalue()))
    plain = ok(upload(api, "/analyze/all/file", encoded(upright, "JPEG", quality=95)))
    assert turned["image"] == plain["image"] == {"width": 640, "height": 400, "format": "jpeg"}
    assert turned["clip"][0]["tag"] == plain["clip"][0]["tag"]
    assert turned["yolo"][0]["class"] == plain["yolo"][0]["class"]
    np.testing.assert_allclose(turned["yolo"][0]["bbox"], plain["yolo"][0]["bbox"], atol=4)


def test_everything_at_once(api: httpx2.Client) -> None:
    answer = ok(upload(api, "/analyze/all/file", webp(5, (2000, 1250)), limit=2, conf=0.3))
    assert set(answer) == {"clip", "blip", "yolo", "image", "errors", "timings_ms"}
    assert answer["image"] == {"width": 2000, "height": 1250, "format": "webp"}
    assert answer["errors"] == {}
    assert len(answer["clip"]) == 2
    assert len(answer["blip"]) == 1
    assert set(answer["timings_ms"]) == {"decode", "clip", "blip", "yolo", "total"}
    assert answer["timings_ms"]["total"] >= max(answer["timings_ms"][name] for name in ("clip", "blip", "yolo"))
    # each part is what its own endpoint says
    assert answer["clip"] == ok(upload(api, "/analyze/clip/file", webp(5, (2000, 1250)), limit=2))
    assert answer["yolo"] == ok(upload(api, "/analyze/yolo/file", webp(5, (2000, 1250)), conf=0.3))


@pytest.mark.parametrize(("limit", "variants", "wanted"), [(5, None, 1), (2, 4, 2), (5, 3, 3)])
def test_limit_cuts_captions_but_never_makes_more(
    api: httpx2.Client, limit: int, variants: int | None, wanted: int
) -> None:
    answer = ok(upload(api, "/analyze/all/file", webp(6), limit=limit, variants=variants))
    assert len(answer["blip"]) == wanted
    assert len(answer["clip"]) == limit


@pytest.mark.parametrize("kind", KINDS)
def test_url_and_upload_answer_the_same(api: httpx2.Client, image_host: ImageHost, kind: str) -> None:
    url = image_host.put(f"/{kind}.webp", webp(7), "image/webp")
    by_url = ok(api.post(f"/analyze/{kind}", json={"url": url}))
    by_file = ok(upload(api, f"/analyze/{kind}/file", webp(7)))
    if kind == "all":
        assert by_url["timings_ms"].pop("fetch") >= 0
        by_url.pop("timings_ms")
        by_file.pop("timings_ms")
    assert by_url == by_file


def test_nothing_of_ours_goes_to_the_images_host(api: httpx2.Client, image_host: ImageHost) -> None:
    url = image_host.put("/headers.webp", webp(7), "image/webp")
    ok(api.post("/analyze/clip", json={"url": url}, headers={"Cookie": "a=b", "Referer": "http://x/"}))
    _, headers = next(request for request in reversed(image_host.requests) if request[0] == "/headers.webp")
    assert set(headers) <= {"host", "accept", "accept-encoding", "user-agent", "connection"}


def test_redirects_are_followed_up_to_the_limit(api: httpx2.Client, image_host: ImageHost) -> None:
    image_host.put("/r3.webp", webp(7), "image/webp")
    for step in (2, 1, 0):
        image_host.redirect(f"/r{step}.webp", f"/r{step + 1}.webp", status=(301, 302, 307)[step])
    assert ok(api.post("/analyze/clip", json={"url": image_host.url("/r0.webp")}))
    image_host.redirect("/one-more.webp", "/r0.webp")
    assert_problem(api.post("/analyze/clip", json={"url": image_host.url("/one-more.webp")}), 400, "url_not_allowed")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_every_format_of_the_contract(api: httpx2.Client, image_format: str) -> None:
    answer = ok(upload(api, "/analyze/all/file", encoded(picture(8), image_format)))
    assert answer["image"] == {"width": 640, "height": 400, "format": image_format.lower()}
    assert answer["clip"][0]["tag"]


@pytest.mark.parametrize(
    ("kind", "parameter", "values"),
    [
        ("clip", "limit", (0, 101, "x", 1.5)),
        ("blip", "variants", (0, 11)),
        ("blip", "max_length", (4, 201)),
        ("yolo", "conf", (-0.1, 1.1, "nan")),
        ("all", "limit", (0, 101)),
        ("all", "conf", (2,)),
        ("clip", "limmit", (5,)),
    ],
)
def test_parameters_out_of_range(
    api: httpx2.Client, image_host: ImageHost, kind: str, parameter: str, values: tuple[Any, ...]
) -> None:
    url = image_host.put("/range.webp", webp(7), "image/webp")
    for value in values:
        for response in (
            api.post(f"/analyze/{kind}", json={"url": url, parameter: value}),
            upload(api, f"/analyze/{kind}/file", webp(7), **{parameter: value}),
        ):
            problem = assert_problem(response, 422, "invalid_request")
            assert problem["errors"][0]["field"] == parameter


def test_a_thousand_own_tags(api: httpx2.Client) -> None:
    tags = [f"tag {number}" for number in range(1000)]
    assert len(ok(upload(api, "/analyze/clip/file", webp(1), tags=tags, limit=100))) == 100
    problem = assert_problem(upload(api, "/analyze/clip/file", webp(1), tags=[*tags, "x"]), 422, "invalid_request")
    assert problem["errors"][0]["field"] in ("tags", "body")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/analyze/clip/file", "limit"),
        ("/analyze/clip/file", "tags"),
        ("/analyze/all/file", "conf"),
        ("/vectors/upsert/file", "collection"),
        ("/vectors/upsert/file", "id"),
        ("/vectors/upsert/file", "metadata_json"),
        ("/vectors/search/file", "filter_metadata"),
    ],
)
def test_an_empty_form_field_is_no_default(api: httpx2.Client, path: str, field: str) -> None:
    problem = assert_problem(upload(api, path, webp(1), **{field: ""}), 422, "invalid_request")
    assert problem["errors"][0]["field"] == field
