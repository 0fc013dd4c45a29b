"""The masked family: requests, programs and what becomes of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.decoders import DECODER, decoder_graph, with_decoder_rollouts
from fewstep.runtime.devices import Array
from fewstep.runtime.editing import ORIGINAL, changed, drawn, touched
from fewstep.runtime.errors import BundleError, RequestError
from fewstep.runtime.families import Family, Model, Preview
from fewstep.runtime.families.masked.local import Group, LocalSteps, places
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.order import ORDERS
from fewstep.runtime.families.masked.policies import MaskedPolicies
from fewstep.runtime.families.masked.program import DECISIONS, MaskedKey, masked_program
from fewstep.runtime.families.masked.request import MaskedRequest, masked_request, schedule_of
from fewstep.runtime.families.masked.schedule import MASK_RATIOS
from fewstep.runtime.families.masked.settings import CONFIDENCE, MaskedSettings
from fewstep.runtime.policies import POLICY, policy_schedule
from fewstep.runtime.presets import resolved
from fewstep.runtime.program import Program
from fewstep.runtime.settings import settings_of

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle

PARAMETERS = ("mask_ratio", "masking_temperature", "sampling_temperature", "guidance")
PARAMETERS_IN_ORDER = ("guidance", "top_k", "top_p", "sampling_temperature")
"""Columns of the parameters of a trace, as the kernels have them, which need numba."""

_GOLDEN_STEPS = 4  # mask ratios from all to few, in half the time of the usual eight

_STEPS, _STEPS_IN_ORDER, _IN_ORDER = (2, 4, 8, 16), (8, 16), "halton"
"""Tried for presets."""

_CACHED = {"order": "halton", "local_steps": 1, "full_first": 1}


@dataclass(frozen=True)
class MaskedTrace:
    """How the tokens were decided.

    ``tokens [T + 1, B, N]``: ids before each step and after the last; ``mask_token`` where still
    masked. ``sampled [T, B, N]``: ids sampled at each step (known positions keep theirs).
    ``parameters [T, B, 4]``: mask ratio, masking temperature, sampling temperature, guidance; or,
    where the order of the positions is known before, guidance, top-k, top-p, sampling temperature.
    """

    tokens: npt.NDArray[np.int32]
    sampled: npt.NDArray[np.int32]
    parameters: npt.NDArray[np.float32]
    mask_token: int

    @property
    def decisions(self) -> dict[str, Array]:
        """The three arrays by name."""
        return {name: getattr(self, name) for name in DECISIONS}

    @property
    def final(self) -> npt.NDArray[np.int32]:
        """The tokens that the image was decoded from, ``[B, N]``."""
        final: npt.NDArray[np.int32] = self.sampled[-1]
        return final


def _conditions(model: Model, request: MaskedRequest, rows: slice) -> dict[str, npt.ArrayLike]:
    """What the transformer's halves are conditioned on."""
    condition = request.condition[rows]
    if not request.guided:
        return {"ids" if request.of_ids else "condition": condition}
    nothing = model.arrays["unconditional"] if request.negative is None else request.negative
    if request.of_ids:
        return {"ids": condition, "nothing": nothing}
    nothing = np.broadcast_to(nothing, condition.shape)
    return {"condition": np.concatenate([condition, nothing])}


