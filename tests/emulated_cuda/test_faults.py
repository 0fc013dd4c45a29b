"""What a GPU may do to a program: lose its context, run out of memory, compute NaN.

Each scenario is a function of this file and runs in a process of its own under the emulated driver,
which is told to fail: ``python -m tests.emulated_cuda.test_faults SCENARIO BUNDLE`` prints what the
scenario saw, as JSON. In the end nothing may be left in the driver, whatever happened before.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.cuda import host_engine
from tests.emulated_cuda.build import CannotBuild, Installation, build, host_kernels
from tests.emulated_cuda.run import KERNELS, ROOT, environment

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer, BufferSpec
from fewstep.runtime.devices.cpu import host_array
from fewstep.runtime.devices.cuda_driver import load_driver
from fewstep.runtime.engines import BoundEngine, Engine, select
from fewstep.runtime.errors import FewstepError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.compile import KernelCompiler
from fewstep.runtime.kernels.cubins import add_kernels

_KERNELS_PER_RUN = 10
"""initial_tokens; gather_rows twice; policy_parameters, sample_tokens, remask twice; to_pixels."""
_REQUEST: dict[str, Any] = {"class_ids": [0, 3], "schedule": "policy", "steps": 2}
_LOST = "DeviceLostError: the GPU was lost before in this process: CUDA failed "
_NEW_PROCESS = "this process cannot use the GPU any more, start a new one"

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def built() -> tuple[Installation, Path]:
    """The emulated driver with pycuda, and the host build of the kernels."""
    try:
        return build(), host_kernels(KERNELS)
    except CannotBuild as error:
        pytest.skip(f"no emulated CUDA driver: {error}")


@pytest.fixture(scope="module")
def run(
    built: tuple[Installation, Path], tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Run a scenario; returns what it saw. The driver's report has to be clean."""
    folder = tmp_path_factory.mktemp("faults")
    bundle = _with_kernels(tiny_bundle, folder / "bundle")

    def start(scenario: str, *, clean: bool = True, **settings: Any) -> dict[str, Any]:
        report = folder / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.emulated_cuda.test_faults", scenario, bundle],
            env=environment(*built, report=report, **settings),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        left = json.loads(report.read_text())
        if clean:
            assert not any(left["live"].values()), left["live"]
            assert not any(left["released_with_context"].values()), left["released_with_context"]
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return seen

    return start


def _with_kernels(source: Path, target: Path) -> Path:
    bundle = Bundle.read(shutil.copytree(source, target))
    return add_kernels(bundle, KernelCompiler().compile(["8.7"])).path


# --- a generator that nobody closes


@pytest.mark.parametrize("scenario", ["unclosed", "unclosed_in_a_thread"])
def test_a_generator_that_is_never_closed_does_not_abort_the_process(
    run: Run, scenario: str
) -> None:
    assert run(scenario, clean=False) == {"images": 2}


def unclosed(bundle: Path) -> dict[str, Any]:
    """End the program while a generator is open."""
    _unclosed.append(Generator.open(bundle, device="cuda", threads=1))
    return {"images": len(_unclosed[-1].generate(**_REQUEST).images)}


def unclosed_in_a_thread(bundle: Path) -> dict[str, Any]:
    """The same, opened in a thread that has ended by then."""
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: seen.append(unclosed(bundle)))
    thread.start()
    thread.join()
    return seen[0]


_unclosed: list[Generator] = []


# --- a lost context


