"""Bundles whose files were changed on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.files import sha256
from fewstep.runtime.manifest import MANIFEST_NAME, Manifest
from fewstep.runtime.records import FileInfo


def rehash(bundle: Path, **changes: object) -> None:
    """Make the manifest agree with changed files, as a malicious or careless tool would."""
    manifest = Bundle.read(bundle).manifest.model_dump()
    write_manifest(bundle, {**manifest, **changes})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Manifest:
    """Complete ``manifest`` with the hashes of every file in ``folder`` and write it there."""
    files = {
        path.relative_to(folder).as_posix(): FileInfo(
            bytes=path.stat().st_size, sha256=sha256(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    complete = Manifest.model_validate({**manifest, "files": files})
    (folder / MANIFEST_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return complete
