"""Workspaces in GPU memory: their layout, their host side, mapped memory, and what is given back.

Covered: inputs first and one copy each way, alignment, sizes, roles; host memory that is mapped
into the GPU's, as on Jetson, with no copies and the same images; plans thrown out give their memory
back. Running out of memory is in ``test_replays.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cuda.graph_nodes import nodes_of

from fewstep.runtime.devices import BufferSpec, Part, Role
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import load_driver
from fewstep.runtime.devices.cuda_memory import CudaWorkspace
from fewstep.runtime.errors import DeviceError, OutOfMemoryError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator
from fewstep.runtime.memory import MAX_PLANS
from fewstep.runtime.result import Result

Open = Callable[..., Generator]
Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]

_ALIGNMENT = 256
_ROLES: tuple[Role, ...] = ("input", "status", "output", "internal")
_SPECS = st.lists(
    st.builds(
        BufferSpec,
        st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["uint8", "int32", "float16", "float32", "uint64"]),
        st.sampled_from(_ROLES),
    ),
    min_size=1,
    max_size=8,
).map(lambda specs: {f"buffer {index}": spec for index, spec in enumerate(specs)})


@pytest.fixture(scope="module")
def module_device(cubin: bytes) -> Iterator[CudaDevice]:
    """A device for many examples."""
    opened = CudaDevice(cubin)
    yield opened
    opened.close()


@pytest.fixture(params=[False, True], ids=["copied", "mapped"])
def either(device: CudaDevice, request: pytest.FixtureRequest) -> CudaDevice:
    """A device whose host side is copied, or mapped as on an integrated GPU."""
    device.integrated = request.param
    return device


# --- layout


@settings(max_examples=60)
@given(specs=_SPECS)
def test_inputs_come_first_then_status_outputs_and_internals(
    module_device: CudaDevice, specs: dict[str, BufferSpec]
) -> None:
    module_device.integrated = False
    with module_device.workspace(specs) as workspace:
        ends = 0
        for role in _ROLES:
            for name in [name for name, spec in specs.items() if spec.role == role]:
                buffer = workspace[name]
                assert (buffer.shape, str(buffer.dtype)) == (specs[name].shape, specs[name].dtype)
                assert buffer.pointer % _ALIGNMENT == 0
                assert buffer.pointer >= ends  # one allocation, nothing overlaps
                assert buffer.pointer - ends < _ALIGNMENT or not ends
                ends = buffer.pointer + specs[name].bytes


@settings(max_examples=60)
@given(specs=_SPECS, seed=st.integers(0, 2**32), mapped=st.booleans())
def test_inputs_arrive_and_outputs_return_and_nothing_else_changes(
    module_device: CudaDevice, specs: dict[str, BufferSpec], seed: int, mapped: bool
) -> None:
    module_device.integrated = mapped
    random = np.random.default_rng(seed)
    with module_device.workspace(specs) as workspace:
        arrived = {name: _random(random, spec) for name, spec in specs.items()}
        made = {name: _random(random, spec) for name, spec in specs.items()}
        for name, spec in specs.items():
            if spec.role in ("input", "status"):
                workspace.write(name, arrived[name])
            else:
                module_device.upload(workspace[name], arrived[name])
        workspace.send()
        for name in specs:
            assert _same(module_device.download(workspace[name]), arrived[name])
            module_device.upload(workspace[name], made[name])
        workspace.fetch()
        module_device.synchronize()
        for name, spec in specs.items():
            if spec.role in ("status", "output"):
                assert _same(workspace.read(name), made[name])
            assert _same(module_device.download(workspace[name]), made[name])


def _random(random: np.random.Generator, spec: BufferSpec) -> npt.NDArray[Any]:
    return random.integers(0, 256, spec.shape).astype(spec.dtype)


def _same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    return found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("roles", "copies"),
    [
        (["input"] * 3, (1, 0)),
        (["output"] * 3, (0, 1)),
        (["status"] * 3, (1, 1)),
        (["internal"] * 3, (0, 0)),
        (["output", "input", "internal", "status", "input", "output"], (1, 1)),
    ],
)
def test_one_copy_takes_everything_each_way(
    either: CudaDevice, roles: list[Role], copies: tuple[int, int]
) -> None:
    specs = {f"{index}": BufferSpec((5,), "int32", role) for index, role in enumerate(roles)}
    with either.workspace(specs) as workspace:
        sent, fetched = (_nodes(either, move) for move in (workspace.send, workspace.fetch))
    expected = (0, 0) if either.integrated else copies
    assert (sent, fetched) == tuple(["memcpy"] * count for count in expected)


def _nodes(device: CudaDevice, sequence: Callable[[], None]) -> list[str]:
    replay = device.capture([Part(sequence)])
    try:
        return nodes_of(replay)
    finally:
        replay.close()


def test_a_workspace_is_at_most_two_allocations(
    either: CudaDevice, live: Counts, driver_report: object
) -> None:
    before = live()
    specs = {f"{n}": BufferSpec((100,), "float32", _ROLES[n % 4]) for n in range(12)}
    with either.workspace(specs):
        inside = live()
    made = [inside[name] - before[name] for name in inside if name.endswith("_allocations")]
    assert made == [1] * len(made)
    assert live() == before


def test_an_empty_workspace_needs_no_memory(
    either: CudaDevice, live: Counts, driver_report: object
) -> None:
    before = live()
    with either.workspace({}) as workspace:
        workspace.send()
        workspace.fetch()
        assert live() == before


# --- the host side


def test_inputs_start_as_zeros(either: CudaDevice) -> None:
    specs = {str(role): BufferSpec((64,), "int32", role) for role in _ROLES}
    with either.workspace(specs) as workspace:
        workspace.write("input", 7)
    with either.workspace(specs) as workspace:
        workspace.send()
        assert not either.download(workspace["input"]).any()
        assert not either.download(workspace["status"]).any()


def test_writes_broadcast_and_reads_are_copies(either: CudaDevice) -> None:
    with either.workspace({"x": BufferSpec((2, 3), "int32", "status")}) as workspace:
        for values, expected in ((5, [[5] * 3] * 2), ([[1], [2]], [[1] * 3, [2] * 3])):
            workspace.write("x", values)
            workspace.send()
            assert either.download(workspace["x"]).tolist() == expected
        workspace.fetch()
        either.synchronize()
        kept = workspace.read("x")
        workspace.write("x", 0)
        assert kept.tolist() == [[1] * 3, [2] * 3]


@pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 2, 3), (0,)])
def test_a_write_that_does_not_fit_changes_nothing(
    device: CudaDevice, shape: tuple[int, ...]
) -> None:
    with device.workspace({"x": BufferSpec((2, 3), "int32", "input")}) as workspace:
        workspace.write("x", 4)
        with pytest.raises(ValueError, match="broadcast"):
            workspace.write("x", np.zeros(shape, np.int32))
        assert (workspace.read("x") == 4).all()


@pytest.mark.parametrize(
    ("role", "readable", "writable"),
    [("input", True, True), ("status", True, True), ("output", True, False)]
    + [("internal", False, False)],
)
def test_the_host_reaches_what_its_role_allows(
    device: CudaDevice, role: Role, readable: bool, writable: bool
) -> None:
    specs = {"x": BufferSpec((2,), "int32", role), "y": BufferSpec((2,), "int32", "status")}
    with device.workspace(specs) as workspace:
        for use, allowed in (
            (lambda: workspace.read("x"), readable),
            (lambda: workspace.write("x", 0), writable),
        ):
            if allowed:
                use()
                continue
            with pytest.raises(DeviceError, match=f"buffer 'x' is {role}: the host has no such"):
                use()


# --- integrated GPUs


def test_mapped_memory_is_the_hosts_own(device: CudaDevice) -> None:
    device.integrated = True
    specs = {"in": BufferSpec((3,), "int32", "input"), "out": BufferSpec((3,), "int32", "output")}
    with device.workspace(specs) as workspace:
        workspace.write("in", [1, 2, 3])  # nothing is sent or fetched
        assert device.download(workspace["in"]).tolist() == [1, 2, 3]
        device.upload(workspace["out"], np.array([4, 5, 6], np.int32))
        assert workspace.read("out").tolist() == [4, 5, 6]


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_mapped_memory_gives_the_same_images_without_copies(
    open_cuda: Open,
    on_cpu: Generator,
    tiny_cuda_bundle: Path,
    assert_alike: Alike,
    schedule: str,
) -> None:
    with open_cuda(tiny_cuda_bundle, max_batch=4) as generator:
        _device(generator).integrated = True
        for seed in range(3):
            request: dict[str, Any] = {"class_ids": [2, 0, 2, 4, 1], "seed": seed, "steps": 3}
            found = generator.generate(**request, schedule=schedule)
            assert_alike(found, on_cpu.generate(**request, schedule=schedule))
        key = MaskedKey(4, 3, guided=True, policy="policy" if schedule == "policy" else None)
        nodes = nodes_of(generator.plans.get(key).replay)
        assert (nodes[0], nodes[-1]) == ("initial_tokens", "to_pixels_float")


def _device(generator: Generator) -> CudaDevice:
    assert isinstance(generator.device, CudaDevice)
    return generator.device


# --- memory that is given back


def test_a_workspace_gives_its_memory_back(either: CudaDevice) -> None:
    free = load_driver().mem_get_info()[0]
    specs = {"x": BufferSpec((64 << 20,), "uint8")}
    with either.workspace(specs):
        assert load_driver().mem_get_info()[0] <= free - (64 << 20)
    assert load_driver().mem_get_info()[0] >= free - (1 << 20)


def test_a_workspace_too_large_is_refused_and_leaves_nothing(
    either: CudaDevice, live: Counts
) -> None:
    before = live()
    specs = {
        "x": BufferSpec((1 << 50,), "uint8"),
        "y": BufferSpec((1000,), "uint8", "input"),
    }
    with pytest.raises(OutOfMemoryError, match="GPU is out of memory allocating 1,125,899,906,8"):
        either.workspace(specs)
    assert live() == before
    with either.workspace({"y": specs["y"]}) as workspace:
        workspace.write("y", 1)


def test_plans_thrown_out_give_their_memory_back(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts, driver_report: object
) -> None:
    """Only the last of the plans fits beside what has to stay."""
    with open_cuda(tiny_cuda_bundle, max_plan_bytes=1) as generator:
        generator.generate(class_ids=[0], steps=16)
        before = live()
        for steps in (3, 5, 16):
            generator.generate(class_ids=[0], steps=steps)
        assert live() == before


def test_no_more_than_so_many_plans_are_kept(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Counts, driver_report: object
) -> None:
    with open_cuda(tiny_cuda_bundle) as generator:
        counts = []
        for steps in range(1, MAX_PLANS + 5):
            generator.generate(class_ids=[0], steps=steps, guidance=0)
            counts.append(live()["device_allocations"])
    assert counts[MAX_PLANS - 1 :] == counts[MAX_PLANS - 1 : MAX_PLANS] * 5


def test_free_memory_stays_the_same_over_many_plans(
    open_cuda: Open, tiny_cuda_bundle: Path
) -> None:
    """On a GPU too, where allocations come from larger blocks."""
    with open_cuda(tiny_cuda_bundle, max_plan_bytes=1 << 20, max_batch=64) as generator:
        seen = []
        for turn in range(3):
            for batch in (64, 33, 5):
                generator.generate(class_ids=[turn] * batch, steps=2)
            seen.append(load_driver().mem_get_info()[0])
        integrated = _device(generator).integrated  # its memory is the system's
    assert seen[1] == seen[2] or integrated


def test_a_closed_workspace_hands_out_no_buffers(device: CudaDevice) -> None:
    workspace: CudaWorkspace = device.workspace({"x": BufferSpec((4,), "int32", "input")})
    workspace.close()
    with pytest.raises(KeyError):
        workspace["x"]