@pytest.mark.parametrize(
    ("launches", "streams", "code", "successes"),
    [
        (1, "eager", 719, 0),  # as the first plan runs before its capture
        (_KERNELS_PER_RUN // 2, "lazy", 700, 0),  # pycuda has no words for it
        (_KERNELS_PER_RUN + 3, "lazy", 719, 0),  # as its graph is tried
        (2 * _KERNELS_PER_RUN + 3, "lazy", 716, 0),  # in the first replay
        (4 * _KERNELS_PER_RUN - 1, "lazy", 702, 1),
        (5 * _KERNELS_PER_RUN - 1, "eager", 718, 2),
        (5 * _KERNELS_PER_RUN - 1, "lazy", 999, 2),
    ],
)
def test_a_lost_gpu_is_told_everywhere_and_closing_still_works(
    run: Run, launches: int, streams: str, code: int, successes: int
) -> None:
    settings = {"fail_after_launches": launches, "fail_with": code, "streams": streams}
    seen = run("lost", **settings)
    outcomes = seen["outcomes"]
    assert outcomes[:successes] == [""] * successes
    assert outcomes[successes].startswith("DeviceLostError: CUDA failed ")
    later = [*outcomes[successes + 1 :], *seen["others"], *seen["device"], seen["reopened"]]
    assert all(each.startswith(_LOST) for each in later), later
    assert all(_NEW_PROCESS in each for each in [outcomes[successes], *later])
    assert len(outcomes) > successes + 2
    assert seen["device"]
    assert seen["closed"] == ["", ""]
    assert seen["on_cpu"]


def test_an_error_that_is_not_fatal_costs_one_generation(run: Run) -> None:
    """Too many resources asked for, say: the next call works."""
    seen = run("lost", fail_after_launches=2 * _KERNELS_PER_RUN + 3, fail_with=701)
    assert "start a new one" not in "".join(seen["outcomes"])


def lost(bundle: Path) -> dict[str, Any]:
    """Generate until the context is lost and beyond, with two generators, then open a third."""
    generator, other = (Generator.open(bundle, device="cuda", threads=1) for _ in range(2))
    outcomes = [_outcome(lambda: generator.generate(**_REQUEST)) for _ in range(5)]
    others = [_outcome(lambda: other.generate(**_REQUEST)) for _ in range(2)]
    uses: list[Callable[[], object]] = [
        generator.device.require,
        generator.device.synchronize,
        lambda: generator.device.workspace({"x": BufferSpec((1,), "int32")}),
        lambda: generator.device.capture([]),
    ]
    device = [_outcome(use) for use in uses]
    closed = [_outcome(each.close) for each in (generator, other)]
    return {
        "outcomes": outcomes,
        "others": others,
        "device": device,
        "closed": closed,
        "reopened": _outcome(lambda: Generator.open(bundle, device="cuda", threads=1)),
        "on_cpu": len(_expected(bundle)),
    }


# --- out of memory


@pytest.mark.parametrize(("integrated", "memory_mb"), [(False, 1), (True, 2)])
def test_running_out_of_memory_leaves_a_generator_that_works(
    run: Run, integrated: bool, memory_mb: int
) -> None:
    """On an integrated GPU the host engines' own memory is the GPU's too."""
    seen = run("out_of_memory", memory_mb=memory_mb, integrated=integrated)
    assert seen["too_many"].startswith("OutOfMemoryError: the GPU is out of memory allocating ")
    assert "use a smaller batch" in seen["too_many"]
    asked = int(seen["too_many"].split(" allocating ")[1].split(" bytes")[0].replace(",", ""))
    assert asked > 1 << 20
    assert seen["left_after_too_many"] == seen["left_before_plans"]
    assert seen["same_after_too_many"]
    assert seen["batches_kept"] == [80]  # beside it there was no room for the one of 60
    assert seen["same_in_large_batches"]
    assert seen["no_room_at_all"].startswith("OutOfMemoryError: ")
    assert seen["same_with_room_again"]


def out_of_memory(bundle: Path) -> dict[str, Any]:
    """Room for about a hundred images of this bundle."""
    with (
        Generator.open(bundle, device="cuda", threads=1, max_batch=512) as generator,
        Generator.open(bundle, device="cpu", threads=1, max_batch=512) as on_cpu,
    ):

        def same(batch: int) -> bool:
            request = _REQUEST | {"class_ids": [1] * batch}
            pair = [each.generate(**request).tokens for each in (generator, on_cpu)]
            return bool((pair[0] == pair[1]).all())

        def refused(batch: int) -> str:
            return _outcome(lambda: generator.generate(**_REQUEST | {"class_ids": [1] * batch}))

        generator.plans.get(MaskedKey(1, 1, guided=True, policy=None))
        generator.plans._drop(keep=0)  # the constant stays
        seen: dict[str, Any] = {"left_before_plans": _live()}
        assert same(8)
        seen["too_many"] = refused(400)
        seen["left_after_too_many"] = _live()
        seen["same_after_too_many"] = same(8)
        seen["same_in_large_batches"] = same(60) and same(80)
        seen["batches_kept"] = [
            key.batch for key in generator.plans._plans if isinstance(key, MaskedKey)
        ]
    with Generator.open(bundle, device="cuda", threads=1) as generator:
        free = load_driver().mem_get_info()[0]
        with generator.device.workspace({"x": BufferSpec((free - 256,), "uint8")}):
            seen["no_room_at_all"] = refused(1)
        seen["same_with_room_again"] = bool(
            (generator.generate(**_REQUEST).tokens == _expected(bundle)).all()
        )
    return seen


# --- numbers that are none


def test_nan_from_an_engine_is_an_error_once(run: Run) -> None:
    seen = run("not_a_number")
    assert set(seen) == {
        f"{engine} {fault}"
        for engine in ("transformer", "policy", "decoder")
        for fault in ("all", "one", "raises")
    }
    for outcomes in seen.values():
        assert outcomes["before"] == outcomes["after"] == [True, True]
        assert "EngineError: a graph produced NaN or infinite numbers" in outcomes["broken"]


def not_a_number(bundle: Path) -> dict[str, Any]:
    """Break each engine in turn, between generations that go well."""
    seen, expected = {}, _expected(bundle)
    with Generator.open(bundle, device="cuda", threads=1) as generator:

        def good() -> list[bool]:
            runs = (generator.generate(**_REQUEST).tokens for _ in range(2))
            return [bool((tokens == expected).all()) for tokens in runs]

        engines = {name: _Faulty(each) for name, each in generator.engines.items()}
        for name, faulty in engines.items():
            for fault in ("all", "one", "raises"):
                outcomes: dict[str, Any] = {"before": good()}
                faulty.fault = fault
                outcomes["broken"] = _outcome(lambda: generator.generate(**_REQUEST))
                faulty.fault = ""
                seen[f"{name} {fault}"] = outcomes | {"after": good()}
    return seen


class _Faulty:
    """What a host engine runs, computing NaN, or failing, when told to."""

    def __init__(self, engine: Engine) -> None:
        assert isinstance(engine, host_engine.HostEngine)
        self._engine, self.fault = engine.engine, ""
        engine.engine = self

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind the engine; a run spoils its first output."""
        bound = self._engine.bind(bindings)
        return replace(bound, run=lambda: self._run(bound, bindings))

    def _run(self, bound: BoundEngine, bindings: Mapping[str, Buffer]) -> None:
        if self.fault == "raises":
            raise FewstepError("told to fail")
        bound.run()
        if self.fault:
            values = host_array(bindings[next(iter(self._engine.outputs))])
            # Of every position, since those that are decided are not read.
            values[..., : values.shape[-1] if self.fault == "all" else 1] = np.nan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


# --- inside the process


def _outcome(use: Callable[[], object]) -> str:
    """Empty if it went well; anything that is no FewstepError ends the process."""
    try:
        use()
    except FewstepError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@cache
def _expected(bundle: Path) -> Any:
    with Generator.open(bundle, device="cpu", threads=1) as on_cpu:
        return on_cpu.generate(**_REQUEST).tokens


def _live() -> dict[str, int]:
    report = ctypes.CDLL("libcuda.so.1").emulated_cuda_report
    report.restype = ctypes.c_char_p
    live: dict[str, int] = json.loads(report())["live"]
    return live


def _main(scenario: str, bundle: str) -> None:
    known = (lost, out_of_memory, not_a_number, unclosed, unclosed_in_a_thread)
    scenarios = {each.__name__: each for each in known}
    with mock.patch.object(select, "open_engine", host_engine.open_engine):
        print(json.dumps(scenarios[scenario](Path(bundle))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
