"""The life of an open CUDA device: threads, others beside it, interruptions, copies and closing.

Covered: use after closing, closing twice; work that is under way; threads that may not use or close
it; generators side by side, closed in any order, with equal results and nothing left; copies that
do not fit, and views of rows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Open = Callable[..., Generator]
Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]

_REQUEST: dict[str, Any] = {"class_ids": [0, 3], "seed": 8, "steps": 3, "schedule": "policy"}


def _in_thread(work: Callable[[], object], name: str = "another") -> BaseException | None:
    """Run in a thread of its own; returns what it raised."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, name=name)
    thread.start()
    thread.join()
    return raised[0] if raised else None


# --- closing


def test_a_closed_device_refuses_everything_and_closes_again(cubin: bytes, live: Counts) -> None:
    before = live()
    device = CudaDevice(cubin)
    with device.workspace({"x": BufferSpec((4,), "int32", "input")}) as workspace:
        buffer = workspace["x"]
    device.close()
    uses: list[Callable[[], object]] = [
        lambda: device.workspace({}),
        lambda: device.upload(buffer, np.zeros(4, np.int32)),
        lambda: device.download(buffer),
        lambda: device.launch("to_pixels", image=buffer, pixels=buffer, error=buffer),
        lambda: device.capture([]),
        device.require,
        device.synchronize,
    ]
    for use in uses:
        with pytest.raises(DeviceError, match="the cuda device is closed; open the Generator"):
            use()
    device.close()
    assert live() == before


def test_a_closed_generator_refuses_and_closes_again(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts
) -> None:
    before = live()
    generator = open_cuda(tiny_cuda_bundle)
    generator.generate(**_REQUEST)
    for _ in range(2):
        generator.close()
        with pytest.raises(DeviceError, match="closed"):
            generator.generate(**_REQUEST)
    assert live() == before


def test_a_closed_workspace_has_no_host_side(device: CudaDevice) -> None:
    workspace = device.workspace({"x": BufferSpec((4,), "int32", "input")})
    workspace.close()
    workspace.close()
    for use in (lambda: workspace.read("x"), lambda: workspace.write("x", 1)):
        with pytest.raises(DeviceError, match="the workspace is closed"):
            use()


# --- interruptions


@pytest.mark.parametrize("profile", [False, True])
def test_an_interrupted_generation_leaves_the_generator_usable(
    open_cuda: Open,
    on_cpu: Generator,
    tiny_cuda_bundle: Path,
    assert_alike: Alike,
    monkeypatch: pytest.MonkeyPatch,
    live: Counts,
    profile: bool,
) -> None:
    """The first run's work is still under way when the second begins."""
    before = live()
    with open_cuda(tiny_cuda_bundle, profile=profile) as generator:
        generator.generate(**_REQUEST)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(CudaDevice, "synchronize", _interrupted)
            generator.generate(**_REQUEST | {"seed": 1})
        assert_alike(generator.generate(**_REQUEST), on_cpu.generate(**_REQUEST))
    assert live() == before


def test_a_generator_is_closed_while_its_work_is_under_way(
    open_cuda: Open, tiny_cuda_bundle: Path, monkeypatch: pytest.MonkeyPatch, live: Counts
) -> None:
    before = live()
    with open_cuda(tiny_cuda_bundle) as generator:
        generator.generate(**_REQUEST)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(CudaDevice, "synchronize", _interrupted)
            generator.generate(**_REQUEST)
    assert live() == before


def _interrupted(device: CudaDevice) -> None:
    raise KeyboardInterrupt


# --- threads


def test_another_thread_cannot_generate_and_the_first_goes_on(
    open_cuda: Open, on_cpu: Generator, tiny_cuda_bundle: Path, assert_alike: Alike
) -> None:
    with open_cuda(tiny_cuda_bundle) as generator:
        for _ in range(2):
            refusal = _in_thread(lambda: generator.generate(**_REQUEST))
            assert isinstance(refusal, DeviceError)
            assert f"'another', it was opened in '{threading.current_thread().name}'" in str(
                refusal
            )
            assert_alike(generator.generate(**_REQUEST), on_cpu.generate(**_REQUEST))


def test_another_thread_cannot_close_and_releases_nothing(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts
) -> None:
    before = live()
    generator = open_cuda(tiny_cuda_bundle)
    expected, opened = generator.generate(**_REQUEST).tokens, live()
    refusal = _in_thread(generator.close)
    assert isinstance(refusal, DeviceError)
    assert "use and close it there, or open one Generator per thread" in str(refusal)
    assert live() == opened
    assert (generator.generate(**_REQUEST).tokens == expected).all()
    generator.close()
    assert live() == before


def test_a_thread_with_a_generator_of_its_own_still_cannot_use_or_close_another(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts
) -> None:
    """The GPU's context is current in both threads then."""
    before, refusals = live(), []
    first = open_cuda(tiny_cuda_bundle)
    expected = first.generate(**_REQUEST).tokens

    def work() -> None:
        with open_cuda(tiny_cuda_bundle) as own:
            for use in (lambda: first.generate(**_REQUEST), first.close):
                with pytest.raises(DeviceError) as refusal:
                    use()
                refusals.append(str(refusal.value))
            assert (own.generate(**_REQUEST).tokens == expected).all()

    assert _in_thread(work) is None
    assert all("'another'" in refusal for refusal in refusals)
    assert (first.generate(**_REQUEST).tokens == expected).all()
    first.close()
    assert live() == before


