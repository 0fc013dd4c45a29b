"""What is to become of a picture, checked without engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.runtime.edit.fit import Fit, Pixels, fit_of
from fewstep.runtime.edit.given import Bools, Box, Picture, mask_of, picture_of
from fewstep.runtime.edit.windows import MOST_PIXELS, growth_of
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import Model, family_of


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of a picture.

    ``pixels [H, W, 3]``: the picture, fitted and grown; what it grew by repeats its edges. ``anew
    [H, W]``: what is painted anew; without it a ``strength`` of all tokens is. ``blend``: whether
    what is kept is put back over the result. ``growth``: by side, if the picture grew. ``box``:
    where it lies, if there are padded edges around it. ``notes``: what to know of it.
    """

    pixels: Pixels
    anew: Bools | None
    strength: float | None
    blend: bool
    growth: dict[str, int] | None = None
    box: Box | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        height, width, _ = self.pixels.shape
        return height, width

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column where the picture begins."""
        return (0, 0) if self.growth is None else (self.growth["top"], self.growth["left"])


def edit_of(
    model: Model,
    image: object,
    *,
    mask: object = None,
    outpaint: Mapping[str, Any] | str | None = None,
    strength: float | None = None,
    fit: str = "crop",
    blend: bool = False,
) -> Edit:
    """An edit that a model can make; arguments as of
    :meth:`Generator.edit <fewstep.runtime.generator.Generator.edit>`.

    Raises:
        RequestError: a bundle that reads no pictures, a picture or mask that cannot be used, or
            arguments that do not go together.
    """
    _check_model(model)
    picture = picture_of(image)
    region = _region(picture, mask, strength)
    if region is None and outpaint is None and strength is None:
        raise RequestError(
            "nothing to paint anew: give a mask, a box, sides to outpaint or a strength; or an "
            "image with transparency"
        )
    if strength is not None:
        _check_strength(strength, mask, outpaint, blend)
    fitted = fit_of(fit, picture.size, model.info.image_size)
    pixels, anew = fitted.image(picture.rgb), _fitted(region, fitted)
    growth = None if outpaint is None else growth_of(outpaint)
    left, top, right, bottom = (0, 0, 0, 0) if growth is None else growth.values()
    height, width = fitted.size
    _check_size(
        (height + top + bottom, width + left + right),
        model.info.image_size,
        strength,
        fit=fit,
        grows=growth is not None,
    )
    if growth is not None:
        room = ((top, bottom), (left, right))
        anew = np.zeros(fitted.size, np.bool_) if anew is None else anew
        anew = np.pad(anew, room, constant_values=True)
        pixels = np.pad(pixels, (*room, (0, 0)), "edge")
    if anew is not None:  # whether tokens have a place in the picture
        family_of(model.info.kind).region(model, np.ones((1, *model.info.image_size), np.bool_))
    x0, y0, x1, y1 = fitted.target
    box = (x0 + left, y0 + top, x1 + left, y1 + top) if fitted.padded else None
    return Edit(pixels, anew, strength, blend, growth, box, _notes(picture, region))


def _check_model(model: Model) -> None:
    if not model.info.editable:
        raise RequestError(
            "this bundle generates images but cannot read any: export it again with --encoder to "
            "edit pictures"
        )


def _region(picture: Picture, mask: object, strength: float | None) -> Bools | None:
    """What of the picture itself is painted anew."""
    if mask is not None:
        return mask_of(mask, picture.size)
    return None if strength is not None else picture.transparent


def _notes(picture: Picture, region: Bools | None) -> tuple[str, ...]:
    """That transparency does not say what is painted anew, where something else does."""
    if picture.transparent is None:
        return ()
    left = picture.transparent if region is None else picture.transparent & ~region
    if not left.any():
        return ()
    what = "the strength says" if region is None else "the mask or box says"
    return (f"{what} what is painted anew: transparent parts of the image count as white",)


def _check_strength(strength: object, mask: object, outpaint: object, blend: bool) -> None:
    is_number = isinstance(strength, (int, float, np.integer, np.floating))
    if not is_number or isinstance(strength, bool) or not 0 < strength <= 1:  # type: ignore[operator]
        raise RequestError(f"strength must be above 0 and at most 1, got {strength!r}")
    others = (
        ("the mask or box", mask is not None),
        ("the sides to outpaint", outpaint is not None),
        ("blending", blend),
    )
    if given := [name for name, there in others if there]:
        raise RequestError(
            f"strength changes tokens all over the picture: leave out {' and '.join(given)}, or it"
        )


def _fitted(region: Bools | None, fitted: Fit) -> Bools | None:
    """The region in the fitted picture, of which something has to be left."""
    if region is None:
        return None
    found = fitted.mask(region)
    if not found.any():
        raise RequestError(
            "nothing is left of what is to be painted anew: fit crop cuts it off (use pad or "
            "stretch)"
        )
    return found


def _check_size(
    size: tuple[int, int],
    window: tuple[int, int],
    strength: float | None,
    *,
    fit: str,
    grows: bool,
) -> None:
    """Refuse a picture that no window covers, or that is too large."""
    height, width = size
    ways = ["let it grow by less"] if grows else []
    ways += ["use another fit than none"] if fit == "none" else []
    if height * width > MOST_PIXELS:
        raise RequestError(
            f"the picture would have {width:,} × {height:,} pixels, more than {MOST_PIXELS:,}: "
            f"{' or '.join(ways)}"
        )
    if height < window[0] or width < window[1]:
        raise RequestError(
            f"fit none needs a picture of at least {window[1]} × {window[0]}, got {width} × "
            f"{height}: use crop, pad or stretch"
        )
    if strength is not None and (height, width) != window:
        raise RequestError(
            f"strength goes with a picture of {window[1]} × {window[0]}, got {width} × {height}: "
            "use another fit than none"
        )
