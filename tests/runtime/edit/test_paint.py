"""``Generator.edit``: what stays of a picture, and what comes of it, for several families.

Covered: tokens that stay, against the encoder's own graph, for any mask; that nothing is seen of
what is painted anew; blending; pictures that grow; variations; steps as callbacks see them; that an
image does not depend on those beside it; and what does not go together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fewstep.runtime.edit.edit import edit_of
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview

_CELL = 2  # pixels of a token's side, in all tiny bundles of 8×8
Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def masked(edit_bundle: Path) -> Iterator[Generator]:
    with Generator.open(edit_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def var(var_bundle: Path) -> Iterator[Generator]:
    with Generator.open(var_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def mar(mar_bundle: Path) -> Iterator[Generator]:
    with Generator.open(mar_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(params=["masked", "var", "mar"])
def each(request: pytest.FixtureRequest) -> Generator:
    """A generator of every family."""
    found: Generator = request.getfixturevalue(request.param)
    return found


def _noise(height: int = 8, width: int = 8, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _region(generator: Generator) -> tuple[Pixels, Bools]:
    """A picture of the bundle's size, and two tokens' cells of it less a pixel."""
    height, width = generator.model.info.image_size
    mask = np.zeros((height, width), np.bool_)
    mask[1:4, 2:5] = True
    return _noise(height, width), mask


def _encoded(bundle: Path, pixels: Pixels, mask: Bools) -> npt.NDArray[Any]:
    """Tokens by the graph alone, of a picture whose masked pixels are the mean of the others."""
    filled = pixels.copy()
    filled[mask] = np.rint(pixels[~mask].mean(0)) if not mask.all() else 128
    session = onnxruntime.InferenceSession(bundle / "image_encoder.onnx")
    image = (filled.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]
    found: npt.NDArray[Any] = session.run(["tokens"], {"image": image})[0][0]
    return found


def _cells(mask: Bools, side: int, share: float = 0) -> Bools:
    """Cells of a grid that are masked by more than a share, by counting points of both grids'
    common multiple."""
    points = mask.repeat(side, 0).repeat(side, 1)
    masked: Bools = points.reshape(side, len(mask), side, len(mask)).mean((1, 3)).ravel() > share
    return masked


_masks = hnp.arrays(np.bool_, (8, 8), elements=st.sampled_from([False, False, False, True]))


@settings(max_examples=25)
@given(mask=_masks.filter(np.any), seed=st.integers(0, 99))
def test_tokens_outside_of_any_mask_stay_those_of_the_encoder(
    masked: Generator, mask: Bools, seed: int
) -> None:
    pixels, anew = _noise(seed=seed), _cells(mask, 4)
    trace = masked.edit(pixels, 2, mask=mask, seed=seed, steps=3).trace
    ids = _encoded(masked.bundle.path, pixels, mask)
    for tokens in (trace.tokens[:, 0], trace.sampled[:, 0]):
        assert (tokens[:, ~anew] == ids[~anew]).all()
    assert (trace.tokens[0, 0, anew] == masked.model.info.mask_token).all()


@settings(max_examples=15)
@given(mask=_masks.filter(np.any), seed=st.integers(0, 99))
def test_tokens_of_scales_outside_of_any_mask_stay_too(
    var: Generator, mask: Bools, seed: int
) -> None:
    pixels = _noise(seed=seed)
    *coarse, last = var.model.info.patch_nums
    anew = np.concatenate([*(_cells(mask, side, 0.5) for side in coarse), _cells(mask, last)])
    ids = _encoded(var.bundle.path, pixels, mask)
    found = var.edit(pixels, 2, mask=mask, seed=seed).trace.ids[0]
    assert (found[~anew] == ids[~anew]).all()


def test_latents_outside_of_the_mask_stay_too(mar: Generator) -> None:
    pixels, mask = _region(mar)
    kept, anew = _encoded(mar.bundle.path, pixels, mask), _cells(mask, mar.model.info.side)
    found = mar.edit(pixels, 2, mask=mask).result.tokens[0]
    assert kept.shape == found.shape and anew.sum() == 2
    np.testing.assert_allclose(found[~anew], kept[~anew], atol=1e-5)


def test_nothing_is_seen_of_what_is_painted_anew(each: Generator) -> None:
    pixels, mask = _region(each)
    other = pixels.copy()
    other[mask] = 255 - other[mask]
    one, two = (each.edit(picture, 2, mask=mask) for picture in (pixels, other))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert len(np.unique(each.edit(pixels, 2, mask=mask, count=8).pixels, axis=0)) > 1


def test_a_mask_may_cover_everything(each: Generator) -> None:
    pixels, mask = _region(each)
    one = each.edit(pixels, 2, mask=np.ones_like(mask))
    two = each.edit(pixels[::-1], 2, mask=np.ones_like(mask))
    np.testing.assert_array_equal(one.pixels, two.pixels)


def test_a_mask_is_the_same_as_a_box_or_a_hole(each: Generator) -> None:
    pixels, mask = _region(each)
    holed = np.dstack([pixels, np.where(mask, 0, 255).astype(np.uint8)])
    one = each.edit(pixels, 2, mask=mask)
    for two in (
        each.edit(pixels, 2, mask=(2, 1, 5, 4)),
        each.edit(Image.fromarray(pixels), 2, mask=Image.fromarray(mask)),
        each.edit(holed, 2),
        each.edit(Image.fromarray(pixels), 2, mask=Image.fromarray(holed)),
    ):
        np.testing.assert_array_equal(one.pixels, two.pixels)


def test_without_blending_the_whole_picture_is_the_decoders(masked: Generator) -> None:
    pixels, mask = _region(masked)
    found = masked.edit(pixels, 2, mask=mask, steps=2)
    decoder = onnxruntime.InferenceSession(masked.bundle.path / "decoder.onnx")
    (image,) = decoder.run(["image"], {"tokens": found.result.tokens})
    expected = np.rint(image.clip(0, 1) * 255).transpose(0, 2, 3, 1)
    assert np.abs(found.pixels - expected).max() <= 1


def test_blending_puts_back_what_is_further_than_a_token_from_the_mask(each: Generator) -> None:
    pixels, mask = _region(each)
    cell = each.model.info.cell[0]
    plain = each.edit(pixels, 2, mask=mask).pixels[0]
    found = each.edit(pixels, 2, mask=mask, blend=True).pixels[0]
    np.testing.assert_array_equal(found[mask], plain[mask])
    rows, columns = np.indices(mask.shape)
    far = np.maximum.reduce([1 - rows, rows - 3, 2 - columns, columns - 4]) > cell
    np.testing.assert_array_equal(found[far], pixels[far])
    assert (found[far] != plain[far]).any()


@settings(max_examples=12)
@given(*[st.integers(0, 9)] * 4)
def test_a_picture_grows_and_keeps_its_own_pixels(
    masked: Generator, left: int, top: int, right: int, bottom: int
) -> None:
    grown = {"left": left, "top": top, "right": right, "bottom": bottom}
    if not any(grown.values()):
        return
    found = masked.edit(_noise(), 2, outpaint=grown, steps=1, count=2)
    assert found.pixels.shape == (2, 8 + top + bottom, 8 + left + right, 3)
    inner = found.pixels[:, top : top + 8, left : left + 8]
    keep = np.ones((8, 8), np.bool_)
    seam = _CELL
    keep[: seam if top else 0] = keep[8 - (seam if bottom else 0) :] = False
    keep[:, : seam if left else 0] = keep[:, 8 - (seam if right else 0) :] = False
    np.testing.assert_array_equal(inner[:, keep], _noise()[None].repeat(2, 0)[:, keep])


def test_every_family_grows_pictures(each: Generator) -> None:
    height, width = each.model.info.image_size
    picture = _noise(3 * height, 2 * width)
    found = each.edit(picture, 2, outpaint={"left": 5, "bottom": 3}, fit="stretch")
    assert found.pixels.shape == (1, height + 3, width + 5, 3)
    assert found.timings_ms["total"] > found.timings_ms["image_encoder"] > 0


def test_a_larger_picture_is_painted_in_windows_where_the_mask_is(masked: Generator) -> None:
    pixels, mask = _noise(20, 30), np.zeros((20, 30), np.bool_)
    mask[6:15, 11:22] = True
    found = masked.edit(pixels, 2, mask=mask, fit="none", steps=1).pixels[0]
    rows, columns = np.indices(mask.shape)
    far = np.maximum.reduce([6 - rows, rows - 14, 11 - columns, columns - 21]) > _CELL
    np.testing.assert_array_equal(found[far], pixels[far])
    assert (found[mask] != pixels[mask]).any(1).mean() > 0.9


def test_a_padded_picture_says_where_it_lies(each: Generator) -> None:
    height, width = each.model.info.image_size
    picture = _noise(height // 2, width)
    mask = np.ones((height // 2, width), np.bool_)
    assert each.edit(picture, 2, mask=mask).box is None
    box = (0, height // 4, width, height - height // 4)
    assert each.edit(picture, 2, mask=mask, fit="pad").box == box
    grown = each.edit(picture, 2, outpaint={"left": 2, "top": 4}, fit="pad")
    assert grown.box == (box[0] + 2, box[1] + 4, box[2] + 2, box[3] + 4)


def test_strength_is_the_part_of_tokens_that_changes(masked: Generator) -> None:
    pixels = _noise()
    ids = _encoded(masked.bundle.path, pixels, np.zeros((8, 8), np.bool_))
    start = masked.edit(pixels, 2, strength=0.25, count=2).trace.tokens[0]
    free = start == masked.model.info.mask_token
    assert free.sum(1).tolist() == [4, 4]
    assert (free[0] != free[1]).any()
    assert (start[~free] == np.broadcast_to(ids, start.shape)[~free]).all()


def test_every_family_makes_variations(each: Generator) -> None:
    pixels, _ = _region(each)
    found = [each.edit(pixels, 2, strength=part).pixels for part in (0.2, 1)]
    assert found[0].shape == found[1].shape == (1, *pixels.shape)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("how", [{"mask": (2, 1, 5, 4)}, {"outpaint": "right:3,top:2"}])
def test_images_do_not_depend_on_those_beside_them(masked: Generator, how: dict[str, Any]) -> None:
    three = masked.edit(_noise(), [1, 2], count=2, seed=[4, 9, 8, 2], **how)
    assert three.labels == ("shoe", "shoe", "bag", "bag")
    alone = masked.edit(_noise(), "bag", seed=8, **how)
    assert np.abs(three.pixels[2].astype(int) - alone.pixels[0]).max() <= 1
    assert (three.seeds.tolist(), alone.seeds.tolist()) == ([4, 9, 8, 2], [8])


@pytest.mark.parametrize("how", [{"mask": (2, 1, 5, 4)}, {"outpaint": "right:6,top:2"}])
def test_callbacks_see_every_step_of_the_whole_picture(
    masked: Generator, how: dict[str, Any]
) -> None:
    seen: list[tuple[int, StepPreview]] = []
    told: list[float] = []
    made = masked.edit(
        _noise(),
        2,
        steps=2,
        callback=lambda step, preview: seen.append((step, preview)),
        progress=lambda _, done: told.append(done),
        **how,
    )
    assert [step for step, *_ in seen] == [*range(len(seen))]
    assert (told == sorted(told), told[-1]) == (True, 1)
    _, last = seen[-1]
    assert not last.undecided.any()
    np.testing.assert_array_equal(last.pixels, made.pixels)
    left = [preview.undecided.mean() for _, preview in seen]
    assert left == sorted(left, reverse=True)
    assert ("window" in last.caption) == ("outpaint" in how)
    assert "step 2 of 2" in last.caption


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "nothing to paint anew"),
        ({"strength": 0}, "strength must be above 0 and at most 1, got 0"),
        ({"strength": True}, "strength must be above 0"),
        ({"strength": "much"}, "got 'much'"),
        ({"strength": float("nan")}, "got nan"),
        ({"strength": 0.5, "mask": (0, 0, 1, 1)}, "leave out the mask or box, or it"),
        ({"strength": 0.5, "outpaint": "left:2"}, "leave out the sides to outpaint, or it"),
        ({"strength": 0.5, "blend": True}, "leave out blending, or it"),
        ({"outpaint": "left:2", "fit": "none"}, "fit none needs a picture of at least 8 × 8"),
        ({"outpaint": "left:40000000"}, "more than 33,554,432: let it grow by less$"),
        ({"outpaint": "up:1"}, "unknown side"),
        ({"mask": (0, 0, 1, 1), "fit": "fill"}, "unknown fit 'fill'"),
        ({"mask": (0, 0, 1, 5)}, "fit crop cuts it off .use pad or stretch"),
        ({"mask": np.ones((8, 8), np.bool_)}, "as large as the image, 20 × 5, got 8 × 8"),
        ({"mask": (9, 0, 11, 5), "best_of": 2}, "unknown setting 'best_of'"),
        ({"mask": (9, 0, 11, 5), "prompt": "bag"}, "prompt is the second argument of edit"),
        ({"mask_image": (9, 0, 11, 5)}, "got arguments of diffusers; here mask_image is mask"),
    ],
)
def test_what_does_not_go_together_is_refused(
    masked: Generator, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        masked.edit(_noise(5, 20), 2, **how)


def test_something_has_to_be_wanted(masked: Generator) -> None:
    with pytest.raises(RequestError, match="give a class.* second argument of edit"):
        masked.edit(_noise(), strength=0.5)


def test_a_thin_mask_counts(masked: Generator) -> None:
    mask = np.zeros((800, 800), np.bool_)
    mask[:, 1] = True
    planned = edit_of(masked.model, _noise(800, 800), mask=mask)
    assert planned.anew is not None
    assert planned.anew[:, 0].all() and not planned.anew[:, 1:].any()


def test_too_large_a_picture_says_what_helps(masked: Generator) -> None:
    image = Image.new("RGB", (6000, 6000))
    with pytest.raises(RequestError, match="33,554,432: use another fit than none$"):
        edit_of(masked.model, image, mask=(0, 0, 1, 1), fit="none")


@pytest.mark.parametrize("how", [{"mask": (2, 1, 5, 4)}, {"strength": 0.5}])
def test_transparency_that_says_nothing_is_noted(masked: Generator, how: dict[str, Any]) -> None:
    holed = np.dstack([_noise(), np.full((8, 8), 255, np.uint8)])
    assert not masked.edit(holed, 2, **how).notes
    holed[2, 3, 3] = 0  # inside of the mask
    assert bool(masked.edit(holed, 2, **how).notes) == ("strength" in how)
    holed[7, 7, 3] = 0
    for blend in (False, "mask" in how):
        (note,) = masked.edit(holed, 2, blend=blend, **how).notes
        assert "transparent parts of the image count as white" in note
    assert not masked.edit(holed, 2).notes


def test_a_bundle_without_encoder_says_what_it_lacks(generator: Generator) -> None:
    with pytest.raises(RequestError, match="export it again with --encoder"):
        generator.edit(_noise(), 2, strength=0.5)


def test_tokens_without_a_place_are_known_before_engines(masked: Generator) -> None:
    """As TiTok's are: 16 in a row, of a square picture."""
    model = replace(masked.model, info=masked.model.info.model_copy(update={"grid": (1, 16)}))
    for how in ({"mask": (0, 0, 1, 1)}, {"outpaint": "left:2"}):
        with pytest.raises(RequestError, match="no place in the picture.* give a strength"):
            edit_of(model, _noise(), **how)
    assert edit_of(model, _noise(), strength=0.5).anew is None


def test_an_edit_is_checked_without_engines(masked: Generator) -> None:
    planned = edit_of(masked.model, _noise(5, 20), outpaint="left:3,bottom:1")
    assert (planned.size, planned.origin) == ((9, 11), (0, 3))
    assert planned.anew is not None
    assert planned.anew.sum() == 9 * 11 - 64
