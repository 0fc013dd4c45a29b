"""Graphs of any size: protobuf holds no message of 2 GiB, so weights of larger ones lie beside it.

A graph whose weights exceed :data:`MOST_BYTES` becomes two files, the graph and its weights, as
ONNX's external data has it; the model in memory stays as it is.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from fewstep.runtime.engines.sessions import new_session

if TYPE_CHECKING:
    import onnxruntime

MOST_BYTES = 2_000_000_000
_LEAST = 1024  # bytes of a tensor that is worth moving
_ALIGNMENT = 4096  # of each tensor, so that it can be mapped into memory


def files_of(model: onnx.ModelProto, file: str) -> dict[str, bytes | memoryview]:
    """Contents of the files of a graph, by name: ``file`` and, of a large one, ``file.data``.

    Raises:
        google.protobuf.message.EncodeError: it is too large without its weights too.
    """
    if _weight_bytes(model) <= MOST_BYTES:
        return {file: model.SerializeToString(deterministic=True)}
    data = bytearray()
    with _moved(model, f"{file}.data", data):
        content = model.SerializeToString(deterministic=True)
    return {file: content, f"{file}.data": memoryview(data)}


def session_of(
    model: onnx.ModelProto,
    configure: Callable[[onnxruntime.SessionOptions], None] = lambda options: None,
) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU, of a graph in memory.

    Args:
        model: the graph.
        configure: changes the options of the session.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        Exception: ONNX Runtime refuses the graph, with types of its own.
    """
    if _weight_bytes(model) <= MOST_BYTES:
        return new_session(model.SerializeToString(), configure=configure)
    with tempfile.TemporaryDirectory(prefix="fewstep-") as folder:
        for name, content in files_of(model, "graph.onnx").items():
            (Path(folder) / name).write_bytes(content)
        return new_session(Path(folder) / "graph.onnx", configure=configure)


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


@contextlib.contextmanager
def _moved(model: onnx.ModelProto, name: str, data: bytearray) -> Iterator[None]:
    """Move weights to the end of ``data``, the contents of a file, until the block ends."""
    moved = list[tuple[TensorProto, bytes]]()
    try:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _LEAST:
                continue
            data.extend(bytes(-len(data) % _ALIGNMENT))
            moved.append((tensor, raw))
            set_external_data(tensor, name, offset=len(data), length=len(raw))
            tensor.ClearField("raw_data")
            data.extend(raw)
        yield
    finally:
        for tensor, raw in moved:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = raw
