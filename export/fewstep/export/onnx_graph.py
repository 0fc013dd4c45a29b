"""One PyTorch module → one checked ONNX file.

Opset 20 (the newest that TensorRT 10.3 … 11 and TensorRT-RTX all parse), dimensions that vary by
name, and a numeric comparison in ONNX Runtime at two sizes of them before the file counts as made.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from fewstep.export.source import Graph
from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cpu import CpuBuffer
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import ExportError, FewstepError
from fewstep.runtime.records import GraphInfo, TensorInfo

OPSET = 20
EXTERNAL_DATA_BYTES = 1_500_000_000
_COLOURS, _SUMMARY = re.compile(r"\x1b\[[0-9;]*m"), "## Exception summary"
TOLERANCE = 1e-3
"""Largest |ONNX Runtime − PyTorch| allowed, relative to max(1, largest |PyTorch|)."""

CODES_TOLERANCE = 0.02
"""Of codes, the fraction that may differ: two that are as near to a latent change places."""


def export_graph(name: str, graph: Graph, folder: Path) -> GraphInfo:
    """Export a graph to ``folder/name.onnx``.

    Returns:
        Its description. Dimensions that vary have their names; those of outputs may be sums and
        the like of such names, as the exporter writes them.

    Raises:
        ExportError: export or check failed, or ONNX Runtime computes something else.
    """
    path, module = folder / f"{name}.onnx", graph.module
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    dims = {each: torch.export.Dim(each) for each in _example_sizes(graph)}
    shapes = [{a: dims[n] for a, n in graph.dimensions(key).items()} for key in graph.inputs]
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(graph.inputs.values()),
                path,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_as_called(module, shapes),
                opset_version=OPSET,
                dynamo=True,
                external_data=size > EXTERNAL_DATA_BYTES,
                verbose=False,
            )
        info = _described(path, _without_traces(path))
        onnx.checker.check_model(path)
        _check_dimensions(name, graph, info)
        _compare(name, graph, path, info)
    except FewstepError:
        raise
    except Exception as error:  # PyTorch and the exporter raise other types at every stage
        raise ExportError(f"graph '{name}' could not be exported: {_cause(error)}") from error
    return info


def _cause(error: Exception) -> str:
    """What went wrong, in one line; PyTorch's exporter puts advice around it, in colours."""
    text = _COLOURS.sub("", str(error))
    _, _, summary = text.partition(_SUMMARY)
    lines = (line.strip() for line in (summary or text).splitlines())
    return next(filter(None, lines), type(error).__name__)


def _as_called(module: nn.Module, values: Sequence[Any]) -> tuple[Any, ...]:
    """Values of all inputs as the exporter wants them: those of ``*arguments`` are one tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return tuple(values)
    named = len(parameters) - 1
    more = tuple(values[named:])
    return (*values[:named], more) if more else tuple(values)


def _example_sizes(graph: Graph) -> dict[str, int]:
    """Sizes of the dimensions that vary in the example, by name."""
    return {
        name: example.shape[axis]
        for key, example in graph.inputs.items()
        for axis, name in graph.dimensions(key).items()
    }


def _without_traces(path: Path) -> onnx.ModelProto:
    """Remove the exporter's notes of source files and lines.

    They hold paths of the machine, and would make the graph's hash depend on where fewstep is.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        kept = [each for each in node.metadata_props if not each.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)
    return model


def _described(path: Path, model: onnx.ModelProto) -> GraphInfo:
    def info(value: onnx.ValueInfoProto) -> TensorInfo:
        tensor = value.type.tensor_type
        dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
        return TensorInfo(dtype=dtype, shape=shape)

    external = path.with_name(f"{path.name}.data")
    return GraphInfo(
        file=path.name,
        external=(external.name,) if external.exists() else (),
        inputs={value.name: info(value) for value in model.graph.input},
        outputs={value.name: info(value) for value in model.graph.output},
    )


def _check_dimensions(name: str, graph: Graph, info: GraphInfo) -> None:
    """The exporter fixes a size that the module turns into a number, and does not say so."""
    for key in graph.inputs:
        for axis, dimension in graph.dimensions(key).items():
            if (found := info.inputs[key].shape[axis]) != dimension:
                raise ExportError(
                    f"graph '{name}', input '{key}': dimension {dimension} is always {found}; the "
                    "module may not turn its size into a number, or branch on it"
                )


def _compare(name: str, graph: Graph, path: Path, info: GraphInfo) -> None:
    """Compare with PyTorch, with every dimension that varies at 1 and above its example."""
    example = _example_sizes(graph)
    engine = OnnxRuntimeEngine(name, path, info)
    with contextlib.closing(engine):
        for sizes in (dict.fromkeys(example, 1), {n: size + 1 for n, size in example.items()}):
            fed = {key: _resized(graph, key, sizes) for key in graph.inputs}
            expected = [output.numpy() for output in _call(graph, fed)]
            actual = [np.empty(output.shape, output.dtype) for output in expected]
            bound = engine.bind(
                {key: CpuBuffer(value.numpy()) for key, value in fed.items()}
                | {key: CpuBuffer(a) for key, a in zip(info.outputs, actual, strict=True)}
            )
            bound.run()
            for key, a, e in zip(graph.outputs, actual, expected, strict=True):
                error, tolerance, what = _difference(a, e)
                if not error <= tolerance:
                    at = "".join(f" at {each} {size}" for each, size in sizes.items())
                    raise ExportError(
                        f"graph '{name}', output '{key}'{at}: ONNX Runtime differs from PyTorch "
                        f"by {error:.2g} of the {what}, more than {tolerance:.0e}"
                    )


def _difference(actual: Array, expected: Array) -> tuple[float, float, str]:
    """How far an output is off, how far it may be, and what that is a part of."""
    if expected.dtype.kind == "i":
        return float((actual != expected).mean()), CODES_TOLERANCE, "codes"
    error = np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())
    return float(error), TOLERANCE, "range"


def _resized(graph: Graph, key: str, sizes: Mapping[str, int]) -> Tensor:
    """The example of an input at other sizes: from its start again where they are larger."""
    tensor = graph.inputs[key]
    for axis, name in graph.dimensions(key).items():
        rows = torch.arange(sizes[name]) % tensor.shape[axis]
        tensor = tensor.index_select(axis, rows)
    return tensor.contiguous()


@torch.no_grad()
def _call(graph: Graph, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    result: Any = graph.module(*inputs.values())
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
