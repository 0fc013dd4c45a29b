"""Folders for tests of what is written, and of what is left behind."""

from __future__ import annotations

from pathlib import Path


def old_folder(place: Path) -> Path:
    """A folder with one file in it, in the place of a bundle."""
    target = place / "bundle"
    target.mkdir()
    (target / "old").touch()
    return target


def names(folder: Path) -> list[str]:
    """What is in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())
