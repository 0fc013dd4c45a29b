"""A request to a masked model: its schedule or policy, chosen and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.decoders import DECODER, chosen_decoder
from fewstep.runtime.devices import Array
from fewstep.runtime.editing import checked_image
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.families.masked.local import LocalSteps, local_steps
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.order import ORDERS, ranks
from fewstep.runtime.families.masked.schedule import MASK_RATIOS, Schedule
from fewstep.runtime.families.masked.settings import CONFIDENCE, RAMPS, MaskedSettings
from fewstep.runtime.policies import EXPORTED_POLICY, POLICY, policy_named
from fewstep.runtime.presets import resolved
from fewstep.runtime.settings import PerStep


@dataclass(frozen=True)
class MaskedRequest:
    """A checked request for B images.

    ``condition``: class ids ``[B]`` int32; text states ``[B, L, D]`` float32, or ids of texts
    ``[B, tokens]`` int32. ``negative [L, D]``: states in the place of the empty text's. ``seeds
    [B]`` uint64. ``parameters [T, 4]`` float32 of a fixed schedule, or ``None`` with the name of
    the ``policy`` to follow. ``guided``: whether any step needs the unconditional half. ``given
    [B, N]`` are ids that stay where ``mask [B, N]`` is 0, or ``image [B, 3, H, W]`` float32 a
    picture whose ids do; without a mask, every token is generated.
    ``order``: of the positions, where it is known before. ``local``: which steps compute their own
    positions alone, if any does. ``decoder``: the graph that draws.
    """

    condition: Array
    seeds: npt.NDArray[np.uint64]
    steps: int
    parameters: npt.NDArray[np.float32] | None
    guided: bool
    policy: str | None = None
    given: Array | None = None
    image: Array | None = None
    mask: Array | None = None
    order: Order | None = None
    local: LocalSteps | None = None
    negative: Array | None = None
    decoder: str = DECODER

    @property
    def of_ids(self) -> bool:
        """Whether texts are given by their ids."""
        return self.condition.ndim == 2

    @property
    def unguided(self) -> tuple[int, ...]:
        """Steps whose guidance is 0, where others have one."""
        if self.parameters is None or not self.guided:
            return ()
        guidance = self.parameters[:, 3 if self.order is None else 0]  # columns of the kernels
        return tuple(np.flatnonzero(guidance == 0).tolist())


@dataclass(frozen=True)
class Order:
    """When positions are decided.

    ``ranks [B, N]``: 0 first, −1 where a token is given. ``decided [T + 1, B]``: how many are
    before every step and after the last.
    """

    ranks: npt.NDArray[np.int32]
    decided: npt.NDArray[np.int32]


def masked_request(
    model: MaskedModel,
    condition: Array,
    seeds: npt.NDArray[np.uint64],
    settings: MaskedSettings,
    edit: Mapping[str, Array] | None,
) -> MaskedRequest:
    """A request with these settings; ``edit`` has ``given`` or ``image``, and ``mask``.

    Raises:
        RequestError: more steps than tokens, an unknown schedule or decoder, lists for another
            number of steps, a ramp beside a policy, guidance without an unconditional condition,
            local steps that the transformer cannot make, or tokens to keep that are no codes.
    """
    settings = resolved(model.presets, model.defaults, settings)
    chosen, steps = check_settings(model, settings), settings.steps
    fixed = chosen if isinstance(chosen, Schedule) else None
    kept = {} if edit is None else _kept(model, len(condition), edit)
    parameters, order, local = None, None, None
    if fixed is not None and settings.order == CONFIDENCE:
        parameters = fixed.parameters(steps, model.num_tokens)
    elif fixed is not None:
        parameters = fixed.ordered(steps, settings.top_k, settings.top_p)
        order = _order(model, fixed, settings, seeds, kept.get("mask"))
        local = _local(model, order, settings)
    return MaskedRequest(
        condition=condition,
        seeds=seeds,
        steps=steps,
        parameters=parameters,
        guided=fixed is None or fixed.guided,
        policy=chosen if isinstance(chosen, str) else None,
        order=order,
        local=local,
        decoder=chosen_decoder(model.decoders, settings.decoder),
        **kept,
    )


def _order(
    model: MaskedModel,
    schedule: Schedule,
    settings: MaskedSettings,
    seeds: npt.NDArray[np.uint64],
    mask: Array | None,
) -> Order:
    given = None if mask is None else mask == 0
    found = ranks(settings.order, model.grid, seeds, given)
    masked = (found >= 0).sum(1)
    return Order(found, schedule.decided(settings.steps, masked, model.num_tokens))


def _local(model: MaskedModel, order: Order, settings: MaskedSettings) -> LocalSteps | None:
    if not settings.local_steps:
        return None
    first, *others = order.decided.T.tolist()
    if any(each != first for each in others):
        raise RequestError(
            "local_steps compute as many positions of every image, so that as many tokens must be "
            "given of each: pass images with other numbers of them in other requests"
        )
    return local_steps(tuple(first), model.num_tokens, settings.local_steps, settings.full_first)


def check_settings(model: MaskedModel, settings: MaskedSettings) -> Schedule | str:
    """The schedule or policy of settings that the model can serve.

    Raises:
        RequestError: as :func:`masked_request`, but for what is kept.
    """
    if not 1 <= settings.steps <= model.num_tokens:
        raise RequestError(
            f"steps must be 1 … {model.num_tokens} (the number of tokens), got {settings.steps}"
        )
    chosen = schedule_of(model, settings)
    if isinstance(chosen, Schedule):
        chosen.check(settings.steps)
    _check_order(model, settings, isinstance(chosen, str))
    if (isinstance(chosen, str) or chosen.guided) and not model.can_guide:
        nothing = "class" if isinstance(model.condition, ClassCondition) else "text"
        raise RequestError(f"this bundle has no unconditional {nothing}: use guidance 0")
    return chosen


def _check_order(model: MaskedModel, settings: MaskedSettings, follows_policy: bool) -> None:
    if settings.order not in ORDERS:
        raise RequestError(choose("order", settings.order, ORDERS))
    known = ", ".join(ORDERS[1:])
    if settings.order != CONFIDENCE:
        if follows_policy:
            raise RequestError(
                "a policy decides how many tokens stay masked, so order must be "
                f"{CONFIDENCE}; use a schedule for {settings.order}"
            )
    elif settings.top_k or settings.top_p < 1:
        raise RequestError(f"top_k and top_p need an order that is known before: {known}")
    elif settings.local_steps:
        raise RequestError(f"local_steps need an order that is known before: {known}")
    if settings.local_steps and not model.cached_blocks:
        raise RequestError(
            "local_steps need a transformer whose keys and values are cached: export the bundle "
            "again with --cached-context, which forms with AdaNAT's transformer have"
        )


def schedule_of(model: MaskedModel, settings: MaskedSettings) -> Schedule | str:
    """The fixed schedule, or the name of the policy network to follow.

    ``policy`` is the newest that was tuned for this number of steps, else the newest for any
    number; ``policy-exported`` is the one whose graph has the name ``policy``.

    Raises:
        RequestError: unknown name, no policy in the bundle, or a ramp given beside the policy.
    """
    name = settings.schedule
    if name in (POLICY, EXPORTED_POLICY) or name in model.policies:
        policy = policy_named(model.policies, name, settings.steps)
        if policy is None:
            known = ", ".join(MASK_RATIOS)
            raise RequestError(f"this bundle has no policy network; use a schedule: {known}")
        if extra := [ramp for ramp in RAMPS if ramp in settings.model_fields_set]:
            raise RequestError(f"the policy decides {', '.join(extra)}: leave it out")
        return policy
    return Schedule(
        _mask_ratio(model, name),
        settings.guidance,
        settings.sampling_temperature,
        settings.masking_temperature,
        settings.softmax_temperature,
        settings.guidance_power,
        model.rules,
    )


def _mask_ratio(model: MaskedModel, name: str) -> str | PerStep:
    """A curve's name, or the ratios that stand in its place."""
    if name in MASK_RATIOS:
        return name
    try:
        return PerStep.of(name.split(","))
    except ValueError as error:
        if not name.strip()[:1].isdigit():
            known_names = dict.fromkeys([*MASK_RATIOS, POLICY, *model.policies])
            raise RequestError(choose("schedule", name, known_names)) from error
        raise RequestError(f"schedule: mask ratios {error}") from error


