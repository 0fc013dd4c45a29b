"""How much faster a transformer pass is in int8 than in fp32 on this CPU, under ONNX Runtime.

    python tests/benchmarks/int8.py --folder FOLDER
    python tests/benchmarks/int8.py --folder FOLDER --decoders

For the sample (64 tokens, 512 codes) and a U-ViT of 8 M parameters with random weights (256 tokens,
1,024 codes), both as bundles in the folder; what is there is used again. Speed depends on shapes,
so few rollouts and random weights do. Both precisions take turns in one process, batch 2 being one
image with guidance; the figures are medians.

``--decoders``: the decoder of the sample and that of AdaNAT for ImageNet (256 pixels, random
weights), under ONNX Runtime and OpenVINO, in every form taking turns. Forms are fp32; int8 as
``fewstep calibrate quantize`` makes it; and int8 with what convolutions give quantized too, where
one node reads it, which is what ONNX Runtime runs in int8. PSNR is of the sample's own tokens.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fewstep.build.graphs import inferred, load_graph
from fewstep.build.large import session_of
from fewstep.calibration.quantize.activations import Ranges, measure
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.matmuls import weighted_matmuls
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.rollouts import Pass, Rollouts, record
from fewstep.calibration.quantize.settings import Settings
from fewstep.export.demo import sample_checkpoints
from fewstep.export.flow import export
from fewstep.export.models import VQModel
from fewstep.export.onnx_graph import export_graph
from fewstep.export.parts import part_of
from fewstep.export.source import Graph
from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.verify.metrics import psnr_db

_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
_FEW = Settings(rollouts=2, held_out=1, generation={"steps": 2})
_WARM_UP = 3

Run = Callable[[Any], Any]
"""Tokens to images."""


def bundles(folder: Path) -> dict[str, Path]:
    """Both bundles; made if they are not there."""
    found = {"sample": _sample(folder), "8 M": folder / "8m" / "bundle"}
    if not found["8 M"].exists():
        script = Path(__file__).with_name("measure.py")
        command = [sys.executable, str(script), "export", "8m", f"--keep={folder / '8m'}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return found


def _sample(folder: Path) -> Path:
    path = folder / "sample"
    if not path.exists():
        export("adanat", sample_checkpoints(_SAMPLE), path, command="benchmark")
    return path


def passes(path: Path, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of one transformer pass by precision, taking turns."""
    opened = {each: Generator.open(path, precision=each, device="cpu") for each in ("fp32", "int8")}
    times: dict[str, list[float]] = {each: [] for each in opened}
    try:
        runs = {each: _Pass(generator, batch) for each, generator in opened.items()}
        for _ in range(rounds + _WARM_UP):
            for precision, run in runs.items():
                times[precision].append(run.milliseconds())
    finally:
        for generator in opened.values():
            generator.close()
    return {each: statistics.median(values[_WARM_UP:]) for each, values in times.items()}


class _Pass:
    """The transformer of a generator with buffers of its own."""

    def __init__(self, generator: Generator, batch: int) -> None:
        engine, model = generator.engines["transformer"], generator.model.info
        infos = {**engine.inputs, **engine.outputs}
        specs = {
            name: BufferSpec(
                tuple(batch if isinstance(size, str) else size for size in info.shape), info.dtype
            )
            for name, info in infos.items()
        }
        self._buffers = generator.device.workspace(specs)
        tokens = np.full(specs["tokens"].shape, model.mask_token, np.int32)
        tokens[:, ::2] = np.arange(tokens[:, ::2].size).reshape(batch, -1) % model.codebook_size
        generator.device.upload(self._buffers["tokens"], tokens)
        generator.device.upload(self._buffers["condition"], np.zeros(batch, np.int32))
        self._bound = engine.bind({name: self._buffers[name] for name in specs})

    def milliseconds(self) -> float:
        started = time.perf_counter()
        self._bound.run()
        return (time.perf_counter() - started) * 1e3


def decoders(folder: Path) -> dict[str, tuple[onnx.ModelProto, Rollouts]]:
    """Both decoders, with tokens to feed them; exported if they are not there."""
    bundle = Bundle.read(_sample(folder))
    fed = record(bundle, ["decoder"], 40, seed=0, settings={})["decoder"]
    return {"sample": (load_graph(bundle, "decoder"), fed), "ImageNet": _imagenet(folder)}


