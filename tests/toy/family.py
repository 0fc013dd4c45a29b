"""A family that is no part of fewstep: two scales of tokens, the second decided with a cache of the
first. No shared file knows of it, so what works for it works for any family.

    trunk(start, past of no position) → logits of 1 token, its entry of the cache
    sample_tokens → tokens[0]
    grow(tokens[0]) → the codes of 4 positions, for both halves of guidance
    trunk(codes, past of 1 position) → logits of 4 tokens
    sample_tokens → tokens[1]
    decoder(tokens[1]) → image → pixels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array, BufferSpec
from fewstep.runtime.families import Family, Model, ModelInfo, Preview
from fewstep.runtime.program import Copy, Launch, Op, Program, Run, View
from fewstep.runtime.settings import Ramp, Settings

SCALES = (1, 4)
"""Tokens of each scale."""

TOTAL = sum(SCALES)


class ToySettings(Settings):
    """What a request for the toy may set."""

    pull: Ramp = Field(default=(1.0, 2.0), description="Guidance scale over the scales.")
    heat: float = Field(default=1.0, ge=0, description="Sampling temperature.")


class ToyModel(ModelInfo):
    """The toy in a manifest: ``width`` of its hidden states and of the cache."""

    kind: Literal["toy"] = "toy"
    codes: PositiveInt
    width: PositiveInt
    condition: ClassCondition
    defaults: ToySettings = ToySettings()

    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int | str, ...]]:
        return {
            ("trunk", "codes"): ("batch", "new"),
            ("trunk", "condition"): ("batch",),
            ("trunk", "past"): ("past", "batch", self.width),
            ("trunk", "logits"): ("batch", "new", self.codes),
            ("trunk", "present"): ("new", "batch", self.width),
            ("grow", "tokens"): ("batch", 1),
            ("grow", "codes"): ("batch", SCALES[1]),
            ("decoder", "tokens"): ("batch", SCALES[1]),
            ("decoder", "image"): ("batch", 3, *self.image_size),
        }

    def describe(self) -> dict[str, str]:
        return {"scales": " + ".join(map(str, SCALES))}


@dataclass(frozen=True)
class ToyRequest:
    """``parameters [2, 4]`` in the order of ``sample_tokens``."""

    condition: Array
    seeds: npt.NDArray[np.uint64]
    parameters: npt.NDArray[np.float32]
    guided: bool


@dataclass(frozen=True)
class ToyKey:
    """What a program is made for."""

    batch: int
    guided: bool

    @property
    def rows(self) -> int:
        return 2 * self.batch if self.guided else self.batch


@dataclass(frozen=True)
class ToyTrace:
    """``tokens [2, B, 4]`` int32; −1 where the first scale has no position."""

    tokens: npt.NDArray[np.int32]

    @property
    def decisions(self) -> dict[str, Array]:
        return {"tokens": self.tokens}

    @property
    def final(self) -> Array:
        final: Array = self.tokens[-1]
        return final


class ToyFamily(Family):
    """Two scales."""

    kind = "toy"
    Info = ToyModel
    Settings = ToySettings
    kinds = {"logits": "logits", "present": "cache", "codes": "tokens", "image": "image"}
    quantized = ("trunk",)

    def request(
        self,
        model: Model,
        condition: Array,
        seeds: npt.NDArray[np.uint64],
        settings: ToySettings,
        edit: Mapping[str, Array] | None = None,
    ) -> ToyRequest:
        parameters = np.zeros((len(SCALES), 4), np.float32)
        parameters[:, 2], parameters[:, 3] = settings.heat, settings.pull
        return ToyRequest(condition, seeds, parameters, any(settings.pull))

    def key(
        self, model: Model, request: ToyRequest, batch: int, *, constants: bool = True
    ) -> ToyKey:
        return ToyKey(batch, request.guided)

    def corners(self, model: Model, batch: int) -> Iterator[ToyKey]:
        yield ToyKey(batch, True)
        yield ToyKey(batch, False)

    def program(self, model: Model, key: ToyKey) -> Program:
        info, (height, width) = model.info, model.info.image_size
        batch, rows = key.batch, key.rows
        buffers = {
            "condition": BufferSpec((rows,), "int32", "input"),
            "seeds": BufferSpec((batch,), "uint64", "input"),
            "parameters": BufferSpec((len(SCALES), batch, 4), "float32", "input"),
            "start": BufferSpec((rows, 1), "int32", "input"),
            "blank": BufferSpec((batch * SCALES[1],), "int32", "input"),
            "blank_mask": BufferSpec((batch * SCALES[1],), "uint8", "input"),
            "error": BufferSpec((1,), "int32", "status"),
            "tokens": BufferSpec((len(SCALES), batch * SCALES[1]), "int32", "output", True),
            "pixels": BufferSpec((batch, height, width, 3), "uint8", "output"),
            "codes": BufferSpec((rows, SCALES[1]), "int32"),
            "cache": BufferSpec((TOTAL, rows, info.width), "float32"),
            "logits": BufferSpec((rows * SCALES[1] * info.codes,), "float32"),
            "confidence": BufferSpec((batch * SCALES[1],), "float32"),
            "image": BufferSpec((batch, 3, height, width), "float32"),
        }
        # The start and what is not sampled yet are one code beyond the others.
        initial = {"start": info.codes, "blank": info.codes, "blank_mask": 1}
        ops = tuple(self._operations(info, key))
        return Program(buffers, ops, decisions=("tokens",), initial=initial)

    def _operations(self, info: ToyModel, key: ToyKey) -> Iterator[Op]:
        batch, known = key.batch, 0
        for scale, count in enumerate(SCALES):
            if scale:
                first = View("tokens", scale - 1).reshaped(batch, SCALES[scale - 1])
                grown = View("codes")[:batch]
                yield Run("grow", {"tokens": first, "codes": grown}, scale)
                if key.guided:
                    yield Copy(View("codes")[batch : key.rows], grown, scale, "grow")
            logits = View("logits").reshaped(key.rows, count, info.codes)
            bindings = {
                "codes": View("codes") if scale else View("start"),
                "condition": View("condition"),
                "past": View("cache")[:known],
                "logits": logits,
                "present": View("cache")[known : known + count],
            }
            yield Run("trunk", bindings, scale)
            yield Launch(
                "sample_tokens",
                {
                    "conditional": logits[:batch],
                    "unconditional": logits[batch : key.rows] if key.guided else logits[:batch],
                    "tokens": View("blank").reshaped(batch, count),
                    "parameters": View("parameters", scale),
                    "seeds": View("seeds"),
                    "step": scale,
                    "mask_token": info.codes,
                    "sampled": View("tokens", scale).reshaped(batch, count),
                    "confidence": View("confidence").reshaped(batch, count),
                    "error": View("error"),
                    "confidence_of": 0,
                    "mask": View("blank_mask").reshaped(batch, count),
                    "resample": 0,
                },
                writes=("sampled", "confidence", "error"),
                step=scale,
                stage="sampling",
            )
            known += count
        last = len(SCALES) - 1
        tokens = View("tokens", last).reshaped(batch, SCALES[last])
        yield Run("decoder", {"tokens": tokens, "image": View("image")}, last)
        arguments = {name: View(name) for name in ("image", "pixels", "error")}
        yield Launch("to_pixels", arguments, ("pixels", "error"), last)

    def inputs(self, model: Model, request: ToyRequest, rows: slice) -> dict[str, npt.ArrayLike]:
        condition = request.condition[rows]
        if request.guided:
            nothing = np.full_like(condition, model.info.condition.unconditional_id)
            condition = np.concatenate([condition, nothing])
        parameters = request.parameters[:, None]
        return {"condition": condition, "seeds": request.seeds[rows], "parameters": parameters}

    def decisions(
        self, model: Model, key: ToyKey, outputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        tokens = np.full((len(SCALES), key.batch, SCALES[-1]), -1, np.int32)
        for scale, count in enumerate(SCALES):
            decided = outputs["tokens"][scale, : key.batch * count]
            tokens[scale, :, :count] = decided.reshape(key.batch, count)
        return {"tokens": tokens}

    def trace(self, model: Model, decisions: Mapping[str, Array]) -> ToyTrace:
        return ToyTrace(np.asarray(decisions["tokens"], np.int32))

    def preview(self, model: Model, trace: ToyTrace, step: int) -> Preview:
        tokens = trace.tokens[step][:, : SCALES[step]]
        return Preview(
            graph="decoder",
            inputs={"tokens": np.broadcast_to(tokens, (len(tokens), SCALES[-1]))},
            output="image",
            undecided=np.full((len(tokens), 2, 2), step == 0),
            caption=f"scale {step + 1} of {len(SCALES)}",
        )

    def rollouts(self, model: Model) -> dict[str, dict[str, Any]]:
        return {"default": model.info.defaults.model_dump()}
