"""A text bundle with an encoder: a table of states, one a word, and a tokenizer of few words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import TextCondition, TextEncoder
from fewstep.runtime.records import GraphInfo, TensorInfo

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "red", "green", "dog", "cat")
TOKENS = 6


def tokenizer_json() -> bytes:
    """A tokenizer of :data:`WORDS` that puts its own ids around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: each for each, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return str(made.to_str()).encode()


def table(length: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """States ``[words, length, width]``: those of a text are the mean of its tokens'."""
    shape = (len(WORDS), length, width)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def with_encoder(path: Path) -> Bundle:
    """Give a bundle of text states an encoder, whose empty text is the one that it has."""
    bundle = Bundle.read(path)
    condition = bundle.manifest.model.condition
    assert isinstance(condition, TextCondition)
    length, width = condition.length, condition.width
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["each"]),
            helper.make_node("ReduceMean", ["each", "axis"], ["text"], keepdims=0),
        ],
        "text_encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", TOKENS])],
        [helper.make_tensor_value_info("text", TensorProto.FLOAT, ["batch", length, width])],
        [
            numpy_helper.from_array(table(length, width), "table"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    info = GraphInfo(
        file="text_encoder.onnx",
        inputs={"ids": TensorInfo(dtype="int32", shape=("batch", TOKENS))},
        outputs={"text": TensorInfo(dtype="float32", shape=("batch", length, width))},
    )
    encoder = TextEncoder(tokens=TOKENS, pad_id=0, examples=((1, 4, 7, 2), (1, 5, 8, 2)))
    changed = json.loads(bundle.manifest.model.model_dump_json())
    changed["condition"]["encoder"] = json.loads(encoder.model_dump_json())
    return bundle.update(
        {"text_encoder.onnx": model.SerializeToString(), "tokenizer.json": tokenizer_json()},
        model=changed,
        graphs={**bundle.manifest.graphs, "text_encoder": info},
    )
