"""Whether ONNX Runtime's fused operators pay on this CPU, beyond what a session fuses by itself.

    python -m tests.benchmarks.fusions BUNDLE [BUNDLE…] [--rounds 30]

The transformer's graph of a class-conditional masked bundle with U-ViT's attention, in fp32 and
int8, at the two rows of one image with guidance: as a session has it; at a session's lower level
``basic``; after ``onnxruntime.transformers.optimizer`` (skip and LayerNorm in one, bias and GELU in
one; it finds no attention); with every attention as one ``MultiHeadAttention``; and with both. All
in one process on one thread, in turns; milliseconds of CPU time, which other programs disturb
least. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.transformers.optimizer import optimize_model

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.engines.sessions import new_session


def with_attention(graph: onnx.GraphProto) -> int:
    """Put one operator in the place of every softmax(q·kᵀ)·v; how many there were.

    What goes in is the product ``[B, L, 3·H·D]`` that q, k and v are slices of; what comes out
    ``[B, L, H·D]``. Operators that nothing needs any more are left to the session.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    users = {name: node for node in graph.node for name in node.input}
    shapes = {each.name: each.type.tensor_type.shape.dim for each in graph.value_info}
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    found = [node for node in graph.node if node.op_type == "Softmax"]
    for at, softmax in enumerate(found):
        scaled = made_by[made_by[softmax.input[0]].input[0]]
        node = made_by[scaled.input[0]]
        while node.op_type != "Reshape":  # [B, L, 3·H·D] to [B, L, 3, H, D]
            node = made_by[node.input[0]]
        heads = values[node.input[1]][3] if node.input[1] in values else 0
        heads = int(heads) or shapes[node.output[0]][3].dim_value
        last = users[softmax.output[0]]
        while last.op_type != "Reshape":
            last = users[last.output[0]]
        parts = [f"attention_{at}_{name}" for name in "qkv"]
        split = helper.make_node("Split", [node.input[0]], parts, axis=-1, num_outputs=3)
        fused = helper.make_node(
            "MultiHeadAttention",
            parts,
            [last.output[0]],
            domain="com.microsoft",
            num_heads=heads,
            scale=float(values[scaled.input[1]]),
        )
        place = [*graph.node].index(last)
        graph.node.remove(last)
        graph.node.insert(place, split)
        graph.node.insert(place + 1, fused)
    return len(found)


def variants(path: Path, folder: Path) -> dict[str, Any]:
    """Sessions by what is fused in them."""
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC

    def lower(options: Any) -> None:
        options.graph_optimization_level = basic

    attention = onnx.load(path)
    count = with_attention(attention.graph)
    attention.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    own = folder / "attention.onnx"
    onnx.save(attention, own)
    files = {f"attention ({count})": own}
    for name, source in (("skip, LayerNorm and GELU", path), ("all", own)):
        optimized = optimize_model(str(source), model_type="bert", opt_level=0)
        files[name] = folder / f"{len(files)}.onnx"
        optimized.save_model_to_file(str(files[name]))
    sessions = {"session": new_session(path, threads=1)}
    sessions["basic"] = new_session(path, threads=1, configure=lower)
    return sessions | {name: new_session(file, threads=1) for name, file in files.items()}


def measure(bundle: Bundle, precision: str, rounds: int) -> None:
    """Print a row for each variant."""
    model: Any = bundle.manifest.model
    feeds = {
        "tokens": np.full((2, model.num_tokens), model.mask_token, np.int32),
        "condition": np.array([1, model.condition.unconditional_id], np.int32),
    }
    with tempfile.TemporaryDirectory() as folder:
        sessions = variants(bundle.graph_path("transformer", precision), Path(folder))
        first = sessions["session"].run(["logits"], feeds)[0]
        off = {name: each.run(["logits"], feeds)[0] - first for name, each in sessions.items()}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(rounds):
            for name, session in sessions.items():
                start = time.process_time()
                session.run(["logits"], feeds)
                times[name].append((time.process_time() - start) * 1e3)
    for name, taken in times.items():
        pairs = zip(taken, times["session"], strict=True)
        ratio = statistics.median(one / base for one, base in pairs)
        row = [bundle.manifest.name, precision, name, f"{statistics.median(taken):.2f}"]
        row += [f"{min(taken):.2f}", f"{ratio:.2f}", f"{np.abs(off[name]).max():.1e}"]
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{processor_name()}, load {os.getloadavg()[0]:.1f}\n")
    print("| bundle | precision | fused | median ms | least ms | of session | logits differ by |")
    print("|---|---|---|---|---|---|---|")
    for bundle in map(Bundle.read, given.bundles):
        for precision in ("fp32", "int8") if "int8" in bundle.precisions else ("fp32",):
            measure(bundle, precision, given.rounds)


if __name__ == "__main__":
    main()
