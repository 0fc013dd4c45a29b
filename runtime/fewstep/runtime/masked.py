"""The masked decode loop of MaskGIT and AdaNAT, written once for every device.

One plan serves one (batch, steps, guidance yes or no, policy or fixed schedule). Its sequence of
enqueues is fixed and reads nothing back, so a device may capture it:

    step t:  transformer(tokens[t]) → logits, features
             policy(features, t) → action → parameters[t]        only with a policy
             sample_tokens(logits, parameters[t]) → sampled[t], confidence
             remask(confidence, sampled[t]) → tokens[t + 1]
    end:     decoder(sampled[T − 1]) → image → pixels

With guidance the transformer runs at batch 2B, conditional half first. At step 0 every token is
masked, so the unconditional logits are the same for every image: they are computed once, kept,
and step 0 runs at batch B.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.device import Array, Buffer, Device
from fewstep.runtime.engine import Engine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.manifest import MaskedModel

_MAX_PLANS = 8


@dataclass(frozen=True)
class PlanKey:
    """What a plan is made for; seeds, conditions and parameters are its inputs."""

    batch: int
    steps: int
    guided: bool
    policy: bool
    reuse_first: bool = True


@dataclass(frozen=True)
class Decoded:
    """What one run of a plan leaves, on the host.

    ``pixels [B, H, W, 3]`` uint8; ``sampled [T, B, N]`` ids sampled at each step; ``tokens
    [T + 1, B, N]`` ids before each step and after the last, masked positions included;
    ``parameters [T, B, 4]``.
    """

    pixels: npt.NDArray[np.uint8]
    sampled: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    parameters: npt.NDArray[np.float32]


Argument = Buffer | int | float | None


@dataclass(frozen=True)
class _Step:
    """What one step hands to the transformer and the kernels."""

    transformer: tuple[Buffer, Buffer, Buffer, Buffer]
    sample: dict[str, Argument]
    remask: dict[str, Argument]


class MaskedDecoder:
    """Decodes images with the engines of one bundle on one device.

    Args:
        device: where buffers and kernels live.
        engines: ``transformer``, ``decoder`` and, for policies, the policy graph by its name.
        model: the bundle's model description.
        unconditional: the condition of the unconditional half for one image: an int32 scalar
            array for classes, ``[L, D]`` float32 for text; ``None`` if there is none.
    """

    def __init__(
        self,
        device: Device,
        engines: Mapping[str, Engine],
        model: MaskedModel,
        unconditional: Array | None,
    ) -> None:
        self.device, self.engines, self.model = device, engines, model
        self.unconditional = unconditional
        self._plans: OrderedDict[PlanKey, MaskedPlan] = OrderedDict()
        self._first: Buffer | None = None

    def plan(self, key: PlanKey) -> MaskedPlan:
        """The plan for ``key``, kept for reuse (the least recently used goes first)."""
        if key not in self._plans:
            self._plans[key] = MaskedPlan(self, key)
        self._plans.move_to_end(key)
        while len(self._plans) > _MAX_PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]

    def first_unconditional(self) -> Buffer:
        """Unconditional logits ``[1, N, V]`` of the all-masked image, computed once."""
        if self._first is None:
            n, v = self.model.num_tokens, self.model.codebook_size
            assert self.unconditional is not None
            tokens = self.device.empty((1, n), np.int32)
            self.device.upload(tokens, np.full((1, n), self.model.mask_token, np.int32))
            condition = self.device.empty((1, *self.unconditional.shape), self.unconditional.dtype)
            self.device.upload(condition, self.unconditional[None])
            logits = self.device.empty((1, n, v), np.float32)
            features = self.device.empty((1, n, self.model.feature_width), np.float32)
            self.transformer(tokens, condition, logits, features)
            self._first = logits
        return self._first

    def transformer(
        self, tokens: Buffer, condition: Buffer, logits: Buffer, features: Buffer
    ) -> None:
        """Enqueue one pass; every buffer has the same batch."""
        engine = self.engines["transformer"]
        bindings = {"tokens": tokens, self.model.condition_input: condition, "logits": logits}
        if "features" in engine.outputs:
            bindings["features"] = features
        with self.device.span("transformer"):
            engine.enqueue(bindings)


class MaskedPlan:
    """Buffers and the captured sequence for one :class:`PlanKey`."""

    def __init__(self, decoder: MaskedDecoder, key: PlanKey) -> None:
        self._decoder, self._device, self.key = decoder, decoder.device, key
        model, empty = decoder.model, decoder.device.empty
        batch, steps, n, v = key.batch, key.steps, model.num_tokens, model.codebook_size
        passes = 2 * batch if key.guided else batch
        height, width = model.image_size
        shape = model.tensor_shapes()["transformer", model.condition_input]
        dtype = decoder.engines["transformer"].inputs[model.condition_input].dtype
        self.condition = empty((passes, *shape), dtype)
        self.seeds = empty((batch,), np.uint64)
        self.step_ids = empty((steps, batch), np.int32)
        self.parameters = empty((steps, batch, 4), np.float32)
        self.action = empty((batch, 4), np.float32)
        self.tokens = empty((steps + 1, passes, n), np.int32)
        self.sampled = empty((steps, batch, n), np.int32)
        self.confidence = empty((batch, n), np.float32)
        self.logits = empty((passes, n, v), np.float32)
        self.features = empty((passes, n, model.feature_width), np.float32)
        self.image = empty((batch, 3, height, width), np.float32)
        self.pixels = empty((batch, height, width, 3), np.uint8)
        self.error = empty((1,), np.int32)
        self._device.upload(
            self.step_ids, np.repeat(np.arange(steps, dtype=np.int32)[:, None], batch, 1)
        )
        self._all_masked = np.full(self.tokens.shape[1:], model.mask_token, np.int32)
        self._no_error = np.zeros(1, np.int32)
        self._first = decoder.first_unconditional() if key.guided and key.reuse_first else None
        self._steps = [self._bind_step(step) for step in range(steps)]
        self._run = self._device.capture(self._sequence)

    def run(
        self, condition: Array, seeds: Array, parameters: npt.NDArray[np.float32] | None
    ) -> Decoded:
        """Generate one batch; arguments as in :meth:`prepare`.

        Raises:
            EngineError: a graph gave NaN or infinite numbers.
        """
        self.prepare(condition, seeds, parameters)
        self._run()
        if self._device.download(self.error)[0]:
            raise EngineError(
                "a graph produced NaN or infinite numbers; see which with: fewstep verify"
            )
        return Decoded(
            pixels=self._device.download(self.pixels),
            sampled=self._device.download(self.sampled),
            tokens=self._device.download(self.tokens)[:, : self.key.batch],
            parameters=self._device.download(self.parameters),
        )

    def prepare(
        self, condition: Array, seeds: Array, parameters: npt.NDArray[np.float32] | None
    ) -> None:
        """Upload the inputs of a run.

        Args:
            condition: class ids ``[B]`` int32 or text states ``[B, L, D]`` float32.
            seeds: ``[B]`` uint64.
            parameters: ``[T, 4]``, or ``None`` with a policy.
        """
        if self.key.guided:
            assert self._decoder.unconditional is not None
            nothing = np.broadcast_to(self._decoder.unconditional, condition.shape)
            condition = np.concatenate([condition, nothing])
        self._device.upload(self.condition, condition)
        self._device.upload(self.seeds, seeds)
        if parameters is not None:
            each = np.broadcast_to(parameters[:, None], self.parameters.shape)
            self._device.upload(self.parameters, each)
        self._device.upload(self.tokens[0], self._all_masked)
        self._device.upload(self.error, self._no_error)

    def sample(self, step: int, tokens: Buffer) -> None:
        """Enqueue the sampling of ``tokens [B, N]`` from the logits of the last pass."""
        self._device.launch("sample_tokens", **{**self._steps[step].sample, "tokens": tokens})

    def decode(self) -> None:
        """Enqueue the decoder on the last step's samples, and the pixels."""
        with self._device.span("decoder"):
            self._decoder.engines["decoder"].enqueue(
                {"tokens": self.sampled[self.key.steps - 1], "image": self.image}
            )
        self._device.launch("to_pixels", image=self.image, pixels=self.pixels, error=self.error)

    def _sequence(self) -> None:
        for step in range(self.key.steps):
            self._step(step)
        self.decode()

    def _step(self, step: int) -> None:
        bound = self._steps[step]
        self._decoder.transformer(*bound.transformer)
        if self.key.policy:
            self._act(step)
        with self._device.span("sampling"):
            self._device.launch("sample_tokens", **bound.sample)
            self._device.launch("remask", **bound.remask)

    def _bind_step(self, step: int) -> _Step:
        """Views and arguments of one step, made once: making them costs as much as using them."""
        batch, guided = self.key.batch, self.key.guided
        reuse = step == 0 and self._first is not None
        rows = slice(0, 2 * batch if guided and not reuse else batch)
        tokens, parameters = self.tokens[step], self.parameters[step]
        own = self.logits[batch:] if guided else self.logits
        shared: dict[str, Argument] = {
            "sampled": self.sampled[step],
            "confidence": self.confidence,
            "parameters": parameters,
            "mask_token": self._decoder.model.mask_token,
        }
        return _Step(
            transformer=(
                tokens[rows],
                self.condition[rows],
                self.logits[rows],
                self.features[rows],
            ),
            sample={
                **shared,
                "conditional": self.logits[:batch],
                "unconditional": self._first if reuse else own,
                "tokens": tokens[:batch],
                "seeds": self.seeds,
                "step": step,
                "error": self.error,
            },
            remask={**shared, "next_tokens": self.tokens[step + 1]},
        )

    def _act(self, step: int) -> None:
        policy = self._decoder.model.policy
        assert policy is not None
        with self._device.span("policy"):
            self._decoder.engines[policy.graph].enqueue(
                {
                    "features": self.features[: self.key.batch],
                    "step": self.step_ids[step],
                    "action": self.action,
                }
            )
            self._device.launch(
                "policy_parameters",
                action=self.action,
                step=step,
                steps=self.key.steps,
                residual=int(policy.residual),
                parameters=self.parameters[step],
                error=self.error,
            )
