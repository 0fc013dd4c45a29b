"""The public entrance: open a bundle, generate images.

with Generator.open("bundle") as generator:
    result = generator.generate(class_ids=[3, 7], steps=8, seed=0)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.device import Array, Device
from fewstep.runtime.device.cpu import CpuDevice
from fewstep.runtime.engine import Engine
from fewstep.runtime.engine.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import DeviceError, RequestError, choose
from fewstep.runtime.manifest import ClassCondition
from fewstep.runtime.masked import Decoded, MaskedDecoder, PlanKey
from fewstep.runtime.result import Result, Trace
from fewstep.runtime.schedule import MASK_RATIOS, POLICY, Ramp, Schedule

BACKENDS = ("auto", "onnxruntime")
DEVICES = ("auto", "cpu")
_MAX_SEED = 2**64 - 1


class Generator:
    """Generates images from one bundle. Make one with :meth:`open`; close it, or use ``with``."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        engines: Mapping[str, Engine],
        *,
        max_batch: int = 8,
        reuse_first: bool = True,
    ) -> None:
        """Assemble a generator from parts; most callers want :meth:`open`.

        Args:
            bundle: the bundle the engines belong to.
            device: the device that the engines run on.
            engines: by graph name.
            max_batch: images decoded together; larger requests are cut into such batches.
            reuse_first: reuse the all-masked unconditional logits (same tokens either way).
        """
        if max_batch < 1:
            raise RequestError(f"max_batch must be at least 1, got {max_batch}")
        self.bundle, self.device, self.engines = bundle, device, dict(engines)
        self._max_batch, self._reuse_first = max_batch, reuse_first
        self._decoder: MaskedDecoder | None = MaskedDecoder(
            device, engines, bundle.manifest.model, _unconditional(bundle)
        )

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        backend: str = "auto",
        device: str = "auto",
        max_batch: int = 8,
        threads: int = 0,
    ) -> Generator:
        """Open a bundle's engines.

        Args:
            bundle: a bundle folder.
            backend: one of :data:`BACKENDS`; ``auto`` takes the best that is usable.
            device: one of :data:`DEVICES`.
            max_batch: images decoded together.
            threads: CPU threads of the engines; 0 uses every core.

        Raises:
            RequestError: unknown backend or device.
            BundleError: the bundle is damaged or unsafe.
            MissingDependencyError: the backend's package is not installed.
            EngineError: the backend refuses a graph.
        """
        if backend not in BACKENDS:
            raise RequestError(choose("backend", backend, BACKENDS))
        if device not in DEVICES:
            raise RequestError(choose("device", device, DEVICES))
        opened = bundle if isinstance(bundle, Bundle) else Bundle.read(bundle)
        engines = {
            name: OnnxRuntimeEngine(name, opened.graph_path(name), info, threads=threads)
            for name, info in opened.manifest.graphs.items()
            if name in _needed_graphs(opened)
        }
        return cls(opened, CpuDevice(), engines, max_batch=max_batch)

    def generate(
        self,
        *,
        class_ids: Sequence[int] | None = None,
        text: Array | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        schedule: str | None = None,
        guidance: float | Ramp | None = None,
        sampling_temperature: float | Ramp | None = None,
        masking_temperature: float | Ramp | None = None,
    ) -> Result:
        """Generate one image per class id or text.

        Args:
            class_ids: one class id per image, for class-conditional bundles.
            text: text states ``[B, L, D]`` float32, for text-conditional bundles.
            steps: transformer passes, 1 … number of tokens.
            seed: image i gets ``seed + i``, or its own seed from a sequence; 0 … 2⁶⁴ − 1. The
                same seed, condition and settings give the same image in any batch.
            schedule: a mask-ratio curve (``cosine``, ``arccos``, ...) or ``policy``.
            guidance: guidance scale; a pair is a ramp (start, end) over the steps.
            sampling_temperature: divides the logits; 0 takes the most likely code.
            masking_temperature: scales the Gumbel noise on confidences.
                What is not given comes from the bundle's defaults. With ``policy`` the network
                decides the last three, and giving one is an error.

        Raises:
            RequestError: an argument the bundle cannot serve.
            EngineError: a graph failed, or gave NaN.
            DeviceError: the generator is closed, or out of memory.
        """
        decoder = self._open_decoder()
        model = self.bundle.manifest.model
        condition = self._condition(class_ids, text)
        seeds = _seeds(seed, len(condition))
        steps = model.defaults.steps if steps is None else steps
        if not 1 <= steps <= model.num_tokens:
            raise RequestError(
                f"steps must be 1 … {model.num_tokens} (the number of tokens), got {steps}"
            )
        fixed = self._schedule(schedule, guidance, sampling_temperature, masking_temperature)
        guided = fixed is None or fixed.guided
        if guided and decoder.unconditional is None:
            raise RequestError("this bundle has no unconditional text: use guidance 0")
        parameters = None if fixed is None else fixed.parameters(steps, model.num_tokens)
        start, parts = time.perf_counter(), []
        self.device.timings()
        for first in range(0, len(condition), self._max_batch):
            rows = slice(first, min(first + self._max_batch, len(condition)))
            key = PlanKey(
                batch=rows.stop - first,
                steps=steps,
                guided=guided,
                policy=fixed is None,
                reuse_first=self._reuse_first,
            )
            parts.append(decoder.plan(key).run(condition[rows], seeds[rows], parameters))
        return _result(parts, seeds, model.mask_token, self._timings(start))

    def close(self) -> None:
        """Release engines and device. Closing twice is fine."""
        if self._decoder is None:
            return
        self._decoder = None
        for engine in self.engines.values():
            engine.close()
        self.device.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_decoder(self) -> MaskedDecoder:
        if self._decoder is None:
            raise DeviceError("this Generator is closed; open another with Generator.open")
        return self._decoder

    def _timings(self, start: float) -> dict[str, float]:
        total = (time.perf_counter() - start) * 1e3
        stages = self.device.timings()
        return {**stages, "other": max(0.0, total - sum(stages.values())), "total": total}

    def _condition(self, class_ids: Sequence[int] | None, text: Array | None) -> Array:
        info = self.bundle.manifest.model.condition
        if isinstance(info, ClassCondition):
            if text is not None or class_ids is None:
                raise RequestError("this bundle is class-conditional: give class_ids, not text")
            ids = np.atleast_1d(np.asarray(class_ids))
            if ids.size == 0 or ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise RequestError(f"class_ids must be a list of integers, got {class_ids!r}")
            if wrong := sorted({int(i) for i in ids if not 0 <= i < info.num_classes}):
                offenders = ", ".join(map(str, wrong))
                raise RequestError(f"class ids must be 0 … {info.num_classes - 1}, got {offenders}")
            return ids.astype(np.int32)
        if class_ids is not None or text is None:
            raise RequestError("this bundle is text-conditional: give text states, not class_ids")
        states = np.asarray(text)
        if states.ndim != 3 or states.shape[1:] != (info.length, info.width) or not len(states):
            raise RequestError(
                f"text must have shape [B, {info.length}, {info.width}], got {list(states.shape)}"
            )
        return states.astype(np.float32)

    def _schedule(
        self,
        name: str | None,
        guidance: float | Ramp | None,
        sampling_temperature: float | Ramp | None,
        masking_temperature: float | Ramp | None,
    ) -> Schedule | None:
        """The fixed schedule, or ``None`` for the policy network."""
        model = self.bundle.manifest.model
        name = model.defaults.schedule if name is None else name
        given = {
            "guidance": guidance,
            "sampling_temperature": sampling_temperature,
            "masking_temperature": masking_temperature,
        }
        if name == POLICY:
            if model.policy is None:
                known = ", ".join(MASK_RATIOS)
                raise RequestError(f"this bundle has no policy network; use a schedule: {known}")
            if extra := [key for key, value in given.items() if value is not None]:
                raise RequestError(f"the policy decides {', '.join(extra)}: leave it out")
            return None
        ramps = {
            key: getattr(model.defaults, key) if value is None else _ramp(key, value)
            for key, value in given.items()
        }
        return Schedule(name, **ramps)


