"""Engines in a bundle: what is up to date, what takes whose place, and never half of one.

The builder is a stand-in that writes down what it was asked for; test_pipeline has the real one.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.build import engines
from fewstep.build.engines import EngineReport, build_engines
from fewstep.build.stale import (
    current_engine,
    expected_records,
    stale_engines,
    why_engine_stale,
)
from fewstep.build.target import Target
from fewstep.build.tensorrt_builder import BuiltEngine, EngineRequest
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.select import usable_engines
from fewstep.runtime.engines.tensorrt_api import TensorRt
from fewstep.runtime.errors import BundleError, EngineError, OutputError
from fewstep.runtime.manifest import MANIFEST_NAME
from fewstep.runtime.progress import Progress
from fewstep.runtime.records import BuildOptions, EngineInfo

GRAPHS = ("transformer", "policy", "decoder")
_ONE = Target("tensorrt-rtx", "fp16", BuildOptions(), ("8.6",))
_TWO = replace(_ONE, capabilities=("8.6", "8.9"))
_OTHER_OPTIONS = replace(_ONE, options=BuildOptions(max_batch=4))


class Builder:
    """Stands in for TensorRT-RTX; its engines say what they were made of.

    ``before`` is called as each build begins, ``fails`` instead of the build of that graph.
    """

    def __init__(self) -> None:
        self.version = "1.7.1"
        self.before: Callable[[], object] = lambda: None
        self.fails: dict[str, BaseException] = {}
        self._requests: list[EngineRequest] = []

    def load(self, backend: Any) -> TensorRt:
        return TensorRt(backend, SimpleNamespace(__version__=self.version))

    def build(self, api: TensorRt, request: EngineRequest, progress: Progress) -> BuiltEngine:
        self._requests.append(request)
        self.before()
        if request.graph in self.fails:
            raise self.fails[request.graph]
        progress("building", 0.5)
        progress("building", 1.0)
        said = [str(api), request.graph, *request.capabilities, str(request.options)]
        content = "\n".join([*said, request.path.name]).encode()
        return BuiltEngine(memoryview(content), ("a warning",), 1.234, 5 << 20)

    def take(self) -> list[str]:
        """Graphs built since this was last called."""
        taken, self._requests = [each.graph for each in self._requests], []
        return taken


@pytest.fixture(autouse=True)
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    stub = Builder()
    monkeypatch.setattr(engines, "load", stub.load)
    monkeypatch.setattr(engines, "build_engine", stub.build)
    return stub


@pytest.fixture(scope="module")
def with_fp16(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("engines") / "fp16"))
    add_variant(Bundle.read(path), "fp16")
    return path


@pytest.fixture
def path(with_fp16: Path, tmp_path: Path) -> Path:
    """A bundle with fp16 graphs and no engine."""
    return Path(shutil.copytree(with_fp16, tmp_path / "bundle"))


def _engines(path: Path) -> tuple[EngineInfo, ...]:
    return Bundle.read(path).manifest.engines


def _contents(path: Path) -> dict[str, bytes]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def _whole(path: Path) -> None:
    """The manifest's files are all there is, and they are as it says."""
    assert Bundle.read(path).damage() == {}
    assert _contents(path).keys() == {*Bundle.read(path).manifest.files, MANIFEST_NAME}


# --- up to date or not


def test_the_same_again_builds_nothing(path: Path, builder: Builder) -> None:
    first = build_engines(path, _TWO)
    assert builder.take() == list(GRAPHS)
    assert [(each.built, each.warnings) for each in first] == [(True, ("a warning",))] * 3
    before = _contents(path)
    for wanted in (_TWO, _ONE, replace(_ONE, capabilities=("8.9",))):  # fewer GPUs are covered
        again = build_engines(path, wanted)
        assert again == tuple(EngineReport(each.info, each.size_bytes, False) for each in first)
    assert builder.take() == []
    assert _contents(path) == before


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])]
)
def test_an_engine_that_is_not_whole_is_built_again(
    path: Path, builder: Builder, damage: Callable[[Path], object]
) -> None:
    build_engines(path, _ONE)
    before = _contents(path)
    builder.take()
    damage(path / _engines(path)[1].file)
    build_engines(path, _ONE)
    assert builder.take() == ["policy"]
    assert _contents(path).keys() == before.keys()
    _whole(path)


