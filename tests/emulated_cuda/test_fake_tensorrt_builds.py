"""What the fake TensorRT-RTX parses, builds and refuses, and that the real one does the same.

The real one runs where it is installed; it builds without a GPU.
"""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from tests.emulated_cuda.fake_tensorrt_builds import (
    RANGES,
    Build,
    model,
    rtx_without_gpu,
)


@pytest.fixture(scope="module", params=["fake", "real"])
def rtx(request: pytest.FixtureRequest) -> Any:
    """TensorRT-RTX without a GPU."""
    return rtx_without_gpu(request.param)


def test_what_the_parser_finds(rtx: Any) -> None:
    build = Build(rtx)
    assert (build.parsed, build.parser.num_errors, build.network.num_layers) == (True, 0, 1)
    found = build.network.get_input(0)
    assert (found.name, found.shape == (-1, 4), found.dtype) == ("x", True, rtx.DataType.FLOAT)
    assert build.network.get_output(0).name == "y"
    assert build.network.get_input(1) is None
    assert build.logger.errors


def test_nothing_parses_as_nothing(rtx: Any) -> None:
    build = Build(rtx, content=b"")
    assert (build.parsed, build.parser.num_errors, build.network.num_layers) == (True, 0, 0)
    assert build.refused("Network must have at least one output")


def test_what_the_parser_refuses(rtx: Any) -> None:
    codes = rtx.ErrorCode
    for content, code, node, operator in (
        (b"garbage bytes here", codes.MODEL_DESERIALIZE_FAILED, "", ""),
        (model().SerializeToString()[:40], codes.MODEL_DESERIALIZE_FAILED, "", ""),
        (model("Nope").SerializeToString(), codes.INVALID_NODE, "node", "Nope"),
        (model("Multinomial").SerializeToString(), codes.UNSUPPORTED_NODE, "node", "Multinomial"),
    ):
        build = Build(rtx, content=content)
        assert (build.parsed, build.parser.num_errors) == (False, 1)
        error = build.parser.get_error(0)
        assert error.code() == code
        assert (error.node_name(), error.node_operator()) == (node, operator)
        assert error.desc() and build.logger.errors
        assert build.network.num_layers == build.network.num_outputs == 0
        build.parser.clear_errors()
        assert build.parser.num_errors == 0 and build.parser.get_error(0) is None


def test_a_network_is_filled_once(rtx: Any) -> None:
    build = Build(rtx)
    assert not build.parser.parse(model().SerializeToString())
    assert build.parser.num_errors == 0 and "non-empty" in build.logger.errors[-1]


