"""PyTorch behind the engine protocol: the reference that golden rollouts are recorded with."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cpu import host_array
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.records import GraphInfo, TensorInfo


class TorchEngine:
    """Runs a module on the CPU device, inputs and outputs named as in its graph."""

    capturable = True  # on the CPU there is nothing to capture
    warm_up = 1

    def __init__(self, name: str, module: nn.Module, info: GraphInfo) -> None:
        self.name, self._module = name, module.eval()
        self.inputs: Mapping[str, TensorInfo] = info.inputs
        self.outputs: Mapping[str, TensorInfo] = info.outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by name."""
        return BoundEngine(self.name, functools.partial(self._run, dict(bindings)))

    def close(self) -> None:
        """Nothing to release."""

    @torch.no_grad()
    def _run(self, bindings: Mapping[str, Buffer]) -> None:
        fed = [torch.from_numpy(host_array(bindings[name])) for name in self.inputs]
        result = self._module(*fed)
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(self.outputs, results, strict=True):
            np.copyto(host_array(bindings[name]), value.numpy())
