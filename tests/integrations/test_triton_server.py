"""Models of a real Triton server, by KServe's protocol over HTTP: where there is one, which
``tests/integrations/triton_server.py`` says how to get."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.integrations.triton_server import FOLDER, serving

import fewstep
from fewstep.integrations.triton.repository import Served, write_model
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER not in os.environ, reason=f"no Triton server: {FOLDER} is not set"),
]

_STEPS: dict[str, Any] = {"steps": 4}


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    work, bundle = tmp_path_factory.mktemp("triton"), Bundle.read(tiny_bundle)
    how: dict[str, Any] = {"backend": "onnxruntime", "threads": 1, "batch": 4}
    write_model(bundle, work / "models", Served(**how))
    streamed = Served(**how, partial=True)
    write_model(bundle, work / "models", streamed, name="stream", copy=False)
    with (
        serving(Path(os.environ[FOLDER]), work / "models", work / "log") as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Iterator[fewstep.Generator]:
    with fewstep.open(tiny_bundle, backend="onnxruntime", threads=1, max_batch=4) as opened:
        yield opened


def _asked(class_ids: list[int], seeds: list[int], settings: object) -> dict[str, Any]:
    rows = [len(class_ids), 1]
    said = [json.dumps(settings)] * len(class_ids)
    tensors = [("class_id", "INT32", class_ids), ("seed", "UINT64", seeds)]
    inputs = [*tensors, ("settings", "BYTES", said)]
    return {
        "inputs": [
            {"name": name, "shape": rows, "datatype": kind, "data": data}
            for name, kind, data in inputs
        ]
    }


def _outputs(answer: httpx.Response) -> dict[str, Array]:
    assert answer.status_code == 200, answer.text
    found = answer.json()["outputs"]
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in found}


def test_images_are_those_of_the_generator(
    server: httpx.Client, generator: fewstep.Generator
) -> None:
    asked = _asked([3, 1], [2**63, 8], _STEPS)
    found = _outputs(server.post("/v2/models/tiny/infer", json=asked))
    result = generator.generate(class_ids=[3, 1], seed=[2**63, 8], **_STEPS)
    np.testing.assert_array_equal(found["image"], result.images)
    assert found["seed"].tolist() == [[2**63], [8]]
    assert found["step"].tolist() == [[3], [3]] and found["final"].all()


def test_requests_at_once_are_batched(server: httpx.Client, generator: fewstep.Generator) -> None:
    """Some with other settings and a bad one among them."""
    steps = [2 + k % 2 for k in range(24)]
    wanted = [(k % 5, k, dict[str, Any](steps=each)) for k, each in enumerate(steps)]
    asked = [_asked([one], [seed], settings) for one, seed, settings in wanted]
    asked.insert(7, _asked([99], [0], _STEPS))
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda each: server.post("/v2/models/tiny/infer", json=each), asked)]
    bad = answers.pop(7)
    assert bad.status_code == 400 and "class ids must be 0 … 4, got 99" in bad.json()["error"]
    for (one, seed, settings), answer in zip(wanted, answers, strict=True):
        alone = generator.generate(class_ids=[one], seed=seed, **settings).images
        differs = _outputs(answer)["image"].astype(int) - alone
        assert abs(differs).max() <= 1  # a decoder may round otherwise in a batch
    statistics = server.get("/v2/models/tiny/stats").json()["model_stats"][0]
    assert max(int(each["batch_size"]) for each in statistics["batch_stats"]) > 1


def test_partial_images_are_a_stream(server: httpx.Client, generator: fewstep.Generator) -> None:
    asked = {"class_id": 2, "seed": 5, "partial_images": 2, "settings": json.dumps(_STEPS)}
    with server.stream("POST", "/v2/models/stream/generate_stream", json=asked) as answer:
        lines = [each.removeprefix("data: ") for each in answer.iter_lines() if each]
    events = [json.loads(each) for each in lines]
    seen: dict[int, Array] = {}
    result = generator(
        2, seed=5, callback=lambda step, each: seen.update({step: each.pixels}), **_STEPS
    )
    assert [(each["step"], each["final"]) for each in events] == [(1, False), (2, False), (3, True)]
    for event in events:
        expected = result.pixels if event["final"] else seen[event["step"]]
        assert event["image"] == expected.reshape(-1).tolist()


def test_a_bad_request_of_a_stream_ends_it(server: httpx.Client) -> None:
    asked = {"class_id": 2, "settings": '{"stepz": 4}'}
    answer = server.post("/v2/models/stream/generate_stream", json=asked)
    assert "unknown setting 'stepz'" in answer.text and "Did you mean 'steps'?" in answer.text
    assert server.get("/v2/models/stream/ready").status_code == 200
