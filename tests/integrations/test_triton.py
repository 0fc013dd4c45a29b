"""Models for Triton: what is written, and what Triton's Python backend would be answered.

The backend's module is imitated, in the shapes that it has; ``test_triton_server.py`` asks a real
server.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Terminal
from tests.prompts import with_encoder

import fewstep
from fewstep.integrations.triton.model import TritonPythonModel
from fewstep.integrations.triton.repository import Served, write_model
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.records import BuildOptions, EngineInfo

_FINAL = 1


@dataclass
class _Tensor:
    name: str
    array: Array

    def as_numpy(self) -> Array:
        return self.array


class _Error:
    INVALID_ARG, INTERNAL = "invalid argument", "internal"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class _Response:
    output_tensors: list[_Tensor] = field(default_factory=list)
    error: _Error | None = None

    def __getitem__(self, name: str) -> Array:
        return next(each.array for each in self.output_tensors if each.name == name)


class _Request:
    """With what its sender was given."""

    def __init__(self, **inputs: Any) -> None:
        kinds = {"seed": np.uint64}
        self.inputs = {name: np.array(rows, kinds.get(name)) for name, rows in inputs.items()}
        self.sent: list[tuple[_Response, int]] = []

    def get_response_sender(self) -> _Request:
        return self

    def send(self, response: _Response, flags: int) -> None:
        self.sent.append((response, flags))


def _input(request: _Request, name: str) -> _Tensor | None:
    return _Tensor(name, request.inputs[name]) if name in request.inputs else None


def _decoupled(config: dict[str, Any]) -> bool:
    return bool(config["model_transaction_policy"]["decoupled"])


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own module."""
    module = types.SimpleNamespace(
        Tensor=_Tensor,
        InferenceResponse=_Response,
        TritonError=_Error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=_FINAL,
        get_input_tensor_by_name=_input,
        using_decoupled_model_transaction_policy=_decoupled,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def _opened(bundle: Path, *, partial: bool = False, batch: int = 4) -> TritonPythonModel:
    said = {"bundle": str(bundle), "backend": "onnxruntime", "precision": "auto", "threads": "1"}
    config = {
        "max_batch_size": batch,
        "model_transaction_policy": {"decoupled": partial},
        "parameters": {name: {"string_value": value} for name, value in said.items()},
    }
    model = TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": "/elsewhere",
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    return model


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Iterator[fewstep.Generator]:
    with fewstep.open(tiny_bundle, backend="onnxruntime", threads=1, max_batch=4) as opened:
        yield opened


def _settings(**given: Any) -> list[list[bytes]]:
    return [[json.dumps(given).encode()]]


def test_requests_with_the_same_settings_are_decoded_together(
    tiny_bundle: Path, generator: fewstep.Generator
) -> None:
    model = _opened(tiny_bundle)
    requests = [
        _Request(class_id=[[3], [1]], seed=[[7], [2**63]], settings=_settings(steps=2) * 2),
        _Request(class_id=[[9]], settings=_settings(steps=2)),
        _Request(class_id=[[4]]),
        _Request(class_id=[[0]], seed=[[1]], settings=_settings(steps=2)),
        _Request(class_id=[[0], [1]], settings=_settings(steps=2) + _settings(steps=3)),
        _Request(class_id=[[0]], settings=[[b"[1]"]]),
        _Request(class_id=[[0]], settings=[[b'{"self": 1}']]),
        _Request(class_id=[[0]], settings=_settings(schedule="/etc/passwd.yaml")),
    ]
    answers = model.execute(requests)
    model.finalize()
    assert answers is not None
    together = generator.generate(class_ids=[3, 1, 0], seed=[7, 2**63, 1], steps=2)
    first, wrong, plain, last, two, listed, own, file = answers
    np.testing.assert_array_equal(first["image"], together.images[:2])
    np.testing.assert_array_equal(last["image"], together.images[2:])
    np.testing.assert_array_equal(plain["image"], generator.generate(class_ids=[4]).images)
    assert first["seed"].tolist() == [[7], [2**63]] and first["final"].all()
    assert first["step"].tolist() == [[1], [1]] and plain["seed"].tolist() == [[0]]
    for answer, said in (
        (wrong, "class ids must be 0 … 4, got 9"),
        (two, "settings must be the same for all images of a request"),
        (listed, "settings must be a JSON object, got [1]"),
        (own, "unknown setting 'self'"),
        (file, "a request cannot name files"),
    ):
        assert said in answer.error.message and answer.error.code == _Error.INVALID_ARG


def test_partial_images_go_to_who_asks(tiny_bundle: Path, generator: fewstep.Generator) -> None:
    model = _opened(tiny_bundle, partial=True)
    requests = [
        _Request(class_id=[[2]], seed=[[5]], settings=_settings(steps=4), partial_images=[[1]]),
        _Request(class_id=[[1]], seed=[[6]], settings=_settings(steps=4)),
        _Request(class_id=[[1]], settings=_settings(stepz=4)),
    ]
    assert model.execute(requests) is None
    model.finalize()
    seen: list[Array] = []
    result = generator([2, 1], seed=5, steps=4, callback=lambda _, each: seen.append(each.pixels))
    partial, final = requests[0].sent
    assert [flags for _, flags in requests[0].sent] == [0, _FINAL]
    np.testing.assert_array_equal(partial[0]["image"], seen[1][:1])
    assert partial[0]["step"].tolist() == [[1]] and not partial[0]["final"].any()
    np.testing.assert_array_equal(final[0]["image"], result.pixels[:1])
    (alone,) = requests[1].sent
    np.testing.assert_array_equal(alone[0]["image"], result.pixels[1:])
    ((wrong, flags),) = requests[2].sent
    assert flags == _FINAL and wrong.error is not None and "'stepz'" in wrong.error.message


def test_text_states_are_an_input(tiny_text_bundle: Path) -> None:
    model = _opened(tiny_text_bundle)
    states = np.random.default_rng(0).standard_normal((2, 3, 12), np.float32)
    answers = model.execute([_Request(text=states)])
    model.finalize()
    assert answers is not None
    with fewstep.open(tiny_text_bundle, backend="onnxruntime", threads=1) as generator:
        expected = generator.generate(text=states, seed=[0, 0]).images
    np.testing.assert_array_equal(answers[0]["image"], expected)


def test_prompts_are_an_input(tiny_text_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_text_bundle, tmp_path / "bundle"))
    with_encoder(bundle)
    model = _opened(bundle)
    asked = [[b"a red dog"], [b"a cat"]]
    answers = model.execute([_Request(prompt=asked, negative=[[b"green"]] * 2)])
    model.finalize()
    assert answers is not None
    with fewstep.open(bundle, backend="onnxruntime", threads=1) as generator:
        texts = [each.decode() for (each,) in asked]
        expected = generator.generate(text=texts, seed=[0, 0], negative="green").images
    np.testing.assert_array_equal(answers[0]["image"], expected)


