"""The masked decode loop of MaskGIT and AdaNAT, written once for every device.

One plan serves one (batch, steps, guidance yes or no, fixed schedule or policy). Its sequence of
enqueues is fixed and reads nothing back, so a device may capture it whole:

    start:   inputs → device; initial_tokens(given, mask) → tokens[0]
    step t:  transformer(tokens[t]) → logits, features
             policy(features, t) → action → parameters[t]        only with a policy
             sample_tokens(logits, parameters[t]) → sampled[t], confidence
             remask(confidence, sampled[t]) → tokens[t + 1]
    end:     decoder(sampled[T − 1]) → image → pixels; outputs → host

With guidance the transformer runs at batch 2B, conditional half first. At step 0 every token is
masked, so the unconditional logits are the same for every image: they are computed once, kept,
and step 0 runs at batch B.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.device import Array, Buffer, BufferSpec, Device, Direct, Replay, Workspace
from fewstep.runtime.engine import Engine
from fewstep.runtime.errors import EngineError, FewstepError, OutOfMemoryError, RequestError
from fewstep.runtime.manifest import MaskedModel
from fewstep.runtime.plan import PlanKey, first_pass_buffers, plan_buffers
from fewstep.runtime.schedule import policy_offsets

MAX_PLANS = 8
MAX_PLAN_BYTES = 1 << 30


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


def check_error(flag: Array) -> None:
    """Raise ``EngineError`` if a kernel set the error flag ``[1]``."""
    if flag[0]:
        raise EngineError(
            "a graph produced NaN or infinite numbers; see which with: fewstep verify"
        )


Argument = Buffer | int | float | None


@dataclass(frozen=True)
class _Step:
    """What one step hands to the transformer and the kernels."""

    transformer: tuple[Buffer, Buffer, Buffer, Buffer | None]
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
        max_plan_bytes: memory that plans may keep together; the least recently used go first. One
            plan alone may need more.
    """

    def __init__(
        self,
        device: Device,
        engines: Mapping[str, Engine],
        model: MaskedModel,
        unconditional: Array | None,
        *,
        max_plan_bytes: int = MAX_PLAN_BYTES,
    ) -> None:
        self.device, self.engines, self.model = device, engines, model
        self.unconditional, self._max_plan_bytes = unconditional, max_plan_bytes
        self._plans: OrderedDict[PlanKey, MaskedPlan] = OrderedDict()
        self._first: Workspace | None = None

    @property
    def capturable(self) -> bool:
        """Whether every engine allows the device to capture its work."""
        return all(engine.capturable for engine in self.engines.values())

    @property
    def has_features(self) -> bool:
        """Whether the transformer gives features, for a policy."""
        return "features" in self.engines["transformer"].outputs

    def plan(self, key: PlanKey) -> MaskedPlan:
        """The plan for ``key``, kept for reuse.

        Raises:
            OutOfMemoryError: not even alone does it fit; the plans made before are gone.
        """
        if key not in self._plans:
            buffers = plan_buffers(self.model, self.engines, key)
            self._make_room(sum(spec.bytes for spec in buffers.values()))
            try:
                self._plans[key] = MaskedPlan(self, key, buffers)
            except OutOfMemoryError:
                if not self._plans:
                    raise
                self._drop(keep=0)
                for engine in self.engines.values():
                    engine.trim()
                self._plans[key] = MaskedPlan(self, key, buffers)
        self._plans.move_to_end(key)
        return self._plans[key]

    def first_unconditional(self) -> Buffer:
        """Unconditional logits ``[1, N, V]`` of the all-masked image, computed once."""
        if self._first is None:
            with contextlib.ExitStack() as stack:
                kept = self.device.workspace(first_pass_buffers(self.model, self.engines))
                stack.callback(kept.close)
                self._run_first(kept["logits"])
                self._first = kept
                stack.pop_all()
        return self._first["logits"]

    def transformer(
        self, tokens: Buffer, condition: Buffer, logits: Buffer, features: Buffer | None
    ) -> None:
        """Enqueue one pass; every buffer has the same batch."""
        bindings = {"tokens": tokens, self.model.condition_input: condition, "logits": logits}
        if features is not None:
            bindings["features"] = features
        with self.device.span("transformer"):
            self.engines["transformer"].enqueue(bindings)

    def close(self) -> None:
        """Release every plan; closing twice is fine."""
        self._drop(keep=0)
        if self._first is not None:
            self._first.close()
            self._first = None

    def _run_first(self, logits: Buffer) -> None:
        assert self.unconditional is not None
        one = PlanKey(batch=1, steps=1, guided=False, policy=None)
        specs = plan_buffers(self.model, self.engines, one)
        names = [name for name in ("condition", "given", "features") if name in specs]
        with self.device.workspace({name: specs[name] for name in names}) as inputs:
            self.device.upload(inputs["condition"], self.unconditional[None])
            masked = np.full((1, self.model.num_tokens), self.model.mask_token, np.int32)
            self.device.upload(inputs["given"], masked)
            features = inputs["features"] if "features" in names else None
            self.transformer(inputs["given"], inputs["condition"], logits, features)
            self.device.synchronize()

    def _make_room(self, needed: int) -> None:
        while self._plans and (
            len(self._plans) >= MAX_PLANS
            or needed + sum(plan.bytes for plan in self._plans.values()) > self._max_plan_bytes
        ):
            self._drop(keep=len(self._plans) - 1)

    def _drop(self, keep: int) -> None:
        while len(self._plans) > keep:
            self._plans.popitem(last=False)[1].close()


