"""The MAR family: requests, programs and what becomes of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.decoders import DECODER, decoder_graph, with_decoder_rollouts
from fewstep.runtime.devices import Array
from fewstep.runtime.editing import ORIGINAL, changed, drawn, touched
from fewstep.runtime.families import Family, Model, Preview
from fewstep.runtime.families.mar.iterations import counts, recomputed
from fewstep.runtime.families.mar.key import MarKey
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.families.mar.program import mar_program
from fewstep.runtime.families.mar.request import MarRequest, latents_of, mar_request
from fewstep.runtime.families.mar.settings import UNGUIDED, MarSettings
from fewstep.runtime.presets import resolved
from fewstep.runtime.program import Program
from fewstep.runtime.settings import PerStep, Values, numbers_of, settings_of

_SHORTEST = "1"  # diffusion: how long it is changes no shape
_GOLDEN_ITERATIONS, _GOLDEN_STEPS = 8, "10"
"""Enough to meet every graph over the whole range of timesteps, and few enough to be kept."""

_ITERATIONS, _ANNEALED = (4, 8, 16, 32), ("25:10", "50:5")
"""Tried for presets."""


@dataclass(frozen=True)
class MarTrace:
    """How the images came about, iteration by iteration.

    ``sampled [N, B, K·C]`` float32: the tokens that every iteration decided, in the order of their
    decision; K is the most of any, the rest is 0. ``tokens [N, B, L, C]`` float32: all tokens after
    every iteration, row by row; NaN where nothing is decided yet. ``similarity [N, B, H·P]``:
    where parts are computed, how little each of P positions changed, in H halves. ``model``: of the
    images.
    """

    sampled: Array = field(repr=False)
    tokens: Array = field(repr=False)
    model: MarModel = field(repr=False)
    similarity: Array | None = field(default=None, repr=False)

    @property
    def latents(self) -> Array:
        """Latents ``[B, c, h, w]`` that the images were decoded from, scaled, as ``edit`` takes
        them."""
        return latents_of(self.model, self.final)

    @property
    def decisions(self) -> dict[str, Array]:
        """The arrays by name."""
        found = {"sampled": self.sampled, "tokens": self.tokens}
        return found if self.similarity is None else {**found, "similarity": self.similarity}

    @property
    def final(self) -> Array:
        """What the images were decoded from, ``[B, L, C]``."""
        final: Array = self.tokens[-1]
        return final


class MarFamily(Family):
    """MAR."""

    kind = "mar"
    Info = MarModel
    Settings = MarSettings
    kinds = {
        "buffer": "features",
        "embeds": "features",
        "hidden": "features",
        "output": "features",
        "tokens": "latents",
        "z": "latents",
        "denoised": "noise",
        "image": "image",
    }
    quantized = ("encoder", "decoder_start", "decoder_rest", "head")

    def request(
        self,
        model: Model,
        condition: Array,
        seeds: npt.NDArray[np.uint64],
        settings: MarSettings,
        edit: Mapping[str, Array] | None = None,
    ) -> MarRequest:
        return mar_request(model.info, condition, seeds, settings, edit)

    def key(
        self, model: Model, request: MarRequest, batch: int, *, constants: bool = True
    ) -> MarKey:
        return MarKey(
            batch=batch,
            given=0 if request.given is None else request.given.count,
            of_image=request.given is not None and request.given.image is not None,
            counts=request.counts,
            spacings=request.spacings,
            largest_timestep=request.largest_timestep,
            guided=request.guided,
            recomputed=request.recomputed,
            reuse_guidance=request.reuse_guidance,
            decoder=request.decoder,
        )

    def corners(self, model: Model, batch: int) -> Iterator[MarKey]:
        """As many tokens an iteration as there are, one, and what comes between; all positions,
        and as few as are ever computed; one half, and both."""
        info: MarModel = model.info
        guided = info.can_guide
        usual = min(info.defaults.iterations, info.num_tokens)
        for iterations in dict.fromkeys((usual, 1, info.num_tokens)):
            yield _corner(info, batch, iterations, guided=guided)
        yield _corner(info, batch, info.num_tokens, guided=guided, partial=True)
        if guided:
            yield _corner(info, batch, 1, guided=False)
            yield _corner(info, batch, info.num_tokens, guided=True, partial=True, reuse=True)
        for decoder in info.decoders:
            one = _corner(info, batch, 1, guided=False)
            yield replace(one, decoder=decoder_graph(decoder))
        if info.editable and info.num_tokens > 1:
            one = _corner(info, batch, 1, guided=False)
            yield replace(one, given=1, counts=(info.num_tokens - 1,), of_image=True)

    def program(self, model: Model, key: MarKey) -> Program:
        return mar_program(model, key)

    def inputs(self, model: Model, request: MarRequest, rows: slice) -> dict[str, npt.ArrayLike]:
        info: MarModel = model.info
        condition = request.condition[rows]
        inputs: dict[str, npt.ArrayLike] = {
            "seeds": request.seeds[rows],
            "parameters": request.parameters,
            "condition": condition,
        }
        if request.guided:
            nothing = np.full_like(condition, info.condition.unconditional_id)
            if request.reuse_guidance:
                inputs["unconditional"] = nothing
            else:
                inputs["condition"] = np.concatenate([condition, nothing])
        if request.given is not None:
            inputs["given"] = request.given.where[rows]
            if request.given.image is not None:
                inputs[ORIGINAL] = request.given.image[rows]
            elif request.given.tokens is not None:
                inputs["given_tokens"] = request.given.tokens[rows]
        return inputs

    def decisions(
        self, model: Model, key: MarKey, outputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        info: MarModel = model.info
        batch, channels, known = key.batch, info.channels, key.known
        order, images = outputs["order"][:, :batch].T, np.arange(batch)[:, None]
        most = max(key.counts) * channels
        sampled = np.zeros((len(key.counts), batch, most), np.float32)
        tokens = np.full((len(key.counts), batch, info.num_tokens, channels), np.nan, np.float32)
        now = np.full(tokens.shape[1:], np.nan, np.float32)
        if key.given:
            at = order[:, : key.given]
            now[images, at] = outputs["kept"][images, at]
        for step, count in enumerate(key.counts):
            new = outputs["sampled"][step, : batch * count * channels]
            sampled[step, :, : count * channels] = new.reshape(batch, -1)
            now[images, order[:, known[step] : known[step + 1]]] = new.reshape(batch, count, -1)
            tokens[step] = now
        found = {"sampled": sampled, "tokens": tokens}
        if key.selects(info.positions):
            parts = [0 < each < info.positions for each in key.recomputed]
            similarity = outputs["similarity"].reshape(len(tokens), batch, -1)
            found["similarity"] = np.where(np.array(parts)[:, None, None], similarity, 0)
        return found

    def trace(self, model: Model, decisions: Mapping[str, Array]) -> MarTrace:
        return MarTrace(**decisions, model=model.info)

    def parameters(
        self, model: Model, request: MarRequest, trace: MarTrace
    ) -> tuple[tuple[str, ...], Array]:
        images = trace.sampled.shape[1]
        return ("guidance", "temperature"), request.parameters[:, None].repeat(images, 1)

    def preview(self, model: Model, trace: MarTrace, step: int) -> Preview:
        info: MarModel = model.info
        tokens = trace.tokens[step]
        undecided = np.isnan(tokens[..., 0])
        left = int(undecided[0].sum())
        return Preview(
            graph=DECODER,
            inputs={"tokens": np.nan_to_num(tokens)},
            output="image",
            undecided=undecided.reshape(-1, info.side, info.side),
            caption=f"iteration {step + 1} of {len(trace.tokens)}: "
            f"{info.num_tokens - left} of {info.num_tokens} tokens",
        )

    def rollouts(self, model: Model) -> dict[str, dict[str, Any]]:
        """A short one of everything, one that computes parts between refreshes, and every distilled
        decoder under the name of its graph."""
        info: MarModel = model.info
        own = resolved(info.presets, info.defaults, settings_of(info.defaults, {}))
        most = max(1, info.num_tokens // 2)  # half of the tokens stay in that of an edit
        short: dict[str, Any] = {
            "iterations": min(_GOLDEN_ITERATIONS, most if info.editable else info.num_tokens),
            "diffusion_steps": _GOLDEN_STEPS,
            # Lists hold a value for every iteration, and fit no other number of these.
            "guidance": _ends(own.guidance),
            "temperature": _ends(own.temperature),
            "refresh": 1,
            "recompute": (0.0, 0.0),
            "reuse_guidance": False,
        }
        full = self.complete(model, settings_of(info.defaults, short))
        parts = {"refresh": 3, "refresh_first": 2, "reuse_guidance": info.can_guide}
        return with_decoder_rollouts({"full": full, "cached": {**full, **parts}}, info.decoders)

    def region(self, model: Model, pixels: npt.NDArray[np.bool_]) -> dict[str, Array]:
        side = model.info.side
        return {"given": ~touched(model.info, pixels, side, side)}

    def variation(
        self, model: Model, strength: float, seeds: npt.NDArray[np.uint64]
    ) -> dict[str, Array]:
        """At random."""
        info: MarModel = model.info
        anew = drawn(changed(strength, info.num_tokens), info.num_tokens, seeds)
        return {"given": ~anew.reshape(-1, info.side, info.side)}

    def candidates(self, model: Model) -> tuple[dict[str, Any], ...]:
        """Fewer iterations, with diffusion steps that fall (DiSA)."""
        info: MarModel = model.info
        found = list(super().candidates(model))
        lists = (info.defaults.guidance, info.defaults.temperature, info.defaults.recompute)
        if any(isinstance(each, PerStep) for each in lists):  # they fit one number of iterations
            return tuple(found)
        counts = [n for n in _ITERATIONS if n <= info.num_tokens]
        annealed = ({"iterations": n, "diffusion_steps": m} for n in counts for m in _ANNEALED)
        return (*found, *annealed)

    def complete(self, model: Model, settings: MarSettings) -> dict[str, Any]:
        """With what its preset says in its place, and without what is not set."""
        info: MarModel = model.info
        found, changes = resolved(info.presets, info.defaults, settings), dict[str, Any]()
        if found.refresh is None:  # left out, it would be what other defaults say
            changes["refresh"] = 1
        if not info.can_guide:  # whatever the defaults say
            changes["guidance"] = (UNGUIDED, UNGUIDED)
        found = found.model_copy(update=changes)
        return found.model_dump(exclude={"preset"}, exclude_none=True)


def _ends(values: Values) -> tuple[float, float]:
    """A ramp, or one between the ends of a list."""
    numbers = numbers_of(values)
    return numbers[0], numbers[-1]


def _corner(
    info: MarModel,
    batch: int,
    iterations: int,
    *,
    guided: bool,
    partial: bool = False,
    reuse: bool = False,
) -> MarKey:
    """A key with so many iterations; with ``partial`` all after the first compute as few positions
    as any."""
    decided = counts(info.num_tokens, iterations)
    again: tuple[int, ...] = ()
    if partial:
        pairs = zip(decided, decided[1:], strict=False)
        again = (0, *(recomputed(info.positions, 0.0, a, b) for a, b in pairs))
    return MarKey(
        batch=batch,
        given=0,
        counts=decided,
        spacings=(_SHORTEST,) * iterations,
        largest_timestep=0,
        guided=guided,
        recomputed=again,
        reuse_guidance=reuse,
    )