class MaskedFamily(Family):
    """MaskGIT and AdaNAT."""

    kind = "masked"
    Info = MaskedModel
    Settings = MaskedSettings
    kinds = {
        "tokens": "tokens",
        "condition": "condition",
        "ids": "condition",
        "text": "states",
        "logits": "logits",
        "features": "features",
        "action": "action",
        "image": "image",
    }
    # The decoder runs once per image; policies are small, and feed decisions.
    quantized = ("transformer", "text_encoder")
    # Its states are kept, so its size counts more than its time, and outliers of its activations
    # cost int8 too much.
    weights_only = frozenset(("text_encoder",))
    policies = MaskedPolicies()

    def arrays(self, bundle: Bundle) -> dict[str, Array]:
        """``unconditional``: the condition of no condition, for one image."""
        info = bundle.manifest.model.condition
        if not info.has_unconditional:
            return {}
        if isinstance(info, ClassCondition):
            return {"unconditional": np.array(info.unconditional_id, np.int32)}
        assert info.unconditional_file is not None
        text = bundle.arrays(info.unconditional_file).get("text")
        if text is None or text.shape != (info.length, info.width):
            raise BundleError(
                f"{bundle.path}/{info.unconditional_file}: expected an array 'text' of shape "
                f"[{info.length}, {info.width}]; export the bundle again"
            )
        return {"unconditional": text.astype(np.float32)}

    def request(
        self,
        model: Model,
        condition: Array,
        seeds: npt.NDArray[np.uint64],
        settings: MaskedSettings,
        edit: Mapping[str, Array] | None = None,
    ) -> MaskedRequest:
        return masked_request(model.info, condition, seeds, settings, edit)

    def key(
        self, model: Model, request: MaskedRequest, batch: int, *, constants: bool = True
    ) -> MaskedKey:
        local = request.local
        known = request.mask is None and request.negative is None
        if local and local.starting(0):  # keys and values of step 0 are needed
            known = False
        return MaskedKey(
            batch,
            request.steps,
            request.guided,
            request.policy,
            reuse=constants and known,
            ordered=request.order is not None,
            encodes=request.of_ids,
            unguided=request.unguided if constants else (),
            local=local,
            decoder=request.decoder,
            of_image=request.image is not None,
        )

    def corners(self, model: Model, batch: int) -> Iterator[MaskedKey]:
        info: MaskedModel = model.info
        guided = [True, False] if info.can_guide else [False]
        encodes = info.encoder is not None
        for each in guided:
            yield MaskedKey(batch, 2, each, None, encodes=encodes)
        for policy in info.policies:
            yield MaskedKey(batch, 2, True, policy, encodes=encodes)
        if info.cached_blocks and info.num_tokens > 1:  # one position beside all others
            one = LocalSteps((0, 1, 1), (Group(0, 2, 0, 1),))
            yield MaskedKey(
                batch, 2, False, None, reuse=False, ordered=True, encodes=encodes, local=one
            )
        for decoder in info.decoders:
            graph = decoder_graph(decoder)
            yield MaskedKey(batch, 1, False, None, encodes=encodes, decoder=graph)
        if info.editable:
            yield MaskedKey(batch, 1, False, None, reuse=False, encodes=encodes, of_image=True)

    def program(self, model: Model, key: MaskedKey) -> Program:
        return masked_program(model, key)

    def inputs(self, model: Model, request: MaskedRequest, rows: slice) -> dict[str, npt.ArrayLike]:
        inputs: dict[str, npt.ArrayLike] = {"seeds": request.seeds[rows]}
        inputs |= _conditions(model, request, rows)
        inputs["mask"] = 1 if request.mask is None else request.mask[rows]
        if request.image is not None:
            inputs[ORIGINAL] = request.image[rows]
        else:
            inputs["given"] = 0 if request.given is None else request.given[rows]
        if request.parameters is not None:
            inputs["parameters"] = request.parameters[:, None]
        if request.order is not None:
            order = request.order
            inputs |= {"ranks": order.ranks[rows], "decided": order.decided[:, rows]}
        if request.order is not None and request.local is not None:
            inputs |= places(request.local, request.order.ranks[rows], 2 if request.guided else 1)
        return inputs

    def decisions(
        self, model: Model, key: MaskedKey, outputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        return {name: outputs[name][:, : key.batch] for name in DECISIONS}

    def trace(self, model: Model, decisions: Mapping[str, Array]) -> MaskedTrace:
        return MaskedTrace(**decisions, mask_token=model.info.mask_token)

    def preview(self, model: Model, trace: MaskedTrace, step: int) -> Preview:
        undecided = trace.tokens[step + 1] == trace.mask_token
        sampled = trace.sampled[step]
        last, count = len(trace.sampled) - 1, undecided.shape[1]
        if step == last:  # its samples are the image, masked or not
            undecided = np.zeros_like(undecided)
        decided = count - int(undecided.sum(1).mean())
        return Preview(
            graph=DECODER,
            # The decoder takes codes alone; of what is undecided any will do.
            inputs={"tokens": np.where(sampled == trace.mask_token, 0, sampled)},
            output="image",
            undecided=undecided.reshape(-1, *model.info.grid),
            caption=f"step {step + 1} of {last + 1}: {decided} of {count} tokens decided",
        )

    def rollouts(self, model: Model) -> dict[str, dict[str, Any]]:
        """The default schedule, local steps where there are any, and every policy and distilled
        decoder under the name of its graph."""
        info: MaskedModel = model.info
        # Lists hold a value for every step, and fit no other number of steps.
        listed = info.defaults.listed
        steps = info.defaults.steps if listed else min(_GOLDEN_STEPS, info.num_tokens)
        given = settings_of(info.defaults, {"steps": steps})
        default = resolved(info.presets, info.defaults, given)
        schedules = {each: policy_schedule(each) for each in info.policies}
        fixed = MaskedSettings().schedule
        if not isinstance(schedule_of(info, default), str):
            own = "schedule" if "," in default.schedule else default.schedule
            schedules = {own: default.schedule, **schedules}
            fixed = default.schedule
        found = {
            name: settings_of(info.defaults, {"steps": steps, "schedule": schedule})
            for name, schedule in schedules.items()
        }
        if info.cached_blocks:
            cached = {"steps": steps, "schedule": fixed, **_CACHED}
            found["cached"] = settings_of(info.defaults, cached)
        whole = {name: self.complete(model, settings) for name, settings in found.items()}
        return with_decoder_rollouts(whole, info.decoders)

    def region(self, model: Model, pixels: npt.NDArray[np.bool_]) -> dict[str, Array]:
        info: MaskedModel = model.info
        if not info.placed:
            raise RequestError(
                "tokens of this bundle have no place in the picture, so that no part of it can be "
                "painted anew by itself: give a strength, the part of all tokens"
            )
        return {"mask": touched(info, pixels, *info.grid).reshape(len(pixels), -1)}

    def variation(
        self, model: Model, strength: float, seeds: npt.NDArray[np.uint64]
    ) -> dict[str, Array]:
        """At random."""
        tokens = model.info.num_tokens
        return {"mask": drawn(changed(strength, tokens), tokens, seeds)}

    def complete(self, model: Model, settings: MaskedSettings) -> dict[str, Any]:
        """With the policy by its own name, and without what it decides."""
        info: MaskedModel = model.info
        settings = resolved(info.presets, info.defaults, settings)
        chosen = schedule_of(info, settings)
        if isinstance(chosen, str):
            named = {"schedule": policy_schedule(chosen), "decoder": settings.decoder}
            return {"steps": settings.steps, **named}
        return settings.model_dump(exclude={"preset"})

    def candidates(self, model: Model) -> tuple[dict[str, Any], ...]:
        """Fewer and more steps, an order that is known before, and policies that were trained."""
        info: MaskedModel = model.info
        found = list(super().candidates(model))
        tuned = {name: each.steps for name, each in info.policies.items() if each.steps}
        found += [{"steps": n, "schedule": policy_schedule(name)} for name, n in tuned.items()]
        if info.defaults.listed or isinstance(schedule_of(info, info.defaults), str):
            return tuple(found)  # what fits one number of steps, or is a policy's
        most = info.num_tokens
        found += [{"steps": n} for n in _STEPS if n <= most]
        if info.defaults.order == CONFIDENCE and len(info.grid) == 2:
            found += [{"steps": n, "order": _IN_ORDER} for n in _STEPS_IN_ORDER if n <= most]
        return tuple(found)

    def choices(self, model: Model) -> dict[str, tuple[str, ...]]:
        own = [POLICY, *map(policy_schedule, model.info.policies)] if model.info.policies else []
        return {
            **super().choices(model),
            "schedule": (*MASK_RATIOS, *own),
            "order": ORDERS,
        }

    def parameters(
        self, model: Model, request: MaskedRequest, trace: MaskedTrace
    ) -> tuple[tuple[str, ...], Array]:
        return PARAMETERS if request.order is None else PARAMETERS_IN_ORDER, trace.parameters

    def notes(self, model: Model, request: MaskedRequest) -> tuple[str, ...]:
        """That a policy was never trained, or for another number of steps than it runs; that a
        negative text has no effect."""
        info: MaskedModel = model.info
        if request.negative is not None and not request.guided:
            return ("negative has no effect without guidance: give a guidance above 0",)
        if request.policy and info.policies[request.policy].untrained_seed is not None:
            return (
                f"{request.policy} is untrained, so it follows the heuristic schedule: tune one "
                f"with fewstep calibrate policy --steps {request.steps}",
            )
        steps = info.policies[request.policy].steps if request.policy else None
        if steps in (None, request.steps):
            return ()
        return (
            f"{request.policy} was trained for {steps} steps and runs {request.steps}: pass "
            f"--steps {steps}, or tune one with fewstep calibrate policy --steps {request.steps}",
        )

    def counted(self, model: Model, graph: str, inputs: Mapping[str, Array]) -> Array | None:
        """Masked positions, for the transformer."""
        if graph != "transformer":
            return None
        masked: Array = inputs["tokens"] == model.info.mask_token
        return masked
