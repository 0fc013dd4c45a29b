"""Marks of verified engines without a GPU: what is told, what is written, and what undoes a mark.

The engines are records with a few bytes each, on a GPU that is made up; the runs behind the
verdicts are in ``tests/cuda/test_verified_engines.py``.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.on_gpu import EnginesOnGpu, Gpu
from fewstep.runtime.errors import BundleError, OutputError
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import SCHEMA
from fewstep.runtime.verify import Check, Report, mark

if TYPE_CHECKING:
    from tests.conftest import Terminal

_CARD = Gpu(0, "NVIDIA A40", "8.6", "12.8")
_OTHERS = [
    replace(_CARD, name="NVIDIA A10"),
    replace(_CARD, compute_capability="8.9"),
    replace(_CARD, driver="13.0"),
]
_GRAPHS = ("decoder", "policy", "transformer")
_ROLLOUTS = {"transformer": "cosine", "decoder": "cosine", "loop": "cosine", "policy": "policy"}


@pytest.fixture
def engines(bundle_copy: Path) -> Bundle:
    """The tiny bundle with TensorRT engines in fp32 of an A40, and fp16 ones for its policy."""
    bundle = Bundle.read(bundle_copy)
    records = [_record(bundle, name) for name in _GRAPHS]
    records.append(records[1] | {"file": "engines/other.engine", "precision": "fp16"})
    files = {record["file"]: record["file"].encode() for record in records}
    return bundle.update(files, engines=records)


def _record(bundle: Bundle, graph: str) -> dict[str, Any]:
    return {
        "file": f"engines/{graph}.engine",
        "backend": "tensorrt",
        "version": "10.3.0",
        "graph": graph,
        "precision": "fp32",
        "graph_sha256": bundle.graph_sha256(graph),
        "compute_capabilities": ("8.6",),
        "profiles": (),
        "options": {"max_batch": 4, "opt_batch": (1, 2)},
        "gpu": _CARD.name,
        "seconds": 0.0,
        "peak_memory_bytes": 0,
    }


def _on(bundle: Bundle, gpu: Gpu = _CARD) -> EnginesOnGpu:
    fp32 = (info for info in bundle.manifest.engines if info.precision == "fp32")
    return EnginesOnGpu({info.graph: info for info in fp32}, gpu)


def _mark(bundle: Bundle, gpu: Gpu = _CARD, *, passed: bool = True, policy: bool = True) -> Bundle:
    """The bundle after a verdict on a generator that opened it."""
    checks = tuple(
        Check(graph, rollout, "psnr_db", 50.0, 40.0 if passed else 60.0, at_most=False)
        for graph, rollout in _ROLLOUTS.items()
        if policy or graph != "policy"
    )
    report = Report(str(bundle.path), "fp32", checks, "tensorrt", "cuda")
    generator = cast("Generator", SimpleNamespace(bundle=bundle, on_gpu=_on(bundle, gpu)))
    mark(generator, report)
    return Bundle.read(bundle.path)


def _where(bundle: Bundle) -> dict[str, list[tuple[str, str, str]]]:
    """GPU, compute capability and driver of the marks, by the file name of the engines with any."""
    return {
        info.file.partition("/")[2].partition(".")[0]: [
            (each.gpu, each.compute_capability, each.driver)
            for each in bundle.manifest.verified_on(info)
        ]
        for info in bundle.manifest.engines
        if bundle.manifest.verified_on(info)
    }


def _place(gpu: Gpu) -> tuple[str, str, str]:
    return gpu.name, gpu.compute_capability, gpu.driver


# --- what is written


def test_engines_that_passed_are_marked_and_no_others(engines: Bundle) -> None:
    marked = _mark(engines)
    assert _where(marked) == {graph: [_place(_CARD)] for graph in _GRAPHS}
    (found,) = marked.manifest.engines[0].verified
    assert found.engine_sha256 == marked.manifest.files["engines/decoder.engine"].sha256
    assert found.date[:2] == "20"
    assert found.fewstep
    assert marked.damage() == {}


def test_an_engine_without_metrics_is_neither_marked_nor_unmarked(engines: Bundle) -> None:
    some = _mark(engines, policy=False)
    assert sorted(_where(some)) == ["decoder", "transformer"]
    assert sorted(_where(_mark(_mark(some), policy=False))) == list(_GRAPHS)


def test_verifying_again_writes_nothing(engines: Bundle) -> None:
    file = _mark(engines).path / "bundle.json"
    text, stamp = file.read_text(), file.stat().st_mtime_ns
    _mark(Bundle.read(engines.path))
    assert (file.read_text(), file.stat().st_mtime_ns) == (text, stamp)


def test_a_gpu_has_one_mark_and_others_keep_theirs(engines: Bundle) -> None:
    _, _, newer = _OTHERS
    bundle = engines
    for gpu in (_CARD, *_OTHERS):
        bundle = _mark(bundle, gpu)
    expected = [_place(gpu) for gpu in (*_OTHERS[:2], newer)]
    assert _where(bundle) == dict.fromkeys(_GRAPHS, expected)


@pytest.mark.parametrize("policy", [True, False])
def test_a_failure_removes_the_marks_of_that_gpu(engines: Bundle, policy: bool) -> None:
    bundle = _mark(_mark(engines), _OTHERS[0])
    failed = _mark(bundle, replace(_CARD, driver="13.0"), passed=False, policy=policy)
    assert _where(failed) == dict.fromkeys(_GRAPHS, [_place(_OTHERS[0])])


def test_a_failure_without_marks_writes_nothing(engines: Bundle) -> None:
    stamp = (engines.path / "bundle.json").stat().st_mtime_ns
    _mark(engines, passed=False)
    assert (engines.path / "bundle.json").stat().st_mtime_ns == stamp


def test_what_others_added_meanwhile_stays(engines: Bundle) -> None:
    content = {"file": "engines/late.engine", "precision": "bf16"}
    records = [each.model_dump() for each in engines.manifest.engines]
    engines.update({"engines/late.engine": b"late"}, engines=[*records, records[0] | content])
    marked = _mark(engines)  # opened before
    assert len(marked.manifest.engines) == len(engines.manifest.engines) + 1
    assert sorted(_where(marked)) == list(_GRAPHS)


def test_an_engine_that_was_replaced_meanwhile_is_not_marked(engines: Bundle) -> None:
    records = [each.model_dump() for each in engines.manifest.engines]
    engines.update({"engines/decoder.engine": b"another"}, engines=records)
    assert sorted(_where(_mark(engines))) == ["policy", "transformer"]


def test_onnxruntime_leaves_no_mark(engines: Bundle, generator: Generator) -> None:
    report = Report(str(engines.path), "fp32", (), "onnxruntime", "cpu")
    assert generator.on_gpu is None
    assert generator.notes == ()
    mark(generator, report)
    assert _where(Bundle.read(engines.path)) == {}


def test_a_bundle_that_cannot_be_written_is_as_before(
    engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("fewstep.runtime.unfinished.new_file", full)
    with pytest.raises(OutputError, match="Read-only file system"):
        _mark(engines)
    assert _where(Bundle.read(engines.path)) == {}


# --- what undoes a mark


def test_another_content_loses_the_mark(engines: Bundle) -> None:
    """As by a tool that replaces a file and leaves the record as it was."""
    marked = _mark(engines)
    records = [each.model_dump() for each in marked.manifest.engines]
    changed = marked.update({"engines/decoder.engine": b"another"}, engines=records)
    assert changed.manifest.engines[0].verified
    assert sorted(_where(changed)) == ["policy", "transformer"]


def test_other_changes_of_the_bundle_keep_it(engines: Bundle) -> None:
    changed = _mark(engines).update({"kernels/x.bin": b"1"}, golden=None)
    assert sorted(_where(changed)) == list(_GRAPHS)


# --- the manifest


def test_records_of_before_have_no_marks_and_marks_need_no_newer_schema(engines: Bundle) -> None:
    file = _mark(engines).path / "bundle.json"
    content = json.loads(file.read_text())
    assert content["schema_version"] == SCHEMA
    for record in content["engines"]:
        del record["verified"]
    file.write_text(json.dumps(content))
    assert all(info.verified == () for info in Bundle.read(engines.path).manifest.engines)


@pytest.mark.parametrize(
    ("field", "value"),
    [("driver", "580"), ("compute_capability", "sm_86"), ("engine_sha256", "0"), ("more", 1)],
)
def test_marks_are_checked(engines: Bundle, field: str, value: object) -> None:
    file = _mark(engines).path / "bundle.json"
    content = json.loads(file.read_text())
    content["engines"][0]["verified"][0][field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=rf"engines\.0\.verified\.0\.{field}"):
        Bundle.read(engines.path)


# --- what is told


def test_unverified_engines_name_the_gpu_and_the_command(engines: Bundle) -> None:
    (note,) = _on(engines).notes(engines)
    told, _, command = note.partition("; do it with: ")
    assert told == (
        "the fp32 engines of decoder, policy, transformer were never verified on NVIDIA A40 with "
        "a driver for CUDA 12.8"
    )
    verify = ["fewstep", "verify", str(engines.path), "--backend", "tensorrt"]
    assert shlex.split(command) == [*verify, "--precision", "fp32"]


def test_the_command_names_a_gpu_that_is_not_the_first(engines: Bundle) -> None:
    (note,) = _on(engines, replace(_CARD, ordinal=1)).notes(engines)
    assert note.endswith("--precision fp32 --device cuda:1")


def test_verified_engines_say_nothing(engines: Bundle) -> None:
    marked = _mark(engines)
    assert _on(marked).notes(marked) == ()
    assert _on(marked, replace(_CARD, ordinal=1)).notes(marked) == ()


def test_only_unverified_engines_are_named(engines: Bundle) -> None:
    some = _mark(engines, policy=False)
    (note,) = _on(some).notes(some)
    assert "engines of policy were never verified" in note


@pytest.mark.parametrize("gpu", _OTHERS, ids=["card", "capability", "driver"])
def test_a_mark_is_for_one_gpu_and_driver(engines: Bundle, gpu: Gpu) -> None:
    marked = _mark(engines)
    assert f"never verified on {gpu.name}" in _on(marked, gpu).notes(marked)[-1]


def _tuned_on(bundle: Bundle, *gpus: str | None) -> Bundle:
    """The bundle with fp32 engines built on these cards, in the order of the graphs."""
    infos = [
        info.model_copy(update={"gpu": gpu})
        for info, gpu in zip(bundle.manifest.engines[:3], gpus, strict=True)
    ]
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"engines": tuple(infos)}))


def test_another_card_of_the_same_capability_is_told(engines: Bundle) -> None:
    bundle = _tuned_on(engines, "NVIDIA A10", _CARD.name, "NVIDIA A10")
    note, _ = _on(bundle).notes(bundle)
    told, _, command = note.partition("; build them here with: ")
    assert told == (
        "the fp32 engines of decoder, transformer were tuned for NVIDIA A10 and may be slow or "
        "fail on NVIDIA A40"
    )
    build = ["fewstep", "build", str(engines.path), "--backend", "tensorrt"]
    assert shlex.split(command)[:5] == build


def test_every_other_card_is_told_once(engines: Bundle) -> None:
    bundle = _tuned_on(engines, "NVIDIA A10", "NVIDIA A2", "NVIDIA A10")
    notes = _on(bundle).notes(bundle)
    assert [note.count("NVIDIA A10") for note in notes] == [1, 0, 0]
    assert [note.count("NVIDIA A2") for note in notes] == [0, 1, 0]


def test_engines_that_name_no_card_are_for_all(engines: Bundle) -> None:
    bundle = _tuned_on(engines, None, None, None)
    assert all("were tuned" not in note for note in _on(bundle).notes(bundle))


# --- the commands


@pytest.fixture
def noted(engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle, whose generators believe to be on a GPU with its engines."""
    opened = Generator.open

    def pretending(*arguments: Any, **options: Any) -> Generator:
        generator = opened(*arguments, **options)
        generator.on_gpu = _on(generator.bundle)
        return generator

    monkeypatch.setattr(Generator, "open", pretending)
    return engines


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_notes_are_told_once_beside_the_results(
    fewstep: Terminal, noted: Bundle, tmp_path: Path, command: str
) -> None:
    wish = ["--class", 0, "--out", tmp_path / "x.png"] if command == "generate" else ["--runs", 1]
    outcome = fewstep(command, noted.path, "--device", "cpu", *wish)
    assert outcome.code == 0
    assert outcome.err.count("note: ") == 1
    assert "never verified on NVIDIA A40" in outcome.err
    assert "never verified" not in outcome.out