def _kept(model: MaskedModel, images: int, kept: Mapping[str, Array]) -> dict[str, Array]:
    """What is kept, checked, in the types of its buffers."""
    known = ({"given", "mask"}, {"image", "mask"})
    if not isinstance(kept, Mapping) or kept.keys() not in known:
        raise RequestError("tokens to keep need `mask`, and `given` or `image`")
    mask = (_ids("mask", kept["mask"], model, images) != 0).astype(np.uint8)
    if "image" in kept:
        return {"image": checked_image(model, images, kept["image"]), "mask": mask}
    given = _ids("given", kept["given"], model, images)
    ids = given[mask == 0]
    if ids.size and not (ids.min() >= 0 and ids.max() < model.codebook_size):
        raise RequestError(f"tokens to keep must be codes, 0 … {model.codebook_size - 1}")
    return {"given": given.astype(np.int32), "mask": mask}


def _ids(name: str, value: object, model: MaskedModel, images: int) -> Array:
    """A number for every token, ``[B, N]``."""
    shape = [images, model.num_tokens]
    try:
        found = np.asarray(value)
    except ValueError:  # rows of different lengths
        found = np.zeros(0, object)
    if list(found.shape) != shape:
        raise RequestError(f"tokens to keep: {name} must be {shape}, got {list(found.shape)}")
    return found
