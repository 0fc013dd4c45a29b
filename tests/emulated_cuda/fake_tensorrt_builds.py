"""Builds with a TensorRT module, real or fake, for the tests of the fake."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.emulated_cuda.fake_tensorrt import make

RANGES = ((1, 4), (2, 4), (4, 4))


def rtx_without_gpu(which: str) -> Any:
    """The ``fake`` TensorRT-RTX, or the ``real`` one, skipping where that is not installed."""
    if which == "fake":
        return make("tensorrt-rtx", "1.7.1")
    try:
        return importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"no TensorRT-RTX: {error}")


def model(
    operator: str = "Relu", size: int | str = "batch", weight: bool = False, width: int = 4
) -> onnx.ModelProto:
    """`y = operator(x)`, or `operator(x, w)`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, width]) for name in "xy"
    ]
    weights = [numpy_helper.from_array(np.ones((width, width), np.float32), "w")] if weight else []
    node = helper.make_node(operator, ["x", "w"] if weight else ["x"], ["y"], name="node")
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


def logger_of(module: Any) -> Any:
    """A logger that keeps errors and warnings."""

    class Kept(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.errors.append(text)
            elif severity == module.ILogger.Severity.WARNING:
                self.warnings.append(text)

    return Kept()


class Build:
    """A builder with an empty network, its parser and a configuration."""

    def __init__(self, module: Any, *ranges: Any, content: bytes | None = None) -> None:
        self.module, self.logger = module, logger_of(module)
        self.builder = module.Builder(self.logger)
        typed = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(typed)
        self.parser = module.OnnxParser(self.network, self.logger)
        self.config = self.builder.create_builder_config()
        self.parsed = self.parser.parse(model().SerializeToString() if content is None else content)
        for one in ranges:
            self.config.add_optimization_profile(self.profile(x=one))

    def profile(self, **inputs: Any) -> Any:
        profile = self.builder.create_optimization_profile()
        for name, (low, best, high) in inputs.items():
            profile.set_shape(name, low, best, high)
        return profile

    def target(self, *capabilities: int) -> None:
        self.config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            wanted = self.module.ComputeCapability(capability)
            assert self.config.set_compute_capability(wanted, index)

    def engine(self) -> Any:
        return self.builder.build_serialized_network(self.network, self.config)

    def refused(self, text: str) -> bool:
        """Whether no engine comes out, and the log says why."""
        return self.engine() is None and any(text in error for error in self.logger.errors)
