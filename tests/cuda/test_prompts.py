"""Prompts on the GPU: the encoder runs there, and images are those of the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Alike = Callable[[Result, Result], None]
Open = Callable[..., Generator]


def test_images_of_prompts_are_those_of_the_cpu(
    open_cuda: Open, tiny_text_cuda_bundle: Path, tmp_path: Path, assert_alike: Alike
) -> None:
    pytest.importorskip("tokenizers", reason="prompts need it")
    pytest.importorskip("onnx", reason="makes the encoder")
    from tests.prompts import with_encoder

    path = with_encoder(Path(shutil.copytree(tiny_text_cuda_bundle, tmp_path / "bundle"))).path
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        for negative in (None, "green dog"):
            found, expected = (
                each.generate(
                    text=["a dog", "red cat", "a dog"], negative=negative, steps=3, guidance=2.0
                )
                for each in (on_cuda, on_cpu)
            )
            assert_alike(found, expected)
