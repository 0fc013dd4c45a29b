"""PyTorch's engines in the loop, on a real GPU: the graph, its results, its replays, its memory.

Everything here needs PyTorch with a card that it sees; ``tests/export/test_module_engine.py``
tests the same engine on the CPU.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not here")
pytest.importorskip("fewstep.export.demo", reason="what fewstep.export imports is not here")

from tests.cuda.torch_engine import described, load, open_generator  # noqa: E402

from fewstep.export.demo import sample_checkpoints  # noqa: E402
from fewstep.runtime.bundle import Bundle  # noqa: E402
from fewstep.runtime.devices.cpu import CpuDevice  # noqa: E402
from fewstep.runtime.devices.cuda import CudaDevice, CudaReplay  # noqa: E402
from fewstep.runtime.devices.cuda_driver import checked, load_bindings, load_driver  # noqa: E402
from fewstep.runtime.devices.cuda_graph import CudaGraph  # noqa: E402
from fewstep.runtime.families.masked.program import MaskedKey  # noqa: E402
from fewstep.runtime.generator import Generator  # noqa: E402
from fewstep.runtime.result import Result  # noqa: E402
from fewstep.runtime.verify import verify  # noqa: E402

Alike = Callable[[Result, Result], None]
Open = Callable[..., Generator]

_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"
_MANY = [0, 1, 2, 3, 4] * 6
"""Classes of so many images that a token that flips on a tie is within what may differ."""


@pytest.fixture(scope="module", autouse=True)
def _on_a_card(emulated: bool) -> None:
    if emulated or not torch.cuda.is_available():
        pytest.skip("torch sees no GPU" + (" (emulated driver)" if emulated else ""))


@pytest.fixture(scope="module")
def open_torch(
    _on_a_card: None, cubin: bytes, tiny_cuda_bundle: Path, tiny_checkpoints: dict[str, Any]
) -> Open:
    """Opens the tiny bundle on PyTorch's engines."""

    def make(precision: str = "fp32", profile: bool = False) -> Generator:
        return open_generator(
            load(tiny_checkpoints),
            Bundle.read(tiny_cuda_bundle),
            CudaDevice(cubin, profile=profile),
            precision=precision,
            max_batch=len(_MANY),
        )

    return make


@pytest.fixture(scope="module")
def on_torch(open_torch: Open) -> Iterator[Generator]:
    """The same in fp32, opened once."""
    with open_torch() as generator:
        yield generator


# --- results


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_tokens_in_fp32_are_those_of_the_cpu(
    on_torch: Generator, on_cpu: Generator, assert_close: Alike, schedule: str
) -> None:
    for seed, steps in ((0, 1), (5, 4), (2**63, 16)):
        request: dict[str, Any] = {"seed": seed, "steps": steps, "schedule": schedule}
        found = on_torch.generate(class_ids=_MANY, **request)
        assert_close(found, on_cpu.generate(class_ids=_MANY, **request))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_golden_rollouts_pass(open_torch: Open, precision: str) -> None:
    with open_torch(precision) as generator:
        report = verify(generator)
    assert report.passed, report


def test_the_sample_gives_the_images_of_the_cpu(cubin: bytes, assert_close: Alike) -> None:
    files = sample_checkpoints(_SAMPLE)
    found = []
    for device in (CudaDevice(cubin), CpuDevice()):
        models = load(files)
        with open_generator(
            models, described(models, files["config"]), device, max_batch=10
        ) as generator:
            for schedule, steps in (("cosine", 8), ("policy", 4)):
                request: dict[str, Any] = {"steps": steps, "schedule": schedule}
                found.append(generator.generate(class_ids=range(10), **request))
    for on_gpu, on_cpu in zip(found[:2], found[2:], strict=True):
        assert_close(on_gpu, on_cpu)


# --- the graph


