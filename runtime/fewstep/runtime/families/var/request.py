"""A request to a VAR model, chosen and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.decoders import DECODER, chosen_decoder
from fewstep.runtime.devices import Array
from fewstep.runtime.editing import checked_image
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.settings import FIXED, SAMPLING, VarSettings
from fewstep.runtime.policies import POLICY, policy_named, policy_schedule
from fewstep.runtime.presets import resolved

FREE = -1
"""In the place of a given token: it is decoded."""


@dataclass(frozen=True)
class VarRequest:
    """A checked request for B images.

    ``condition [B]`` int32, ``seeds [B]`` uint64. ``parameters [S, 4]`` float32 of a fixed
    schedule, columns as :data:`SAMPLING`, or ``None`` with the graph of the ``policy`` to follow.
    ``scales``: to decode, S at most. ``guided``: how many of them run both halves of guidance.
    ``given [B, L]`` int32: tokens of all scales that stay, :data:`FREE` where there is none. Or
    ``image [B, 3, H, W]`` float32: a picture whose tokens stay where ``mask [B, L]`` is 0.
    ``decoder``: the graph that draws.
    """

    condition: Array
    seeds: npt.NDArray[np.uint64]
    parameters: npt.NDArray[np.float32] | None
    scales: int
    guided: int
    policy: str | None = None
    reuse_first: bool = False
    given: Array | None = None
    image: Array | None = None
    mask: Array | None = None
    decoder: str = DECODER


def var_request(
    model: VarModel,
    condition: Array,
    seeds: npt.NDArray[np.uint64],
    settings: VarSettings,
    edit: Mapping[str, Array] | None,
) -> VarRequest:
    """A request with these settings; ``edit`` has ``tokens [B, L]``, as ``given`` of the request,
    or ``image`` and ``mask``.

    Raises:
        RequestError: more scales than there are, a list for another number of them, an unknown
            schedule or decoder, settings beside the policy that it decides, guidance without an
            unconditional class, or tokens to keep that are no codes.
    """
    settings = resolved(model.presets, model.defaults, settings)
    policy = policy_of(model, settings)
    scales = _count("scales", settings.scales, 1, model.scales)
    parameters = None if policy else settings.parameters(model.scales)[:scales]
    most = scales
    if parameters is not None:  # scales after the last guided one need no other half
        most = int(np.flatnonzero(parameters[:, 0]).max(initial=-1)) + 1
    if most and not model.can_guide:
        raise RequestError("this bundle has no unconditional class: use guidance 0")
    guided = _count("guided_scales", settings.guided_scales, 0, model.scales)
    return VarRequest(
        condition=condition,
        seeds=seeds,
        parameters=parameters,
        scales=scales,
        guided=min(guided, most),
        policy=policy,
        reuse_first=settings.reuse_first,
        decoder=chosen_decoder(model.decoders, settings.decoder),
        **({} if edit is None else _kept(model, len(condition), edit)),
    )


def policy_of(model: VarModel, settings: VarSettings) -> str | None:
    """The graph of the policy that settings follow, or ``None`` for a fixed schedule.

    Raises:
        RequestError: unknown, or settings beside it that it decides.
    """
    name = settings.schedule
    if name == FIXED:
        return None
    if not model.policies and name.startswith(POLICY):
        raise RequestError(
            f"this bundle has no policy network: leave schedule {name} out, or export with --policy"
        )
    found = policy_named(model.policies, name, model.scales)
    if found is None:
        own = [POLICY, *map(policy_schedule, model.policies)] if model.policies else []
        raise RequestError(choose("schedule", name, [FIXED, *own]))
    if extra := [each for each in SAMPLING if each in settings.model_fields_set]:
        raise RequestError(f"the policy decides {', '.join(extra)}: leave it out")
    return found


def _count(name: str, given: int | None, least: int, most: int) -> int:
    if given is None:
        return most
    if not least <= given <= most:
        raise RequestError(f"{name} must be {least} … {most}, got {given}")
    return given


def _kept(model: VarModel, images: int, edit: Mapping[str, Array]) -> dict[str, Array]:
    """What stays, checked, in the types of its buffers."""
    if not isinstance(edit, Mapping) or edit.keys() not in ({"tokens"}, {"image", "mask"}):
        raise RequestError(
            "tokens to keep are given as `tokens`, those of all scales in turn, or as those of an "
            "`image` where `mask` is 0"
        )
    if "image" in edit:
        mask = (_ids("mask", edit["mask"], model, images) != 0).astype(np.uint8)
        return {"image": checked_image(model, images, edit["image"]), "mask": mask}
    ids = _ids("tokens to keep", edit["tokens"], model, images)
    if ids.min() < FREE or ids.max() >= model.codebook_size:
        raise RequestError(
            f"tokens to keep must be codes, 0 … {model.codebook_size - 1}, or {FREE} where one is "
            "decoded"
        )
    return {"given": ids.astype(np.int32)}


def _ids(name: str, value: object, model: VarModel, images: int) -> Array:
    """A whole number for every token of all scales, ``[B, L]``."""
    shape = [images, model.num_tokens]
    try:
        ids = np.asarray(value)
    except ValueError:  # rows of different lengths
        ids = np.zeros(0, object)
    if ids.dtype.kind not in "biu" or list(ids.shape) != shape:
        raise RequestError(
            f"{name} must be integers {shape}, those of all scales in turn, got "
            f"{ids.dtype} {list(ids.shape)}"
        )
    return ids
