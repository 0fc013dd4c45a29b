"""Networks, and the parser that fills them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tests.emulated_cuda.fake_tensorrt.graph import BadNode, Graph, Tensor
from tests.emulated_cuda.fake_tensorrt.library import ILogger, Library, Severity, say
from tests.emulated_cuda.fake_tensorrt.values import (
    Dims,
    ErrorCode,
    instance,
    integer,
    text,
)

_TURING_REFUSES = ("Gemm", "MatMul")


class ITensor:
    """An input or output of a network."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    @property
    def name(self) -> str:
        return self._tensor.name

    @property
    def shape(self) -> Dims:
        return Dims(self._tensor.shape)

    @property
    def dtype(self) -> Any:
        return self._tensor.dtype


class INetworkDefinition:
    """A network, empty until a parser fills it."""

    __slots__ = ("__weakref__", "_library", "_logger", "_parsers", "flags", "graph", "name")

    def __init__(self, library: Library, logger: Any, flags: int) -> None:
        self._library, self._logger, self.flags = library, logger, flags
        self.name, self.graph = "Unnamed Network 0", Graph(onnx.ModelProto())
        self._parsers: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self.graph.model.graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self.graph.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.graph.outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self._tensor(list(self.graph.inputs.values()), index, "getInput")

    def get_output(self, index: int) -> ITensor | None:
        return self._tensor(list(self.graph.outputs.values()), index, "getOutput")

    def keep(self, parser: Any) -> None:
        """The parser holds weights, so it lives as long as the network does."""
        self._parsers.append(parser)

    def first_refused_by_turing(self) -> str:
        """The first node that a compute capability of 7.5 has nothing for; empty if none."""
        wide = {
            weight.name
            for weight in self.graph.model.graph.initializer
            if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16)
        }
        for node in self.graph.model.graph.node:
            if node.op_type in _TURING_REFUSES and wide.intersection(node.input):
                return str(node.name)
        return ""

    def _tensor(self, tensors: list[Tensor], index: int, where: str) -> ITensor | None:
        index = integer(index)
        if 0 <= index < len(tensors):
            return ITensor(tensors[index])
        why = f"index {index} is out of range [0, {len(tensors)})"
        self._library.refuse(self._logger, f"INetworkDefinition::{where}", why)
        return None


@dataclass(frozen=True)
class ParserError:
    """One thing that the parser did not take."""

    _code: Any
    _desc: str
    _node: BadNode | None = None

    def code(self) -> Any:
        return self._code

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return self._node.index if self._node else -1

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.operator if self._node else ""

    def __str__(self) -> str:
        where = f"node {self.node()} with name: {self.node_name()}" if self._node else "model"
        return f"In {where} and operator: {self.node_operator()}: {self._code.name}: {self._desc}"


class OnnxParser:
    """Reads ONNX into a network, which has to be kept: the parser does not hold it."""

    __slots__ = ("__weakref__", "_errors", "_logger", "_network")

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = weakref.ref(instance(network, INetworkDefinition))
        self._logger = instance(logger, ILogger)
        self._errors: list[ParserError] = []
        network.keep(self)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError | None:
        index = integer(index)
        if 0 <= index < len(self._errors):
            return self._errors[index]
        say(self._logger, Severity.ERROR, f"there is no error {index}")
        return None

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse(self, model: Any, path: str | None = None) -> bool:
        content = memoryview(model).tobytes()
        return self._fill(content, Path(text(path)).parent if path is not None else None)

    def parse_from_file(self, model: str) -> bool:
        path = Path(text(model))
        if not path.is_file():
            why = f"Input file cannot be found, or is not a regular file: {model}"
            return self._fail(ParserError(ErrorCode.INVALID_VALUE, why))
        return self._fill(path.read_bytes(), path.parent)

    def _fill(self, content: bytes, folder: Path | None) -> bool:
        network = self._network()
        if network is None:
            raise RuntimeError("the network of this parser is gone; the real module crashes here")
        if network.graph.model.ByteSize():
            say(self._logger, Severity.ERROR, "Parse was called with a non-empty network")
            return False
        model = onnx.ModelProto()
        try:
            model.ParseFromString(content)
        except DecodeError:
            why = "Failed to parse the ONNX model."
            return self._fail(ParserError(ErrorCode.MODEL_DESERIALIZE_FAILED, why))
        return self._load(network, model, folder)

    def _load(self, network: INetworkDefinition, model: onnx.ModelProto, folder: Any) -> bool:
        graph = Graph(model)
        bad = next(graph.bad_nodes(), None)
        if bad is not None:
            for part in ("node", "output"):
                model.graph.ClearField(part)
            network.graph = graph
            return self._fail(_unsupported(bad))
        try:
            onnx.load_external_data_for_model(model, str(folder or "."))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            say(self._logger, Severity.ERROR, str(error))
            return self._fail(ParserError(ErrorCode.INVALID_GRAPH, "Failed to import initializer"))
        network.graph = graph
        return True

    def _fail(self, error: ParserError) -> bool:
        self._errors.append(error)
        say(self._logger, Severity.ERROR, str(error))
        return False


def _unsupported(node: BadNode) -> ParserError:
    if node.known:
        why = f"{node.operator} has no implementation"
        return ParserError(ErrorCode.UNSUPPORTED_NODE, why, node)
    why = "Plugin not found, are the plugin name, version, and namespace correct?"
    return ParserError(ErrorCode.INVALID_NODE, why, node)
