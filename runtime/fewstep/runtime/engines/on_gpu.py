"""TensorRT's engines on the GPU at hand, and what to know of them there.

An engine can load, run and compute something else than its graph, without an error: NVIDIA/TensorRT
issues #4837 and #4822 report that of compute capability 12.0, while others are right. So ``fewstep
verify`` marks the engines that passed in their records, and engines without a mark for this GPU
are told of.

A mark is for the bytes of an engine, the name of a GPU and its compute capability, and the newest
CUDA version that the driver runs. The record has the rest that decides: an engine is refused by
another version of its backend, and for another graph. Cards of one name count as one GPU.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cuda_driver import compute_capability, cuda_version, device_name
from fewstep.runtime.engines.compatibility import tuned_elsewhere
from fewstep.runtime.records import EngineInfo, VerifiedOn


@dataclass(frozen=True)
class Gpu:
    """A GPU by its place among the driver's, with the newest CUDA version that the driver runs."""

    ordinal: int
    name: str
    compute_capability: str
    driver: str

    @classmethod
    def at(cls, ordinal: int) -> Gpu:
        """The GPU at hand with this number.

        Raises:
            DeviceError: no such GPU, or no driver.
            MissingDependencyError: pycuda is not installed.
        """
        capability, cuda = compute_capability(ordinal), ".".join(map(str, cuda_version()))
        return cls(ordinal, device_name(ordinal), capability, cuda)

    def __str__(self) -> str:
        return f"{self.name} with a driver for CUDA {self.driver}"

    def is_of(self, mark: VerifiedOn) -> bool:
        """Whether a mark is for this GPU with this driver."""
        return self.is_card_of(mark) and mark.driver == self.driver

    def is_card_of(self, mark: VerifiedOn) -> bool:
        """Whether a mark is for this GPU with any driver."""
        return (mark.gpu, mark.compute_capability) == (self.name, self.compute_capability)


@dataclass(frozen=True)
class EnginesOnGpu:
    """Records of one backend's engines in one precision, by graph, and the GPU they are on."""

    records: Mapping[str, EngineInfo]
    gpu: Gpu

    def notes(self, bundle: Bundle) -> tuple[str, ...]:
        """What to know of them here, a line each: tuned for another card, never verified here.

        Args:
            bundle: the one they are of, as it was when they were opened.
        """
        infos, gpu = self.records.values(), self.gpu
        tuned = tuned_elsewhere(bundle.path, infos, gpu.name, gpu.compute_capability)
        unverified = self._unverified(bundle)
        return (*tuned, *([unverified] if unverified else []))

    def _unverified(self, bundle: Bundle) -> str:
        def verified(info: EngineInfo) -> bool:
            return any(map(self.gpu.is_of, bundle.manifest.verified_on(info)))

        absent = sorted(name for name, info in self.records.items() if not verified(info))
        if not absent:
            return ""
        one = self.records[absent[0]]
        words = ["fewstep", "verify", str(bundle.path), "--backend", one.backend]
        words += ["--precision", one.precision]
        words += ["--device", f"cuda:{self.gpu.ordinal}"] if self.gpu.ordinal else []
        return (
            f"the {one.precision} engines of {', '.join(absent)} were never verified on "
            f"{self.gpu}; do it with: {shlex.join(words)}"
        )
