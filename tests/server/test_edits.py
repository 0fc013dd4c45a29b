"""Edits by OpenAI's API and AUTOMATIC1111's: what reaches ``Generator.edit`` of a picture, its mask
and its settings. The generator's is a stand-in here that notes its arguments."""

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
from fewstep.server import a1111_fields, edits


def _client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def _png(size: tuple[int, int] = (8, 8), colour: object = "red", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")  # type: ignore[arg-type]
    return file.getvalue()


Asked = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[tuple[Served, Asked]]:
    """A server whose model edits, and what its generator was asked for."""
    asked: Asked = []

    def edit(self: Generator, image: Any, wanted: Any = None, **given: Any) -> Pictures:
        asked.append({"image": image, "wanted": wanted, **given})
        count, seed = given.pop("count"), given.pop("seed")
        others = ("mask", "outpaint", "strength", "fit", "blend")
        rest = {name: value for name, value in given.items() if name not in others}
        return self([wanted], count=count, seed=seed, **rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Generator, "edit", edit, raising=False)
        patched.setattr(edits, "is_editable", lambda worker: True)
        patched.setattr(a1111_fields, "require_editable", lambda worker: None)
        with serving([opening(tiny_bundle)]) as served:
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
    assert one["image"].getpixel((0, 0)) == (255, 0, 0) and one["wanted"] == 2
    painted = np.asarray(one["mask"])
    assert set(np.unique(painted)) == {0, 255}
    assert np.array_equal(np.argwhere(painted).min(0), [1, 2]) and (painted > 0).sum() == 9
    assert (one["fit"], one["blend"], one["outpaint"]) == ("pad", True, {"left": 4, "top": 2})
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
        ({"image": _png()}, {"image_url": "file:///etc/passwd"}, "image_url"),
    ],
)
def test_bad_edits_are_told_by_their_field(
    editing: tuple[Served, Asked], files: dict[str, bytes], fields: dict[str, str], param: str
) -> None:
    served, asked = editing
    sent = {name: (f"{name}.png", data, "image/png") for name, data in files.items()}
    form = {"prompt": "0", **fields}
    answer = served.client.post("/v1/images/edits", data=form, files=sent)
    assert answer.status_code == 400 and not asked
    assert answer.json()["error"]["param"] == param


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
    assert (one["strength"], one["fit"], one["wanted"]) == (0.4, "crop", 3)
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
    painted = np.asarray(asked[0]["mask"].convert("L")) > 0
    assert painted[:, :4].all() != bool(inverted) and painted[:, 4:].all() == bool(inverted)
    assert "strength" not in asked[0] and asked[0]["fit"] == "stretch"


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
        {"init_images": [_base64(_png())], "resize_mode": 9},
    ],
)
def test_bad_pictures_are_told(editing: tuple[Served, Asked], fields: dict[str, Any]) -> None:
    served, asked = editing
    answer = served.post("/sdapi/v1/img2img", prompt="0", **fields)
    assert answer.status_code == 400 and answer.json()["detail"] and not asked
