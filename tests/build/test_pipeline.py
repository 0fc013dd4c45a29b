"""``fewstep.build.pipeline`` with the real TensorRT-RTX: graphs, engines and their records.

Each kind of build is done once and copied by the tests that change it. Kernels are in test_kernels
and, beside engines, in tests/cli/test_build_engines.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fewstep.build import target
from fewstep.build.pipeline import BuildRequest, Outcome, build, preflight_only
from fewstep.build.stale import stale, stale_contents
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.compatibility import read_header, require_header
from fewstep.runtime.errors import EngineError, MissingDependencyError, RequestError
from fewstep.runtime.manifest import MANIFEST_NAME
from fewstep.runtime.records import BuildOptions, EngineInfo

pytestmark = pytest.mark.slow

GRAPHS = ("transformer", "policy", "decoder")


def _request(path: Path, *capabilities: str, **other: Any) -> BuildRequest:
    plain = BuildRequest(path, "tensorrt-rtx", "fp16", capabilities or ("8.6",), kernels=False)
    return replace(plain, **other)


@pytest.fixture(scope="session")
def rtx() -> Any:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


@pytest.fixture(scope="session")
def built(
    rtx: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Outcome]]:
    """A bundle with fp16 and fp32 engines for 8.6, and what building them returned."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("built") / "bundle"))
    options = BuildOptions(max_batch=3, opt_batch=(1, 2))
    made = {
        precision: build(_request(path, precision=precision, options=options))
        for precision in ("fp16", "fp32")
    }
    return path, made


@pytest.fixture
def path(built: tuple[Path, object], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "bundle"))


def _again(path: Path, *capabilities: str, **other: Any) -> BuildRequest:
    """What the bundle of ``built`` has already."""
    options = BuildOptions(max_batch=3, opt_batch=(1, 2))
    return replace(_request(path, *capabilities, options=options), **other)


def _engines(path: Path) -> dict[str, EngineInfo]:
    found = Bundle.read(path).manifest.engines
    return {f"{each.graph} {each.precision}": each for each in found}


def _contents(path: Path) -> dict[str, bytes]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def _whole(path: Path) -> None:
    """The manifest's files are all there is, and are what their records say."""
    bundle = Bundle.read(path)
    assert bundle.damage() == {}
    assert _contents(path).keys() == {*bundle.manifest.files, MANIFEST_NAME}
    for info in bundle.manifest.engines:
        require_header(info, bundle.locate(info.file).read_bytes())


# --- records


def test_every_graph_is_built_with_a_record(
    rtx: Any, built: tuple[Path, dict[str, Outcome]]
) -> None:
    path, made = built
    bundle = Bundle.read(path)
    assert [each.graph for each in made["fp16"].graphs] == list(GRAPHS)
    assert made["fp32"].graphs == ()
    _whole(path)
    for precision, outcome in made.items():
        assert not outcome.up_to_date
        assert [each.info.graph for each in outcome.engines] == list(GRAPHS)
        for report in outcome.engines:
            info, graph = report.info, bundle.graph(report.info.graph, precision)
            assert info == _engines(path)[f"{info.graph} {precision}"]
            assert (info.backend, info.version) == ("tensorrt-rtx", rtx.__version__)
            assert (info.compute_capabilities, info.gpu) == (("8.6",), None)
            assert info.options == BuildOptions(max_batch=3, opt_batch=(1, 2))
            onnx_file = (path / graph.file).read_bytes()
            assert info.graph_sha256 == hashlib.sha256(onnx_file).hexdigest()
            content = (path / info.file).read_bytes()
            assert bundle.manifest.files[info.file].sha256 == hashlib.sha256(content).hexdigest()
            assert (report.built, report.size_bytes) == (True, len(content))
            assert 0 < info.seconds < 60
            assert 1 << 20 < info.peak_memory_bytes < 1 << 36
            rows = 2 if info.graph == "transformer" else 1
            batches = [[(s.min[0], s.opt[0], s.max[0]) for s in p.values()] for p in info.profiles]
            assert batches == [[(1, rows * best, rows * 3)] * len(graph.inputs) for best in (1, 2)]


def _longer(content: bytes) -> bytes:
    return content + b"\0"