def test_notes_are_in_the_json(fewstep: Terminal, noted: Bundle, tmp_path: Path) -> None:
    wish = ["--class", 0, "--out", tmp_path / "x.png", "--json"]
    outcome = fewstep("generate", noted.path, "--device", "cpu", *wish)
    (note,) = json.loads(outcome.out)["notes"]
    assert "never verified" in note


def test_verify_marks_and_inspect_shows(fewstep: Terminal, noted: Bundle) -> None:
    before = " ".join(fewstep("inspect", noted.path).out.split())
    assert before.count("never verified") == 2  # fp32, fp16
    outcome = fewstep("verify", noted.path, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    after = " ".join(fewstep("inspect", noted.path).out.split())
    assert "transformer; verified on NVIDIA A40 (CUDA 12.8)" in after
    assert after.count("never verified") == 1


def test_a_verdict_stands_where_it_cannot_be_written(
    fewstep: Terminal, noted: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("fewstep.runtime.unfinished.new_file", full)
    outcome = fewstep("verify", noted.path, "--device", "cpu", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["passed"] is True
    assert outcome.err.startswith("note: the verdict on these engines is not recorded")
    assert len(outcome.err.splitlines()) == 1


def test_a_failed_verify_unmarks(
    fewstep: Terminal, noted: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.runtime import verify

    assert fewstep("verify", noted.path, "--device", "cpu").code == 0
    assert sorted(_where(Bundle.read(noted.path))) == list(_GRAPHS)
    strict = verify.Tolerances(-1.0, 2.0, 2.0, 1e9)
    monkeypatch.setitem(verify.TOLERANCES, "fp32", strict)
    assert fewstep("verify", noted.path, "--device", "cpu").code == 1
    assert _where(Bundle.read(noted.path)) == {}
