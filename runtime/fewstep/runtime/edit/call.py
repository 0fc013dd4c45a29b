"""``Generator.edit``. What it needs of Pillow is imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.runtime.asked import SECOND, asked, check_names
from fewstep.runtime.condition import Described
from fewstep.runtime.preview import Callback
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import seeds_of
from fewstep.runtime.result import Pictures

if TYPE_CHECKING:
    from fewstep.runtime.generator import Generator


def edit(
    self: Generator,
    image: object,
    wanted: Described | None = None,
    *,
    mask: object = None,
    outpaint: Mapping[str, int] | str | None = None,
    strength: float | None = None,
    count: int = 1,
    seed: int | Sequence[int] = 0,
    fit: str = "crop",
    blend: bool = False,
    progress: Progress = no_progress,
    callback: Callback | None = None,
    **settings: Any,
) -> Pictures:
    """Paint a part of a picture anew, for bundles that were exported with ``--encoder``.

    One of ``mask``, ``outpaint`` and ``strength`` says what; without them it is what is transparent
    of the image. A token is decided anew if any pixel of its cell is to be
    (VAR: on the last scale; on coarser ones if more than half of it is).

    Args:
        image: a Pillow image of any mode, or uint8 ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, of
            any size.
        wanted: what to paint, as of a call: a class or a prompt, or several.
        mask: an image or array of the image's size, painted anew where it is white (an array where
            it is not 0; an image with transparency where that is); or a box (left, top, right,
            bottom) in pixels of the image.
        outpaint: how many pixels the picture grows by, once it is fitted: ``{"left": 64}``, or as
            text ``left:64,top:32``; sides are left, top, right, bottom.
        strength: the part of all tokens that is decided anew, above 0 and at most 1: a variation.
        count: images of each.
        seed: as of :meth:`generate`.
        fit: how the image becomes one of the bundle's size: ``crop`` (its middle), ``pad`` (its
            edges repeated), ``stretch``; or ``none``, for images that are as large or larger, which
            are painted in windows.
        blend: put kept pixels back over the result, with a soft seam of a token's width; otherwise
            the whole picture is the decoder's. Pictures larger than the bundle's always are.
        progress: told after every batch.
        callback: as of a call; of a picture that is painted in windows its steps count on from
            window to window, and previews are of the whole picture.
        settings: as of :meth:`generate`.

    Returns:
        Images as large as the bundle's, and what they grew by. ``box`` says where the picture lies,
        if it was padded. ``trace`` and ``tokens`` are of the last window.

    Raises:
        RequestError: an argument the bundle cannot serve; the bundle has no encoder.
        EngineError: a graph failed, or gave NaN.
        DeviceError: the generator is closed or in use by another thread, or out of memory.
    """
    from fewstep.runtime.edit.edit import edit_of
    from fewstep.runtime.edit.paint import painted

    info = self.model.info
    check_names(info.condition, type(info.defaults), settings, call=True, edit=True)
    condition, labels = asked(info.condition, wanted, count, place=SECOND)
    planned = edit_of(
        self.model,
        image,
        mask=mask,
        outpaint=outpaint,
        strength=strength,
        fit=fit,
        blend=blend,
    )
    every = {**condition, **settings, "seed": seeds_of(seed, len(labels)).tolist()}
    result = painted(self, planned, every, progress=progress, callback=callback)
    return Pictures(result, tuple(labels), planned.box)