@pytest.mark.parametrize(
    ("change", "damage"),
    [
        ({"version": "1.7.0.1"}, bytes),
        ({"compute_capabilities": ("8.6", "8.9")}, bytes),
        ({"compute_capabilities": ("8.9",)}, bytes),
        ({}, lambda content: content[:-1]),
        ({}, _longer),
        ({}, lambda content: content[:20]),
        ({}, lambda content: bytes(len(content))),
        ({}, lambda content: content[:32] + b"\x40" + content[33:]),  # a capability unknown to us
        ({}, lambda content: content[:32] + b"\x02" + content[33:]),  # 8.0 instead of 8.6
    ],
)
def test_a_record_that_is_not_of_its_engine_is_refused(
    path: Path, change: dict[str, Any], damage: Callable[[bytes], bytes]
) -> None:
    info = _engines(path)["decoder fp16"]
    content = (path / info.file).read_bytes()
    require_header(info, content)
    with pytest.raises(EngineError, match=r"engines/decoder.*; build it again with --force"):
        require_header(info.model_copy(update=change), damage(content))


def test_two_builds_have_the_same_graphs_and_records(
    path: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """But for times and the names of engines, which hold their hashes."""
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "else where"))
    build(_again(other))
    ours, theirs = _contents(path), _contents(other)
    graphs = [name for name in theirs if name.endswith(".onnx")]
    assert len(graphs) == 3 + 3
    assert {name: ours[name] for name in graphs} == {name: theirs[name] for name in graphs}
    took = {"file": "-", "seconds": 0.0, "peak_memory_bytes": 0}
    for name, info in _engines(other).items():
        same = _engines(path)[name]
        assert info.model_copy(update=took) == same.model_copy(update=took)


def test_engines_for_several_targets(path: Path) -> None:
    before = {info.file for name, info in _engines(path).items() if "fp16" in name}
    targets = ("8.6", "8.9", "12.0", "12.1")
    build(_again(path, "12.1", *targets[:3]))
    for info in (info for name, info in _engines(path).items() if "fp16" in name):
        header = read_header((path / info.file).read_bytes())
        assert header is not None
        assert header.capabilities == info.compute_capabilities == targets
    assert before.isdisjoint(_contents(path))
    assert len(_engines(path)) == 6
    _whole(path)


# --- again


