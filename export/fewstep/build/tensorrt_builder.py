"""One ONNX file → one engine, through the builder of TensorRT or TensorRT-RTX.

Precision is the graph's own: networks are strongly typed. The builder logs where Python would
raise, so everything that it can refuse is looked at afterwards and what it logged goes into the
error.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.build.profiles import Profile
from fewstep.build.progress_monitor import progress_monitor
from fewstep.runtime.engines.tensorrt_api import TensorRt
from fewstep.runtime.errors import EngineError
from fewstep.runtime.progress import Progress
from fewstep.runtime.records import BuildOptions


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine, what the builder warned of, and what building took."""

    content: memoryview
    warnings: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class EngineRequest:
    """What to build.

    ``capabilities``: compute capabilities to build for; empty where the backend builds for the
    GPU at hand.
    """

    graph: str
    path: Path
    profiles: Sequence[Profile]
    options: BuildOptions
    capabilities: Sequence[str] = ()


def build_here(api: TensorRt, request: EngineRequest, progress: Progress) -> BuiltEngine:
    """Build one engine in this process.

    Args:
        api: the module to build with.
        request: graph, profiles and options.
        progress: called with the builder's phases, maybe from other threads.

    Raises:
        EngineError: the parser or the builder refuses something; the message says what they said.
    """
    started = time.perf_counter()
    with contextlib.suppress(OSError):  # resets the peak; only on Linux, not in every container
        Path("/proc/self/clear_refs").write_text("5")
    build = _Build(api, request)
    content = build.run(progress_monitor(api.module, progress))
    seconds = time.perf_counter() - started
    return BuiltEngine(content, build.messages.warnings(), seconds, _peak_memory_bytes())


class _Build:
    """One use of a builder; it, network and parser live as long as this does."""

    def __init__(self, api: TensorRt, request: EngineRequest) -> None:
        self._api, self._module, self._request = api, api.module, request
        self.messages = api.messages
        self.messages.clear()

    def run(self, monitor: Any) -> memoryview:
        module = self._module
        builder = module.Builder(self.messages.logger)
        typed = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = module.OnnxParser(network, self.messages.logger)
        self._parse(parser, network)
        config = builder.create_builder_config()
        config.progress_monitor = monitor
        self._set_flags(config)
        self._set_targets(config)
        self._set_options(config)
        for profile in self._request.profiles:
            self._add_profile(builder, config, profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refused("the builder gave no engine", "it did not say why")
        return memoryview(plan).cast("B")  # it says that it holds floats of one byte

    def _parse(self, parser: Any, network: Any) -> None:
        parsed = parser.parse_from_file(str(self._request.path))
        found = [_described(parser.get_error(i)) for i in range(parser.num_errors)]
        if not parsed or found:
            # It logs the same at greater length, and the cause of some errors only there.
            logged = [text for text in self._logged() if "node" not in text.lower()]
            said = "; ".join([*found, *logged]) or "it did not say why"
            raise self._error(f"the ONNX parser refuses it: {said}")
        # Bytes that are no ONNX file parse without an error, as a network of nothing.
        if network.num_layers == 0 or network.num_outputs == 0:
            raise self._refused("the ONNX parser found no graph", "is it an ONNX file?")

    def _set_flags(self, config: Any) -> None:
        flags = self._module.BuilderFlag
        config.clear_flag(flags.TF32)  # fp32 stays fp32: TF32 loses 13 bits
        if config.get_flag(flags.TF32):
            raise self._refused("TF32 was not turned off", "")
        if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
            # TensorRT-RTX: the engine allocates nothing as it runs, so its work can be captured.
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)
            if not config.get_flag(flags.REQUIRE_USER_ALLOCATION):
                raise self._refused("REQUIRE_USER_ALLOCATION was not taken", "")

    def _set_targets(self, config: Any) -> None:
        wanted = self._request.capabilities
        if not wanted:
            return
        config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            # The enum makes a value of any number; only the setter tells whether it is one.
            target = self._module.ComputeCapability(int(capability.replace(".", "")))
            if not config.set_compute_capability(target, index):
                raise self._refused(f"no engines for compute capability {capability}", "")

    def _set_options(self, config: Any) -> None:
        options = self._request.options
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
            if config.builder_optimization_level != options.optimization_level:
                raise self._refused("the optimization level was not taken", "")
        if options.workspace_mib is not None:
            pool, size = self._module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20
            config.set_memory_pool_limit(pool, size)
            if config.get_memory_pool_limit(pool) != size:
                raise self._refused("the workspace limit was not taken", "")

    def _add_profile(self, builder: Any, config: Any, ranges: Mapping[str, Any]) -> None:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        before = config.num_optimization_profiles
        config.add_optimization_profile(profile)
        if config.num_optimization_profiles != before + 1:
            raise self._refused("an optimization profile was not taken", str(dict(ranges)))

    def _logged(self) -> list[str]:
        return self.messages.errors(building=True)

    def _refused(self, what: str, detail: str) -> EngineError:
        said = "; ".join(self._logged()) or detail
        if "OutOfMemory" in said or "workspace" in said:
            said += "; give it more with --workspace, or build for a smaller --max-batch"
        return self._error(f"{what}{': ' if said else ''}{said}")

    def _error(self, what: str) -> EngineError:
        graph, file = self._request.graph, self._request.path.name
        return EngineError(f"graph '{graph}' ({file}): {what} ({self._api})")


def _described(error: Any) -> str:
    """A parser's error with its code and the node it names."""
    code = str(error.code()).rpartition(".")[2]
    place = f" at node {error.node_name()} ({error.node_operator()})" if error.node_name() else ""
    return f"{code}{place}: {error.desc()}"


def _peak_memory_bytes() -> int:
    """Peak resident memory of this process since it was last reset, where it can be."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
