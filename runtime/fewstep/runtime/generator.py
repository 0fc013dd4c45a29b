"""The public entrance: open a bundle, generate images.

with Generator.open("bundle") as generator:
    result = generator.generate(class_ids=[3, 7], steps=8, seed=0)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array, ClosedOnExit, Device, Workspace
from fewstep.runtime.engines import Engine
from fewstep.runtime.engines.on_gpu import EnginesOnGpu
from fewstep.runtime.engines.select import Wanted, open_backend
from fewstep.runtime.errors import BundleError, DeviceError, RequestError
from fewstep.runtime.manifest import ClassCondition
from fewstep.runtime.masked import MAX_PLAN_BYTES, MaskedDecoder
from fewstep.runtime.masked_plan import Decoded
from fewstep.runtime.plan import PlanKey
from fewstep.runtime.request import (
    Request,
    condition_of,
    require_unconditional,
    schedule_of,
    seeds_of,
    steps_of,
)
from fewstep.runtime.result import Result, Trace
from fewstep.runtime.schedule import Ramp, Schedule


class Generator(ClosedOnExit):
    """Generates images from one bundle. Make one with :meth:`open`; close it, or use ``with``."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        engines: Mapping[str, Engine],
        *,
        max_batch: int = 8,
        max_plan_bytes: int = MAX_PLAN_BYTES,
        backend: str = "onnxruntime",
        precision: str = "fp32",
        reuse_first: bool = True,
    ) -> None:
        """Assemble a generator from parts; most callers want :meth:`open`.

        Args:
            bundle: the bundle the engines belong to.
            device: the device that the engines run on.
            engines: by graph name.
            max_batch: images decoded together; larger requests are cut into such batches.
            max_plan_bytes: memory for the buffers of all kept plans together.
            backend: what the engines are of, for reports.
            precision: of the graphs that the engines were made of.
            reuse_first: reuse the all-masked unconditional logits (same tokens either way).
        """
        if max_batch < 1:
            raise RequestError(f"max_batch must be at least 1, got {max_batch}")
        self.bundle, self.device, self.engines = bundle, device, dict(engines)
        self.max_batch, self._reuse_first = max_batch, reuse_first
        self.backend, self.precision = backend, precision
        self.passed_over: dict[str, str] = {}
        self.on_gpu: EnginesOnGpu | None = None
        self._scratch: Workspace | None = None
        self._busy = threading.Lock()
        self._decoder: MaskedDecoder | None = MaskedDecoder(
            device,
            self.engines,
            bundle.manifest.model,
            _unconditional(bundle),
            max_plan_bytes=max_plan_bytes,
        )

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        max_batch: int = 8,
        max_plan_bytes: int = MAX_PLAN_BYTES,
        threads: int = 0,
        profile: bool = False,
    ) -> Generator:
        """Open a bundle's engines.

        Args:
            bundle: a bundle folder.
            backend: one of :data:`fewstep.runtime.engines.select.BACKENDS`. ``auto`` takes the
                first of TensorRT, TensorRT-RTX and ONNX Runtime that works; ``passed_over`` then
                says why those before it do not.
            device: ``auto``, ``cpu``, ``cuda``, or ``cuda:1`` for the second GPU. ``auto`` is the
                GPU for TensorRT's engines and the CPU for ONNX Runtime.
            precision: of graphs or engines that the bundle has. ``auto`` is the one built last
                of the engines that run here, and fp32 for ONNX Runtime.
            max_batch: images decoded together, at most as many as the engines were built for.
            max_plan_bytes: memory for the buffers of all kept plans together.
            threads: CPU threads of the engines; 0 uses every core.
            profile: on CUDA, time every stage and not only the whole graph.

        Raises:
            RequestError: unknown backend or device, or a backend that does not run on the device.
            BundleError: the bundle is damaged or unsafe.
            MissingDependencyError: the backend's package is not installed.
            EngineError: the backend refuses a graph.
            DeviceError: no such GPU, or no driver.
        """
        wanted = Wanted.parse(backend, device, precision, threads, profile)
        source = bundle if isinstance(bundle, Bundle) else Bundle.read(bundle)
        opened = open_backend(source, wanted)
        with contextlib.ExitStack() as stack:
            stack.callback(opened.close)
            generator = cls(
                source,
                opened.device,
                opened.engines,
                max_batch=min(max_batch, opened.max_batch or max_batch),
                max_plan_bytes=max_plan_bytes,
                backend=opened.backend,
                precision=opened.precision,
            )
            stack.pop_all()
        generator.passed_over, generator._scratch = opened.passed_over, opened.scratch
        generator.on_gpu = opened.on_gpu
        return generator

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of TensorRT's engines on this GPU, a line each: which were tuned for another
        card, and which were never verified here."""
        return () if self.on_gpu is None else self.on_gpu.notes(self.bundle)

    @property
    def decoder(self) -> MaskedDecoder:
        """The decode loop.

        Raises:
            DeviceError: the generator is closed.
        """
        if self._decoder is None:
            raise DeviceError("this Generator is closed; open another with Generator.open")
        return self._decoder

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
            schedule: a mask-ratio curve (``cosine``, ``arccos``, ...), the name of one of the
                bundle's policies, or ``policy``: the newest that was tuned for this number of
                steps, else the newest for any number. ``policy-exported`` is the one that was
                exported.
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
        model = self.bundle.manifest.model
        condition = condition_of(model, class_ids, text)
        steps = steps_of(model, steps)
        ramps = {
            "guidance": guidance,
            "sampling_temperature": sampling_temperature,
            "masking_temperature": masking_temperature,
        }
        chosen = schedule_of(model, schedule, ramps, steps)
        fixed = chosen if isinstance(chosen, Schedule) else None
        return self.run(
            Request(
                condition=condition,
                seeds=seeds_of(seed, len(condition)),
                steps=steps,
                parameters=None if fixed is None else fixed.parameters(steps, model.num_tokens),
                guided=fixed is None or fixed.guided,
                policy=chosen if isinstance(chosen, str) else None,
            )
        )

    def run(self, request: Request) -> Result:
        """Serve a checked request, in batches of at most ``max_batch``.

        Raises:
            RequestError: guidance in a bundle without an unconditional condition.
            EngineError: a graph failed, or gave NaN.
            DeviceError: the generator is closed or in use by another thread, or out of memory.
        """
        if not self._busy.acquire(blocking=False):
            raise DeviceError(
                "this Generator is in use by another thread; open one Generator per thread"
            )
        try:
            return self._run(request)
        finally:
            self._busy.release()

    def _run(self, request: Request) -> Result:
        decoder = self.decoder
        self.device.require()
        require_unconditional(self.bundle.manifest.model, request.guided)
        start, parts, count = time.perf_counter(), [], len(request.condition)
        self.device.timings()
        for first in range(0, count, self.max_batch):
            rows = slice(first, min(first + self.max_batch, count))
            key = PlanKey(
                batch=rows.stop - first,
                steps=request.steps,
                guided=request.guided,
                policy=request.policy,
                reuse_first=self._reuse_first,
            )
            inputs = request.condition[rows], request.seeds[rows], request.parameters
            parts.append(decoder.run(key, *inputs))
        total = (time.perf_counter() - start) * 1e3
        stages = self.device.timings()
        timings = {**stages, "other": max(0.0, total - sum(stages.values())), "total": total}
        return _result(parts, request, self.bundle.manifest.model.mask_token, timings)

    def close(self) -> None:
        """Release plans, engines and device. Closing twice is fine.

        Raises:
            DeviceError: this thread may not use the device; nothing was released.
        """
        if self._decoder is None:
            return
        self.device.require_thread()
        decoder, self._decoder = self._decoder, None
        with contextlib.ExitStack() as stack:
            stack.callback(self.device.close)
            if self._scratch is not None:
                stack.callback(self._scratch.close)
            for engine in self.engines.values():
                stack.callback(engine.close)
            stack.callback(decoder.close)


def _unconditional(bundle: Bundle) -> Array | None:
    info = bundle.manifest.model.condition
    if isinstance(info, ClassCondition):
        return np.array(info.unconditional_id, np.int32)
    if info.unconditional_file is None:
        return None
    text = bundle.arrays(info.unconditional_file).get("text")
    if text is None or text.shape != (info.length, info.width):
        raise BundleError(
            f"{bundle.path}/{info.unconditional_file}: expected an array 'text' of shape "
            f"[{info.length}, {info.width}]; export the bundle again"
        )
    return text.astype(np.float32)


def _result(
    parts: Sequence[Decoded], request: Request, mask_token: int, timings: dict[str, float]
) -> Result:
    sampled = _joined([part.sampled for part in parts], axis=1)
    trace = Trace(
        tokens=_joined([part.tokens for part in parts], axis=1),
        sampled=sampled,
        parameters=_joined([part.parameters for part in parts], axis=1),
        mask_token=mask_token,
    )
    images = _joined([part.pixels for part in parts], axis=0)
    return Result(images, sampled[-1], request.seeds, trace, timings)


def _joined(parts: Sequence[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
