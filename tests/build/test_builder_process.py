"""Builders in processes of their own: what comes back, and what a crash or Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from fewstep.build import builder_process
from fewstep.build.builder_process import build_engine
from fewstep.build.tensorrt_builder import EngineRequest, build_here
from fewstep.runtime.engines.compatibility import read_header
from fewstep.runtime.engines.tensorrt_api import TensorRt
from fewstep.runtime.errors import EngineError
from fewstep.runtime.progress import no_progress
from fewstep.runtime.records import BuildOptions, ShapeRange

_SAYS = 'import sys; print(\'{"phase": "tactics", "done": 0.5}\', flush=True)\n'


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return TensorRt("tensorrt-rtx", pytest.importorskip("tensorrt_rtx", reason=reason))


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., EngineRequest]:
    """A graph that doubles, with room for options."""

    def make(operator: str = "Add", **changes: Any) -> EngineRequest:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
        inputs = ["x", "x"] if operator == "Add" else ["x"]
        graph = helper.make_graph([helper.make_node(operator, inputs, ["y"])], "g", [x], [y])
        path = tmp_path / "with a space.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
        shapes = ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))
        fields = {"profiles": ({"x": shapes},), "options": BuildOptions(), "capabilities": ("8.6",)}
        return EngineRequest("double", path, **{**fields, **changes})

    return make


def _instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run this in the place of the builder."""
    monkeypatch.setattr(builder_process, "_START", _SAYS + code)


def test_an_engine_comes_back_with_what_it_took(
    rtx: TensorRt, request_of: Callable[..., EngineRequest]
) -> None:
    reported: list[tuple[str, float]] = []
    built = build_engine(rtx, request_of(), lambda *each: reported.append(each))
    header = read_header(bytes(built.content))
    assert header is not None
    assert (header.capabilities, header.size) == (("8.6",), len(built.content))
    assert rtx.version == header.version
    assert built.seconds > 0
    assert built.peak_memory_bytes > 10e6
    fractions = [done for _, done in reported]
    assert fractions == sorted(fractions)
    assert 0.5 < fractions[-1] <= 1
    assert built.warnings == build_here(rtx, request_of(), no_progress).warnings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"operator": "NonZero"}, "graph 'double'"),
        ({"capabilities": ("8.7",)}, "no engines for compute capability 8.7"),
        ({"profiles": ()}, "profile"),
        ({"options": BuildOptions(workspace_mib=1)}, "--workspace"),
    ],
)
def test_refusals_come_back_as_they_were(
    rtx: TensorRt, request_of: Callable[..., EngineRequest], change: dict[str, Any], said: str
) -> None:
    request = request_of(**change)
    if "options" in change:
        request = request_of(**change, operator="Add")
    try:
        build_here(rtx, request, no_progress)
    except EngineError as error:
        with pytest.raises(EngineError) as raised:
            build_engine(rtx, request, no_progress)
        assert said in str(raised.value)
        assert str(raised.value).partition(": ")[0] == str(error).partition(": ")[0]
    else:
        assert "options" in change  # an addition alone may need no workspace


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", r"crashed \(SIGABRT\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"crashed \(SIGKILL\)"),
        ("sys.exit('no such thing')", "ended with code 1: no such thing"),
        ("", "ended with code 0"),
    ],
)
def test_a_builder_that_dies_is_an_error_with_its_last_words(
    rtx: TensorRt,
    request_of: Callable[..., EngineRequest],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    said: str,
) -> None:
    _instead(monkeypatch, code)
    with pytest.raises(EngineError, match=f"graph 'double'.*the builder {said}"):
        build_engine(rtx, request_of(), no_progress)


def test_ctrl_c_ends_the_builder(
    rtx: TensorRt, request_of: Callable[..., EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _instead(monkeypatch, "import time; time.sleep(60)")
    processes = []
    talk = builder_process._talk

    def noted(process: Any, *rest: Any) -> Any:
        processes.append(process)
        return talk(process, *rest)

    monkeypatch.setattr(builder_process, "_talk", noted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, request_of(), lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert processes[0].returncode == -signal.SIGKILL


def test_an_error_of_the_caller_ends_the_builder_too(
    rtx: TensorRt, request_of: Callable[..., EngineRequest]
) -> None:
    def broken(phase: str, done: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_engine(rtx, request_of(), broken)