def test_command_writes_a_model_whole(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    words = ["--gpus", "0,1", "--instances", 2, "--batch", 16, "--partial-images"]
    done = fewstep("export-triton", tiny_bundle, out, *words, "--precision", "fp32")
    assert done.code == 0, done.err
    config = (out / "tiny" / "config.pbtxt").read_text()
    assert "max_batch_size: 16\n" in config and "decoupled: true" in config
    assert "instance_group { count: 2 kind: KIND_GPU gpus: [0, 1] }\n" in config
    assert 'name: "image" data_type: TYPE_UINT8 dims: [8, 8, 3]' in config
    assert 'key: "bundle" value { string_value: "bundle" }' in config
    assert 'key: "precision" value { string_value: "fp32" }' in config
    assert not Bundle.read(out / "tiny" / "1" / "bundle").damage()
    again = fewstep("export-triton", tiny_bundle, out)
    assert again.code == 1 and "exists already" in again.err
    other = fewstep("export-triton", tiny_bundle, out, "--force", "--reference")
    assert other.code == 0, other.err
    assert [path.name for path in (out / "tiny" / "1").iterdir()] == ["model.py"]
    config = (out / "tiny" / "config.pbtxt").read_text()
    assert str(tiny_bundle) in config and "KIND_CPU" in config and "decoupled" not in config
    assert "partial_images" not in config


def test_bad_models_write_nothing(tiny_bundle: Path, bundle_copy: Path, tmp_path: Path) -> None:
    out, bundle = tmp_path / "models", Bundle.read(tiny_bundle)

    def refused(match: str, served: Served | None = None, **others: Any) -> None:
        with pytest.raises(fewstep.FewstepError, match=match):
            write_model(others.pop("bundle", bundle), out, served or Served(), **others)
        assert not out.exists()

    refused("'a/b' cannot be a model's name", name="a/b")
    refused("at least 1 image", Served(batch=0))
    refused("GPUs from 0 on", Served(gpus=(-1,)))
    (bundle_copy / "decoder.onnx").write_bytes(b"")
    refused("decoder.onnx has 0 bytes", bundle=Bundle.read(bundle_copy))


def test_models_that_nothing_could_open_are_not_written(tiny_bundle: Path, tmp_path: Path) -> None:
    """In the words of what opens a bundle, which here is not done."""
    out, bundle = tmp_path / "models", Bundle.read(tiny_bundle)

    def refused(match: str, **served: Any) -> None:
        with pytest.raises(fewstep.FewstepError, match=match):
            write_model(bundle, out, Served(**served))
        assert not out.exists()

    refused("there are no int8 graphs; make them with: fewstep calibrate", precision="int8")
    refused("there are no fp16 graphs; make them with", precision="fp16", backend="onnxruntime")
    refused("unknown precision 'fp31'", precision="fp31")
    refused("unknown backend 'tensorflow'", backend="tensorflow")
    refused("runs on GPUs: name them with --gpus", backend="tensorrt")
    refused("runs on the CPU: leave out --gpus", backend="openvino", gpus=(0,))
    refused("has no engines of tensorrt; build them", backend="tensorrt", gpus=(0,))
    refused("threads", threads=-1)
    built = bundle.manifest.model_copy(update={"engines": (_engine(4),)})
    bundle = dataclasses.replace(bundle, manifest=built)
    refused("take 4 images at most: pass --batch 4", gpus=(0,))
    refused("has no fp16 engines of tensorrt", backend="tensorrt", precision="fp16", gpus=(0,))
    write_model(bundle, out, Served(batch=4, gpus=(0,)))


def _engine(max_batch: int) -> EngineInfo:
    """A record of an engine that is not there."""
    return EngineInfo(
        file="decoder.engine",
        backend="tensorrt",
        version="11.0",
        graph="decoder",
        precision="fp32",
        graph_sha256="0" * 64,
        compute_capabilities=("9.0",),
        profiles=(),
        options=BuildOptions(max_batch=max_batch),
        seconds=1,
        peak_memory_bytes=0,
    )


def test_models_lie_in_folders_of_their_own(
    fewstep: Terminal, tiny_bundle: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    before = sorted(bundle_copy.rglob("*"))
    for out in (bundle_copy, bundle_copy / "models"):
        done = fewstep("export-triton", tiny_bundle, out)
        assert done.code == 1 and "is a bundle: name another folder" in done.err
    assert sorted(bundle_copy.rglob("*")) == before
    picture = tmp_path / "pullover.png"
    picture.write_bytes(b"")
    for out in (picture, picture / "models"):
        done = fewstep("export-triton", tiny_bundle, out)
        assert done.code == 1 and f"{picture} is a file: name a folder" in done.err
