"""`fewstep serve` under load: its start, what HTTP adds, and what happens beyond capacity.

    apt-get install wrk
    python -m tests.benchmarks.serve BUNDLE                       # all but the soak
    python -m tests.benchmarks.serve BUNDLE --only load --seconds 60
    python -m tests.benchmarks.serve BUNDLE --soak 3600

    start     seconds from starting the process to the PNG of the first image
    latency   milliseconds of one image by HTTP, in turn with a ``Generator`` of this process
    clients   images a second of 1 … 8 clients that ask again as soon as they have one, with batches
              and without, beside a ``Generator`` at batch 1 … 8
    load      wrk asks at 1, 4 and 10 times the capacity: times of images, and refusals
    soak      memory of the server while it is asked at a share of its capacity

Everything runs on this machine, so clients and server share its cores. Measures and prints; asserts
nothing but that images come.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.generator import Generator
from fewstep.runtime.machine import cores

PARTS = ("start", "latency", "clients", "load")
_FACTORS = (1, 4, 10)
_CLIENTS = (1, 2, 4, 8)
_PATIENCE_S = 60.0
_USERS = 200  # of wrk at most, each of whom waits for an answer before asking again
_PERIOD_S = 1.0  # in which one asks, or more often


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, its process, and how long it took to answer first."""

    url: str
    process: subprocess.Popen[str]
    started: float


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[Server]:
    """``fewstep serve`` on a free port, stopped as a supervisor would."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "fewstep", "serve", str(bundle), "--port", "0", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, text=True, bufsize=1, **pipes)
    try:
        yield Server(_address(process), process, started)
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://[0-9.:\[\]]+", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # never fills up
            return found[0]
    raise SystemExit(f"the server ended: {said}")


def asked(prompt: str, seed: int) -> dict[str, Any]:
    """The body of a request."""
    return {"prompt": prompt, "seed": seed}


def image(client: httpx.Client, prompt: str, seed: int) -> float:
    """Ask for an image until there is one, as often as the server says; milliseconds of the last
    answer."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        begun, pause_ms = time.perf_counter(), 5.0
        with contextlib.suppress(httpx.TransportError):
            answer = client.post("/v1/images/generations", json=asked(prompt, seed))
            if answer.status_code == 200:
                assert answer.json()["data"][0]["b64_json"]
                return (time.perf_counter() - begun) * 1e3
            if answer.status_code not in (429, 503):
                raise SystemExit(f"{answer.status_code}: {answer.text}")
            pause_ms = float(answer.headers.get("retry-after-ms", pause_ms))
        time.sleep(pause_ms / 1e3)
    raise SystemExit(f"no image in {_PATIENCE_S:g} s")


def prompts_of(bundle: Path) -> list[str]:
    """What to ask for."""
    condition = Bundle.read(bundle).manifest.model.condition
    if isinstance(condition, ClassCondition):
        return [str(each) for each in condition.ids[:10]]
    return ["red apple", "smiling face"]


def start(bundle: Path, runs: int) -> None:
    """From nothing to an image."""
    taken = []
    for run in range(runs + 1):  # the first fills caches
        with serving(bundle) as server, httpx.Client(base_url=server.url) as client:
            image(client, prompts_of(bundle)[0], 0)
            taken += [time.perf_counter() - server.started] if run else []
    print(f"start to first image: {_of(taken, 's')}", flush=True)


def latency(bundle: Path, runs: int) -> None:
    """What HTTP, the queue and PNG add to one image."""
    prompts, own, theirs = prompts_of(bundle), list[float](), list[float]()
    with (
        serving(bundle) as server,
        httpx.Client(base_url=server.url, timeout=_PATIENCE_S) as client,
        Generator.open(bundle) as generator,
    ):
        for run in range(-3, runs):
            prompt = prompts[run % len(prompts)]
            wanted: Any = int(prompt) if prompt.isdigit() else prompt
            begun = time.perf_counter()
            generator(wanted, seed=max(run, 0))
            direct = (time.perf_counter() - begun) * 1e3
            served = image(client, prompt, max(run, 0))
            if run >= 0:
                own.append(direct)
                theirs.append(served)
        how = f"{generator.backend} in {generator.precision}"
    added = statistics.median(theirs) - statistics.median(own)
    print(f"one image, ms ({how}): Generator {_of(own)}, by HTTP {_of(theirs)}")
    print(f"added at p50: {added:.2f} ms", flush=True)


def clients(bundle: Path, seconds: float) -> None:
    """Images a second of clients that ask without a pause."""
    print("| clients, or batch | Generator | server | server, --max-batch 1 |\n|---|---|---|---|")
    direct = _direct(bundle, seconds)
    found = []
    for options in ((), ("--max-batch", "1")):
        with serving(bundle, *options) as server:
            found.append([_closed_loop(server.url, bundle, n, seconds) for n in _CLIENTS])
    for row, count in enumerate(_CLIENTS):
        rates = [direct[row], found[0][row], found[1][row]]
        print(f"| {count} | {' | '.join(f'{rate:.1f}' for rate in rates)} |")
    gain = found[0][-1] / found[1][-1]
    print(f"batches at {_CLIENTS[-1]} clients: {gain:.2f} times as many images", flush=True)


