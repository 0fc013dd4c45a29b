"""``fewstep serve``: from its command line to its end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.serving import LONG_S, gated, opening, until

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import DeviceLostError, RequestError
from fewstep.server.guard import Access
from fewstep.server.models import named_openings
from fewstep.server.run import Service, address_of, listening
from fewstep.server.worker import Opening

if TYPE_CHECKING:
    from tests.conftest import Terminal

_ROOT = Path(__file__).parents[2]

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers in processes of their own, of bundles and options; each with its address."""
    processes = list[subprocess.Popen[str]]()
    paths = os.pathsep.join(str(_ROOT / each) for each in ("runtime", "export", "calibration"))

    def started(*words: Path | str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "fewstep", "serve", *map(str, words), "--port", "0"]
        process = subprocess.Popen(
            [*command, "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        processes.append(process)
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", first)
        assert found, first + process.stderr.read() if process.stderr else first
        return process, found[1]

    yield started
    for process in processes:
        process.kill()
        process.wait()


def test_it_says_where_it_listens_serves_and_ends_with_what_runs(
    start: Start, tiny_bundle: Path
) -> None:
    process, url = start(tiny_bundle)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("ready: tiny (onnxruntime in fp32 on cpu")
    with httpx.Client(base_url=url, timeout=LONG_S) as client:
        answer = client.post("/v1/images/generations", json={"prompt": "0", "seed": 1})
        assert answer.status_code == 200 and "server" not in answer.headers
        statuses = list[int]()

        def ask() -> None:
            body = {"prompt": "0", "n": 16, "steps": 16}
            statuses.append(client.post("/v1/images/generations", json=body).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: 'queue_requests{model="tiny"} 0.0' in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        thread.join()
    assert process.wait(LONG_S) == 0
    assert process.stdout.read().startswith("ending: what runs is finished")
    assert statuses in ([200], [503])  # it ran, or had not come so far
    assert process.stderr.read() == ""


@pytest.fixture
def end_of() -> Any:
    """Runs a service in this thread until it ends; a function beside it is given its address."""

    def run(service: Service, beside: Any) -> None:
        # A signal that comes when the service has ended already must not end the tests.
        before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        with listening("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=beside, args=(address_of("127.0.0.1", listener),))
            thread.start()
            try:
                service.run(listener)
            finally:
                thread.join()
                signal.signal(signal.SIGTERM, before)

    return run


def test_signals_finish_what_runs_and_refuse_what_waits(tiny_bundle: Path, end_of: Any) -> None:
    gate, statuses = gated(tiny_bundle), list[int]()
    service = Service([gate], Access(), max_wait_s=LONG_S)
    worker = service.models.first

    def beside(url: str) -> None:
        until(lambda: worker.ready)

        def ask(seed: int) -> None:
            body = {"prompt": "0", "seed": seed}
            statuses.append(httpx.post(f"{url}/v1/images/generations", json=body).status_code)

        threads = [threading.Thread(target=ask, args=(each,)) for each in range(2)]
        threads[0].start()
        assert gate.entered.wait(LONG_S)
        threads[1].start()
        until(lambda: worker.queued == 1)
        os.kill(os.getpid(), signal.SIGINT)
        threads[1].join()
        assert statuses == [503]
        gate.gate.set()
        threads[0].join()

    end_of(service, beside)
    assert statuses == [503, 200]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_lost_device_ends_the_server_with_an_error(tiny_bundle: Path, end_of: Any) -> None:
    def lose() -> None:
        raise DeviceLostError("the GPU is gone; start a new process")

    gate, answers = gated(tiny_bundle, then=lose), list[httpx.Response]()
    gate.gate.set()
    service = Service([gate], Access())

    def beside(url: str) -> None:
        until(lambda: service.models.first.ready)
        answers.append(httpx.post(f"{url}/v1/images/generations", json={"prompt": "0"}))

    with pytest.raises(DeviceLostError, match="start a new process"):
        end_of(service, beside)
    assert answers[0].status_code == 503 and "the GPU is gone" in answers[0].text


def test_ready_is_told_once_all_are_open(tiny_bundle: Path, var_bundle: Path, end_of: Any) -> None:
    told = list[list[bool]]()

    def ready(models: Any) -> None:
        told.append([each.generator is not None for each in models.values()])
        os.kill(os.getpid(), signal.SIGTERM)

    openings = [Opening(Bundle.read(each), threads=1) for each in (tiny_bundle, var_bundle)]
    end_of(Service(openings, Access(), ready=ready), lambda url: None)
    assert told == [[True, True]]


def test_two_models_open_with_openvino_at_once(
    start: Start, bundle_copy: Path, var_bundle: Path, tmp_path: Path
) -> None:
    """In a process of its own, which has not imported OpenVINO before, and keeps what it compiles
    beside the bundles."""
    pytest.importorskip("openvino")
    var_copy = shutil.copytree(var_bundle, tmp_path / "var")
    process, url = start(bundle_copy, var_copy, "--backend", "openvino")
    with httpx.Client(base_url=url, timeout=LONG_S) as client:
        until(lambda: client.get("/ready").status_code == 200)
        for name in ("tiny", "tiny VAR"):
            body = {"prompt": "0", "model": name}
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
    assert process.poll() is None


def test_an_answer_is_sent_at_once() -> None:
    """Its body does not wait for the client to acknowledge its headers."""
    with (
        listening("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# The command line


def test_bad_command_lines_are_told_in_one_line(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSTEP_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in (
            ((tmp_path / "none",), "none"),
            ((tiny_bundle, "--host", "0.0.0.0"), "pass --api-key"),
            ((tiny_bundle, "--port", port), "cannot listen on 127.0.0.1"),
            ((tiny_bundle, "--host", "256.0.0.1", "--api-key", "x"), "cannot listen on 256"),
            ((tiny_bundle, "--port", 70_000), "70000"),
            ((tiny_bundle, "--precision", "fp99"), "fp99"),
            ((tiny_bundle, "--device", "gpu"), "gpu"),
            ((tiny_bundle, "--backend", "tensorrt", "--device", "cpu"), "needs device cuda"),
            ((tiny_bundle, "--device", "cuda:77"), ""),  # without a driver, or without so many
        ):
            outcome = fewstep("serve", *words)
            assert outcome.code in (1, 2) and said in outcome.err, words
            assert outcome.err.count("\n") == 1 and not outcome.out


def test_requests_are_said_to_those_who_want_more(tiny_bundle: Path, end_of: Any) -> None:
    lines, ends = list[tuple[str, int]](), list[int]()

    def say(line: str, status: int) -> None:
        lines.append((line, status))

    service = Service([opening(tiny_bundle)], Access(), log=say, ending=lambda: ends.append(1))

    def beside(url: str) -> None:
        until(lambda: service.models.first.ready)
        httpx.get(f"{url}/nothing%0aelse")
        os.kill(os.getpid(), signal.SIGTERM)

    end_of(service, beside)
    assert len(lines) == 1 and lines[0][1] == 404 and ends == [1]
    assert re.fullmatch(r"GET /nothing\\nelse 404 \d+ ms", lines[0][0])


def test_a_precision_that_is_not_there_ends_it(fewstep: Terminal, tiny_bundle: Path) -> None:
    twice = (tiny_bundle, tiny_bundle.parent / "." / tiny_bundle.name)
    outcome = fewstep("serve", *twice, "--precision", "int8", "--port", 0)
    assert outcome.code == 1 and outcome.out.startswith("listening on")
    note, error = outcome.err.splitlines()
    assert "more than once" in note and "int8" in error


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_an_absent_package_names_the_extra(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    outcome = fewstep("serve", tiny_bundle)
    assert outcome.code == 1
    remedy = f"{package} is not installed; install it with: pip install 'fewstep[serve]'"
    assert remedy in outcome.err


def test_models_have_the_names_of_bundles_and_precisions(
    tiny_bundle: Path, var_bundle: Path, bundle_copy: Path
) -> None:
    tiny, var, copy = (Bundle.read(each) for each in (tiny_bundle, var_bundle, bundle_copy))
    assert [*named_openings([Opening(tiny), Opening(var)])] == ["tiny", "tiny VAR"]
    several = [Opening(tiny, precision=each) for each in ("fp32", "int8")]
    assert [*named_openings(several)] == ["tiny:fp32", "tiny:int8"]
    assert [*named_openings([Opening(tiny), Opening(copy)])] == ["tiny", "copy"]
    assert [*named_openings([Opening(copy)])] == ["tiny"]
    with pytest.raises(RequestError, match="two models would be called"):
        named_openings([Opening(tiny), Opening(tiny)])
