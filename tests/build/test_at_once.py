"""Builds of one bundle at once: nothing of either is lost.

Covered: two commands in processes of their own, graphs made from a bundle that others have added to
or changed meanwhile, and kernels for several GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.build.kernel_builds import usable

from fewstep.build import kernels, variants
from fewstep.build.kernels import build_kernels
from fewstep.build.overflow import measure_magnitudes
from fewstep.build.stale import why_kernels_stale
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.kernels.compile import CompiledKernels, KernelCompiler

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_commands_at_once(bundle_copy: Path) -> None:
    paths = os.pathsep.join(str(_ROOT / name) for name in ("runtime", "export"))
    link = bundle_copy.with_name("link")
    link.symlink_to(bundle_copy)
    builds = [
        subprocess.Popen(
            [sys.executable, "-m", "fewstep", "build", str(place), "--precision", precision],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
        )
        for place, precision in [(bundle_copy, "fp16"), (link, "bf16")]
    ]
    assert [each.wait(300) for each in builds] == [0, 0]
    bundle = Bundle.read(bundle_copy)
    assert set(bundle.precisions) == {"fp32", "fp16", "bf16"}
    assert bundle.damage() == {}
    listed = {*bundle.manifest.files, "bundle.json"}
    assert {path.name for path in bundle_copy.iterdir()} == listed


def test_variant_of_a_bundle_that_others_have_added_to(bundle_copy: Path) -> None:
    read_before = Bundle.read(bundle_copy)
    add_variant(Bundle.read(bundle_copy), "fp16")
    changed, _ = add_variant(read_before, "bf16")
    assert set(changed.precisions) == {"fp32", "fp16", "bf16"}
    assert Bundle.read(bundle_copy).manifest == changed.manifest
    assert changed.damage() == {}


def test_variant_is_made_of_the_graphs_that_are_there_in_the_end(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adds a policy while the graphs are made."""

    def measured_and_changed(bundle: Bundle) -> dict[str, dict[str, float]]:
        largest = measure_magnitudes(bundle)
        monkeypatch.setattr(variants, "measure_magnitudes", measure_magnitudes)
        now = Bundle.read(bundle_copy).manifest.model_dump()
        graphs, model = now["graphs"], now["model"]
        graphs["policy-2"] = graphs["policy"]
        model["policies"]["policy-2"] = model["policies"]["policy"]
        Bundle.read(bundle_copy).update({}, graphs=graphs, model=model)
        return largest

    monkeypatch.setattr(variants, "measure_magnitudes", measured_and_changed)
    changed, reports = add_variant(Bundle.read(bundle_copy), "fp16")
    assert {each.graph for each in reports} == set(changed.manifest.graphs)
    assert "policy-2" in changed.manifest.graphs
    assert changed.manifest.variants["fp16"].keys() == changed.manifest.graphs.keys()


def test_kernels_that_others_have_compiled_meanwhile_stay(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build has added its own between the first look and the lock."""

    def looked_and_changed(bundle: Bundle, wanted: tuple[str, ...], compiler: str) -> str:
        monkeypatch.setattr(kernels, "why_kernels_stale", why_kernels_stale)
        build_kernels(bundle_copy, ["7.5"])
        return why_kernels_stale(bundle, wanted, compiler)

    monkeypatch.setattr(kernels, "why_kernels_stale", looked_and_changed)
    assert isinstance(build_kernels(bundle_copy, ["8.7"]), CompiledKernels)
    usable(bundle_copy)
    info = Bundle.read(bundle_copy).manifest.kernels
    assert info is not None
    assert info.cubins.keys() == {"7.5", "8.7"}
    assert info.compiler == KernelCompiler().version
