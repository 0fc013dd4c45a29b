"""The front door: open a bundle, generate images.

with fewstep.open("bundle") as generator:
    generator("Dress", count=4).images[0].save("dress.png")
    result = generator.generate(class_ids=[3, 7], steps=8, seed=0)
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.runtime.asked import asked, check_names
from fewstep.runtime.best_of import Judge, best_images
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import Described, Text
from fewstep.runtime.devices import Array, ClosedOnExit, Device, Workspace
from fewstep.runtime.edit.call import edit as edit_picture
from fewstep.runtime.engines import Engine, run_once
from fewstep.runtime.engines.on_gpu import EnginesOnGpu
from fewstep.runtime.engines.select import Wanted, open_backend
from fewstep.runtime.errors import DeviceError, RequestError, choose
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.memory import MAX_PLAN_BYTES, Plans
from fewstep.runtime.preview import Callback, StepPreview, decoded
from fewstep.runtime.program import PIXELS
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.prompts import TextStates
from fewstep.runtime.request import batches, checked_request, decoder_of
from fewstep.runtime.result import Pictures, Result
from fewstep.runtime.turns import Turns


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
        constants: bool = True,
        wait: bool = True,
    ) -> None:
        """Assemble a generator from parts; most callers want :meth:`open`.

        Args:
            bundle: the bundle the engines belong to.
            device: the device that the engines run on.
            engines: by graph name; all that programs of the bundle run.
            max_batch: images decoded together; larger requests are cut into such batches.
            max_plan_bytes: memory for the buffers of all kept plans together.
            backend: what the engines are of, for reports.
            precision: of the graphs that the engines were made of.
            constants: compute once what is the same in all programs (same images either way).
            wait: as of :meth:`open`.
        """
        if max_batch < 1:
            raise RequestError(f"max_batch must be at least 1, got {max_batch}")
        self.bundle, self.device, self.engines = bundle, device, dict(engines)
        self.max_batch, self._constants = max_batch, constants
        self.backend, self.precision = backend, precision
        self.passed_over: dict[str, str] = {}
        self.judge = Judge(bundle)
        self.on_gpu: EnginesOnGpu | None = None
        self._notes: tuple[str, ...] = ()
        self._scratch: Workspace | None = None
        self._turns, self._states = Turns(wait=wait), TextStates()
        self.family = family_of(bundle.manifest.model.kind)
        self.model = model_of(bundle, {**bundle.manifest.graphs, **self.engines})
        make = functools.partial(self.family.program, self.model)
        self._plans: Plans | None = Plans(device, self.engines, make, max_plan_bytes=max_plan_bytes)

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
        wait: bool = True,
    ) -> Generator:
        """Open a bundle's engines.

        Args:
            bundle: a bundle folder.
            backend: one of :data:`fewstep.runtime.engines.select.BACKENDS`. ``auto`` takes the
                first of TensorRT and TensorRT-RTX that works, or on the CPU the faster of OpenVINO,
                where it is installed, and ONNX Runtime; ``passed_over`` says why not the others.
            device: ``auto``, ``cpu``, ``cuda``, or ``cuda:1`` for the second GPU. ``auto`` is the
                GPU for TensorRT's engines and the CPU for all others.
            precision: of graphs or engines that the bundle has; for OpenVINO also bf16 and fp16
                where the CPU has them. ``auto`` is the one built last of the engines that run here,
                and fp32 for graphs.
            max_batch: images decoded together, at most as many as the engines were built for.
            max_plan_bytes: memory for the buffers of all kept plans together.
            threads: CPU threads of the engines, at most 1024; 0 uses every core that this process
                may use (affinity, CPU quota, ``OMP_NUM_THREADS``).
            profile: on CUDA, time every stage and not only the whole graph.
            wait: while one thread's request is served, those of other threads wait; else they are
                refused. On CUDA any thread but the one that opened the generator is refused.

        Raises:
            RequestError: unknown backend or device, a backend that does not run on the device, or
                no number of threads.
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
                wait=wait,
            )
            stack.pop_all()
        generator.passed_over, generator._scratch = opened.passed_over, opened.scratch
        generator.on_gpu, generator._notes = opened.on_gpu, opened.notes
        generator.judge = Judge(source, threads)
        return generator

    def __repr__(self) -> str:
        how = f"{self.backend} in {self.precision} on {self.device.name}"
        return f"<Generator of {self.bundle.manifest.name} ({self.bundle.path}), {how}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by id; empty for texts, and where the bundle has none."""
        return getattr(self.model.info.condition, "class_names", None) or ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the engines here, a line each: which of TensorRT's were tuned for another
        card, and which were never verified here; which backend was found to be the fastest."""
        return self._notes if self.on_gpu is None else self.on_gpu.notes(self.bundle)

    @property
    def plans(self) -> Plans:
        """The plans of the decode loop that are kept.

        Raises:
            DeviceError: the generator is closed.
        """
        if self._plans is None:
            raise DeviceError("this Generator is closed; open another with fewstep.open")
        return self._plans

    def replace_engine(self, graph: str, engine: Engine) -> None:
        """Run a graph by another engine from now on; the one before is closed, and plans with it.

        Raises:
            RequestError: no such graph.
            DeviceError: the generator is closed.
        """
        if graph not in self.engines:
            raise RequestError(choose("graph", graph, self.engines))
        with self._turns.turn():
            self.plans.close()
            self.engines[graph].close()
            self.engines[graph], self._states = engine, TextStates()

    def __call__(
        self,
        wanted: Described | None = None,
        *,
        count: int = 1,
        seed: int | Sequence[int] = 0,
        best_of: int = 1,
        progress: Progress = no_progress,
        callback: Callback | None = None,
        **settings: Any,
    ) -> Pictures:
        """Generate images, with Pillow's images on request.

        Args:
            wanted: a class id or name, or several; a prompt, or several; or text states
                ``[B, L, D]`` float32. It has to be there.
            count: images of each.
            seed: as of :meth:`generate`.
            best_of: as there; without a callback.
            progress: told after every batch.
            callback: called after every step of a batch with its number, 0 … T − 1, and a
                :class:`~fewstep.runtime.preview.StepPreview`. On CUDA every step is a graph of its
                own then. What it raises ends the request. Where memory runs out and is made, the
                steps begin again.
            settings: as of :meth:`generate`.

        Raises:
            RequestError: an argument the bundle cannot serve.
            EngineError: a graph failed, or gave NaN.
            DeviceError: the generator is closed or in use by another thread, or out of memory.
        """
        info = self.model.info
        check_names(info.condition, type(info.defaults), settings, call=True)
        condition, labels = asked(info.condition, wanted, count)
        every = {**condition, **settings, "seed": seed}
        result = best_images(self, best_of, every, progress=progress, callback=callback)
        return Pictures(result, tuple(labels))

    edit = edit_picture

    def generate(
        self,
        *,
        class_ids: Sequence[int] | None = None,
        text: Text | None = None,
        negative: str | Array | None = None,
        seed: int | Sequence[int] = 0,
        best_of: int = 1,
        **settings: Any,
    ) -> Result:
        """Generate one image per class id or text.

        Args:
            class_ids: one class id per image, for class-conditional bundles.
            text: for text-conditional bundles: a prompt per image, where the bundle has a text
                encoder, or text states ``[B, L, D]`` float32. States of prompts are kept.
            negative: a prompt, or states ``[L, D]``, that guidance leads away from, in the place of
                the empty text; for text-conditional bundles.
            seed: image i gets ``seed + i``, or its own seed from a sequence; 0 … 2⁶⁴ − 1. The
                same seed, condition and settings give the same image in any batch.
            best_of: candidates of each; a judge keeps one (:mod:`fewstep.runtime.best_of`).
            settings: of the bundle's family, such as ``steps``, ``schedule`` and ``guidance`` of
                :class:`fewstep.runtime.families.masked.settings.MaskedSettings`. What is not given
                comes from the bundle's defaults. A pair is a ramp (start, end) over the steps.

        Raises:
            RequestError: an argument the bundle cannot serve.
            EngineError: a graph failed, or gave NaN.
            DeviceError: the generator is closed, or out of memory.
        """
        condition = {"class_ids": class_ids, "text": text, "negative": negative}
        return best_images(self, best_of, {**condition, **settings, "seed": seed})

    def request(
        self,
        *,
        class_ids: Sequence[int] | None = None,
        text: Text | None = None,
        negative: str | Array | None = None,
        seed: int | Sequence[int] = 0,
        edit: Mapping[str, Array] | None = None,
        **settings: Any,
    ) -> Any:
        """A checked request of the bundle's family; arguments as of :meth:`generate`.

        Args:
            class_ids, text, negative, seed: as there.
            edit: what of the images is kept, by names of the family's own.
            settings: as there.

        Raises:
            RequestError: an argument the bundle cannot serve.
        """
        return checked_request(
            self.model,
            class_ids=class_ids,
            text=text,
            negative=negative,
            seed=seed,
            edit=edit,
            settings=settings,
        )

    def run(
        self,
        request: Any,
        *,
        progress: Progress = no_progress,
        callback: Callback | None = None,
    ) -> Result:
        """Serve a checked request, in batches of at most ``max_batch``.

        Args:
            request: of :meth:`request`.
            progress: as of :meth:`__call__`.
            callback: as there.

        Raises:
            EngineError: a graph failed, or gave NaN.
            DeviceError: the generator is closed, or out of memory; it was opened in another process
                or, on CUDA, another thread; it is in use and nobody waits.
        """
        self._turns.require_process()
        self.device.require_thread()  # before it waits for what it will not get
        with self._turns.turn():
            return self._run(request, progress, callback)

    def _run(self, request: Any, progress: Progress, callback: Callback | None) -> Result:
        plans, family, model = self.plans, self.family, self.model
        self.device.require()
        start, images, decided = time.perf_counter(), list[Array](), list[dict[str, Array]]()
        request = self._states.encoded(request, self.model, self._encode)
        self.device.timings()
        for rows in batches(len(request.seeds), self.max_batch):
            batch = rows.stop - rows.start
            key = family.key(model, request, batch, constants=self._constants)
            inputs = family.inputs(model, request, rows)
            if callback is None:
                outputs = plans.run(key, inputs)
            else:
                outputs = self._run_watched(request, key, inputs, rows, callback)
            images.append(outputs[PIXELS])
            decided.append(family.decisions(model, key, outputs))
            progress("generating", rows.stop / len(request.seeds))
        total = (time.perf_counter() - start) * 1e3
        stages = self.device.timings()
        timings = {**stages, "other": max(0.0, total - sum(stages.values())), "total": total}
        joined = {name: _joined([each[name] for each in decided], 1) for name in decided[0]}
        trace = family.trace(model, joined)
        told = family.notes(model, request), decoder_of(request)
        return Result(_joined(images, 0), request.seeds, trace, timings, *told, request=request)

    def conditions(self, request: Any) -> Array:
        """Class ids ``[B]`` of a request, or text states ``[B, L, D]``."""
        with self._turns.turn():
            found: Array = self._states.encoded(request, self.model, self._encode).condition
        return found

    def _encode(self, graph: str, ids: Array) -> Array:
        parts = batches(len(ids), self.max_batch)
        made = [run_once(self.device, self.engines[graph], {"ids": ids[rows]}) for rows in parts]
        return _joined([each["text"] for each in made], 0)

    def _run_watched(
        self, request: Any, key: Any, inputs: Mapping[str, Any], rows: slice, callback: Callback
    ) -> dict[str, Array]:
        """Run the plan for a key and call back for every step, between them where it can stop."""

        def after_step(step: int, outputs: Mapping[str, Array]) -> None:
            trace = self.family.trace(self.model, self.family.decisions(self.model, key, outputs))
            preview = self.family.preview(self.model, trace, step)
            parts = (self.device, self.engines, preview, self.max_batch, decoder_of(key))
            decode = functools.partial(decoded, *parts)
            said = preview.caption, preview.undecided, decode, request, trace
            callback(step, StepPreview(range(rows.start, rows.stop), *said))

        return self.plans.run(key, inputs, after_step)

    def close(self) -> None:
        """Release plans, engines and device, after the request that is being served.

        Closing twice is fine. In a forked process it does nothing: what is held is not its own.

        Raises:
            DeviceError: this thread may not use the device, or is in the middle of a request;
                nothing was released.
        """
        if self._plans is None or self._turns.elsewhere:
            return
        self.device.require_thread()
        with self._turns.turn(wait=True):
            self._close()

    def _close(self) -> None:
        plans, self._plans = self._plans, None
        if plans is None:  # another thread was first
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self.device.close)
            stack.callback(self.judge.close)
            if self._scratch is not None:
                stack.callback(self._scratch.close)
            for engine in self.engines.values():
                stack.callback(engine.close)
            stack.callback(plans.close)


def _joined(parts: Sequence[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
