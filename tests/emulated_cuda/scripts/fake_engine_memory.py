"""Memory, files and caches of the fake TensorRT engines; `fake_engines.py` has the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycuda.driver as cuda
import pytest
from tests.emulated_cuda.fake_tensorrt import make
from tests.emulated_cuda.scripts.fake_engines import CAPABILITY, PROFILE, WIDER, Used, counted, plan


@pytest.fixture(autouse=True)
def _current(context: Any) -> None:
    """Every test here needs a context."""


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def module(request: pytest.FixtureRequest) -> Any:
    return make(request.param, "10.3.0" if request.param == "tensorrt" else "1.7.1", CAPABILITY)


@pytest.fixture
def rtx() -> Any:
    return make("tensorrt-rtx", "1.7.1", CAPABILITY)


# --- scratch memory


def test_memory_that_is_missing_or_too_small(module: Any) -> None:
    used = Used(module).ready()
    needed = used.engine.get_device_memory_size_for_profile_v2(0)
    assert 0 < needed < used.engine.device_memory_size_v2
    memory = int(used.memory["scratch"])
    used.context.set_device_memory(memory, needed - 1)
    assert used.refused("are needed")
    used.context.set_device_memory(memory + 8, needed)
    assert "not aligned" in used.errors[-1]
    used.context.set_device_memory(memory, needed)
    assert used.run()
    used.context.set_device_memory(0, 0)
    assert used.refused("are needed")


def test_memory_for_the_shapes_at_hand(module: Any) -> None:
    used = Used(module)
    assert used.context.update_device_memory_size_for_shapes() == 0
    used.context.set_optimization_profile_async(1, int(used.stream.handle))
    used.ready(batch=4)
    whole = used.engine.device_memory_size_v2
    memory = int(used.memory["scratch"])
    needed = used.context.update_device_memory_size_for_shapes()
    assert needed <= whole
    used.context.set_device_memory(memory, needed)
    assert used.run()
    used.context.set_device_memory(memory, needed - 1)
    assert used.refused("are needed")
    used.context.set_device_memory(memory, whole - 1)
    assert used.context.set_input_shape("x", (5, 4))  # what was said is no longer true
    assert used.refused("are needed")


def test_only_contexts_without_their_own_take_memory(module: Any) -> None:
    content = plan(module, PROFILE, user_allocation=False)
    used = Used(module, content, "STATIC").ready()
    memory = cuda.mem_alloc(4096)
    used.context.set_device_memory(int(memory), 4096)
    assert "manages its memory itself" in used.errors[-1]
    used.write("x", counted((2, 4)))
    assert used.run()
    np.testing.assert_array_equal(used.read("y", (2, 4)), 2 * counted((2, 4)))


@pytest.mark.parametrize("name", ["x", "y"])
def test_what_lies_in_the_scratch_memory_is_lost(module: Any, name: str) -> None:
    used = Used(module).ready()
    used.memory[name] = used.memory["scratch"]
    used.context.set_tensor_address(name, int(used.memory["scratch"]))
    used.write("x", counted((2, 4)))
    assert used.run()
    assert np.isnan(used.read("y", (2, 4))).all()


def test_all_of_the_scratch_memory_is_written_and_nothing_else(module: Any) -> None:
    used = Used(module)
    needed = used.engine.get_device_memory_size_for_profile_v2(0)
    used.scratch(needed + 256)
    used.ready()
    used.write("scratch", np.zeros(needed + 256, np.uint8))
    assert used.run()
    found = used.read("scratch", (needed + 256,), np.uint8)
    assert (found[:needed] == 0xFF).all() and (found[needed:] == 0).all()


# --- files


def test_engines_of_another_version_or_gpu(module: Any) -> None:
    content = plan(module, PROFILE)
    used = Used(module, content)
    flavour: Any = module.__name__.replace("_", "-")
    newer = "10.4.0" if flavour == "tensorrt" else "1.6.0"
    for other, text in (
        (make(flavour, newer, CAPABILITY), "Version tag does not match"),
        (make(flavour, module.__version__, "8.6"), "compute capability 8.6"),
    ):
        runtime = other.Runtime(used.logger)
        assert runtime.deserialize_cuda_engine(content) is None
        assert any(text in error for error in used.errors), text


def test_validity(rtx: Any) -> None:
    content = plan(rtx, PROFILE)
    why = rtx.EngineInvalidityDiagnostics
    for version, capability, expected in (
        ("1.7.1", CAPABILITY, 0),
        ("1.6.0", CAPABILITY, int(why.VERSION_MISMATCH)),
        ("1.7.1", "8.7", int(why.UNSUPPORTED_CC)),
        ("1.6.0", "8.7", int(why.VERSION_MISMATCH) | int(why.UNSUPPORTED_CC)),
    ):
        other: Any = make("tensorrt-rtx", version, capability)
        found = other.Runtime(other.Logger()).get_engine_validity(content)
        assert found == (other.EngineValidity(2 if expected else 0), expected)


def test_neither_reads_engines_of_the_other(module: Any) -> None:
    used = Used(module)
    other: Any = make("tensorrt-rtx", "1.7.1", CAPABILITY)
    if module.__name__ == "tensorrt_rtx":
        other = make("tensorrt", "10.3.0", CAPABILITY)
    assert used.runtime.deserialize_cuda_engine(plan(other, PROFILE)) is None
    assert "Magic tag does not match" in used.errors[-1]


# --- the runtime cache of TensorRT-RTX


def cached(used: Used, cache: Any) -> Used:
    """With a context that uses a cache."""
    config = used.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        used.module.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    assert config.set_runtime_cache(cache)
    used.context = used.engine.create_execution_context(config)
    used.scratch(used.engine.device_memory_size_v2)
    return used


def test_a_cache_keeps_what_was_compiled(rtx: Any) -> None:
    used = Used(rtx, plan(rtx, PROFILE, WIDER))
    cache = used.engine.create_runtime_config().create_runtime_cache()
    sizes = [cache.serialize().nbytes]
    cached(used, cache)
    for batch in (1, 2):
        used.ready(batch)
        assert used.run() and used.run()
        sizes.append(cache.serialize().nbytes)
    assert sizes == sorted(set(sizes))
    assert len(used.entries("compiled")) == 2
    content = bytes(cache.serialize())

    again = Used(rtx, plan(rtx, PROFILE, WIDER))
    loaded = again.engine.create_runtime_config().create_runtime_cache()
    assert loaded.deserialize(content)
    assert cached(again, loaded).ready(2).run()
    assert len(again.entries("compiled")) == 2  # nothing more
    assert loaded.reset() and loaded.serialize().nbytes == sizes[0]


def test_a_cache_that_does_not_fit(rtx: Any, context: Any) -> None:
    def cache_of(module: Any) -> Any:
        runtime = module.Runtime(module.Logger())
        engine = runtime.deserialize_cuda_engine(plan(module, PROFILE))
        return engine.create_runtime_config().create_runtime_cache()

    content = bytes(cache_of(rtx).serialize())
    assert not cache_of(make("tensorrt-rtx", "1.6.0", CAPABILITY)).deserialize(content)
    assert not cache_of(rtx).deserialize(content[:-5])
    assert not cache_of(rtx).deserialize(b"")
    fitting = cache_of(rtx)
    context.pop()
    try:
        assert not fitting.deserialize(content)  # no context is current
    finally:
        context.push()
    assert fitting.deserialize(content)


def test_without_a_cache_every_context_compiles(rtx: Any) -> None:
    used = Used(rtx)
    assert used.ready().run()
    strategy = rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    used.context = used.engine.create_execution_context(strategy)
    used.scratch(used.engine.device_memory_size_v2)
    assert used.ready().run()
    assert len(used.entries("compiled")) == 2
