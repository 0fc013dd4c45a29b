"""Prompts on the GPU: the encoder runs there, and images are those of the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result
from fewstep.runtime.verify import verify

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


def test_amused_is_that_of_the_cpu(
    open_cuda: Open, cuda_bundle: Callable[[str], Path], assert_alike: Alike
) -> None:
    """In its own steps, guidance and rules, with its text encoder; and its golden rollouts."""
    pytest.importorskip("tokenizers", reason="prompts need it")
    path = cuda_bundle("tiny-amused")
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        other: dict[str, Any] = {"negative": "cat", "guidance": (0.0, 4.0), "steps": 5}
        for request in ({}, other):
            found, expected = (
                each.generate(text=["a cat", "cat cat", "the cat"], seed=[1, 2, 3], **request)
                for each in (on_cuda, on_cpu)
            )
            assert_alike(found, expected)
        assert len({row.tobytes() for row in found.tokens}) == 3
        report = verify(on_cuda)
    assert report.checks
    assert report.passed, [check for check in report.checks if not check.passed]