def test_files(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(model("MatMul", weight=True, width=16), path)
    build = Build(rtx, content=b"")
    assert build.parser.parse_from_file(str(path))
    other = Build(rtx, content=b"")
    assert not other.parser.parse_from_file(str(tmp_path / "none.onnx"))
    assert other.parser.get_error(0).code() == rtx.ErrorCode.INVALID_VALUE


def test_weights_in_a_file_of_their_own(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    whole = model("MatMul", weight=True, width=16)
    onnx.save(whole, path, save_as_external_data=True, location="weights", size_threshold=0)
    build = Build(rtx, content=b"")
    assert build.parser.parse_from_file(str(path))
    (tmp_path / "weights").unlink()
    other = Build(rtx, content=b"")
    assert not other.parser.parse_from_file(str(path))
    assert "Failed to import initializer" in other.parser.get_error(0).desc()


def test_profiles(rtx: Any) -> None:
    build = Build(rtx)
    profile = build.profile(x=RANGES)
    assert [tuple(sizes) for sizes in profile.get_shape("x")] == list(RANGES)
    assert profile.get_shape("z") == []
    assert build.config.add_optimization_profile(profile) == 0
    assert build.config.add_optimization_profile(profile) == 1
    for falling in (((2, 4), (1, 4), (4, 4)), ((1, 4), (4, 4), (2, 4))):
        wrong = build.profile(x=falling)  # only logged
        assert not wrong
        assert build.config.add_optimization_profile(wrong) == -1
    assert build.config.num_optimization_profiles == 2
    with pytest.raises(RuntimeError, match="inconsistent"):
        build.profile(x=((-1, 4), (2, 4), (4, 4)))


def test_builds_that_cannot_be(rtx: Any) -> None:
    assert Build(rtx).refused("no optimization profile has been defined")
    assert Build(rtx, ((1, 5), (2, 5), (4, 5))).refused("Dimension mismatch for tensor x")
    assert Build(rtx, ((1,), (2,), (4,))).refused("dimensions")
    build = Build(rtx)
    build.config.add_optimization_profile(build.profile(z=RANGES))
    assert build.refused("Dynamic input tensor x is missing dimensions in profile 0")
    build = Build(rtx, RANGES, content=model("MatMul", weight=True).SerializeToString())
    build.target(75)
    assert build.refused("for Turing (SM75)")


def test_tied_sizes_are_tuned_alike(rtx: Any) -> None:
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xzy"]
    node = helper.make_node("Add", ["x", "z"], ["y"])
    graph = helper.make_graph([node], "graph", tensors[:2], tensors[2:])
    opset = [helper.make_opsetid("", 20)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    build = Build(rtx, content=content)
    build.config.add_optimization_profile(build.profile(x=RANGES, z=((1, 4), (3, 4), (4, 4))))
    assert build.refused("Dimensions with name batch must be equal")


def test_options(rtx: Any) -> None:
    config = Build(rtx).config
    for wanted, taken in ((1, 1), (9, 5), (-1, 5)):
        config.builder_optimization_level = wanted
        assert config.builder_optimization_level == taken
    pool = rtx.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, 1 << 20)
    assert config.get_memory_pool_limit(pool) == 1 << 20
    flag = rtx.BuilderFlag.REQUIRE_USER_ALLOCATION
    config.set_flag(flag)
    assert config.get_flag(flag) and config.flags == 1 << 6 | 1 << 28
    config.clear_flag(flag)
    assert not config.get_flag(flag)


def test_compute_capabilities(rtx: Any) -> None:
    config, known = Build(rtx).config, rtx.ComputeCapability
    assert not config.set_compute_capability(known.SM86, 0)  # there is no place for it yet
    config.num_compute_capabilities = 2
    assert config.set_compute_capability(known.SM86, 0)
    assert config.get_compute_capability(0) == known.SM86
    for refused in (known(87), known.NONE, known.CURRENT):
        assert not config.set_compute_capability(refused, 1)


def test_header(rtx: Any) -> None:
    build = Build(rtx, RANGES)
    assert struct.unpack_from("<I", bytes(build.engine()), 32) == (126,)
    build.target(86, 89)
    engine = bytes(build.engine())
    magic, _, _, size, *version = struct.unpack_from("<4sIQQ4B", engine)
    assert (magic, size, version[:3]) == (b"vtrt", len(engine), [1, 7, 1])
    assert engine[28:32] == b"vtrt"
    assert struct.unpack_from("<I", engine, 32) == (4 + 8,)
    assert engine == bytes(build.engine())


def test_an_engine_is_a_buffer_and_nothing_else(rtx: Any) -> None:
    engine = Build(rtx, RANGES).engine()
    view: Any = memoryview(engine)
    assert view.nbytes == engine.nbytes == len(bytes(engine)) == io.BytesIO().write(view)
    assert hashlib.sha256(view).digest() == hashlib.sha256(bytes(engine)).digest()
    assert engine and engine.dtype == rtx.DataType.INT8
    for misuse in (len, iter, lambda it: it[0]):
        with pytest.raises(TypeError):
            misuse(engine)
    # Its format fits no item, so a view of it is not like bytes.
    with pytest.raises((NotImplementedError, struct.error, AssertionError)):
        assert view[:4] == b"vtrt"


class Monitor:
    """Methods of a progress monitor that notes its calls."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def of(self, module: Any) -> Any:
        outer = self

        class Progress(module.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                outer.calls.append(("start", phase, parent, steps))

            def step_complete(self, phase: str, step: int) -> Any:
                outer.calls.append(("step", phase, step))
                if isinstance(outer.answer, type):
                    raise outer.answer("from the monitor")
                return outer.answer

            def phase_finish(self, phase: str) -> None:
                outer.calls.append(("finish", phase))

        return Progress()


def test_progress(rtx: Any) -> None:
    build, monitor = Build(rtx, RANGES), Monitor(answer=True)
    kept = build.config.progress_monitor = monitor.of(rtx)
    assert build.engine() is not None
    phases = [call[1] for call in monitor.calls if call[0] == "start"]
    assert len(phases) >= 2 and monitor.calls[0][2] is None and monitor.calls[-1][0] == "finish"
    assert sorted(phases) == sorted(call[1] for call in monitor.calls if call[0] == "finish")
    del kept


@pytest.mark.parametrize("answer", [False, None, ValueError, KeyboardInterrupt])
def test_cancelled(rtx: Any, answer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """No exception of a monitor comes out, not even that of Ctrl-C."""
    build, monitor = Build(rtx, RANGES), Monitor(answer)
    kept = build.config.progress_monitor = monitor.of(rtx)
    assert build.refused("Build canceled by user")
    assert ("Exception caught in step_complete" in "".join(capfd.readouterr())) == isinstance(
        answer, type
    )
    assert len([call for call in monitor.calls if call[0] == "step"]) == 1
    del kept
