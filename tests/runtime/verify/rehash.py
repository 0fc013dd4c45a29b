"""Bundles whose files were changed on purpose."""

from __future__ import annotations

from pathlib import Path

from fewstep.runtime.bundle import Bundle, write_manifest


def rehash(bundle: Path, **changes: object) -> None:
    """Make the manifest agree with changed files, as a malicious or careless tool would."""
    manifest = Bundle.read(bundle).manifest.model_dump()
    write_manifest(bundle, {**manifest, **changes})
