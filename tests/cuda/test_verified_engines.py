"""Engines that ``fewstep verify`` marks on the GPU at hand, and what is told of those it did not.

What else makes or undoes a mark is in ``tests/runtime/test_verify_marks.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cuda_driver import compute_capability, cuda_version, device_name
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.compile import CompiledKernels
from fewstep.runtime.kernels.cubins import add_kernels
from fewstep.runtime.records import EngineBackend, EngineInfo

if TYPE_CHECKING:
    from tests.conftest import Outcome, Terminal

_GRAPHS = ["decoder", "policy", "transformer"]


def _verify(fewstep: Terminal, bundle: Path, backend: str, *options: object) -> Outcome:
    return fewstep("verify", bundle, "--backend", backend, *options)


def _marked(bundle: Path, precision: str = "fp32") -> list[str]:
    """Graphs whose engines in a precision bear a mark."""
    manifest = Bundle.read(bundle).manifest
    infos = [info for info in manifest.engines if info.precision == precision]
    return sorted(info.graph for info in infos if manifest.verified_on(info))


def test_verify_marks_the_engines_it_used(
    fewstep: Terminal, engines_copy: Path, backend: EngineBackend
) -> None:
    with Generator.open(engines_copy, backend=backend) as generator:
        assert "never verified on" in generator.notes[-1]
        assert f"fewstep verify {engines_copy} --backend {backend}" in generator.notes[-1]
    outcome = _verify(fewstep, engines_copy, backend)
    assert (outcome.code, outcome.err) == (0, "")
    assert (_marked(engines_copy), _marked(engines_copy, "fp16")) == (_GRAPHS, [])
    marks = [each for info in Bundle.read(engines_copy).manifest.engines for each in info.verified]
    here = (device_name(), compute_capability(), ".".join(map(str, cuda_version())))
    assert {(each.gpu, each.compute_capability, each.driver) for each in marks} == {here}
    with Generator.open(engines_copy, backend=backend) as generator:
        assert generator.notes == ()
    with Generator.open(engines_copy, backend=backend, precision="fp16") as generator:
        assert generator.notes[-1].endswith("--precision fp16")


def test_every_precision_is_marked_by_itself(
    fewstep: Terminal, engines_copy: Path, backend: EngineBackend
) -> None:
    assert _verify(fewstep, engines_copy, backend, "--precision", "all").code == 0
    assert (_marked(engines_copy), _marked(engines_copy, "fp16")) == (_GRAPHS, _GRAPHS)


def test_a_failed_verify_removes_the_marks(
    fewstep: Terminal, engines_copy: Path, backend: EngineBackend
) -> None:
    assert _verify(fewstep, engines_copy, backend).code == 0
    bundle = Bundle.read(engines_copy)
    assert bundle.manifest.golden is not None
    arrays = bundle.arrays(bundle.manifest.golden)
    image = "cosine/runs/4/decoder/image"
    arrays[image] = 1 - arrays[image]
    with (engines_copy / "other.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    content = (engines_copy / "other.npz").read_bytes()
    bundle.update({"other.npz": content}, golden="other.npz")
    assert _verify(fewstep, engines_copy, backend).code == 1
    assert _marked(engines_copy) == []


def test_onnxruntime_marks_nothing(fewstep: Terminal, engines_copy: Path) -> None:
    assert _verify(fewstep, engines_copy, "onnxruntime", "--device", "cpu").code == 0
    assert _marked(engines_copy) == []


def test_generate_and_bench_tell_until_the_engines_are_verified(
    fewstep: Terminal, engines_copy: Path, backend: EngineBackend, tmp_path: Path
) -> None:
    commands: list[list[Any]] = [
        ["generate", engines_copy, "--class", 0, "--out", tmp_path / "x.png"],
        ["bench", engines_copy, "--runs", 1, "--steps", 1],
    ]
    for command in commands:
        outcome = fewstep(*command, "--backend", backend)
        assert (outcome.code, outcome.err.count("never verified")) == (0, 1)
    assert _verify(fewstep, engines_copy, backend).code == 0
    for command in commands:
        outcome = fewstep(*command, "--backend", backend)
        assert (outcome.code, outcome.err.count("never verified")) == (0, 0)


def test_other_additions_keep_the_marks_and_a_build_again_does_not(
    fewstep: Terminal,
    engines_copy: Path,
    backend: EngineBackend,
    built: Callable[..., Path],
    kernels: CompiledKernels,
) -> None:
    from fewstep.build.engines import build_engines
    from fewstep.build.target import target

    assert _verify(fewstep, engines_copy, backend).code == 0
    add_kernels(Bundle.read(engines_copy), kernels)
    built(engines_copy, "fp16", 4)  # other profiles: built, in the place of the others
    assert _marked(engines_copy) == _GRAPHS
    options = _first(engines_copy, "fp32").options
    wanted = target(backend, "fp32", options)
    assert not any(each.built for each in build_engines(engines_copy, wanted))
    assert _marked(engines_copy) == _GRAPHS
    assert all(each.built for each in build_engines(engines_copy, wanted, force=True))
    assert _marked(engines_copy) == []


def _first(bundle: Path, precision: str) -> EngineInfo:
    found = Bundle.read(bundle).manifest.engines
    return next(info for info in found if info.precision == precision)


def test_engines_of_another_card_are_told(engines_copy: Path, backend: EngineBackend) -> None:
    content = json.loads((engines_copy / "bundle.json").read_text())
    for engine in content["engines"]:
        if engine["gpu"] is not None:
            engine["gpu"] = "NVIDIA A10"
    (engines_copy / "bundle.json").write_text(json.dumps(content))
    with Generator.open(engines_copy, backend=backend) as generator:
        notes = [note for note in generator.notes if "were tuned for" in note]
    if backend == "tensorrt-rtx":  # which are for every card of a capability
        assert notes == []
    else:
        assert notes[0].startswith("the fp32 engines of decoder, policy, transformer were tuned")
        assert f"NVIDIA A10 and may be slow or fail on {device_name()}" in notes[0]
        assert f"fewstep build {engines_copy} --backend tensorrt --precision fp32" in notes[0]
