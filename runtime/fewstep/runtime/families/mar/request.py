"""Checking what is asked of a MAR model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.decoders import DECODER, chosen_decoder
from fewstep.runtime.devices import Array
from fewstep.runtime.editing import checked_image
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.mar.iterations import counts, recomputed, refreshes, share
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.families.mar.settings import UNGUIDED, MarSettings
from fewstep.runtime.presets import resolved


@dataclass(frozen=True)
class Given:
    """Tokens that stay, at ``where [B, L]`` (not 0), as many of every image: those of ``tokens
    [B, L, C]`` float32, or of the pictures ``image [B, 3, H, W]`` float32."""

    where: npt.NDArray[np.uint8]
    tokens: Array | None = None
    image: Array | None = None

    @property
    def count(self) -> int:
        """Of an image."""
        return int((self.where[0] != 0).sum())


@dataclass(frozen=True)
class MarRequest:
    """A checked request for B images.

    ``condition [B]`` int32, ``seeds [B]``. ``counts``: tokens that each iteration decides.
    ``parameters [N, 2]``: guidance scale and temperature. ``spacings``: of each iteration's
    timesteps, up to ``largest_timestep``. ``recomputed``: positions that each iteration computes
    again, 0 where it computes all; empty if all do. ``reuse_guidance``: whether the unconditional
    half comes from its difference between these. ``decoder``: the graph that draws.
    """

    condition: Array
    seeds: npt.NDArray[np.uint64]
    counts: tuple[int, ...]
    parameters: npt.NDArray[np.float32]
    spacings: tuple[str, ...]
    largest_timestep: int
    recomputed: tuple[int, ...]
    reuse_guidance: bool
    given: Given | None = None
    decoder: str = DECODER

    @property
    def guided(self) -> bool:
        """Whether both halves are needed."""
        return bool((self.parameters[:, 0] != UNGUIDED).any())


def mar_request(
    model: MarModel,
    condition: Array,
    seeds: npt.NDArray[np.uint64],
    settings: MarSettings,
    edit: Mapping[str, Array] | None = None,
) -> MarRequest:
    """A checked request; arguments as of :meth:`fewstep.runtime.families.Family.request`.

    ``edit``: ``latents [B, c, h, w]``, scaled as the trace has them, or ``image``, and ``given
    [B, side, side]``, true for the tokens that stay: as many of every image. Iterations that are
    not asked for are then no more than tokens to decide.

    Raises:
        RequestError: what the model cannot serve.
    """
    asked, settings = settings, resolved(model.presets, model.defaults, settings)
    given = None if edit is None else _given(model, len(condition), edit)
    given = given if given and given.count else None  # nothing is kept
    free = model.num_tokens - (0 if given is None else given.count)
    iterations = settings.iterations
    if given and "iterations" not in asked.model_fields_set:
        iterations = min(iterations, free)
    if not 1 <= iterations <= free:
        raise RequestError(
            f"iterations must be 1 … {free}, as many as there are tokens to decide, got "
            f"{iterations}"
        )
    if settings.max_timestep is not None and settings.max_timestep < 0:
        raise RequestError(f"max_timestep must be at least 0, got {settings.max_timestep}")
    steps = counts(free, iterations)
    decided = _decided(model.num_tokens, free, steps)
    parameters = settings.parameters(decided)
    if not model.can_guide:
        if "guidance" in settings.model_fields_set and (parameters[:, 0] != UNGUIDED).any():
            raise RequestError("this bundle has no unconditional class: use guidance 1")
        parameters[:, 0] = UNGUIDED
    return MarRequest(
        condition=condition,
        seeds=seeds,
        counts=steps,
        parameters=parameters,
        spacings=settings.spacings(iterations),
        largest_timestep=settings.largest_timestep,
        recomputed=_recomputed(model, settings, steps),
        reuse_guidance=_reuses(settings, parameters),
        given=given,
        decoder=chosen_decoder(model.decoders, settings.decoder),
    )


def _decided(tokens: int, free: int, steps: tuple[int, ...]) -> list[float]:
    """The part of all tokens that is decided after every iteration.

    After the last the official code still counts one token as masked, and guides by that.
    """
    known = tokens - free + np.cumsum(steps)
    return [*(min(each, tokens - 1) / tokens for each in known.tolist())]


def _reuses(settings: MarSettings, parameters: npt.NDArray[np.float32]) -> bool:
    if not settings.reuse_guidance:
        return False
    if settings.refresh is None:
        raise RequestError("reuse_guidance needs refresh: after how many iterations it is renewed")
    return settings.refresh > 1 and bool((parameters[:, 0] != UNGUIDED).any())


def _recomputed(model: MarModel, settings: MarSettings, steps: tuple[int, ...]) -> tuple[int, ...]:
    every, first, iterations = settings.refresh, settings.refresh_first, len(steps)
    if every is not None and every < 1:
        raise RequestError(f"refresh must be at least 1, got {every}")
    if first < 1:
        raise RequestError(f"refresh_first must be at least 1, got {first}")
    parts = settings.parts(iterations)
    if every is None or every == 1:
        return ()
    found = []
    for step, following in enumerate(steps):
        if refreshes(step, first, every):
            found.append(0)
            continue
        part = share(step, iterations) if parts is None else parts[step]
        found.append(recomputed(model.positions, part, steps[step - 1], following))
    return tuple(found) if any(found) else ()


def _given(model: MarModel, images: int, edit: Mapping[str, Array]) -> Given:
    """Tokens that stay, checked."""
    known = ({"latents", "given"}, {"image", "given"})
    if not isinstance(edit, Mapping) or edit.keys() not in known:
        raise RequestError(
            "what is kept is given as `latents` or `image`, and `given` that says which tokens stay"
        )
    where = _where(model, images, edit)
    if "image" in edit:
        return Given(where, image=checked_image(model, images, edit["image"]))
    latents = _array("latents", edit["latents"], (images, *model.latent_shape))
    with np.errstate(all="ignore"):
        numbers = latents.astype(np.float32) if latents.dtype.kind in "fiu" else None
    if numbers is None or not np.isfinite(numbers).all():
        raise RequestError("latents to keep must be finite numbers")
    return Given(where, tokens_of(model, numbers))


def _where(model: MarModel, images: int, edit: Mapping[str, Array]) -> npt.NDArray[np.uint8]:
    """Which tokens stay, ``[B, L]``, checked."""
    where = _array("given", edit["given"], (images, model.side, model.side))
    if where.dtype.kind not in "biu":
        raise RequestError(f"given must be true or false, got {where.dtype}")
    flags: npt.NDArray[np.uint8] = (where != 0).reshape(images, -1).astype(np.uint8)
    kept = sorted({*flags.sum(1).tolist()})
    if len(kept) > 1:
        raise RequestError(
            f"as many tokens of every image have to stay, got {kept[0]} to {kept[-1]}"
        )
    if kept[0] == model.num_tokens:
        raise RequestError("all tokens stay: there is nothing to decide")
    return flags


def _array(name: str, value: Array, shape: tuple[int, ...]) -> Array:
    try:
        found = np.asarray(value)
    except ValueError:  # rows of different lengths
        found = np.zeros(0)
    if found.shape != shape:
        raise RequestError(f"{name} must be {list(shape)}, got {list(found.shape)}")
    return found


def tokens_of(model: MarModel, latents: Array) -> Array:
    """Latents ``[B, c, h, w]`` → tokens ``[B, L, C]``, row by row, as ``patchify`` of the official
    code does."""
    p, side = model.patch_size, model.side
    patches = latents.reshape(-1, model.latent_shape[0], side, p, side, p)
    return patches.transpose(0, 2, 4, 1, 3, 5).reshape(-1, model.num_tokens, model.channels)


def latents_of(model: MarModel, tokens: Array) -> Array:
    """Tokens ``[B, L, C]`` → latents ``[B, c, h, w]``, as ``unpatchify`` of the official code."""
    p, side = model.patch_size, model.side
    patches = tokens.reshape(-1, side, side, model.latent_shape[0], p, p)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(-1, *model.latent_shape)
