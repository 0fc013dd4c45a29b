"""Optimization profiles and build options."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.emulated_cuda.fake_tensorrt.library import IProgressMonitor, Library
from tests.emulated_cuda.fake_tensorrt.plan import AMPERE_AND_LATER, MASK_BITS, Ranges
from tests.emulated_cuda.fake_tensorrt.values import (
    BuilderFlag,
    BuilderFlagRtx,
    ComputeCapability,
    Dims,
    MemoryPoolType,
    instance,
    integer,
    shape_of,
    text,
)

_WORKSPACE_BYTES = 64 << 30
_HIGHEST_LEVEL = 5


class IOptimizationProfile:
    """Ranges of the inputs' shapes."""

    __slots__ = ("_library", "_logger", "ranges")

    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger
        self.ranges: Ranges = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        ranges = (shape_of(min), shape_of(opt), shape_of(max))
        for which, sizes in zip(("min", "opt", "max"), ranges, strict=True):
            if any(size < 0 for size in sizes):
                self._refuse("setDimensions", "sizes must not be negative")
                raise RuntimeError(f"Shape provided for {which} is inconsistent with other shapes.")
        self.ranges[text(input)] = ranges

    def get_shape(self, input: str) -> list[Dims]:
        if text(input) in self.ranges:
            return [Dims(sizes) for sizes in self.ranges[input]]
        self._refuse("getDimensions", f"input {input} is not in this profile")
        return []

    def __bool__(self) -> bool:
        for name, (low, best, high) in self.ranges.items():
            ranks = {len(low), len(best), len(high)}
            rising = all(a <= b <= c for a, b, c in zip(low, best, high, strict=False))
            if len(ranks) > 1 or not rising:
                self._refuse("isValid", f"input {name} does not satisfy MIN<=OPT<=MAX")
                return False
        return True

    def _refuse(self, where: str, why: str) -> None:
        self._library.refuse(self._logger, f"IOptimizationProfile::{where}", why)


class IBuilderConfig:
    """Options of a build."""

    __slots__ = ("_flags", "_level", "_library", "_logger", "_monitor", "_pools", "profiles")
    _flag_type: ClassVar[Any] = BuilderFlag

    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger
        self.profiles: list[IOptimizationProfile] = []
        self._pools: dict[Any, int] = {}
        self._flags, self._level = 1 << int(BuilderFlag.TF32), 3
        self._monitor: IProgressMonitor | None = None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not instance(profile, IOptimizationProfile):
            self._refuse("addOptimizationProfile", "the profile is not valid")
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        if integer(level) < 0:
            self._refuse("setBuilderOptimizationLevel", "the level must not be negative")
        else:  # higher ones silently become the highest
            self._level = min(level, _HIGHEST_LEVEL)

    @property
    def progress_monitor(self) -> IProgressMonitor | None:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: IProgressMonitor | None) -> None:
        self._monitor = None if monitor is None else instance(monitor, IProgressMonitor)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[instance(pool, MemoryPoolType)] = integer(pool_size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(instance(pool, MemoryPoolType), _WORKSPACE_BYTES)

    @property
    def flags(self) -> int:
        return self._flags

    def set_flag(self, flag: Any) -> None:
        self._flags |= 1 << int(instance(flag, self._flag_type))

    def clear_flag(self, flag: Any) -> None:
        self._flags &= ~(1 << int(instance(flag, self._flag_type)))

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags & 1 << int(instance(flag, self._flag_type)))

    @property
    def user_allocation(self) -> bool:
        """Whether engines are for memory of the user's only."""
        return False

    def targets(self) -> int:
        """What the engine's header says of the GPUs that it is for."""
        return self._library.capability or 0

    def _refuse(self, where: str, why: str) -> None:
        self._library.refuse(self._logger, f"IBuilderConfig::{where}", why)


class RtxBuilderConfig(IBuilderConfig):
    """The same with the compute capabilities to build for."""

    __slots__ = ("capabilities",)
    _flag_type = BuilderFlagRtx

    def __init__(self, library: Library, logger: Any) -> None:
        super().__init__(library, logger)
        self.capabilities: list[Any] = []

    @property
    def num_compute_capabilities(self) -> int:
        return len(self.capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        kept = self.capabilities[: integer(count)]
        self.capabilities = kept + [ComputeCapability.NONE] * (count - len(kept))

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        wanted, count = instance(compute_capability, ComputeCapability), len(self.capabilities)
        why = ""
        if not 0 <= integer(index) < count:
            why = "the index of the compute capability is not in a valid range"
        elif wanted == ComputeCapability.CURRENT and count != 1:
            why = "kCURRENT can only be the only compute capability"
        elif wanted.name in ("???", "NONE"):
            why = "the compute capability is invalid or not supported"
        if why:
            self._refuse("setComputeCapability", why)
            return False
        self.capabilities[index] = wanted
        return True

    def get_compute_capability(self, index: int) -> Any:
        return self.capabilities[integer(index)]

    @property
    def user_allocation(self) -> bool:
        return self.get_flag(BuilderFlagRtx.REQUIRE_USER_ALLOCATION)

    def targets(self) -> int:
        if ComputeCapability.NONE in self.capabilities:
            raise RuntimeError("a compute capability was never set; the real module crashes here")
        if ComputeCapability.CURRENT in self.capabilities:
            return MASK_BITS.get(self._library.capability or 0, 0)
        return sum(MASK_BITS[int(one)] for one in set(self.capabilities)) or AMPERE_AND_LATER
