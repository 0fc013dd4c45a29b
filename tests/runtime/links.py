"""Bundles as the cache of huggingface_hub lays them out."""

from __future__ import annotations

from pathlib import Path


def linked_blobs(bundle: Path) -> dict[str, Path]:
    """Move every file of a bundle to a folder beside it and link it; the new places, by name."""
    blobs = bundle.with_name("blobs")
    blobs.mkdir()
    moved = {}
    for number, file in enumerate(sorted(each for each in bundle.rglob("*") if each.is_file())):
        blob = file.rename(blobs / f"{number:040x}")
        depth = len(file.relative_to(bundle).parts)
        file.symlink_to(Path(*[".."] * depth, blobs.name, blob.name))
        moved[file.relative_to(bundle).as_posix()] = blob
    return moved
