"""Edits by OpenAI's API and AUTOMATIC1111's: what reaches ``Generator.edit`` of a picture, its mask
and its settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from tests.serving import Served, opening, serving

from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Pictures
from fewstep.server import openai_api


def _client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def _png(size: tuple[int, int] = (8, 8), colour: object = "red", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")  # type: ignore[arg-type]
    return file.getvalue()


def _jpeg(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has so many."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "jpeg", progressive=True)
    data = file.getvalue()[:-2]
    last = data[data.rindex(b"\xff\xda") :]
    return data + last * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


_EDITS = "/v1/images/edits"
Asked = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(edit_bundle: Path) -> Iterator[tuple[Served, Asked]]:
    """A server whose model edits, and what its generator was asked for."""
    asked: Asked = []
    edit = Generator.edit

    def noted(self: Generator, image: Any, wanted: Any = None, **given: Any) -> Pictures:
        asked.append({"image": image, "wanted": wanted, **given})
        return edit(self, image, wanted, **given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Generator, "edit", noted)
        with serving([opening(edit_bundle)]) as served:
            yield served, asked


@pytest.fixture
def editing(server: tuple[Served, Asked]) -> tuple[Served, Asked]:
    """The same, asked for nothing yet."""
    server[1].clear()
    return server


def test_an_edit_has_its_picture_its_mask_and_its_settings(editing: tuple[Served, Asked]) -> None:
    served, asked = editing
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (2, 1, 5, 4))
    file = io.BytesIO()
    mask.save(file, "png")
    answer = _client(served).images.edit(
        image=("a.png", _png(), "image/png"),
        mask=("m.png", file.getvalue(), "image/png"),
        prompt="bag",
        n=2,
        extra_body={
            "seed": 3,
            "steps": 4,
            "fit": "pad",
            "blend": True,
            "outpaint": "left:4, top:2",
        },
    )
    assert answer.data is not None and len(answer.data) == 2
    (one,) = asked
    assert np.array_equal(one["image"], np.full((8, 8, 3), (255, 0, 0))) and one["wanted"] == 2
    assert np.array_equal(np.argwhere(one["mask"]).min(0), [1, 2]) and one["mask"].sum() == 9
    assert one["outpaint"] == {"left": 4, "top": 2, "right": 0, "bottom": 0} and one["blend"]
    assert (one["count"], one["seed"], one["steps"]) == (2, 3, 4)


def test_an_edit_streams_with_its_own_events(editing: tuple[Served, Asked]) -> None:
    served, asked = editing
    stream = _client(served).images.edit(
        image=[("a.png", _png(), "image/png")],
        prompt="0",
        stream=True,
        partial_images=2,
        extra_body={"strength": 0.5},
    )
    kinds = [each.type for each in stream]
    assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert asked[0]["strength"] == 0.5


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ({"mask": _png()}, {}, "image"),
        ({"image": b"no picture"}, {}, "image"),
        ({"image": _png()[:45]}, {}, "image"),
        ({"image": _png((5_000, 5_000), 1, "1")}, {}, "image"),
        ({"image": _png(), "mask": b"?"}, {}, "mask"),
        ({"image": _png(), "other": _png()}, {}, "other"),
        ({"image": _png()}, {"strength": "2"}, "strength"),
        ({"image": _png()}, {"strength": "nan"}, "strength"),
        ({"image": _png()}, {"fit": "squeeze"}, "fit"),
        ({"image": _png()}, {"outpaint": "left"}, "outpaint"),
        ({"image": _png()}, {"outpaint": "left:99999"}, "outpaint"),
        ({"image": _png()}, {"blend": "maybe"}, "blend"),
        ({"image": _png()}, {"outpaint": f"left:{'9' * 5_000}"}, "outpaint"),
        ({"image": _png()}, {"box": "1,2,3"}, "box"),
        ({"image": _png(), "mask": _png((8, 8), "white")}, {"box": "1,2,3,4"}, "box"),
        ({"image": _png()}, {"mask": "a text"}, "mask"),
        ({"image": _png(), "mask": _png((8, 9), "white")}, {}, "mask"),
        ({"image": _png(), "mask": _png((8, 8), "black")}, {}, "mask"),
        ({"image": _png((4_000, 4_000), 1, "1")}, {"box": "0,0,9,9", "fit": "none", "n": "2"}, "n"),
        ({"image": _jpeg(40)}, {"strength": "0.5"}, "image"),
        ({"image": _png()}, {"strength": "0.5", "image_url": "file:///etc/passwd"}, "image_url"),
    ],
)
def test_bad_edits_are_told_by_their_field(
    editing: tuple[Served, Asked], files: dict[str, bytes], fields: dict[str, str], param: str
) -> None:
    served, asked = editing
    sent = {name: (f"{name}.png", data, "image/png") for name, data in files.items()}
    form = {"prompt": "0", **fields}
    answer = served.client.post(_EDITS, data=form, files=sent)
    assert answer.status_code == 400 and not asked
    assert answer.json()["error"]["param"] == param


def _edited(served: Served, files: dict[str, bytes], **fields: str) -> dict[str, Any]:
    sent = {name: (name, data) for name, data in files.items()}
    answer = served.client.post(_EDITS, data={"prompt": "0", "seed": "3", **fields}, files=sent)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((8, 8), {"outpaint": "left:4,top:2"}),
        ((9, 13), {"box": (1, 2, 6, 9), "fit": "pad", "blend": True}),
        ((19, 13), {"box": (1, 2, 6, 9), "outpaint": "right:5", "fit": "none"}),
        ((10, 30), {"box": (2, 12, 7, 16), "outpaint": "bottom:3", "fit": "crop"}),
        ((10, 30), {"strength": 0.5, "fit": "stretch"}),
    ],
)
def test_pictures_that_are_fitted_before_they_wait_become_what_the_generator_makes(
    editing: tuple[Served, Asked], edit_bundle: Path, size: tuple[int, int], options: dict[str, Any]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.save(file, "png")
    fields = {name: str(value).strip("()").lower() for name, value in options.items()}
    answer = _edited(editing[0], {"image": file.getvalue()}, n="2", **fields)
    mask = {"mask": options["box"]} if "box" in options else {}
    rest = {name: value for name, value in options.items() if name != "box"}
    with Generator.open(edit_bundle, threads=1) as generator:
        made = generator.edit(picture, 0, count=2, seed=3, **mask, **rest)
    for each, image in zip(answer["data"], made.pixels, strict=True):
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))))
        assert np.array_equal(found, image)
    assert answer["fewstep"].get("box") == (made.box and list(made.box))


def test_an_opaque_mask_says_it_by_its_brightness(editing: tuple[Served, Asked]) -> None:
    served, asked = editing
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    mask.paste((255, 255, 255, 255), (2, 1, 5, 4))
    file = io.BytesIO()
    mask.save(file, "png")
    _edited(served, {"image": _png(), "mask": file.getvalue()})
    assert asked[0]["mask"].sum() == 9


def test_usual_progressive_pictures_are_taken(editing: tuple[Served, Asked]) -> None:
    _edited(editing[0], {"image": _jpeg(0)}, strength="0.5")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strenght": "0.5"}, "did you mean 'strength'"),
        ({}, "nothing to paint anew"),
        ({"strength": "0.5", "blend": "true"}, "leave out blend"),
    ],
)
def test_what_is_wrong_with_an_edit_is_told(
    editing: tuple[Served, Asked], fields: dict[str, str], said: str
) -> None:
    sent, form = {"image": ("a", _png())}, {"prompt": "0", **fields}
    if "strenght" in fields:
        form["box"] = "0,0,4,4"
    answer = editing[0].client.post(_EDITS, data=form, files=sent)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"].lower()


def test_one_picture_is_taken(editing: tuple[Served, Asked]) -> None:
    sent = [("image[]", ("a", _png())), ("image[]", ("b", _png()))]
    answer = editing[0].client.post(_EDITS, data={"prompt": "0"}, files=sent)
    error = answer.json()["error"]
    assert error["param"] == "image" and "one picture" in error["message"]


@pytest.mark.parametrize("shape", [(4, 4), (128, 128), (129, 300), (2304, 1)])
def test_what_is_undecided_is_sent_by_few_cells(shape: tuple[int, int]) -> None:
    undecided = np.random.default_rng(0).random(shape) < 0.001
    undecided[-1, -1] = True
    found = openai_api._thinned(undecided)
    assert max(found.shape) <= 128 and found[-1, -1] and found.mean() >= undecided.mean()
    assert found is undecided or max(shape) > 128


# AUTOMATIC1111's


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_img2img_varies_a_picture(editing: tuple[Served, Asked]) -> None:
    served, asked = editing
    answer = served.post(
        "/sdapi/v1/img2img",
        prompt="coat",
        init_images=[f"data:image/png;base64,{_base64(_png())}"],
        denoising_strength=0.4,
        resize_mode=1,
        seed=7,
        batch_size=2,
        inpainting_fill=1,
    )
    assert answer.status_code == 200 and len(answer.json()["images"]) == 2
    (one,) = asked
    assert (one["strength"], one["wanted"]) == (0.4, 3)
    assert (one["seed"], one["count"]) == (7, 2) and "mask" not in one
    assert "init_images" not in answer.json()["parameters"]


@pytest.mark.parametrize("inverted", [0, 1])
def test_img2img_paints_where_its_mask_is_white(
    editing: tuple[Served, Asked], inverted: int
) -> None:
    served, asked = editing
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    file = io.BytesIO()
    mask.save(file, "png")
    served.post(
        "/sdapi/v1/img2img",
        prompt="0",
        init_images=[_base64(_png())],
        mask=_base64(file.getvalue()),
        inpainting_mask_invert=inverted,
    )
    painted = asked[0]["mask"]
    assert painted[:, :4].all() != bool(inverted) and painted[:, 4:].all() == bool(inverted)
    assert "strength" not in asked[0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"init_images": []},
        {"init_images": ["http://127.0.0.1/a.png"]},
        {"init_images": ["file:///etc/passwd"]},
        {"init_images": ["/etc/passwd"]},
        {"init_images": [3]},
        {"init_images": [_base64(_png())], "mask": "?"},
        {"init_images": [_base64(_png())], "denoising_strength": 3},
        {"init_images": [_base64(_png())], "denoising_strength": 10**400},
        {"init_images": [_base64(_png())], "mask": _base64(_png((8, 8), "black"))},
        {"init_images": [_base64(_png())], "resize_mode": 9},
    ],
)
def test_bad_pictures_are_told(editing: tuple[Served, Asked], fields: dict[str, Any]) -> None:
    served, asked = editing
    answer = served.post("/sdapi/v1/img2img", prompt="0", **fields)
    assert answer.status_code == 400 and answer.json()["detail"] and not asked
