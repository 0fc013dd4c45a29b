"""What quantization made, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewstep.runtime.records import GraphInfo, QuantizationInfo


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantized graph: its name, its record in the bundle, how many matmuls with weights it has,
    and how many bytes its files and those of the fp32 graph have."""

    name: str
    info: GraphInfo
    matmuls: int
    fp32_bytes: int = 0
    bytes: int = 0

    @property
    def record(self) -> QuantizationInfo:
        """How it was made."""
        assert self.info.quantization is not None
        return self.info.quantization

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: name, file, how many matmuls are quantized, and its record."""
        return {
            "graph": self.name,
            "file": self.info.file,
            "quantized_matmuls": self.matmuls - len(self.record.kept),
            "bytes": self.bytes,
            "fp32_bytes": self.fp32_bytes,
            **self.record.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Outcome:
    """The quantized graphs of a bundle: whether this call made them, what is worth knowing."""

    precision: str
    made: bool
    graphs: tuple[QuantizedGraph, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: ``graphs`` has an entry a graph; of one alone, what the entry has
        stands beside it too."""
        graphs = [each.as_dict() for each in self.graphs]
        return {
            "precision": self.precision,
            "up_to_date": not self.made,
            "graphs": graphs,
            **(graphs[0] if len(graphs) == 1 else {}),
            "notes": list(self.notes),
        }
