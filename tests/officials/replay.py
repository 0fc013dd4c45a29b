"""A recording's weights as a bundle, and its decode with the recorded noise.

The export is that of the command line. The decode is the bundle's own program on ONNX Runtime's
engines: every graph and every kernel runs as in ``generate``, but a kernel that draws is followed
by a sampler that writes what the recorded noise gives.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.export.flow import export
from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.generator import Generator
from fewstep.runtime.observe import Call, observe
from fewstep.runtime.program import Program

Array = npt.NDArray[Any]
Arguments = dict[str, Any]
Sampler = Callable[[int, Arguments], None]
"""Takes how often its kernel ran before, and the kernel's arguments, and writes what it drew."""


def exported(
    form: str, given: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> Generator:
    """The bundle of checkpoint files, opened.

    Args:
        form: as of ``fewstep export``.
        given: its options by name.
        config: contents of the ``--config`` file.
        folder: where to put the bundle, and the configuration beside it.

    Raises:
        FewstepError: it cannot be exported or opened.
    """
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(config))
    export(form, {**given, "config": file}, folder)
    return Generator.open(folder, backend="onnxruntime", device="cpu", precision="fp32", threads=1)


def run(generator: Generator, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run one graph on host arrays."""
    engine = generator.engines[graph]
    fed = {name: value.astype(engine.inputs[name].dtype) for name, value in inputs.items()}
    return run_once(generator.device, engine, fed)


@dataclass
class Replay:
    """All runs of graphs and launches of kernels of a decode, by name and in their order.

    A launch has its arguments after the kernel and the sampler: arrays, whole numbers and floats.
    """

    runs: defaultdict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    launches: defaultdict[str, list[Arguments]] = field(default_factory=lambda: defaultdict(list))


class _Noisy(CpuDevice):
    """The CPU device, with noise that was recorded; it keeps what kernels read and wrote."""

    def __init__(self, samplers: Mapping[str, Sampler], found: Replay) -> None:
        super().__init__()
        self._samplers, self._found = samplers, found

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        super().launch(kernel, **arguments)
        plain = {k: v.array if isinstance(v, CpuBuffer) else v for k, v in arguments.items()}
        launches = self._found.launches[kernel]
        if kernel in self._samplers:
            self._samplers[kernel](len(launches), plain)
        launches.append({k: v.copy() if isinstance(v, np.ndarray) else v for k, v in plain.items()})


def replay(
    generator: Generator,
    program: Program,
    inputs: Mapping[str, npt.ArrayLike],
    samplers: Mapping[str, Sampler],
    forced: Mapping[str, Array] | None = None,
) -> Replay:
    """Run a program with recorded noise.

    Args:
        generator: whose engines run the graphs.
        program: without constants.
        inputs: by buffer name.
        samplers: by the name of a kernel that draws.
        forced: recorded decisions, as of :func:`~fewstep.runtime.observe.observe`; without them
            every step goes on with what the program decided itself.
    """
    found = Replay()
    device = _Noisy(samplers, found)
    for call in observe(program, device, generator.engines, inputs, forced):
        found.runs[call.graph].append(call)
    return found
