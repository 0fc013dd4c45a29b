"""The GPU benchmark's PyTorch parts on tiny models, with PyTorch on the host for want of a card.

The loop, its graph and its events are those of the emulated driver; only the engines, and the
events around the eager decoder, are stood in for.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests import tiny
from tests.benchmarks import gpu_torch
from tests.benchmarks.gpu_run import Bench
from tests.cuda.host_engine import HostEngine
from tests.cuda.kernels import kernels_for
from tests.cuda.torch_engine import DTYPES, ModuleEngine, described, load

from fewstep.export.masked import Models, graphs
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import compute_capability
from fewstep.runtime.generator import Generator


class Event:
    """An event of PyTorch's that remembers when it was recorded."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


def open_on_host(
    bench: Bench, models: Models, bundle: Bundle, precision: str, profile: bool = False
) -> Generator:
    device = CudaDevice(bench.cubin, profile=profile)
    info: Any = bundle.manifest.model
    engines = {
        name: HostEngine(
            ModuleEngine(name, graph.module, bundle.graph(name), dtype=DTYPES[precision]),
            device.cuda_stream.handle,
        )
        for name, graph in graphs(models, info).items()
    }
    return Generator(bundle, device, engines, precision=precision)


def tiny_models() -> tuple[Models, Bundle]:
    with tempfile.TemporaryDirectory() as folder:
        files = tiny.checkpoints(Path(folder))
        loaded = load(files)
        models = Models(loaded.transformer, loaded.tokenizer)
        return models, described(models, files["config"])


def main() -> None:
    torch.set_num_threads(1)  # the models are tiny
    capability = compute_capability()
    cubin = kernels_for(capability, None).cubins[capability]
    bench = Bench(cubin, quick=True, emulated=True, ends=time.monotonic() + 60)
    with (
        mock.patch.multiple(
            gpu_torch,
            _GPU="cpu",
            _require_torch=lambda bench: None,
            _sample=tiny_models,
            _open=open_on_host,
        ),
        mock.patch.object(torch.cuda, "Event", Event),
    ):
        tables = gpu_torch.compare(bench, model="sample", precision=sys.argv[1])
    with mock.patch.object(gpu_torch, "_GPU", "meta"):
        _, bundle = gpu_torch._adanat_l()
    print(json.dumps({"tables": tables, "adanat-l": bundle.manifest.model.model_dump()}))


if __name__ == "__main__":
    main()