def _direct(bundle: Path, seconds: float) -> list[float]:
    rates = []
    wanted: list[Any] = [int(p) if p.isdigit() else p for p in prompts_of(bundle)]
    with Generator.open(bundle) as generator:
        for count in _CLIENTS:
            generator([wanted[k % len(wanted)] for k in range(count)])
            begun, made = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                generator([wanted[(made + k) % len(wanted)] for k in range(count)], seed=made)
                made += count
            rates.append(made / (time.perf_counter() - begun))
    return rates


def _closed_loop(url: str, bundle: Path, count: int, seconds: float) -> float:
    """Images a second of so many clients, each of which has one request at a time."""
    prompts, made, stop = prompts_of(bundle), [0] * count, threading.Event()

    def client(which: int) -> None:
        with httpx.Client(base_url=url, timeout=_PATIENCE_S) as own:
            while not stop.is_set():
                image(own, prompts[(made[which] + which) % len(prompts)], made[which])
                made[which] += 1

    threads = [threading.Thread(target=client, args=(k,)) for k in range(count)]
    for each in threads:
        each.start()
    time.sleep(min(2.0, seconds / 4))  # plans of all batches are made
    before, begun = sum(made), time.perf_counter()
    time.sleep(seconds)
    rate = (sum(made) - before) / (time.perf_counter() - begun)
    stop.set()
    for each in threads:
        each.join()
    return rate


def load(bundle: Path, seconds: float) -> None:
    """Requests at several times the capacity."""
    with serving(bundle) as server:
        capacity = _closed_loop(server.url, bundle, _CLIENTS[-1], min(seconds, 10.0))
        print(f"capacity: {capacity:.1f} images a second of {_CLIENTS[-1]} clients\n")
        print("| asked, images/s | images/s | p50, ms | p99, ms | refused with 429 | others |")
        print("|---|---|---|---|---|---|")
        for factor in _FACTORS:
            found = _asked_by_wrk(server.url, bundle, factor * capacity, seconds)
            statuses, ms = found["statuses"], found["ms"]
            made, refused = statuses.pop("200", 0), statuses.pop("429", 0)
            others = sum(statuses.values())
            rate = (made + refused + others) / found["seconds"]
            p50, p99 = np.percentile(ms, (50, 99)) if ms else (math.nan, math.nan)
            row = f"| {factor} × = {rate:.0f} | {made / found['seconds']:.1f} | {p50:.0f} "
            print(f"{row}| {p99:.0f} | {refused} | {others} |", flush=True)


def _asked_by_wrk(url: str, bundle: Path, rate: float, seconds: float) -> dict[str, Any]:
    """What wrk counted; see ``serve_users.lua``."""
    script = Path(__file__).with_name("serve_users.lua")
    users = min(_USERS, math.ceil(rate * _PERIOD_S))
    command = ["wrk", "-t", f"{users}", "-c", f"{users}", "-d", f"{round(seconds)}s"]
    command += ["--timeout", f"{_PATIENCE_S:g}s", "-s", str(script), url, "--"]
    command += [f"{rate:.3f}", f"{users}", ",".join(prompts_of(bundle))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(ran.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        raise SystemExit(f"wrk failed: {ran.stderr[-2000:]}{ran.stdout[-2000:]}") from None


def soak(bundle: Path, seconds: float, share: float) -> None:
    """Memory of the server, minute by minute, asked at a share of its capacity."""
    with serving(bundle) as server, contextlib.ExitStack() as stack:
        capacity = _closed_loop(server.url, bundle, _CLIENTS[-1], 10.0)
        stop, made = threading.Event(), [0]

        def client() -> None:
            with httpx.Client(base_url=server.url, timeout=_PATIENCE_S) as own:
                while not stop.wait(1 / (share * capacity)):
                    image(own, prompts_of(bundle)[0], made[0])
                    made[0] += 1

        thread = threading.Thread(target=client)
        stack.callback(thread.join)
        stack.callback(stop.set)
        thread.start()
        print("| minutes | images | memory of the server, MB |\n|---|---|---|", flush=True)
        every, begun = max(seconds / 30, 5.0), time.monotonic()
        while time.monotonic() - begun < seconds:
            minutes = (time.monotonic() - begun) / 60
            print(
                f"| {minutes:.1f} | {made[0]} | {_memory_mb(server.process.pid):.1f} |", flush=True
            )
            time.sleep(every)
            if not thread.is_alive():
                raise SystemExit("the client has ended: no image came")


def _memory_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1e3


def _of(values: Sequence[float], unit: str = "") -> str:
    middle, end = statistics.median(values), f" {unit}" if unit else ""
    return f"{middle:.2f}{end} (least {min(values):.2f}, most {max(values):.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--runs", type=int, default=100, help="of latency; a tenth of start")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="this, and nothing else")
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity, for the soak")
    given = parser.parse_args()
    if given.soak is None and "load" in given.only and shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    print(f"{processor_name()}, {cores()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    if given.soak is not None:
        soak(given.bundle, given.soak, given.share)
        return
    parts: dict[str, Callable[[], None]] = {
        "start": lambda: start(given.bundle, max(given.runs // 10, 1)),
        "latency": lambda: latency(given.bundle, given.runs),
        "clients": lambda: clients(given.bundle, given.seconds / 2),
        "load": lambda: load(given.bundle, given.seconds),
    }
    for name in given.only:
        parts[name]()


if __name__ == "__main__":
    main()