@pytest.mark.parametrize("policy", [None, "policy"])
def test_a_plan_is_one_graph_of_kernels_copies_and_fills(
    on_torch: Generator, policy: str | None
) -> None:
    """Nothing that waits, calls the host, or allocates."""
    steps = 3
    plan = on_torch.plans.get(MaskedKey(2, steps, guided=True, policy=policy))
    assert isinstance(plan.replay, CudaReplay)
    kinds = _kinds(plan.replay.captured[0].graph)
    assert set(kinds) <= {"KERNEL", "MEMCPY", "MEMSET"}, kinds
    own = 2 + steps * (3 if policy else 2)
    assert kinds["KERNEL"] > 10 * own  # a pass of the transformer alone is dozens


def _kinds(graph: CudaGraph) -> Counter[str]:
    """How many nodes there are of each kind, as the driver lists them."""
    cuda = load_bindings()
    count = checked(cuda.cuGraphGetNodes(graph._graph, 0), "counting nodes")[1]
    nodes, _ = checked(cuda.cuGraphGetNodes(graph._graph, count), "listing nodes")
    kinds = (checked(cuda.cuGraphNodeGetType(node), "reading a node") for node in nodes)
    return Counter(kind.name.removeprefix("CU_GRAPH_NODE_TYPE_") for kind in kinds)


def test_a_generation_is_one_launch_and_pytorch_does_nothing(
    on_torch: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: dict[str, Any] = {"class_ids": [1, 2], "steps": 3}
    on_torch.generate(**request)
    launches: list[CudaGraph] = []
    launch = CudaGraph.launch

    def counted(graph: CudaGraph) -> None:
        launches.append(graph)
        launch(graph)

    monkeypatch.setattr(CudaGraph, "launch", counted)
    before = _allocations()
    on_torch.generate(**request, seed=9)
    assert len(launches) == 1
    assert _allocations() == before


def test_stages_are_timed_in_the_graph(open_torch: Open, on_torch: Generator) -> None:
    request: dict[str, Any] = {"class_ids": [1, 2], "steps": 3, "schedule": "policy"}
    with open_torch(profile=True) as generator:
        for _ in range(2):
            taken = generator.generate(**request).timings_ms
    assert set(taken) == {"transformer", "policy", "sampling", "decoder", "other", "total"}
    assert all(value > 0 for value in taken.values())


# --- replays


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_replays_with_other_inputs_are_what_a_fresh_generator_gives(
    open_torch: Open, on_cpu: Generator, assert_close: Alike, schedule: str
) -> None:
    """Two plans in turn, which share what PyTorch allocates."""
    turns = ((_MANY, 0), (_MANY[:7], 1), (_MANY[::-1], 2**63))
    requests: list[dict[str, Any]] = [
        {"class_ids": ids, "seed": seed, "steps": 4, "schedule": schedule} for ids, seed in turns
    ]
    fresh = []
    for request in requests:
        with open_torch() as generator:
            fresh.append(generator.generate(**request))
    with open_torch() as generator:
        for request, expected in zip([*requests, *requests], [*fresh, *fresh], strict=True):
            found = generator.generate(**request)
            assert_close(found, expected)
            assert_close(found, on_cpu.generate(**request))
        assert len(generator.plans._plans) == 2


# --- memory


def test_a_hundred_replays_take_no_memory(on_torch: Generator) -> None:
    request: dict[str, Any] = {"class_ids": [0, 3], "steps": 4}
    on_torch.generate(**request)
    before, free = _allocations(), set()
    for seed in range(100):
        on_torch.generate(**request, seed=seed)
        free.add(load_driver().mem_get_info()[0])
    assert len(free) == 1
    assert _allocations() == before


def test_a_closed_generator_gives_its_memory_back(open_torch: Open) -> None:
    reserved = []
    for _ in range(3):
        with open_torch() as generator:
            generator.generate(class_ids=_MANY, steps=2, schedule="policy")
        del generator
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[1:] == reserved[:1] * 2


def _allocations() -> tuple[int, int]:
    """How often PyTorch has allocated in all, and what it holds."""
    found: dict[str, int] = torch.cuda.memory_stats()
    return found["allocation.all.allocated"], torch.cuda.memory_reserved()
