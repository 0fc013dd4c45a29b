"""Which backend is faster here: measured once, kept with all that it depends on, never believed
where the file is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from fewstep.runtime import trial
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines import on_cpu
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.load import OthersLoad

_KEY = {"processor": "a", "graphs": "b"}


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OthersLoad, "share", lambda self: 0.0)
    monkeypatch.delenv(on_cpu.VARIABLE)


class _Times:
    """Gives times of backends, and counts who asks."""

    def __init__(self, **times: float) -> None:
        self.times, self.asked = times, list[str]()

    def __call__(self, backend: str) -> float:
        self.asked.append(backend)
        if backend not in self.times:
            raise EngineError(f"{backend} is out of order")
        return self.times[backend]


def _tried(folder: Path, times: _Times, **key: str) -> trial.Trial:
    return trial.tried(folder, {**_KEY, **key}, ("openvino", "onnxruntime"), times)


def test_it_is_measured_once(tmp_path: Path) -> None:
    first = _tried(tmp_path, _Times(openvino=2.0, onnxruntime=3.0))
    assert (first.fastest, first.fresh, first.kept) == ("openvino", True, tmp_path / "trials.json")
    assert first.why_not() == {
        "onnxruntime": "3 ms for the graphs of an image, openvino 2 ms",
    }
    again = _Times()
    second = _tried(tmp_path, again)
    assert (second.fastest, second.fresh, again.asked) == ("openvino", False, [])


def test_another_machine_or_version_measures_for_itself(tmp_path: Path) -> None:
    _tried(tmp_path, _Times(openvino=2.0, onnxruntime=3.0))
    other = _tried(tmp_path, _Times(openvino=3.0, onnxruntime=2.0), processor="c")
    assert other.fastest == "onnxruntime"
    assert _tried(tmp_path, _Times()).fastest == "openvino"


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"KEY": 3}',
        '{"KEY": {"times_ms": {"openvino": 1.0}}}',
        '{"KEY": {"times_ms": {"openvino": -1.0, "onnxruntime": 1.0}}}',
        '{"KEY": {"times_ms": {"openvino": "fast", "onnxruntime": 1.0}}}',
    ],
)
def test_a_damaged_file_is_not_believed(tmp_path: Path, content: str) -> None:
    _tried(tmp_path, _Times(openvino=1.0, onnxruntime=2.0))
    file = tmp_path / "trials.json"
    (key,) = json.loads(file.read_text())
    file.write_text(content.replace("KEY", key))
    assert _tried(tmp_path, _Times(openvino=2.0, onnxruntime=1.0)).fastest == "onnxruntime"


def test_what_one_backend_refuses_is_not_kept(tmp_path: Path) -> None:
    found = _tried(tmp_path, _Times(onnxruntime=2.0))
    assert found.why_not() == {"openvino": "openvino is out of order"}
    assert _tried(tmp_path, _Times(openvino=1.0, onnxruntime=2.0)).fastest == "openvino"


def test_times_of_a_busy_machine_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OthersLoad, "share", lambda self: 0.5)
    assert _tried(tmp_path, _Times(openvino=1.0, onnxruntime=2.0)).kept is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = _tried(tmp_path / "file", _Times(openvino=1.0, onnxruntime=2.0))
    assert (found.fastest, found.kept) == ("openvino", None)


def test_old_machines_are_forgotten(tmp_path: Path) -> None:
    for machine in range(70):
        _tried(tmp_path, _Times(openvino=1.0, onnxruntime=2.0), processor=str(machine))
    kept = json.loads((tmp_path / "trials.json").read_text())
    assert [each["processor"] for each in kept.values()] == [str(each) for each in range(6, 70)]


# --- backend auto


def test_auto_measures_both_and_says_so_once(bundle_copy: Path) -> None:
    with Generator.open(bundle_copy) as generator:
        first = generator.backend
        (note,) = generator.notes
    assert first in on_cpu.BACKENDS and note.startswith(f"backend {first} is the fastest here")
    times = json.loads((bundle_copy / "compiled" / "trials.json").read_text())
    assert [*next(iter(times.values()))["times_ms"]] == [*on_cpu.BACKENDS]
    with Generator.open(bundle_copy, precision="fp32") as generator:
        assert (generator.backend, generator.notes) == (first, ())
        (other,) = {*on_cpu.BACKENDS} - {first}
        assert "ms for the graphs of an image" in generator.passed_over[other]


@pytest.mark.parametrize("family", ["tiny_text", "var", "mar"])
def test_every_family_can_be_measured(family: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.read(request.getfixturevalue(f"{family}_bundle"))
    with Generator.open(bundle, backend="onnxruntime") as generator:
        assert trial.image_ms(bundle, generator.device, generator.engines) > 0


def test_the_environment_names_one(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(on_cpu.VARIABLE, "openvino")
    with Generator.open(bundle_copy) as generator:
        assert generator.backend == "openvino"
    assert not (bundle_copy / "compiled" / "trials.json").exists()
    monkeypatch.setenv(on_cpu.VARIABLE, "tensorrt")
    with pytest.raises(RequestError, match=on_cpu.VARIABLE):
        Generator.open(bundle_copy)


def test_without_openvino_nothing_is_measured(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_cpu, "_version", lambda package: "")
    with Generator.open(bundle_copy) as generator:
        assert generator.backend == "onnxruntime"
        assert generator.passed_over["openvino"] == "it is not installed"
    assert not (bundle_copy / "compiled" / "trials.json").exists()


def test_a_precision_that_one_backend_has_takes_that(bundle_copy: Path) -> None:
    from fewstep.runtime.engines.openvino import OpenVino

    if "bf16" not in OpenVino.load().precisions:
        pytest.skip("this CPU does not compute in bf16")
    with Generator.open(bundle_copy, precision="bf16") as generator:
        assert (generator.backend, generator.precision) == ("openvino", "bf16")
        assert "no bf16 graphs" in generator.passed_over["onnxruntime"]


def test_a_busy_machine_keeps_onnx_runtime(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OthersLoad, "share", lambda self: 0.5)
    with Generator.open(bundle_copy) as generator:
        assert (generator.backend, generator.notes) == ("onnxruntime", ())
        assert "the machine was busy" in generator.passed_over["openvino"]
    assert not (bundle_copy / "compiled" / "trials.json").exists()


@pytest.mark.parametrize(("weights_only", "taken"), [(True, "fp32"), (False, "int8")])
def test_openvino_takes_fp32_of_graphs_whose_weights_alone_are_int8(
    weights_only: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    bundle = mock.MagicMock()
    bundle.graph.return_value.quantization.weights_only = weights_only
    bundle.graph_sha256.return_value = "hash"
    monkeypatch.setattr(on_cpu, "OpenVinoEngine", lambda *args, **how: opened.append(how))
    monkeypatch.setattr(on_cpu, "CompiledCache", mock.MagicMock())
    on_cpu.open_openvino(bundle, "text_encoder", "int8", 1)
    assert opened[0]["precision"] == taken
    bundle.graph_path.assert_called_once_with("text_encoder", taken)