def test_generators_in_several_threads_do_not_disturb_each_other(
    open_cuda: Open, on_cuda: Generator, tiny_cuda_bundle: Path, live: Counts
) -> None:
    """In turn: pycuda keeps Python's lock while it frees memory, which waits for the engines of
    all threads, which need that lock here."""
    requests = [_REQUEST | {"seed": seed} for seed in range(3)]
    expected = [on_cuda.generate(**request).tokens for request in requests]
    before, found = live(), [list[Any]() for _ in requests]
    turn = threading.Lock()

    def work(index: int) -> None:
        with turn:
            own = open_cuda(tiny_cuda_bundle)
        for _ in range(4):
            with turn:
                found[index].append(own.generate(**requests[index]).tokens)
            time.sleep(0.001)  # or nobody else would get a turn
        with turn:
            own.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tokens, wanted in zip(found, expected, strict=True):
        assert len(tokens) == 4
        assert all((each == wanted).all() for each in tokens)
    assert live() == before


# --- side by side


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_generators_side_by_side_are_closed_in_any_order(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts, order: tuple[int, ...]
) -> None:
    """Each makes plans while all are open, and those that are left go on."""
    before = live()
    generators = [open_cuda(tiny_cuda_bundle) for _ in range(3)]
    expected = generators[0].generate(**_REQUEST).tokens
    for index in order:
        for generator in generators[::-1]:
            if generator is not None:
                assert (generator.generate(**_REQUEST).tokens == expected).all()
                generator.generate(class_ids=[1], steps=index + 1)
        generators[index].close()
        generators[index] = None  # type: ignore[call-overload]
    assert live() == before


def test_closing_one_frees_its_memory_while_another_is_open(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts
) -> None:
    with open_cuda(tiny_cuda_bundle) as kept:
        kept.generate(**_REQUEST)
        before = live()
        for _ in range(3):
            with open_cuda(tiny_cuda_bundle) as passing:
                passing.generate(**_REQUEST)
            assert live() == before


def test_a_cuda_and_a_cpu_generator_work_in_turn(
    open_cuda: Open, tiny_cuda_bundle: Path, assert_alike: Alike
) -> None:
    with open_cuda(tiny_cuda_bundle) as on_cuda, Generator.open(tiny_cuda_bundle) as on_cpu:
        assert (on_cuda.device.name, on_cpu.device.name) == ("cuda", "cpu")
        for seed in range(3):
            request = _REQUEST | {"seed": seed}
            assert_alike(on_cuda.generate(**request), on_cpu.generate(**request))


# --- copies and views


@pytest.mark.parametrize("dtype", ["int32", "uint64", "uint8", "float32", "float16"])
def test_what_is_uploaded_is_downloaded(device: CudaDevice, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    with device.workspace({"x": BufferSpec((2, 3, 4), dtype)}) as workspace:
        for each in (values, np.asfortranarray(values[::-1])):
            device.upload(workspace["x"], each)
            found = device.download(workspace["x"])
            assert found.dtype == dtype
            assert (found == each).all()


@pytest.mark.parametrize("shape", [(), (6,), (3, 2), (1, 2, 3), (2, 1), (2, 4)])
def test_an_upload_of_another_shape_is_refused(device: CudaDevice, shape: tuple[int, ...]) -> None:
    with device.workspace({"x": BufferSpec((2, 3), "int32")}) as workspace:
        device.upload(workspace["x"], np.full((2, 3), 9, np.int32))
        with pytest.raises(DeviceError, match=r"expected values of shape \(2, 3\), got"):
            device.upload(workspace["x"], np.zeros(shape, np.int32))
        assert (device.download(workspace["x"]) == 9).all()


@pytest.mark.parametrize(
    "rows",
    [0, 3, -1, slice(1, 3), slice(2), slice(None), slice(3, 1), slice(-2, None), slice(2, 9)],
)
def test_rows_are_views_as_in_numpy(device: CudaDevice, rows: int | slice) -> None:
    values = np.arange(4 * 6, dtype=np.int32).reshape(4, 2, 3)
    with device.workspace({"x": BufferSpec((4, 2, 3), "int32")}) as workspace:
        device.upload(workspace["x"], values)
        view = workspace["x"][rows]
        assert (view.shape, view.dtype) == (values[rows].shape, values.dtype)
        assert (device.download(view) == values[rows]).all()
        device.upload(view, -values[rows])
        values[rows] *= -1
        assert (device.download(workspace["x"]) == values).all()


def test_rows_of_rows_are_views_too(device: CudaDevice) -> None:
    values = np.arange(24, dtype=np.int32).reshape(4, 2, 3)
    with device.workspace({"x": BufferSpec((4, 2, 3), "int32")}) as workspace:
        device.upload(workspace["x"], values)
        assert (device.download(workspace["x"][1:3][1][0]) == values[2, 0]).all()


def test_rows_that_are_apart_or_outside_are_refused(device: CudaDevice) -> None:
    with device.workspace({"x": BufferSpec((4, 2), "int32")}) as workspace:
        for apart in (slice(0, 4, 2), slice(None, None, -1)):
            with pytest.raises(DeviceError, match="a buffer must be contiguous, got rows"):
                workspace["x"][apart]
        for outside in (4, -5):
            with pytest.raises(IndexError):
                workspace["x"][outside]
