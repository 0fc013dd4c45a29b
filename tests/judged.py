"""Bundles with a judge of a formula: score = weight of the condition × mean of the pixels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.records import GraphInfo, JudgeInfo, TensorInfo

WEIGHTS = np.array([1, -1, 2, -2, 0.5], np.float32)
"""Of the five classes of the tiny bundles; that of a text is the mean of its states."""


def expected_scores(pixels: Any, condition: Any) -> Any:
    """Scores ``[B]`` in float64; ``condition``: class ids, or states ``[B, L, D]``."""
    ids = np.asarray(condition)
    weight = WEIGHTS[ids] if ids.ndim == 1 else ids.astype(float).mean((1, 2))
    return weight.astype(float) * np.asarray(pixels, float).mean((1, 2, 3))


def with_judge(bundle: Path, out: Path) -> Path:
    """A copy of a tiny bundle with such a judge."""
    given = Bundle.read(shutil.copytree(bundle, out))
    add_judge(given)
    return out


def add_judge(bundle: Bundle) -> Bundle:
    """Give a bundle such a judge."""
    model = bundle.manifest.model
    of_classes, size = isinstance(model.condition, ClassCondition), model.image_size
    shape: list[int | str] = ["batch"]
    if not isinstance(model.condition, ClassCondition):
        shape += [model.condition.length, model.condition.width]
    weight = (
        helper.make_node("Gather", ["weights", "condition"], ["weight"])
        if of_classes
        else helper.make_node("ReduceMean", ["condition", "text_axes"], ["weight"], keepdims=0)
    )
    graph = helper.make_graph(
        [
            weight,
            helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["weight", "mean"], ["score"]),
        ],
        "judge",
        [
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *size, 3]),
            helper.make_tensor_value_info(
                "condition", TensorProto.INT32 if of_classes else TensorProto.FLOAT, shape
            ),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "text_axes"),
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    info = JudgeInfo(
        graph=GraphInfo(
            file="judge.onnx",
            inputs={
                "pixels": TensorInfo(dtype="uint8", shape=("batch", *size, 3)),
                "condition": TensorInfo(
                    dtype="int32" if of_classes else "float32", shape=tuple(shape)
                ),
            },
            outputs={"score": TensorInfo(dtype="float32", shape=("batch",))},
        ),
        policy="policy",
        features="small",
        updates=1,
        data_sha256="0" * 64,
    )
    return bundle.update({"judge.onnx": made.SerializeToString()}, judge=info.model_dump())
