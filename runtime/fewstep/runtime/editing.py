"""Editing: tokens that stay are those of a picture, which the bundle encodes itself.

A bundle that was exported with ``--encoder`` has the graph :data:`ENCODER`, and its model's
description says ``editable``. The graph turns pictures into what a request could give by itself:
tokens, or latents. An edit's program begins with it, so that encoding and decoding are one plan.

What is kept is a family's own: :meth:`fewstep.runtime.families.Family.region` says it for pixels
that are painted anew, :meth:`fewstep.runtime.families.Family.variation` for a part of all tokens.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array, BufferSpec
from fewstep.runtime.errors import RequestError
from fewstep.runtime.philox_words import philox_words
from fewstep.runtime.program import Run, View

if TYPE_CHECKING:
    from fewstep.runtime.families import ModelInfo

ENCODER = "image_encoder"
"""The graph: ``image [B, 3, H, W]`` float32 in 0 … 1 → ``tokens [B, …]``; and the golden rollout
that runs it."""

ORIGINAL = "original"
"""The input buffer with the pictures."""

_CHANGED = 3  # the last word of Philox's counters, beside those of tokens, noise and orders

Flags = npt.NDArray[np.bool_]


def encoder_shapes(info: ModelInfo, *tokens: int) -> dict[tuple[str, str], tuple[int | str, ...]]:
    """Shapes of the encoder's tensors by graph and tensor, where a model has one.

    Args:
        info: of the model.
        tokens: shape of what an image becomes.
    """
    if not info.editable:
        return {}
    shapes: dict[str, tuple[int, ...]] = {"image": (3, *info.image_size), "tokens": tokens}
    return {(ENCODER, name): ("batch", *shape) for name, shape in shapes.items()}


def editing_described(info: ModelInfo) -> dict[str, str]:
    """What ``fewstep inspect`` shows of it."""
    return {"editing": "has an image encoder"} if info.editable else {}


def encoding(tokens: View) -> Run:
    """The operation that writes the tokens of the pictures in :data:`ORIGINAL`."""
    return Run(ENCODER, {"image": View(ORIGINAL), "tokens": tokens})


def original_buffer(info: ModelInfo, batch: int) -> dict[str, BufferSpec]:
    """The buffer of the pictures, by its name."""
    return {ORIGINAL: BufferSpec((batch, 3, *info.image_size), "float32", "input")}


def checked_image(info: ModelInfo, images: int, image: object) -> Array:
    """Pictures of an edit, float32 ``[B, 3, H, W]``.

    Raises:
        RequestError: the bundle cannot encode them, another shape, or values outside 0 … 1.
    """
    if not info.editable:
        raise RequestError(
            "this bundle has no image encoder, so it cannot edit pictures: export it again with "
            "--encoder"
        )
    shape = [images, 3, *info.image_size]
    try:
        found = np.asarray(image)
    except ValueError:  # rows of different lengths
        found = np.zeros(0, object)
    if found.dtype.kind != "f" or list(found.shape) != shape:
        raise RequestError(
            f"image must be floats {shape} in 0 … 1, got {found.dtype} {list(found.shape)}"
        )
    if not (found >= 0).all() or not (found <= 1).all():  # NaN is neither
        raise RequestError("image must be in 0 … 1, got values outside, or NaN")
    return found.astype(np.float32)


def touched(info: ModelInfo, pixels: Flags, rows: int, columns: int) -> Flags:
    """The cells of a grid over the picture that any of some pixels lies in, if only in part.

    Args:
        info: of the model.
        pixels: ``[B, H, W]``, of the model's image size.
        rows: of the grid.
        columns: of the grid.

    Returns:
        ``[B, rows, columns]``.

    Raises:
        RequestError: another shape or type of ``pixels``.
    """
    if pixels.dtype != np.bool_ or pixels.ndim != 3 or pixels.shape[1:] != info.image_size:
        height, width = info.image_size
        raise RequestError(
            f"pixels to paint anew must be true or false [images, {height}, {width}], got "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    down, across = _overlaps(rows, info.image_size[0]), _overlaps(columns, info.image_size[1])
    counted = down @ pixels.astype(np.float32) @ across.T
    found: Flags = counted > 0
    return found


def _overlaps(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """1 where cell i of so many along a side has a part of pixel j: ``[cells, pixels]``."""
    cell, pixel = np.arange(cells)[:, None], np.arange(pixels)[None]
    begins_before_end = pixel * cells < (cell + 1) * pixels
    ends_after_begin = (pixel + 1) * cells > cell * pixels
    return (begins_before_end & ends_after_begin).astype(np.float32)


def changed(strength: float, tokens: int) -> int:
    """How many of an image's tokens a variation decides anew: one at least.

    Raises:
        RequestError: ``strength`` is not above 0, or above 1.
    """
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise RequestError(f"strength must be above 0 and at most 1, got {strength!r}")
    return max(1, round(strength * tokens))


def drawn(count: int, tokens: int, seeds: npt.NDArray[np.uint64]) -> Flags:
    """``count`` of the tokens of every image, at random by its seed: ``[B, tokens]``."""
    words = philox_words(seeds, np.arange(tokens), 0, _CHANGED)
    found = np.zeros(words.shape, np.bool_)
    np.put_along_axis(found, np.argsort(words, axis=1, kind="stable")[:, :count], True, 1)
    return found