def _imagenet(folder: Path) -> tuple[onnx.ModelProto, Rollouts]:
    arguments = part_of(VQModel).sizes[0].arguments
    torch.manual_seed(0)
    network, codes = VQModel(**arguments).eval(), arguments["n_embed"]
    count = (network.resolution // network.downsampling) ** 2
    tokens = torch.randint(codes, (2, count), dtype=torch.int32)
    path = folder / "imagenet-decoder" / "decoder.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        graph = Graph(network, {"tokens": tokens}, ("image",), unclamped=network.unclamped)
        export_graph("decoder", graph, path.parent)
    return onnx.load(path), Rollouts((Pass({"tokens": tokens.numpy()}, {}),))


def forms(model: onnx.ModelProto, fed: Rollouts) -> dict[str, onnx.ModelProto]:
    """A decoder in fp32 and in both int8 forms."""
    fixed = _fixed_shapes(model)
    own = [e for e in weighted_matmuls(model.graph, convolutions=True) if not e.delicate]
    readers = [name for node in fixed.graph.node for name in node.input]
    outputs = {node.name: node.output[0] for node in fixed.graph.node}
    given = {e.name: outputs[e.name] for e in own if readers.count(outputs[e.name]) == 1}
    tensors = {each.activation for each in own} | set(given.values())
    ranges = measure(model, tensors, fed, method="min-max")
    return {
        "fp32": model,
        "int8": quantized(model, [each.name for each in own], ranges),
        "int8, outputs too": _outputs_too(quantized(fixed, list(given), ranges), given, ranges),
    }


def _fixed_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without Shape, a further reader of what a convolution gives."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shapes = {each.name: each.type.tensor_type.shape.dim for each in inferred(model).value_info}
    for node in result.graph.node:
        if node.op_type == "Shape":
            sizes = [0, *(size.dim_value for size in shapes[node.input[0]][1:])]
            value = onnx.numpy_helper.from_array(np.array(sizes, np.int64))
            node.CopyFrom(onnx.helper.make_node("Constant", [], list(node.output), value=value))
    return result


def _outputs_too(
    model: onnx.ModelProto, given: Mapping[str, str], ranges: Ranges
) -> onnx.ModelProto:
    """A quantized graph with what some nodes give quantized too."""
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in given:
            name = given[node.name]
            scale: Any = np.array(max(map(abs, ranges[name])) / 127, np.float32)
            zero = np.array(0, np.int8)
            for what, value in ((f"{name}/scale", scale), (f"{name}/zero", zero)):
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, what))
            node.output[0] = f"{name}/exact"
            steps = (
                ("QuantizeLinear", f"{name}/exact", f"{name}/q"),
                ("DequantizeLinear", f"{name}/q", name),
            )
            for operator, source, target in steps:
                inputs = [source, f"{name}/scale", f"{name}/zero"]
                nodes.append(onnx.helper.make_node(operator, inputs, [target], target))
    made = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del model.graph.node[:]
    model.graph.node.extend(made)
    return model


def runners(made: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, Run]:
    """Both backends with each form; OpenVINO in bf16 but for one in fp32."""
    import openvino

    core, found = openvino.Core(), dict[str, Run]()
    for name, model in made.items():
        session = session_of(model)
        found[f"ONNX Runtime | {name}"] = partial(_by_onnxruntime, session)
        path = folder / "form.onnx"
        onnx.save(model, path)
        for hint in ("f32", "bf16") if name == "fp32" else ("bf16",):
            options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
            ready = core.compile_model(path, "CPU", options)
            what = {"f32": "fp32", "bf16": "bf16" if name == "fp32" else f"{name}, in bf16"}[hint]
            found[f"OpenVINO | {what}"] = partial(_by_openvino, ready)
    return found


def _by_onnxruntime(session: Any, tokens: Any) -> Any:
    return session.run(None, {"tokens": tokens})[0]


def _by_openvino(compiled: Any, tokens: Any) -> Any:
    return compiled({"tokens": tokens})[compiled.outputs[0]]


def decoder_rows(name: str, run: Mapping[str, Run], tokens: Any, rounds: int) -> None:
    """Print a line a runner, which take turns."""
    times: dict[str, list[float]] = {each: [] for each in run}
    images = {each: np.array(one(tokens)) for each, one in run.items()}
    exact = next(iter(images.values()))
    for _ in range(rounds):
        for each, one in run.items():
            started = time.perf_counter()
            one(tokens)
            times[each].append((time.perf_counter() - started) * 1e3)
    for each, found in times.items():
        psnr = f"{psnr_db([images[each]], [exact])[0]:.1f}" if name == "sample" else ""
        row = f"{len(tokens)} | {each} | {statistics.median(found):.2f} | {min(found):.2f} | {psnr}"
        print(f"| {name} | {row} |", flush=True)


def print_decoders(folder: Path, rounds: int, batches: Sequence[int] = (1, 8)) -> None:
    """Measure decoders and print a Markdown table."""
    print("| decoder | batch | backend | form | median ms | least ms | PSNR, dB |")
    print("|---|---|---|---|---|---|---|")
    for name, (model, fed) in decoders(folder).items():
        run = runners(forms(model, fed), folder)
        tokens = np.concatenate([each.inputs["tokens"] for each in fed.passes])
        for batch in batches:
            decoder_rows(name, run, np.resize(tokens, (batch, tokens.shape[1])), rounds)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where bundles go")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--decoders", action="store_true", help="decoders in place of transformers")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    print(f"{processor_name()}\n")
    if chosen.decoders:
        print_decoders(chosen.folder, chosen.rounds)
        return
    print("| transformer | batch | fp32, ms | int8, ms | fp32 / int8 |")
    print("|---|---|---|---|---|")
    for name, path in bundles(chosen.folder).items():
        quantize(QuantizeRequest(path, _FEW))
        for batch in (1, 2, 8):
            ms = passes(path, batch, chosen.rounds)
            ratio = ms["fp32"] / ms["int8"]
            print(f"| {name} | {batch} | {ms['fp32']:.1f} | {ms['int8']:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
