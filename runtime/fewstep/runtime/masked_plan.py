"""One plan of the masked loop: its buffers, its bound engines, and its captured sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array, Buffer, BufferSpec, Direct, Replay
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import EngineError, FewstepError, RequestError
from fewstep.runtime.plan import PlanKey
from fewstep.runtime.schedule import policy_offsets

if TYPE_CHECKING:
    from fewstep.runtime.masked import MaskedDecoder


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
    """What one step copies, runs and hands to the kernels."""

    copy: tuple[Buffer, Buffer]
    transformer: BoundEngine
    sample: dict[str, Argument]
    remask: dict[str, Argument]


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
            self._bound: dict[tuple[str, int], BoundEngine] = {}
            stack.callback(self._release_bound)
            stack.callback(self._settle)
            self._bind()
            self._steps = [self._bind_step(step) for step in range(key.steps)]
            if key.policy:
                self.workspace.write("step_ids", np.arange(key.steps, dtype=np.int32)[:, None])
            self._write_trial()
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
            self._settle()
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

    def transform(self, step: int) -> None:
        """Enqueue the pass of a step over its tokens."""
        bound = self._steps[step]
        with self._device.span("transformer"):
            self._device.copy(*bound.copy)
            self._device.run(bound.transformer)

    def sample(self, step: int, tokens: Buffer) -> None:
        """Enqueue the sampling of ``tokens [B, N]`` from the logits of the last pass."""
        self._device.launch("sample_tokens", **{**self._steps[step].sample, "tokens": tokens})

    def decode(self) -> None:
        """Enqueue the decoder on the last step's samples, and the pixels."""
        buffers = self.workspace
        with self._device.span("decoder"):
            self._device.run(self._bound["decoder", self.key.batch])
        self._device.launch(
            "to_pixels", image=buffers["image"], pixels=buffers["pixels"], error=buffers["error"]
        )

    def close(self) -> None:
        """Release graph, bindings and buffers; closing twice is fine."""
        self._settle()
        self._replay.close()
        self._release_bound()
        self.workspace.close()

    def _write_trial(self) -> None:
        """Inputs of the runs before and after the capture: logits decide tokens at every step."""
        self.workspace.write("mask", 1)
        if self.key.policy is None:
            steps = np.arange(1, self.key.steps + 1)
            trial = np.zeros((self.key.steps, 1, 4), np.float32)
            trial[:, 0, 0] = 1 - steps / self.key.steps  # mask ratio; no noise, likeliest codes
            trial[:, 0, 3] = self.key.guided
            self.workspace.write("parameters", trial)

    def _settle(self) -> None:
        """Wait for what an interrupted run left on the device: it may need what is released."""
        with contextlib.suppress(FewstepError):
            self._device.synchronize()

    def _release_bound(self) -> None:
        while self._bound:
            self._bound.popitem()[1].close()

    def _captured(self) -> Replay:
        if not self._decoder.capturable:
            return Direct(self._sequence)
        return self._device.capture(
            self._sequence,
            warm_up=max(engine.warm_up for engine in self._decoder.engines.values()),
            check_capturable=self._require_capturable,
            workspace=self.workspace,
        )

    def _require_capturable(self) -> None:
        for bound in self._bound.values():
            bound.require_capturable()

    def _sequence(self) -> None:
        self.start()
        for step in range(self.key.steps):
            self._step(step)
        self.decode()
        self.workspace.fetch()

    def _step(self, step: int) -> None:
        bound = self._steps[step]
        self.transform(step)
        if self.key.policy:
            self._act(step)
        with self._device.span("sampling"):
            self._device.launch("sample_tokens", **bound.sample)
            self._device.launch("remask", **bound.remask)

    def _bind(self) -> None:
        """Bind every engine for every batch that it runs with."""
        key, buffers, decoder = self.key, self.workspace, self._decoder
        passes = {key.batch * (2 if key.guided else 1)}
        passes |= {key.batch} if self._first is not None else set()
        features = "features" in decoder.engines["transformer"].outputs
        for rows in sorted(passes):
            self._bound["transformer", rows] = decoder.bind_transformer(
                buffers["transformer_tokens"][:rows],
                buffers["condition"][:rows],
                buffers["logits"][:rows],
                buffers["features"][:rows] if features else None,
            )
        if key.policy:
            self._bound["policy", key.batch] = decoder.engines[key.policy].bind(
                {
                    "features": buffers["features"][: key.batch],
                    "step": buffers["policy_step"],
                    "action": buffers["action"],
                }
            )
        self._bound["decoder", key.batch] = decoder.engines["decoder"].bind(
            {"tokens": buffers["sampled"][key.steps - 1], "image": buffers["image"]}
        )

    def _bind_step(self, step: int) -> _Step:
        """Views and arguments of one step, made once: making them costs as much as using them."""
        batch, guided, buffers = self.key.batch, self.key.guided, self.workspace
        reuse = step == 0 and self._first is not None
        rows = 2 * batch if guided and not reuse else batch
        tokens, logits = buffers["tokens"][step], buffers["logits"]
        shared: dict[str, Argument] = {
            "sampled": buffers["sampled"][step],
            "confidence": buffers["confidence"],
            "parameters": buffers["parameters"][step],
            "mask_token": self._decoder.model.mask_token,
        }
        return _Step(
            copy=(buffers["transformer_tokens"][:rows], tokens[:rows]),
            transformer=self._bound["transformer", rows],
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
            self._device.copy(buffers["policy_step"], buffers["step_ids"][step])
            self._device.run(self._bound["policy", self.key.batch])
            self._device.launch(
                "policy_parameters",
                action=buffers["action"],
                **policy_offsets(step, self.key.steps, residual=residual),
                parameters=buffers["parameters"][step],
                error=buffers["error"],
            )
