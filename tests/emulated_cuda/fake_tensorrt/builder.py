"""The builder: what it refuses, and the engine that comes out."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from tests.emulated_cuda.fake_tensorrt.config import (
    IBuilderConfig,
    IOptimizationProfile,
    RtxBuilderConfig,
)
from tests.emulated_cuda.fake_tensorrt.library import ILogger, IProgressMonitor, Library, called
from tests.emulated_cuda.fake_tensorrt.network import INetworkDefinition
from tests.emulated_cuda.fake_tensorrt.plan import MASK_BITS, Plan, Ranges, pack
from tests.emulated_cuda.fake_tensorrt.values import (
    MemoryPoolType,
    host_memory,
    instance,
    integer,
)

_BUILD = "IBuilder::buildSerializedNetwork"
_PHASE, _INNER_PHASE = "Building engine", "Building engine from subgraph"
_STEPS = 3


class Builder:
    """Builds engines; a subclass for each module names its library."""

    __slots__ = ("__weakref__", "logger")
    _library: ClassVar[Library]
    _creation_flags: ClassVar[Any]

    def __init__(self, logger: ILogger) -> None:
        self.logger = instance(logger, ILogger)
        if not self._library.rtx and self._library.capability is None:
            self._library.refuse_without_gpu(logger, "createInferBuilder")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._library.register(self)

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        known = max(int(flag) for flag in self._creation_flags.__members__.values())
        if not 0 <= integer(flags) < 2 << known:
            self._library.refuse(self.logger, "IBuilder::createNetworkV2", f"flags {flags}")
            return None
        return INetworkDefinition(self._library, self.logger, flags)

    def create_builder_config(self) -> IBuilderConfig:
        kind = RtxBuilderConfig if self._library.rtx else IBuilderConfig
        return kind(self._library, self.logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile(self._library, self.logger)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        """The engine as a buffer; ``None`` with a logged error if there is none."""
        network, config = instance(network, INetworkDefinition), instance(config, IBuilderConfig)
        why = _problem(network, config)
        if not why and not _reported(config.progress_monitor):
            why = "BuildCanceled (Build canceled by user"
        if why:
            self._library.refuse(self.logger, _BUILD, why)
            return None
        plan = self._plan(network, config)
        content = pack(plan)
        self._note(network, config, plan, len(content))
        return host_memory(content)

    def _plan(self, network: INetworkDefinition, config: IBuilderConfig) -> Plan:
        library = self._library
        profiles = [_whole(network, profile) for profile in config.profiles]
        return Plan(
            library.flavour,
            library.version,
            config.targets(),
            network.name,
            tuple(profiles or [_whole(network, None)]),
            config.user_allocation,
            network.graph.model.SerializeToString(deterministic=True),
        )

    def _note(self, network: Any, config: IBuilderConfig, plan: Plan, size: int) -> None:
        typed = 1 << int(self._creation_flags.STRONGLY_TYPED)
        self._library.note(
            "built",
            profiles=plan.profiles,
            capabilities=plan.capabilities,
            strongly_typed=self._library.rtx or bool(network.flags & typed),
            user_allocation=plan.user_allocation,
            flags=config.flags,
            level=config.builder_optimization_level,
            workspace=config.get_memory_pool_limit(MemoryPoolType.WORKSPACE),
            nbytes=size,
        )


def _problem(network: INetworkDefinition, config: IBuilderConfig) -> str:
    """What the real builder says of a build that cannot be; empty if it can."""
    graph = network.graph
    if not graph.outputs:
        return "Network must have at least one output"
    if graph.dynamic and not config.profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined"
    for index, profile in enumerate(config.profiles):
        why = _profile_problem(network, index, profile.ranges)
        if why:
            return why
    turing = bool(config.targets() & MASK_BITS[75]) and isinstance(config, RtxBuilderConfig)
    refused = network.first_refused_by_turing() if turing else ""
    return f"Cannot compile operation '{refused}' for Turing (SM75)" if refused else ""


def _profile_problem(network: INetworkDefinition, index: int, ranges: Ranges) -> str:
    for name, tensor in network.graph.inputs.items():
        if name not in ranges:
            if tensor.dynamic:
                return f"Dynamic input tensor {name} is missing dimensions in profile {index}"
            continue
        low, _, high = ranges[name]
        if len(low) != len(tensor.shape):
            return f"input {name} has {len(tensor.shape)} dimensions, profile {index} {len(low)}"
        for size, least, most in zip(tensor.shape, low, high, strict=True):
            if size >= 0 and (least, most) != (size, size):
                return f"Dimension mismatch for tensor {name} and profile {index}"
    tuned = {name: best for name, (_, best, _) in ranges.items() if name in network.graph.inputs}
    why = network.graph.contradiction(tuned)
    return f"Profile kOPT values are not self-consistent. {why}" if why else ""


def _whole(network: INetworkDefinition, profile: IOptimizationProfile | None) -> Ranges:
    """A profile with the inputs whose shapes do not vary."""
    fixed: Ranges = {name: (t.shape,) * 3 for name, t in network.graph.inputs.items()}
    return (
        fixed
        if profile is None
        else {name: profile.ranges.get(name, fixed[name]) for name in fixed}
    )


def _reported(monitor: IProgressMonitor | None) -> bool:
    """Tell a monitor of the steps of a build; whether it let all of them pass.

    The inner phase comes from another thread, as NVIDIA says it may.
    """
    if monitor is None:
        return True
    called(monitor.phase_start, _PHASE, None, _STEPS)
    going = bool(called(monitor.step_complete, _PHASE, 0))
    if going:
        passed: list[bool] = []
        thread = threading.Thread(target=lambda: passed.append(_inner_phase(monitor)))
        thread.start()
        thread.join()
        going = passed == [True]
    steps = range(1, _STEPS)
    going = going and all(called(monitor.step_complete, _PHASE, step) for step in steps)
    called(monitor.phase_finish, _PHASE)
    return going


def _inner_phase(monitor: IProgressMonitor) -> bool:
    called(monitor.phase_start, _INNER_PHASE, _PHASE, _STEPS)
    steps = range(_STEPS)
    going = all(called(monitor.step_complete, _INNER_PHASE, step) for step in steps)
    called(monitor.phase_finish, _INNER_PHASE)
    return going