def test_the_same_again_does_nothing(rtx: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be built")

    monkeypatch.setattr(rtx, "Builder", never)
    monkeypatch.setattr("fewstep.build.engines.require_buildable", never)
    before = _contents(path)
    started = time.perf_counter()
    outcome = build(_again(path))
    assert time.perf_counter() - started < 2  # 5 ms
    assert outcome.up_to_date
    assert [each.built for each in outcome.engines] == [False] * 3
    assert _contents(path) == before
    with pytest.raises(AssertionError, match="nothing is to be built"):
        build(_again(path, force=True))


def test_force_builds_the_engines_asked_for_again(path: Path) -> None:
    before = _contents(path)
    outcome = build(_again(path, force=True))
    assert [each.built for each in outcome.engines] == [True] * 3
    assert outcome.graphs == ()  # they follow their source
    after = _contents(path)
    assert len(after) == len(before)
    kept = [name for name in before if name.endswith(".onnx") or ".fp32." in name]
    assert len(kept) == 9
    assert all(after[name] == before[name] for name in kept)
    _whole(path)


# --- 7.5, which has no fp32 matmuls


def test_graphs_without_heads_are_made_where_7_5_is_a_target(
    rtx: Any, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "compute_capability", lambda: "7.5")
    build(_request(bundle_copy, capabilities=()))
    graphs = Bundle.read(bundle_copy).manifest.variants["fp16"]
    assert {each.fp32_heads for each in graphs.values()} == {False}
    _whole(bundle_copy)
    listed = build(_request(bundle_copy, "7.5", "8.6"))
    assert listed.graphs == ()
    assert {each.info.compute_capabilities for each in listed.engines} == {("7.5", "8.6")}
    _whole(bundle_copy)


def test_graphs_with_heads_are_refused_for_7_5_with_the_command_that_helps(path: Path) -> None:
    before = _contents(path)
    with pytest.raises(EngineError, match="received 7.5") as raised:
        build(_again(path, "7.5"))
    assert _contents(path) == before
    command = f"fewstep build {path} --precision fp16 --no-fp32-heads --force"
    assert f"make fp16 graphs without fp32 heads: {command}; or leave 7.5 out" in str(raised.value)
    assert shlex.split(command)[2] == str(path)
    build(BuildRequest(path, precision="fp16", fp32_heads=False, force=True))
    assert all(each.built for each in build(_again(path, "7.5")).engines)


@pytest.mark.parametrize(("precision", "error"), [("fp32", EngineError), ("bf16", RequestError)])
def test_other_precisions_are_refused_for_7_5(
    bundle_copy: Path, precision: str, error: type[Exception]
) -> None:
    before = _contents(bundle_copy)
    with pytest.raises(error, match=r"7\.5"):
        preflight_only(_request(bundle_copy, "7.5", precision=precision))
    assert _contents(bundle_copy) == before


# --- what a build would do


def test_what_is_stale_of_what_is_wanted(path: Path) -> None:
    assert stale(_again(path)) == {}
    assert stale(_again(path, precision="fp32")) == {}
    other = stale(_again(path, options=BuildOptions()))
    assert list(other) == [f"engine of {name}" for name in GRAPHS]
    assert set(other.values()) == {
        "was built with max_batch 3, asked for 8; opt_batch (1, 2), asked for (1,)"
    }
    assert list(stale(_again(path, fp32_heads=False))) == ["graphs in fp16"]
    assert list(stale(_again(path, precision="bf16"))) == ["graphs in bf16"]
    file = path / _engines(path)["policy fp16"].file
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    damaged = stale(_again(path))
    assert damaged == {"engine of policy": "does not have the manifest's SHA-256"}
    assert [each.built for each in build(_again(path)).engines] == [False, True, False]
    assert stale(_again(path)) == {}
    (path / "policy.onnx").write_bytes(b"")
    found = stale(_again(path, precision="fp32"))
    assert list(found) == ["graphs in fp32"]
    assert found["graphs in fp32"].startswith("are damaged: policy.onnx has 0 bytes")


def test_what_is_stale_of_what_there_is(path: Path) -> None:
    assert stale_contents(Bundle.read(path)) == {}
    add_variant(Bundle.read(path), "fp16", heads=False)
    # Engines of graphs that are gone went with them; the decoder has no heads.
    assert {name for name in _engines(path) if "fp16" in name} == {"decoder fp16"}
    assert stale_contents(Bundle.read(path)) == {}
    missing = _engines(path)["decoder fp32"].file
    (path / missing).unlink()
    remedy = "copy or make the bundle again"
    assert stale_contents(Bundle.read(path)) == {missing: f"the file is missing; {remedy}"}


# --- interruptions


def test_ctrl_c_stops_the_builder_and_the_next_build_goes_on(rtx: Any, bundle_copy: Path) -> None:
    def interrupted(what: str, done: float) -> None:
        if what.startswith("policy: "):
            if what == "policy: Building engine":
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        build(_request(bundle_copy), interrupted)
    assert list(_engines(bundle_copy)) == ["transformer fp16"]
    _whole(bundle_copy)
    reported: list[tuple[str, float]] = []
    rest = build(_request(bundle_copy), lambda *each: reported.append(each))
    assert [each.built for each in rest.engines] == [False, True, True]
    assert {what.partition(": ")[0] for what, done in reported if done < 1} == {"policy", "decoder"}
    assert [what for what, done in reported if done == 1] == [
        "stored the engine of policy",
        "stored the engine of decoder",
    ]
    _whole(bundle_copy)


# --- the precision of engines


def test_engines_are_fp16_unless_the_caller_says_otherwise(path: Path) -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        assert BuildRequest(path, backend).graph_precision == "fp16"
        assert BuildRequest(path, backend, "fp32").graph_precision == "fp32"
        assert BuildRequest(path, backend, "int8").graph_precision == "int8"
    assert BuildRequest(path, kernels=True).graph_precision == "fp32"
    outcome = build(_again(path, precision=None))
    assert {each.info.precision for each in outcome.engines} == {"fp16"}
    assert (outcome.up_to_date, outcome.as_dict()["precision"]) == (True, "fp16")
    assert stale(_again(path, precision=None)) == {}


# --- what is refused early


def test_a_preflight_removes_no_engines(path: Path) -> None:
    """Other graphs would take the engines of the present ones along; their files too."""
    before = _contents(path)
    wanted = _again(path, precision="fp16", fp32_heads=False)
    with pytest.raises(RequestError, match=r"remove 3 engines .*give it a copy of the bundle"):
        preflight_only(wanted)
    assert _contents(path) == before


def test_preflight_needs_no_builder(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    preflight_only(_request(bundle_copy))
    with pytest.raises(RequestError, match="pass --backend"):
        preflight_only(BuildRequest(bundle_copy, precision="fp16"))
    before = _contents(bundle_copy)
    with pytest.raises(MissingDependencyError, match="tensorrt_rtx is not installed"):
        build(_request(bundle_copy, precision="bf16"))
    assert _contents(bundle_copy) == before  # not even the graphs


def test_requests_for_nothing_or_the_unknown(tmp_path: Path) -> None:
    for nothing in ({}, {"precision": "fp32"}, {"kernels": False}):
        with pytest.raises(RequestError, match="nothing to build: pass --backend"):
            BuildRequest(tmp_path, **nothing)
    with pytest.raises(RequestError, match="unknown precision 'fp61'; .* Did you mean 'fp16'"):
        BuildRequest(tmp_path, precision="fp61")
