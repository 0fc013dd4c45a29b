"""The masked decode loop of MaskGIT and AdaNAT, written once for every device.

One plan serves one (batch, steps, guidance yes or no, fixed schedule or policy). Its sequence of
enqueues is fixed and reads nothing back, so a device may capture it whole:

    start:   inputs → device; initial_tokens(given, mask) → tokens[0]
    step t:  tokens[t] → transformer_tokens
             transformer(transformer_tokens) → logits, features
             policy(features, t) → action → parameters[t]        only with a policy
             sample_tokens(logits, parameters[t]) → sampled[t], confidence
             remask(confidence, sampled[t]) → tokens[t + 1]
    end:     decoder(sampled[T − 1]) → image → pixels; outputs → host

Engines read and write the same addresses at every step: a plan binds each once for every batch
that it runs with. With guidance the transformer runs at batch 2B, conditional half first. At step
0 every token is masked, so the unconditional logits are the same for every image: they are
computed once, kept, and step 0 runs at batch B.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array, Buffer, Device, Workspace
from fewstep.runtime.engines import BoundEngine, Engine
from fewstep.runtime.errors import OutOfMemoryError
from fewstep.runtime.manifest import MaskedModel
from fewstep.runtime.masked_plan import Decoded, MaskedPlan
from fewstep.runtime.plan import PlanKey, first_pass_buffers, plan_buffers

MAX_PLANS = 8
MAX_PLAN_BYTES = 1 << 30


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
                self._plans[key] = MaskedPlan(self, key, buffers)
        self._plans.move_to_end(key)
        return self._plans[key]

    def run(
        self,
        key: PlanKey,
        condition: Array,
        seeds: Array,
        parameters: npt.NDArray[np.float32] | None,
    ) -> Decoded:
        """Generate one batch with the plan for ``key``; arguments as :meth:`MaskedPlan.prepare`.

        Raises:
            OutOfMemoryError: not even alone does the plan fit; the plans made before are gone.
            EngineError: a graph gave NaN or infinite numbers.
        """
        try:
            return self.plan(key).run(condition, seeds, parameters)
        except OutOfMemoryError:  # of the launch: a driver may allocate as late as that
            if self._plans.keys() <= {key}:
                raise
            self._drop(keep=0)
            return self.plan(key).run(condition, seeds, parameters)

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

    def bind_transformer(
        self, tokens: Buffer, condition: Buffer, logits: Buffer, features: Buffer | None
    ) -> BoundEngine:
        """The transformer on these buffers, all of the same batch."""
        bindings = {"tokens": tokens, self.model.condition_input: condition, "logits": logits}
        if features is not None:
            bindings["features"] = features
        return self.engines["transformer"].bind(bindings)

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
            given, condition = inputs["given"], inputs["condition"]
            with contextlib.closing(
                self.bind_transformer(given, condition, logits, features)
            ) as bound:
                self.device.run(bound)
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
