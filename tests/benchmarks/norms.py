"""How many layers engines have with their norms in fp16 and in fp32: the sample, and AdaNAT-L.

    python -m tests.benchmarks.norms --folder FOLDER

Exports both into the folder as ``engines.py`` does (what is there is used again), then builds every
graph in fp16 twice for TensorRT-RTX and compute capability 8.6: with a kind of norm in fp16, and in
fp32. Layers are what the engine launches, read off the program that it holds; no GPU takes part.
Traffic is on paper: what the norms of the decoder read and write per image, each kernel its inputs
and outputs once.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from tests.benchmarks.engines import bundles

from fewstep.build.builder_process import build_engine
from fewstep.build.graphs import inferred
from fewstep.build.precision import NORMS, lower
from fewstep.build.profiles import profiles
from fewstep.build.tensorrt_builder import EngineRequest
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.engines.tensorrt_api import load
from fewstep.runtime.records import BuildOptions

_PROGRAM = re.compile(rb"^main \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_LAUNCH = re.compile(rb"^  ([a-z_]+)=\{ name=\"?([^\" ]+)", re.MULTILINE)
_UNFUSED_BYTES = (2 + 4) + (4 + 4) + (4 + 2)  # cast, norm, and what follows with its cast
_FUSED_BYTES = 2 + 2


def layers(engine: bytes | memoryview) -> Counter[str]:
    """Layers of an engine of TensorRT-RTX, by the name of their kernel or else of their kind.

    They are read off the first and longest program in it, text of an undocumented layout that was
    seen in engines of 1.7.1.
    """
    programs = [_LAUNCH.findall(each) for each in _PROGRAM.findall(bytes(engine))]
    if not programs:
        raise ValueError("this engine holds no program in the layout of TensorRT-RTX 1.7.1")
    found = max(programs, key=len)
    kernels = (name if name.startswith(b"__myl_") else kind for kind, name in found)
    return Counter(each.decode().removeprefix("__myl_") for each in kernels)


def build(bundle: Bundle, name: str, model: onnx.ModelProto, capability: str = "8.6") -> bytes:
    """The engine of a graph in the form of ``model``, for batches up to 8."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(model, path)
        ranges = profiles(bundle, BuildOptions())[name]
        request = EngineRequest(name, path, ranges, BuildOptions(), [capability])
        return bytes(build_engine(load("tensorrt-rtx"), request, lambda *_: None).content)


def lowered(model: onnx.ModelProto, operators: Sequence[str]) -> onnx.ModelProto:
    """The graph in fp16, nodes of these operators with it."""
    released = [node.name for node in model.graph.node if node.op_type in operators]
    return lower(model, "fp16", released=released).model


def norm_elements(model: onnx.ModelProto) -> int:
    """Elements per image of what the norms of a graph normalise."""
    graph = inferred(model)
    shapes = {each.name: each.type.tensor_type.shape.dim for each in graph.value_info}
    maker = {name: node for node in graph.node for name in node.output}
    norms = [node for node in graph.node if node.op_type in NORMS]
    # The Reshape before it leaves a dimension to the runtime.
    before = [maker[node.input[0]].input[0] for node in norms]
    return sum(math.prod(size.dim_value for size in shapes[name][1:]) for name in before)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where bundles go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    traffic: list[str] = []
    print(f"{processor_name()}, {load('tensorrt-rtx')}\n")
    print("| bundle | graph | norm | in fp32, layers | in fp16, layers |\n|---|---|---|---|---|")
    graphs = [
        (title, bundle, name)
        for title, bundle in ((title, Bundle.read(path)) for title, path in bundles(folder).items())
        for name in bundle.manifest.graphs
    ]
    for title, bundle, name in graphs:
        model = onnx.load(bundle.graph_path(name))
        found = Counter(node.op_type for node in model.graph.node)
        for norm in (each for each in sorted((*NORMS, "LayerNormalization")) if each in found):
            engines = [build(bundle, name, lowered(model, kinds)) for kinds in ((), (norm,))]
            fp32, fp16 = (layers(engine).total() for engine in engines)
            print(f"| {title} | {name} | {found[norm]} {norm} | {fp32} | {fp16} |")
        if count := norm_elements(model):
            sizes = [count * size / 1e6 for size in (_UNFUSED_BYTES, _FUSED_BYTES)]
            traffic.append(f"{title}, {name}: {sizes[0]:,.1f} and {sizes[1]:,.1f} MB per image")
    print("", *traffic, sep="\n")


if __name__ == "__main__":
    main()
