"""On a cluster of two machines: a bulk run makes every image once, and as one machine makes it,
whatever happens; a deployment answers as the server does."""

from __future__ import annotations

import base64
import importlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.integrations.conftest import Machines

import fewstep
from fewstep import DeviceLostError, OutputError, RequestError
from fewstep.cli.order import Order
from fewstep.integrations.ray.bulk import Made, generate
from fewstep.integrations.ray.serving import Replica, Served, application, replica_app

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

COUNT = 300
_SOME = 40
_SAME: dict[str, Any] = {"batch": 2, "block": 6, "steps": 3, "backend": "onnxruntime"}
_WORDS = ["--batch", "2", "--steps", "3", "--backend", "onnxruntime", "--threads", "1"]

_PLAIN = {"backend": "onnxruntime", "num_cpus": "1"}

_DRIVER = """
import sys
import ray
from fewstep.integrations.ray.bulk import generate

bundle, out, count, address = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
generate(bundle, "balanced", count=int(count), out=out, actors=2, {same})
"""


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.01)


def _count(folder: Path) -> int:
    return len([*folder.glob("*.png")])


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one machine makes."""
    out = tmp_path_factory.mktemp("alone") / "set"
    words = ["generate", tiny_bundle, "--class", "balanced", "--count", COUNT, "--out", out]
    command = [sys.executable, "-m", "fewstep", *map(str, words), *_WORDS]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return _contents(out)


def test_parquet_has_the_same_pictures_and_parts_are_made_again(
    machines: Machines, tiny_bundle: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    import pyarrow.parquet as parquet

    out, count = tmp_path / "set", 10

    def run(**others: Any) -> Made:
        asked = {"count": count, "format": "parquet", **_SAME, **others}
        return generate(tiny_bundle, "balanced", out=out, actors=1, **asked)

    assert run().made == count
    parts = ["images-000000000-000000005.parquet", "images-000000006-000000009.parquet"]
    assert sorted(path.name for path in out.iterdir()) == parts
    table = parquet.read_table(out)
    assert table["seed"].to_pylist() == [*range(count)]
    assert table["condition"].to_pylist() == [k % 5 for k in range(count)]
    pictures = zip(table["file_name"].to_pylist(), table["image"].to_pylist(), strict=True)
    for name, png in pictures:
        assert alone[name] == png
    (out / parts[1]).unlink()
    again = run()
    assert (again.made, again.kept) == (4, 6)
    assert parquet.read_table(out) == table
    with pytest.raises(OutputError, match="made otherwise .*steps 3 there, 2 here"):
        run(steps=2)
    with pytest.raises(OutputError, match="files of another run"):
        run(block=4)


def test_a_deployment_answers_as_the_server_does(
    machines: Machines, tiny_bundle: Path, tmp_path: Path
) -> None:
    serve: Any = importlib.import_module("ray.serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    try:
        serve.run(application({"bundle": tiny_bundle, "max_replicas": "2", **_PLAIN}))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            listed = client.get("/v1/models").json()["data"]
            assert [each["id"] for each in listed] == ["tiny"]
            asked = {"prompt": "bag", "n": 2, "seed": 5, "steps": 3}
            answer = client.post("/v1/images/generations", json=asked).json()
            streamed = {**asked, "n": 1, "stream": True, "partial_images": 1}
            with client.stream("POST", "/v1/images/generations", json=streamed) as stream:
                events = [each for each in stream.iter_lines() if each.startswith("event: ")]
            refused = client.post("/v1/images/generations", json={"prompt": "trousers"})
        status = serve.status().applications["default"].deployments["tiny"]
    finally:
        serve.shutdown()
    pngs = [base64.b64decode(each["b64_json"]) for each in answer["data"]]
    found = np.stack([np.asarray(Image.open(io.BytesIO(each))) for each in pngs])
    with fewstep.open(tiny_bundle, threads=1, backend="onnxruntime") as generator:
        expected = generator.generate(class_ids=[2, 2], seed=5, steps=3).images
    np.testing.assert_array_equal(found, expected)
    names = ["image_generation.partial_image", "image_generation.completed"]
    assert [each.removeprefix("event: ") for each in events] == names
    assert refused.status_code == 400 and "unknown class" in refused.json()["error"]["message"]
    assert status.status == "HEALTHY"


def test_a_run_is_killed_and_then_a_machine(
    machines: Machines, tiny_bundle: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Whole batches are decoded again where some of their images are there."""
    ray: Any = importlib.import_module("ray")
    out = tmp_path / "set"
    same = ", ".join(f"{name}={value!r}" for name, value in _SAME.items())
    words = [tiny_bundle, out, COUNT, machines.address]
    command = [sys.executable, "-c", _DRIVER.format(same=same), *map(str, words)]
    driver = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: _count(out) >= _SOME)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    next(out.glob("*.png")).unlink()
    with ThreadPoolExecutor(1) as pool:
        how = {"count": COUNT, "out": out, "actors": 2, **_SAME}
        run = pool.submit(generate, tiny_bundle, "balanced", **how)
        _wait(lambda: machines.second_works() or run.done())
        machines.replace_second()
        before = _count(out)
        made = run.result(timeout=100)
    assert before < COUNT
    assert made.made + made.kept == COUNT and made.kept > 0 and made.made > 0
    assert _contents(out) == alone
    _wait(lambda: sum(not node["Alive"] for node in ray.nodes()) == 1)


def test_bad_requests_start_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"

    def refused(match: str, wanted: Any = "balanced", **others: Any) -> None:
        with pytest.raises((RequestError, OutputError), match=match):
            generate(tiny_bundle, wanted, out=out, **others)

    refused("block must be a multiple of batch, got 9 and 8", block=9)
    refused("num_cpus must be an integer of at least 1", num_cpus=0)
    refused("actors must be at least 1, or .least, most.", actors=(2, 1))
    refused("class-conditional: leave negative out", negative="snow")
    refused("an order says count", Order((0,), (0,), ("shirt",)), count=2)
    refused("unknown class 'trousers'", "trousers")
    refused("unknown setting 'stepz'.*'steps'", stepz=3)
    refused("unknown format 'jpeg'", format="jpeg")
    assert not out.exists()
    out.mkdir()
    (out / "class-0-shirt-seed-0.png").write_bytes(b"")
    refused("has images already: pass resume=True", resume=False)
    refused("files of another run", format="parquet")


def test_bad_applications_are_refused(tiny_bundle: Path) -> None:
    for given, said in (
        ({"bundel": "x"}, "bundel"),
        ({"bundle": tiny_bundle, "max_replicas": "none"}, "max_replicas"),
        ({"bundle": tiny_bundle, "min_replicas": 3}, "min_replicas must be at most max_replicas"),
        ({"bundle": tiny_bundle, "host": "0.0.0.0"}, "give an api_key"),
    ):
        with pytest.raises(RequestError, match=said):
            application(given)


def test_a_replica_that_lost_its_device_is_not_healthy(tiny_bundle: Path) -> None:
    replica = Replica()
    replica.app = replica_app(Served(bundle=tiny_bundle))
    replica.check_health()
    (worker,) = replica.app.state.models.values()
    worker.failure = DeviceLostError("the GPU has fallen off the bus")
    with pytest.raises(DeviceLostError, match="fallen off"):
        replica.check_health()


def test_without_ray_the_extra_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r"ray is not installed.*fewstep\[ray\]"):
        generate(tiny_bundle, "shirt", out=tmp_path / "set")
