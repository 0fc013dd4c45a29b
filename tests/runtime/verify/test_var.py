"""Verification of VAR: latents by their error, and tokens where images come from f̂."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.runtime.verify.rehash import rehash

from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import Check, Report, verify
from fewstep.runtime.verify.verify import _agreement


def _verify(bundle: Path, max_batch: int = 8) -> Report:
    with Generator.open(bundle, threads=1, max_batch=max_batch) as generator:
        return verify(generator)


def _loop(report: Report) -> dict[str, Check]:
    return {check.rollout: check for check in report.checks if check.graph == "loop"}


def test_every_scale_is_compared_also_image_by_image(var_bundle: Path) -> None:
    report = _verify(var_bundle)
    assert report.passed
    found = {(check.graph, check.metric): check for check in report.checks}
    assert {graph for graph, _ in found} == {
        *("image_encoder", "head", "next_scale", "decoder", "policy", "loop")
    }
    assert len(found["head", "kl_nats"].steps) == 4
    assert len(found["next_scale", "latent_error"].steps) == 4
    assert 0 < found["next_scale", "latent_error"].value < 1e-6
    assert _loop(report).keys() == {"fixed", "policy", "image_encoder"}
    assert {check.metric for check in _loop(report).values()} == {"token_agreement"}
    for one, check in zip(_verify(var_bundle, max_batch=1).checks, report.checks, strict=True):
        assert (one.graph, one.metric, len(one.steps)) == (
            check.graph,
            check.metric,
            len(check.steps),
        )
        assert one.passed


@pytest.mark.parametrize(("graph", "metric"), [("next_scale", "latent_error"), ("head", "kl_nats")])
def test_a_wrong_graph_is_named(var_bundle: Path, tmp_path: Path, graph: str, metric: str) -> None:
    path = shutil.copytree(var_bundle, tmp_path / "bundle")
    model = onnx.load(path / f"{graph}.onnx")
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim >= 2:
            weight.CopyFrom(numpy_helper.from_array(values * np.float32(1.5), weight.name))
    onnx.save(model, path / f"{graph}.onnx")
    rehash(path)
    report = _verify(path)
    failed = {(check.graph, check.metric) for check in report.checks if not check.passed}
    assert (graph, metric) in failed
    assert all(check.value < 1 for check in _loop(report).values())


def test_tokens_count_up_to_the_first_scale_with_another_one() -> None:
    """Two images of scales of 1, 4 and 9 tokens."""
    wanted = np.full((3, 2, 9), -1)
    for scale, count in enumerate((1, 4, 9)):
        wanted[scale, :, :count] = np.arange(count)
    assert _agreement(wanted, wanted) == 1
    found = wanted.copy()
    found[1, 0, 2] = 7  # of the first image; what follows from it is not counted
    found[2, 0] = 0
    assert _agreement(found, wanted) == 18 / 19
    found[2, 1, :3] = 8
    assert _agreement(found, wanted) == 15 / 19
    found[0] = 5
    assert _agreement(found, wanted) == 0