class MaskedPlan:
    """The buffers and the captured sequence for one :class:`PlanKey`."""

    def __init__(
        self, decoder: MaskedDecoder, key: PlanKey, buffers: Mapping[str, BufferSpec]
    ) -> None:
        self._decoder, self._device, self.key = decoder, decoder.device, key
        self.bytes = sum(spec.bytes for spec in buffers.values())
        first = decoder.first_unconditional() if key.guided and key.reuse_first else None
        with contextlib.ExitStack() as stack:
            self.workspace = decoder.device.workspace(buffers)
            stack.callback(self.workspace.close)
            self._first = first
            self._steps = [self._bind_step(step) for step in range(key.steps)]
            if key.policy:
                self.workspace.write("step_ids", np.arange(key.steps, dtype=np.int32)[:, None])
            self.workspace.write("mask", 1)  # a run before the capture samples every position
            self._replay = self._captured()
            stack.pop_all()

    def run(
        self,
        condition: Array,
        seeds: Array,
        parameters: npt.NDArray[np.float32] | None,
        *,
        given: Array | None = None,
        mask: Array | None = None,
    ) -> Decoded:
        """Generate one batch; arguments as in :meth:`prepare`.

        Raises:
            EngineError: a graph gave NaN or infinite numbers.
        """
        self.prepare(condition, seeds, parameters, given=given, mask=mask)
        try:
            self._replay()
        except FewstepError:  # half of it may still be running, and reading the inputs
            with contextlib.suppress(FewstepError):
                self._device.synchronize()
            raise
        self._device.synchronize()
        read = self.workspace.read
        check_error(read("error"))
        return Decoded(
            pixels=read("pixels"),
            sampled=read("sampled"),
            tokens=read("tokens")[:, : self.key.batch],
            parameters=read("parameters"),
        )

    def prepare(
        self,
        condition: Array,
        seeds: Array,
        parameters: npt.NDArray[np.float32] | None,
        *,
        given: Array | None = None,
        mask: Array | None = None,
    ) -> None:
        """Write the inputs of a run, for the next :meth:`start` or replay.

        Args:
            condition: class ids ``[B]`` int32 or text states ``[B, L, D]`` float32.
            seeds: ``[B]`` uint64.
            parameters: ``[T, 4]``, or ``None`` with a policy.
            given: ids ``[B, N]`` that stay where ``mask`` is 0. Only for plans that do not reuse
                the all-masked first pass, and only together with ``mask``.
            mask: ``[B, N]``, 1 where a token is to be generated; everywhere if ``None``.

        Raises:
            RequestError: kept tokens that are no codes, or that this plan cannot keep.
        """
        self._check_kept(given, mask)
        if self.key.guided:
            assert self._decoder.unconditional is not None
            nothing = np.broadcast_to(self._decoder.unconditional, condition.shape)
            condition = np.concatenate([condition, nothing])
        write = self.workspace.write
        write("condition", condition)
        write("seeds", seeds)
        write("given", 0 if given is None else given)
        write("mask", 1 if mask is None else mask)
        write("error", 0)
        if parameters is not None:
            write("parameters", parameters[:, None])

    def _check_kept(self, given: Array | None, mask: Array | None) -> None:
        if given is None and mask is None:
            return
        if given is None or mask is None:
            raise RequestError("tokens to keep need both `given` and `mask`")
        shape = self.workspace["given"].shape
        if np.shape(given) != shape or np.shape(mask) != shape:
            raise RequestError(
                f"tokens to keep and their mask must be {list(shape)}, got "
                f"{list(np.shape(given))} and {list(np.shape(mask))}"
            )
        if self._first is not None:
            raise RequestError("tokens can only be kept by a plan with reuse_first=False")
        kept = given[np.asarray(mask) == 0]
        codes = self._decoder.model.codebook_size
        if kept.size and not (kept.min() >= 0 and kept.max() < codes):
            raise RequestError(f"tokens to keep must be codes, 0 … {codes - 1}")

    def start(self) -> None:
        """Enqueue the inputs and the initial tokens."""
        self.workspace.send()
        model, buffers = self._decoder.model, self.workspace
        self._device.launch(
            "initial_tokens",
            given=buffers["given"],
            mask=buffers["mask"],
            codebook_size=model.codebook_size,
            mask_token=model.mask_token,
            tokens=buffers["tokens"][0],
            error=buffers["error"],
        )

    def sample(self, step: int, tokens: Buffer) -> None:
        """Enqueue the sampling of ``tokens [B, N]`` from the logits of the last pass."""
        self._device.launch("sample_tokens", **{**self._steps[step].sample, "tokens": tokens})

    def decode(self) -> None:
        """Enqueue the decoder on the last step's samples, and the pixels."""
        buffers = self.workspace
        with self._device.span("decoder"):
            self._decoder.engines["decoder"].enqueue(
                {"tokens": buffers["sampled"][self.key.steps - 1], "image": buffers["image"]}
            )
        self._device.launch(
            "to_pixels", image=buffers["image"], pixels=buffers["pixels"], error=buffers["error"]
        )

    def close(self) -> None:
        """Release graph and buffers; closing twice is fine."""
        self._replay.close()
        self.workspace.close()

    def _captured(self) -> Replay:
        if self._decoder.capturable:
            return self._device.capture(self._sequence)
        return Direct(self._sequence)

    def _sequence(self) -> None:
        self.start()
        for step in range(self.key.steps):
            self._step(step)
        self.decode()
        self.workspace.fetch()

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
        batch, guided, buffers = self.key.batch, self.key.guided, self.workspace
        reuse = step == 0 and self._first is not None
        rows = slice(0, 2 * batch if guided and not reuse else batch)
        tokens, logits = buffers["tokens"][step], buffers["logits"]
        shared: dict[str, Argument] = {
            "sampled": buffers["sampled"][step],
            "confidence": buffers["confidence"],
            "parameters": buffers["parameters"][step],
            "mask_token": self._decoder.model.mask_token,
        }
        return _Step(
            transformer=(
                tokens[rows],
                buffers["condition"][rows],
                logits[rows],
                buffers["features"][rows] if self._decoder.has_features else None,
            ),
            sample={
                **shared,
                "conditional": logits[:batch],
                "unconditional": self._first if reuse else logits[batch:] if guided else logits,
                "tokens": tokens[:batch],
                "seeds": buffers["seeds"],
                "step": step,
                "error": buffers["error"],
            },
            remask={**shared, "next_tokens": buffers["tokens"][step + 1]},
        )

    def _act(self, step: int) -> None:
        policy, buffers = self.key.policy, self.workspace
        assert policy is not None
        residual = self._decoder.model.policies[policy].residual
        with self._device.span("policy"):
            self._decoder.engines[policy].enqueue(
                {
                    "features": buffers["features"][: self.key.batch],
                    "step": buffers["step_ids"][step],
                    "action": buffers["action"],
                }
            )
            self._device.launch(
                "policy_parameters",
                action=buffers["action"],
                **policy_offsets(step, self.key.steps, residual=residual),
                parameters=buffers["parameters"][step],
                error=buffers["error"],
            )