def test_damage_of_the_same_size_is_found_too(path: Path, builder: Builder) -> None:
    build_engines(path, _ONE)
    whole = _contents(path)
    file = path / _engines(path)[0].file
    file.write_bytes(b"?" + file.read_bytes()[1:])
    bundle, api = Bundle.read(path), builder.load("tensorrt-rtx")
    expected = expected_records(bundle, _ONE, api)
    assert current_engine(bundle, expected["transformer"]) is None
    assert "SHA-256" in why_engine_stale(bundle, expected["transformer"])
    assert current_engine(bundle, expected["policy"]) is not None
    assert builder.take() == list(GRAPHS)
    build_engines(path, _ONE)
    assert builder.take() == ["transformer"]
    assert _contents(path).keys() == whole.keys()
    _whole(path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_OTHER_OPTIONS, "max_batch"),
        (
            replace(_ONE, options=BuildOptions(optimization_level=1)),
            "optimization_level None, asked",
        ),
        (_TWO, "is not for "),
        (replace(_ONE, capabilities=("12.0",)), "is not there for 12.0"),
    ],
)
def test_what_is_stale_is_said(path: Path, builder: Builder, other: Target, said: str) -> None:
    build_engines(path, _ONE)
    expected = expected_records(Bundle.read(path), other, builder.load("tensorrt-rtx"))
    found = why_engine_stale(Bundle.read(path), expected["decoder"])
    assert said in found


@pytest.mark.parametrize(
    "other",
    [
        _OTHER_OPTIONS,
        replace(_ONE, options=BuildOptions(opt_batch=(1, 2))),
        replace(_ONE, options=BuildOptions(optimization_level=1)),
        replace(_ONE, options=BuildOptions(workspace_mib=64)),
        _TWO,
        replace(_ONE, capabilities=("8.6", "8.9", "12.0")),
    ],
)
def test_other_options_or_more_gpus_take_the_place_of_what_was(
    path: Path, builder: Builder, other: Target
) -> None:
    build_engines(path, _ONE)
    builder.take()
    assert all(each.built for each in build_engines(path, other))
    assert builder.take() == list(GRAPHS)
    assert {each.options for each in _engines(path)} == {other.options}
    assert {each.compute_capabilities for each in _engines(path)} == {other.capabilities}
    assert len(_engines(path)) == 3
    _whole(path)  # the files of those before are gone


def test_another_version_or_graph_makes_engines_stale(path: Path, builder: Builder) -> None:
    build_engines(path, _ONE)
    builder.take()
    builder.version = "1.8.0"
    build_engines(path, _ONE)
    assert builder.take() == list(GRAPHS)
    assert {each.version for each in _engines(path)} == {"1.8.0"}
    add_variant(Bundle.read(path), "fp16", heads=False)
    assert [each.graph for each in _engines(path)] == ["decoder"]  # which has no heads
    build_engines(path, _ONE)
    assert builder.take() == ["transformer", "policy"]
    assert stale_engines(Bundle.read(path)) == {}
    _whole(path)


def test_precisions_stay_beside_each_other(path: Path, builder: Builder) -> None:
    build_engines(path, _ONE)
    build_engines(path, replace(_ONE, precision="fp32"))
    assert builder.take() == [*GRAPHS, *GRAPHS]
    assert [each.precision for each in _engines(path)] == ["fp16"] * 3 + ["fp32"] * 3
    _whole(path)


def test_engines_for_more_gpus_stay_for_those(path: Path, builder: Builder) -> None:
    """And "up to date" is never said of engines that a device would not take."""
    build_engines(path, _TWO)
    build_engines(path, _OTHER_OPTIONS)
    assert [each.compute_capabilities for each in _engines(path)] == [
        *[("8.6", "8.9")] * 3,
        *[("8.6",)] * 3,
    ]
    for wanted in (_OTHER_OPTIONS, _ONE, _TWO):
        build_engines(path, wanted)
        for capability in wanted.capabilities:
            bundle = Bundle.read(path)
            taken = usable_engines(bundle, "tensorrt-rtx", "fp16", "1.7.1", capability)
            assert {each.options for each in taken.values()} == {wanted.options}
    _whole(path)


