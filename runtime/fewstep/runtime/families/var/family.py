"""The VAR family: requests, programs and what becomes of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.decoders import DECODER, decoder_graph, with_decoder_rollouts
from fewstep.runtime.devices import Array
from fewstep.runtime.editing import ORIGINAL, changed, drawn, touched
from fewstep.runtime.families import Family, Model, Preview
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.policies import VarPolicies
from fewstep.runtime.families.var.program import VarKey, var_program
from fewstep.runtime.families.var.request import FREE, VarRequest, policy_of, var_request
from fewstep.runtime.families.var.settings import FIXED, SAMPLING, VarSettings
from fewstep.runtime.policies import POLICY, policy_schedule
from fewstep.runtime.presets import resolved
from fewstep.runtime.program import Program
from fewstep.runtime.settings import settings_of


@dataclass(frozen=True)
class VarTrace:
    """How the images came about, scale by scale.

    ``tokens [S, B, n]`` int32, n tokens of the largest scale: smaller ones fill the first
    places, the others are −1. ``parameters [S, B, 4]``: guidance scale, top-k, top-p, sampling
    temperature. ``f_hat [S, B, Cvae, G, G]``: the sum of all scales up to each, which the decoder
    reads. ``counts``: tokens of every scale of the model.
    """

    tokens: npt.NDArray[np.int32] = field(repr=False)
    parameters: npt.NDArray[np.float32]
    f_hat: Array = field(repr=False)
    counts: tuple[int, ...]

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """Tokens of all scales in turn, ``[B, L]``, as ``edit`` takes them; −1 of scales that were
        not decoded."""
        maps = [row[:, :count] for row, count in zip(self.tokens, self.counts, strict=False)]
        absent = np.full((self.tokens.shape[1], sum(self.counts[len(maps) :])), FREE, np.int32)
        found: npt.NDArray[np.int32] = np.concatenate([*maps, absent], 1)
        return found

    @property
    def decisions(self) -> dict[str, Array]:
        """The three arrays by name."""
        return {"tokens": self.tokens, "parameters": self.parameters, "f_hat": self.f_hat}

    @property
    def final(self) -> Array:
        """What the images were decoded from, ``[B, Cvae, G, G]``."""
        final: Array = self.f_hat[-1]
        return final


class VarFamily(Family):
    """VAR."""

    kind = "var"
    Info = VarModel
    Settings = VarSettings
    kinds = {
        "condition": "condition",
        "tokens": "tokens",
        "logits": "logits",
        "features": "features",
        "action": "action",
        "next_f_hat": "latents",
        "image": "image",
    }
    quantized = ("trunk",)
    policies = VarPolicies()

    def request(
        self,
        model: Model,
        condition: Array,
        seeds: npt.NDArray[np.uint64],
        settings: VarSettings,
        edit: Mapping[str, Array] | None = None,
    ) -> VarRequest:
        return var_request(model.info, condition, seeds, settings, edit)

    def key(
        self, model: Model, request: VarRequest, batch: int, *, constants: bool = True
    ) -> VarKey:
        # The conditional half alone lies in the cache as both do only if it is one token.
        one = model.info.counts[0] == 1
        reuse = constants and request.reuse_first and request.guided > 0 and one
        of_image = request.image is not None
        chosen = (request.scales, request.guided, request.policy, reuse, request.decoder, of_image)
        return VarKey(batch, *chosen)

    def corners(self, model: Model, batch: int) -> Iterator[VarKey]:
        info: VarModel = model.info
        if info.can_guide:
            yield VarKey(batch, info.scales, info.scales)
        yield VarKey(batch, info.scales, 0)
        for policy in info.policies:
            yield VarKey(batch, info.scales, info.scales, policy)
        for decoder in info.decoders:
            yield VarKey(batch, 1, 0, decoder=decoder_graph(decoder))
        if info.editable:
            yield VarKey(batch, 1, 0, of_image=True)

    def program(self, model: Model, key: VarKey) -> Program:
        return var_program(model, key)

    def inputs(self, model: Model, request: VarRequest, rows: slice) -> dict[str, npt.ArrayLike]:
        info: VarModel = model.info
        condition = request.condition[rows]
        batch = len(condition)
        inputs: dict[str, npt.ArrayLike] = {"seeds": request.seeds[rows]}
        if request.guided:
            nothing = np.full_like(condition, info.condition.unconditional_id)
            condition = np.concatenate([condition, nothing])
        inputs["condition"] = condition
        if request.parameters is not None:
            inputs["parameters"] = request.parameters[:, None]
        if request.image is not None and request.mask is not None:
            inputs |= {ORIGINAL: request.image[rows], "mask": request.mask[rows]}
        elif request.given is not None:
            inputs["given"] = _rows(info, request.given[rows], request.scales, batch)
        else:
            inputs["given"] = FREE
        return inputs

    def decisions(
        self, model: Model, key: VarKey, outputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        info: VarModel = model.info
        most = info.counts[key.scales - 1]
        tokens = np.full((key.scales, key.batch, most), FREE, np.int32)
        for scale, count in enumerate(info.counts[: key.scales]):
            decided = outputs["tokens"][scale, : key.batch * count]
            tokens[scale, :, :count] = decided.reshape(key.batch, count)
        f_hat = outputs["f_hat"].astype(np.float32)
        return {"tokens": tokens, "parameters": outputs["parameters"], "f_hat": f_hat}

    def trace(self, model: Model, decisions: Mapping[str, Array]) -> VarTrace:
        return VarTrace(**decisions, counts=model.info.counts)

    def preview(self, model: Model, trace: VarTrace, step: int) -> Preview:
        info: VarModel = model.info
        side, last = info.patch_nums[step], len(trace.tokens) - 1
        images = trace.tokens.shape[1]
        return Preview(
            graph=DECODER,
            inputs={"f_hat": trace.f_hat[step]},
            output="image",
            undecided=np.zeros((images, info.grid, info.grid), np.bool_),
            caption=f"scale {step + 1} of {last + 1}: {side}×{side} tokens",
        )

    def rollouts(self, model: Model) -> dict[str, dict[str, Any]]:
        """The fixed schedule of the defaults, and every policy and distilled decoder under the
        name of its graph."""
        info: VarModel = model.info
        own = settings_of(info.defaults, {"schedule": FIXED, "reuse_first": False})
        found = {FIXED: self.complete(model, own)}
        found |= {name: {"schedule": policy_schedule(name)} for name in info.policies}
        return with_decoder_rollouts(found, info.decoders)

    def region(self, model: Model, pixels: npt.NDArray[np.bool_]) -> dict[str, Array]:
        """On the last scale any pixel counts. A token of a coarser one draws more than its own
        cell, so it is decided anew only if more than half of that is: what is kept changes less."""
        info: VarModel = model.info
        *coarse, last = info.patch_nums
        maps = [touched(info, pixels, side, side, share=0.5) for side in coarse]
        maps.append(touched(info, pixels, last, last))
        return {"mask": np.concatenate([each.reshape(len(pixels), -1) for each in maps], 1)}

    def variation(
        self, model: Model, strength: float, seeds: npt.NDArray[np.uint64]
    ) -> dict[str, Array]:
        """The last tokens, so that coarse scales stay; of the scale where they begin, at random."""
        info: VarModel = model.info
        left = changed(strength, info.num_tokens)
        parts: list[Array] = []
        for count in reversed(info.counts):
            parts.insert(0, drawn(min(left, count), count, seeds))
            left -= min(left, count)
        return {"mask": np.concatenate(parts, 1)}

    def choices(self, model: Model) -> dict[str, tuple[str, ...]]:
        own = [POLICY, *map(policy_schedule, model.info.policies)] if model.info.policies else []
        return {**super().choices(model), "schedule": (FIXED, *own)}

    def parameters(
        self, model: Model, request: VarRequest, trace: VarTrace
    ) -> tuple[tuple[str, ...], Array]:
        return SAMPLING, trace.parameters

    def complete(self, model: Model, settings: VarSettings) -> dict[str, Any]:
        """With all numbers of scales, the policy by its own name, and without what it decides."""
        settings = resolved(model.info.presets, model.info.defaults, settings)
        every, found = model.info.scales, settings.model_dump(exclude={"preset"})
        found["scales"] = every if settings.scales is None else settings.scales
        if settings.guided_scales is None:
            found["guided_scales"] = every
        if policy := policy_of(model.info, settings):
            return {
                **{n: each for n, each in found.items() if n not in SAMPLING},
                "schedule": policy_schedule(policy),
            }
        return found

    def candidates(self, model: Model) -> tuple[dict[str, Any], ...]:
        """Fewer guided scales, and policies that were trained."""
        info: VarModel = model.info
        found = list(super().candidates(model))
        if info.can_guide:
            found += [{"guided_scales": n} for n in range(info.scales // 2, info.scales)]
        trained = (name for name, each in info.policies.items() if each.untrained_seed is None)
        return (*found, *({"schedule": policy_schedule(name)} for name in trained))

    def notes(self, model: Model, request: VarRequest) -> tuple[str, ...]:
        """That a policy was never trained."""
        info: VarModel = model.info
        if request.policy is None or info.policies[request.policy].untrained_seed is None:
            return ()
        return (
            f"{request.policy} is untrained, so it follows its recipe: tune one with fewstep "
            "calibrate policy",
        )


def _rows(info: VarModel, given: Array, scales: int, batch: int) -> Array:
    """Tokens that stay, as the program's buffer has them: a row a scale."""
    found = np.full((scales, batch * info.counts[scales - 1]), FREE, np.int32)
    for row, start, count in zip(found, info.starts, info.counts, strict=False):
        row[: batch * count] = given[:, start : start + count].ravel()
    return found
