"""The exported graphs in OpenVINO as a contender of ``peers.py``, driven by NumPy.

What a user writes who has the ONNX files and no fewstep: OpenVINO with its own defaults and its
hint for latency, T passes of both halves, and a sampler of NumPy's own operations on the positions
that are still masked: Gumbel noise and argmax for the token, ``partition`` for the least confident.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # or importing reports
import openvino  # noqa: E402

Pixels = npt.NDArray[np.uint8]


def opened(prepared: Mapping[str, Any], graphs: str, threads: int) -> Callable[[str], Pixels]:
    """What makes an image for the name of a task.

    Args:
        prepared: of ``peers_models.Prepared``.
        graphs: their precision, ``fp32`` or ``int8``.
        threads: 0 leaves OpenVINO's default.
    """
    core, config = openvino.Core(), {"PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    tasks, files = prepared["tasks"], prepared["graphs"][graphs]
    used = {"transformer", "decoder", *(each["policy"] for each in tasks.values())} - {None}
    requests = {
        name: core.compile_model(files[name], "CPU", config).create_infer_request() for name in used
    }

    def infer(graph: str, **inputs: Any) -> Callable[[str], Any]:
        request = requests[graph]
        request.infer(inputs, share_inputs=True, share_outputs=True)
        return lambda name: request.get_tensor(name).data

    count, codes = prepared["tokens"], prepared["codes"]
    both = np.array([prepared["class_id"], prepared["unconditional_id"]], np.int32)
    random = np.random.default_rng(0)

    def run(task: str) -> Pixels:
        tokens = np.full(count, codes, np.int32)
        for step, row in enumerate(tasks[task]["parameters"]):
            found = infer("transformer", tokens=np.tile(tokens, (2, 1)), condition=both)
            if policy := tasks[task]["policy"]:
                at = np.array([step], np.int32)
                action = infer(policy, features=found("features")[:1], step=at)("action")[0] + row
                row = [1 / (1 + np.exp(-action[0])), *np.log1p(np.exp(action[1:]))]
            tokens, sampled = _decided(tokens, codes, found("logits"), row, random)
        if sampled.shape != (count,) or sampled.min() < 0 or sampled.max() >= codes:
            raise ValueError(f"these are no {count} tokens below {codes}: {sampled}")
        image = infer("decoder", tokens=sampled[None])("image")
        pixels: Pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
        return pixels.transpose(0, 2, 3, 1)

    return run


def _decided(
    tokens: npt.NDArray[np.int32],
    mask: int,
    logits: npt.NDArray[np.float32],
    parameters: Any,
    random: np.random.Generator,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Tokens ``[N]`` of the next step, and those sampled in this one.

    ``logits [2, N, V]``: with the class, and without.
    """
    ratio, masking, sampling, guidance = parameters
    unknown = np.flatnonzero(tokens == mask)
    own, none = logits[0, unknown], logits[1, unknown]
    guided = own + np.float32(guidance) * (own - none)
    noise = random.gumbel(size=guided.shape).astype(np.float32)
    drawn = (guided / np.float32(max(sampling, 1e-4)) + noise).argmax(-1)
    highest = guided.max(-1)
    total = np.log(np.exp(guided - highest[:, None]).sum(-1))
    chosen = np.take_along_axis(guided, drawn[:, None], -1)[:, 0] - highest - total
    confidence = np.full(len(tokens), np.inf, np.float32)
    confidence[unknown] = chosen + masking * random.gumbel(size=len(unknown))
    sampled = tokens.copy()
    sampled[unknown] = drawn
    kth = min(int(len(tokens) * ratio), len(tokens) - 1)
    threshold = np.partition(confidence, kth)[kth]
    return np.where(confidence < threshold, np.int32(mask), sampled), sampled
