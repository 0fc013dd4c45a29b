"""One PyTorch module → one checked ONNX file.

Opset 20 (the newest that TensorRT 10.3 … 11 and TensorRT-RTX all parse), dynamic batch, and a
numeric comparison in ONNX Runtime at two batch sizes before the file counts as made.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from fewstep.runtime.devices.cpu import CpuBuffer
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import ExportError, FewstepError
from fewstep.runtime.manifest import GraphInfo, TensorInfo

OPSET = 20
EXTERNAL_DATA_BYTES = 1_500_000_000
TOLERANCE = 1e-3
"""Largest |ONNX Runtime − PyTorch| allowed, relative to max(1, largest |PyTorch|)."""

_CHECKED_BATCHES = (1, 3)
_BATCH = "batch"


def export_graph(
    module: nn.Module,
    name: str,
    inputs: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    folder: Path,
) -> tuple[GraphInfo, float]:
    """Export ``module`` to ``folder/name.onnx``.

    Args:
        module: called with the inputs in order; returns one tensor per name in ``outputs``.
        name: graph name.
        inputs: example tensors with batch 2 in front.
        outputs: names of the outputs.
        folder: where the file goes.

    Returns:
        The graph's description and the largest relative difference from PyTorch.

    Raises:
        ExportError: export or check failed, or ONNX Runtime computes something else.
    """
    path = folder / f"{name}.onnx"
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: torch.export.Dim(_BATCH)} for _ in inputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=size > EXTERNAL_DATA_BYTES,
                verbose=False,
            )
        _drop_traces(path)
        onnx.checker.check_model(path)
        described = _describe(path, inputs, dict(zip(outputs, _call(module, inputs), strict=True)))
        return described, _compare(module, name, inputs, path, described)
    except FewstepError:
        raise
    except Exception as error:  # PyTorch and the exporter raise other types at every stage
        raise ExportError(f"graph '{name}' could not be exported: {error}") from error


def _drop_traces(path: Path) -> None:
    """Remove the exporter's notes of source files and lines.

    They hold paths of the machine, and would make the graph's hash depend on where fewstep is.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        kept = [each for each in node.metadata_props if not each.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def _describe(path: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> GraphInfo:
    def info(tensor: Tensor) -> TensorInfo:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TensorInfo(dtype=dtype, shape=(_BATCH, *tensor.shape[1:]))  # type: ignore[arg-type]

    external = path.with_name(f"{path.name}.data")
    return GraphInfo(
        file=path.name,
        external=(external.name,) if external.exists() else (),
        inputs={key: info(value) for key, value in inputs.items()},
        outputs={key: info(value) for key, value in outputs.items()},
    )


def _compare(
    module: nn.Module, name: str, inputs: Mapping[str, Tensor], path: Path, described: GraphInfo
) -> float:
    engine = OnnxRuntimeEngine(name, path, described)
    worst = 0.0
    try:
        for batch in _CHECKED_BATCHES:
            fed = {key: value[[row % 2 for row in range(batch)]] for key, value in inputs.items()}
            expected = [output.numpy() for output in _call(module, fed)]
            actual = [np.empty(output.shape, output.dtype) for output in expected]
            bound = engine.bind(
                {key: CpuBuffer(value.numpy()) for key, value in fed.items()}
                | {key: CpuBuffer(a) for key, a in zip(described.outputs, actual, strict=True)}
            )
            bound.run()
            for key, a, e in zip(described.outputs, actual, expected, strict=True):
                error = float(np.abs(a - e).max() / max(1.0, np.abs(e).max()))
                if not error <= TOLERANCE:
                    raise ExportError(
                        f"graph '{name}', output '{key}' at batch {batch}: ONNX Runtime differs "
                        f"from PyTorch by {error:.2g} of the range, more than {TOLERANCE:.0e}"
                    )
                worst = max(worst, error)
    finally:
        engine.close()
    return worst


@torch.no_grad()
def _call(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    result: Any = module(*inputs.values())
    return result if isinstance(result, tuple) else (result,)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress lines and deprecation warnings off the terminal."""
    levels = {key: logging.getLogger(key).level for key in ("torch.onnx", "onnxscript")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for key in levels:
            logging.getLogger(key).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for key, level in levels.items():
                logging.getLogger(key).setLevel(level)
