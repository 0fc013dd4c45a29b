"""VAR's graphs in fp16, what they compute, and where they diverge: scales of several lengths."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewstep.build.estimate import estimate
from fewstep.build.graph_work import graph_work
from fewstep.build.layers import first_divergence
from fewstep.build.pipeline import BuildRequest, preflight_only
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

_WIDTH, _DEPTH, _COUNTS, _PASTS = 48, 2, (1, 4, 9, 16), (0, 1, 5, 14)


@pytest.fixture(scope="module")
def fp16(var_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = shutil.copytree(var_bundle, tmp_path_factory.mktemp("fp16") / "bundle")
    made, reports = add_variant(Bundle.read(path), "fp16")
    assert not any(each.out_of_range for each in reports)
    assert all(each.largest > 0 for each in reports)
    return made


def test_the_variant_passes_and_makes_images(fp16: Bundle) -> None:
    with Generator.open(fp16.path, precision="fp16", threads=1) as generator:
        report = verify(generator)
        assert report.passed
        errors = [each.value for each in report.checks if each.metric == "latent_error"]
        assert 1e-6 < max(errors) < 2e-3
        made = generator.generate(class_ids=[1, 2], guided_scales=2, reuse_first=True)
        assert len(made.images) == 2
        assert len(generator.generate(class_ids=[1], schedule="policy").images) == 1


@pytest.mark.parametrize("graph", ["trunk", "next_scale"])
def test_layers_are_compared_on_every_scale(fp16: Bundle, graph: str) -> None:
    found = first_divergence(fp16, graph, "fp16", tolerance=0.0)
    assert found.first is not None and found.worst is not None and found.worst.error is not None
    assert 0 < found.worst.error < 2e-2
    assert found.step in range(4)


def test_preflight_finds_nothing(fp16: Bundle) -> None:
    found = preflight_only(BuildRequest(fp16.path, "tensorrt-rtx", "fp16", ("8.6",), kernels=False))
    assert found.as_dict()["problems"] == []


def _flops(rows: int, length: int, past: int) -> int:
    """Of the trunk by hand: qkv, projection, two layers of the FFN; attention over all so far."""
    weights = 12 * _WIDTH**2
    attention = 2 * _WIDTH * (past + length)
    return 2 * _DEPTH * rows * length * (weights + attention)


def test_operations_are_those_of_every_scale(var_bundle: Path) -> None:
    bundle = Bundle.read(var_bundle)
    sizes = [
        {"batch": 2, "length": length, "past": past}
        for length, past in zip(_COUNTS, _PASTS, strict=True)
    ]
    work = graph_work(bundle, "trunk", sizes)
    assert [work.flops_at(each) for each in sizes] == [
        _flops(2, length, past) for length, past in zip(_COUNTS, _PASTS, strict=True)
    ]
    bounds = estimate(bundle, devices=["orin-nano"], precisions=["fp16"]).devices[0].precisions[0]
    trunk = [each.stage for each in bounds.stages if each.stage.name == "trunk"]
    assert [each.steps for each in trunk] == [(0,), (1,), (2,), (3,)]
    assert len(bounds.steps_ms) == 4
