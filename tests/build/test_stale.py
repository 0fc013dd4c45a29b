"""Why graphs, kernels and engines are stale, in words.

Cubins and engines are stand-ins. Engines in their whole life are in test_engines, with the real
builder in test_pipeline.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.kernels.cubin_stand_ins import COMPILER, compiled_for, kernels_of

from fewstep.build import stale as module
from fewstep.build.stale import (
    stale_contents,
    why_graphs_stale,
    why_kernels_stale,
)
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.kernels.cubins import add_kernels


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return Bundle.read(bundle_copy)


def _damage(bundle: Bundle, file: str) -> None:
    content = (bundle.path / file).read_bytes()
    (bundle.path / file).write_bytes(b"?" + content[1:])


# --- graphs


def test_graphs_that_are_not_there(bundle: Bundle) -> None:
    assert why_graphs_stale(bundle, "fp32") == ""
    assert why_graphs_stale(bundle, "fp16") == "are not there"


def test_graphs_made_otherwise_or_of_others(bundle: Bundle) -> None:
    made, _ = add_variant(bundle, "fp16")
    assert why_graphs_stale(made, "fp16") == ""
    assert why_graphs_stale(made, "fp16", heads=True) == ""
    assert why_graphs_stale(made, "fp16", heads=False) == "were made with fp32 heads"
    graphs = made.manifest.model_dump()["graphs"]
    graphs["policy"]["file"] = "other.onnx"
    content = (made.path / "policy.onnx").read_bytes()
    changed = made.update({"other.onnx": content + b"\x32\0"}, graphs=graphs)
    assert why_graphs_stale(changed, "fp16") == "were made of another policy in fp32"
    assert stale_contents(changed) == {
        made.graph("policy", "fp16").file: "the fp16 graph was not made from the fp32 graph here; "
        f"make it again: fewstep build {bundle.path} --precision fp16"
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_damaged_graphs(bundle: Bundle, precision: str) -> None:
    made, _ = add_variant(bundle, "fp16")
    file = made.graph("policy", precision).file
    _damage(made, file)
    expected = f"are damaged: {file} does not have the manifest's SHA-256"
    assert why_graphs_stale(made, precision) == expected
    assert list(stale_contents(made)) == [file]


# --- kernels


def test_kernels_are_up_to_date_for_what_they_were_made_for(bundle: Bundle) -> None:
    assert why_kernels_stale(bundle, ["8.7"], COMPILER) == "are not there"
    added = add_kernels(bundle, compiled_for("8.6", "8.7"))
    assert why_kernels_stale(added, ["8.7"], COMPILER) == ""
    assert why_kernels_stale(added, ["8.7", "8.6"], COMPILER) == ""
    # 8.9 would run those for 8.6, which are not its own.
    assert why_kernels_stale(added, ["8.7", "8.9"], COMPILER) == "are not there for 8.9"
    other = f"were compiled by {COMPILER}, here is NVRTC 13.1"
    assert why_kernels_stale(added, ["8.7"], "NVRTC 13.1") == other


def test_damaged_kernels(bundle: Bundle) -> None:
    added = add_kernels(bundle, compiled_for("8.6", "8.7"))
    file = kernels_of(added).cubins["8.7"]
    (added.path / file).unlink()
    assert why_kernels_stale(added, ["8.6"], COMPILER) == ""
    assert why_kernels_stale(added, ["8.7"], COMPILER) == f"are damaged: {file} is missing"


def test_kernels_of_other_sources(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    added = add_kernels(bundle, compiled_for("8.6", "8.7"))
    monkeypatch.setattr(module, "sources_sha256", lambda: "1" * 64)
    said = "are of another version of fewstep"
    assert why_kernels_stale(added, ["8.7"], COMPILER) == said
    command = f"fewstep build {bundle.path} --kernels --compute-capability 8.6 8.7"
    assert stale_contents(added) == {"CUDA kernels": f"{said}; compile them again: {command}"}