# --- interruptions and full disks


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), EngineError("refused")])
def test_what_was_stored_stays_and_the_next_build_goes_on(
    path: Path, builder: Builder, reason: BaseException
) -> None:
    builder.fails["policy"] = reason
    reported: list[tuple[str, float]] = []
    with pytest.raises(type(reason)):
        build_engines(path, _ONE, progress=lambda *each: reported.append(each))
    assert reported == [
        ("transformer: building", 0.5),
        ("transformer: building", 0.99),  # built, and not stored yet
        ("stored the engine of transformer", 1.0),
    ]
    assert [each.graph for each in _engines(path)] == ["transformer"]
    _whole(path)
    builder.fails.clear()
    builder.take()
    assert [each.built for each in build_engines(path, _ONE)] == [False, True, True]
    assert builder.take() == ["policy", "decoder"]
    _whole(path)


@pytest.mark.parametrize("had_engines", [False, True])
@pytest.mark.parametrize("fails_at", [".engine", ".json"])
@pytest.mark.parametrize("reason", [KeyboardInterrupt(), OSError(errno.ENOSPC, "disk is full")])
def test_half_an_engine_is_never_left(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    had_engines: bool,
    fails_at: str,
    reason: BaseException,
) -> None:
    if had_engines:
        build_engines(path, _OTHER_OPTIONS)
    before = _contents(path)

    def half(self: Path, data: Any, *_: Any, **__: Any) -> int:
        content = data.encode() if isinstance(data, str) else bytes(data)
        with self.open("wb") as file:
            if self.suffix != fails_at:
                return file.write(content)
            file.write(content[: len(content) // 2])
            raise reason

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        patch.setattr(Path, "write_text", half)
        with pytest.raises((KeyboardInterrupt, OutputError)) as raised:
            build_engines(path, _ONE)
    assert isinstance(reason, KeyboardInterrupt) or "disk is full" in str(raised.value)
    assert _contents(path) == before
    assert all(each.built for each in build_engines(path, _ONE))
    _whole(path)


def test_what_others_add_while_an_engine_is_built_stays(path: Path, builder: Builder) -> None:
    def another() -> None:
        builder.before = lambda: None
        build_engines(path, replace(_ONE, precision="fp32"))

    builder.before = another
    build_engines(path, _ONE)
    assert [each.precision for each in _engines(path)] == ["fp32"] * 3 + ["fp16"] * 3
    _whole(path)


def test_an_engine_of_a_graph_that_changes_meanwhile_is_refused(
    path: Path, builder: Builder
) -> None:
    def another() -> None:
        builder.before = lambda: None
        add_variant(Bundle.read(path), "fp16", heads=False)

    builder.before = another
    with pytest.raises(BundleError, match="fp16 graph of transformer was changed while"):
        build_engines(path, _ONE)
    assert [each.built for each in build_engines(path, _ONE)] == [True, True, True]
    assert stale_engines(Bundle.read(path)) == {}


def test_tensorrt_engines_belong_to_the_gpu_that_built_them(path: Path, builder: Builder) -> None:
    wanted = Target("tensorrt", "fp16", BuildOptions(), ("8.7",), "GPU 8.7")
    reports = build_engines(path, wanted)
    assert {(each.info.gpu, each.info.compute_capabilities) for each in reports} == {
        ("GPU 8.7", ("8.7",))
    }
    assert json.loads(json.dumps(reports[0].as_dict()))["gpu"] == "GPU 8.7"
    builder.take()
    build_engines(path, wanted)
    assert builder.take() == []
    build_engines(path, replace(wanted, gpu="GPU 8.7 with fewer cores"))
    assert builder.take() == list(GRAPHS)
    assert len(_engines(path)) == 3
