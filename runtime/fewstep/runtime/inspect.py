"""What is in a bundle: graphs, sizes, provenance, and whether the files are intact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewstep.runtime.bundle import Bundle


@dataclass(frozen=True)
class Inspection:
    """A bundle's manifest, its size on disk, and the files that are missing or changed."""

    bundle: Bundle
    total_bytes: int
    damage: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        manifest = self.bundle.manifest.model_dump(mode="json")
        return {
            "path": str(self.bundle.path),
            "total_bytes": self.total_bytes,
            "damage": self.damage,
            "manifest": manifest,
        }


def inspect(bundle: Bundle) -> Inspection:
    """Hash every file of the bundle and sum up its size."""
    total = sum(info.bytes for info in bundle.manifest.files.values())
    return Inspection(bundle, total, bundle.damage())
