"""What a generation returns."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array
from fewstep.runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, repr=False)
class Result:
    """Generated images and how they came about.

    ``images [B, H, W, 3]`` uint8; ``seeds [B]`` uint64; ``trace``: what was decided at every
    step, of the bundle's family; ``timings_ms``: milliseconds per stage (that of each graph,
    ``sampling``, ``other``) and in ``total``, over the whole request. ``notes``: what to know of
    the images, a line each. ``decoder``: the graph that drew them, where requests choose one.
    ``scores [B, N]``: of all candidates of the image, where each is the best of N
    (:mod:`fewstep.runtime.best_of`). ``request``: that was served, of the bundle's family.
    """

    images: npt.NDArray[np.uint8]
    seeds: npt.NDArray[np.uint64]
    trace: Any
    timings_ms: dict[str, float]
    notes: tuple[str, ...] = ()
    decoder: str | None = None
    scores: npt.NDArray[np.float32] | None = None
    request: Any = None

    def __repr__(self) -> str:
        shape, total = list(self.images.shape), self.timings_ms.get("total", 0.0)
        return f"<Result: images {shape} uint8 in {total:.0f} ms; see .images, .seeds, .trace>"

    @property
    def tokens(self) -> Array:
        """What the images were decoded from, ``[B, …]``; for token models ids ``[B, N]`` int32."""
        final: Array = self.trace.final
        return final


_SHOWN = 100  # characters of labels


@dataclass(frozen=True, repr=False)
class Pictures:
    """What calling a generator returns: its :class:`Result`, with Pillow's images.

    ``labels``: what each image is of, a class's name or ``text 0``. ``box``: left, top, right and
    bottom of where an edited picture lies, if there are padded edges around it.
    """

    result: Result
    labels: tuple[str, ...]
    box: tuple[int, int, int, int] | None = None

    @functools.cached_property
    def images(self) -> list[Image]:
        """The images as Pillow has them.

        Raises:
            MissingDependencyError: Pillow is not installed.
        """
        return pillow_images(self.result.images)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The images as ``[B, H, W, 3]`` uint8."""
        return self.result.images

    @property
    def seeds(self) -> npt.NDArray[np.uint64]:
        """``[B]``."""
        return self.result.seeds

    @property
    def trace(self) -> Any:
        """What was decided at every step."""
        return self.result.trace

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds per stage and in ``total``."""
        return self.result.timings_ms

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the images, a line each."""
        return self.result.notes

    def __len__(self) -> int:
        return len(self.result.images)

    def __getitem__(self, index: int) -> Image:
        return self.images[index]

    def __repr__(self) -> str:
        _, height, width, _ = self.pixels.shape
        shown = ", ".join(dict.fromkeys(self.labels))
        return f"<{len(self)} images of {shown[:_SHOWN]}, {height} × {width}; see .images, .pixels>"


def pillow_images(pixels: Iterable[npt.NDArray[np.uint8]]) -> list[Image]:
    """Pillow's images of ``pixels [B, H, W, 3]``.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "Pillow is not installed; install it with: pip install pillow"
        ) from error
    return [Image.fromarray(each) for each in pixels]