def _needed_graphs(bundle: Bundle) -> set[str]:
    policy = bundle.manifest.model.policy
    return {"transformer", "decoder"} | ({policy.graph} if policy else set())


def _unconditional(bundle: Bundle) -> Array | None:
    info = bundle.manifest.model.condition
    if isinstance(info, ClassCondition):
        return np.array(info.unconditional_id, np.int32)
    if info.unconditional_file is None:
        return None
    return bundle.arrays(info.unconditional_file)["text"].astype(np.float32)


def _seeds(seed: int | Sequence[int], count: int) -> npt.NDArray[np.uint64]:
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise RequestError(f"expected {count} seeds, one per image, got {len(seeds)}")
    if wrong := [value for value in seeds if not 0 <= value <= _MAX_SEED]:
        raise RequestError(f"seeds must be 0 … 2^64 − 1, got {wrong[0]}")
    return np.array(seeds, np.uint64)


def _ramp(name: str, value: float | Ramp) -> Ramp:
    if isinstance(value, (int, float)):
        return float(value), float(value)
    if len(value) != 2:
        raise RequestError(f"{name} must be a number or a pair (start, end), got {value!r}")
    return float(value[0]), float(value[1])


def _result(
    parts: Sequence[Decoded],
    seeds: npt.NDArray[np.uint64],
    mask_token: int,
    timings: dict[str, float],
) -> Result:
    sampled = np.concatenate([part.sampled for part in parts], axis=1)
    trace = Trace(
        tokens=np.concatenate([part.tokens for part in parts], axis=1),
        sampled=sampled,
        parameters=np.concatenate([part.parameters for part in parts], axis=1),
        mask_token=mask_token,
    )
    images = np.concatenate([part.pixels for part in parts])
    return Result(images, sampled[-1], seeds, trace, timings)
