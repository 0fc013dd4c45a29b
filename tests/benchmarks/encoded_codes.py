"""Codes of pictures in half precision: how many are those of fp32.

    python tests/benchmarks/encoded_codes.py BUNDLE

A bundle with an image encoder generates pictures and encodes them: in fp32, and by fp16 graphs as
``fewstep build`` makes them, and as they would be with the search of the nearest code in fp16 too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from fewstep.build.graphs import load_graph
from fewstep.build.precision import lower
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.generator import Generator


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    with Generator.open(given.bundle, device="cpu", precision="fp32") as generator:
        known = generator.model.info.condition.examples(given.images)
        made = generator.generate(class_ids=np.resize(known, given.images).tolist(), seed=1)
        graph = load_graph(generator.bundle, ENCODER)
    image = made.images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    right = _codes(graph, image)
    print(f"| {right.size:,} codes of {given.images} images | as in fp32 |\n|---|---|")
    for heads, search in ((True, "fp32"), (False, "fp16")):
        codes = _codes(lower(graph, "fp16", heads=heads).model, image)
        print(f"| fp16, search in {search} | {(codes == right).mean():.4f} |")


def _codes(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: npt.NDArray[np.int32] = session.run(["tokens"], {"image": image})[0]
    return found


if __name__ == "__main__":
    main()
