"""Reading and writing bundles: the manifest, its files, and their hashes.

A bundle is a folder with ``bundle.json`` and the files it lists. A file is hashed before it is
used, so it may be a link to anywhere, as in the cache of huggingface_hub; names lead to nothing
outside the folder. One process at a time changes a bundle (:meth:`Bundle.locked`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fewstep.runtime.errors import BundleError, choose
from fewstep.runtime.files import replacing, sha256
from fewstep.runtime.lock import locked
from fewstep.runtime.manifest import MANIFEST_NAME, SCHEMA, Manifest
from fewstep.runtime.records import FileInfo, GraphInfo, found_wrong
from fewstep.runtime.unfinished import sweep


@dataclass(frozen=True)
class Bundle:
    """A deployable folder: its path and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: str | Path) -> Bundle:
        """Read and validate the manifest; no other file is opened yet.

        Raises:
            BundleError: no bundle at ``path``, unreadable or invalid manifest, a newer schema.
        """
        folder = Path(path)
        file = folder / MANIFEST_NAME
        if not _is_file(file):
            if _is_file(folder) and zipfile.is_zipfile(folder):
                raise BundleError(
                    f"{folder} is a packed bundle: unzip it and name its folder, or try it with: "
                    f"fewstep demo --bundle {shlex.quote(str(folder))}"
                )
            raise BundleError(
                f"no bundle at {folder}: expected a folder with {MANIFEST_NAME}; "
                "make one with: fewstep export"
            )
        bundle = cls(folder, _parse(file))
        for name in bundle.manifest.files:
            bundle.locate(name)
        return bundle

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: str | Path) -> Iterator[Bundle]:
        """Yield the bundle as it is now; nobody else changes it until the block ends.

        What a killed process left half-written in it is removed. Within the block it may be locked
        again, as :meth:`update` does.

        Raises:
            BundleError: as :meth:`read`.
            OutputError: the folder is not writable.
        """
        cls.read(path)  # a folder without one is not to be locked
        with locked(Path(path)):
            now = cls.read(path)
            for folder in {now.path, *(now.locate(name).parent for name in now.manifest.files)}:
                sweep(folder)
            yield now

    def locate(self, name: str) -> Path:
        """Path of a listed file, by its name inside the bundle; existence is not checked.

        It may be a link to a file outside: what is read is what the hash says (:meth:`verified`).

        Raises:
            BundleError: the file is not listed, or its name is no usable path or leads out of the
                bundle (``..``, an absolute path).
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {choose('file', name, self.manifest.files)}")
        if "\0" in name:
            raise BundleError(f"{self.path}: {name!r} is not a usable path; export it again")
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise BundleError(f"{self.path}: '{name}' leads out of the bundle; export it again")
        return self.path.resolve() / name

    def verified(self, name: str) -> Path:
        """Path of a listed file whose size and hash were just checked.

        Raises:
            BundleError: the file is missing, truncated or changed.
        """
        path, expected = self.locate(name), self.manifest.files[name]
        problem = _difference(path, expected)
        if problem:
            raise BundleError(
                f"{path} {problem}; the copy is damaged: copy or export the bundle again"
            )
        return path

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that every graph is there in; fp32 first."""
        return ("fp32", *self.manifest.variants)

    def graph(self, name: str, precision: str = "fp32") -> GraphInfo:
        """A graph in one precision.

        Raises:
            BundleError: no such graph, or not in this precision.
        """
        variants = {str(each): graphs for each, graphs in self.manifest.variants.items()}
        if precision not in self.precisions:
            raise BundleError(f"{self.path}: {self._without(precision)}")
        graphs = self.manifest.graphs if precision == "fp32" else variants[precision]
        if name not in graphs:
            raise BundleError(f"{self.path}: {choose('graph', name, graphs)}")
        return graphs[name]

    def making(self, precision: str) -> str:
        """The command that makes the graphs of a precision; empty if none does."""
        folder = shlex.quote(str(self.path))
        if precision in ("fp16", "bf16"):
            return f"fewstep build {folder} --precision {precision}"
        if precision in ("int8", "fp8"):
            again = " --repeat" if precision in self.precisions else ""
            return f"fewstep calibrate quantize {folder} --precision {precision}{again}"
        return ""

    def _without(self, precision: str) -> str:
        """Say that there are no graphs in a precision, and what makes them if anything does."""
        if not (command := self.making(precision)):
            return choose("precision", precision, self.precisions)
        return f"there are no {precision} graphs; make them with: {command}"

    def graph_path(self, graph: str, precision: str = "fp32") -> Path:
        """Checked path of a graph's ONNX file; its external data is checked with it."""
        info = self.graph(graph, precision)
        for external in info.external:
            self.verified(external)
        return self.verified(info.file)

    def graph_sha256(self, name: str, precision: str = "fp32") -> str:
        """Hash of a graph's contents: of its ONNX file, and of its external data if it has any."""
        info, files = self.graph(name, precision), self.manifest.files
        return graph_hash(files[file].sha256 for file in (info.file, *info.external))

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a listed ``.npz`` file (never pickled objects)."""
        path = self.verified(name)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path} is not an array archive: {error}") from error

    def update(self, files: Mapping[str, bytes | memoryview], **changes: Any) -> Bundle:
        """Add or replace files and change fields of the manifest, which is written last.

        Nothing that the present manifest names is overwritten with other contents, so that an
        interruption leaves the bundle as it was: give new contents new names. Where others have
        changed other fields since this bundle was read, theirs stay.

        Args:
            files: contents by path within the bundle.
            changes: new values of manifest fields. Files that only their old values named are
                removed.

        Returns:
            The bundle with its new manifest.

        Raises:
            BundleError: a path that leads out of the bundle, or others have changed one of these
                fields: read the bundle in :meth:`locked` and it cannot happen.
            OutputError: the folder is not writable, or the disk is full; the bundle is as before.
        """
        with Bundle.locked(self.path) as now:
            self._require_same(now, changes)
            listed = dict(now.manifest.files)
            for name, content in files.items():
                digest = hashlib.sha256(content).hexdigest()
                listed[name] = FileInfo(bytes=len(content), sha256=digest)
            fields = now.manifest.model_dump() | changes
            named = _validated(fields | {"files": listed}, self.path).named_files()
            dropped = now.manifest.named_files() - named
            kept = {name: info for name, info in listed.items() if name not in dropped}
            changed = Bundle(self.path, _validated(fields | {"files": kept}, self.path))
            changed._write({changed._place(name): content for name, content in files.items()})
            for name in dropped:
                with contextlib.suppress(OSError):  # a leftover does no harm
                    (self.path / name).unlink()
        return changed

    def _require_same(self, now: Bundle, changes: Mapping[str, Any]) -> None:
        """Raise ``BundleError`` if a field that is to be changed is not what it was."""
        before, after = self.manifest, now.manifest
        lost = [each for each in changes if getattr(before, each) != getattr(after, each)]
        if lost:
            raise BundleError(
                f"{self.path}: another process has changed {', '.join(sorted(lost))} of the bundle "
                "meanwhile; run the command again"
            )

    def _place(self, name: str) -> Path:
        """Where a listed file is written: inside the bundle, whatever links it has.

        Raises:
            BundleError: as :meth:`locate`, or its folder is a link out of the bundle.
        """
        place, root = self.locate(name), self.path.resolve()
        if not place.parent.resolve().is_relative_to(root):
            raise BundleError(
                f"{self.path}: the folder of '{name}' leads out of the bundle, to "
                f"{place.parent.resolve()}; copy the bundle, with what its links lead to"
            )
        return place

    def _write(self, places: Mapping[Path, bytes | memoryview]) -> None:
        """Write files and then the manifest, which replaces a link to one."""
        with _removed_on_failure([place for place in places if not place.exists()]):
            for place, content in places.items():
                with replacing(place) as temporary:
                    temporary.write_bytes(content)
            text = self.manifest.model_dump_json(indent=2) + "\n"
            with replacing(self.path / MANIFEST_NAME) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def damage(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Listed files (all if ``None``) that are missing or changed, with what is wrong."""
        wanted = self.manifest.files if names is None else names
        found = {name: _difference(self.locate(name), self.manifest.files[name]) for name in wanted}
        return {name: problem for name, problem in found.items() if problem}


def graph_hash(files: Iterable[str]) -> str:
    """Hash of a graph from those of its files: the ONNX file, and external data if it has any."""
    first, *external = files
    return hashlib.sha256("".join((first, *external)).encode()).hexdigest() if external else first


@contextlib.contextmanager
def _removed_on_failure(places: list[Path]) -> Iterator[None]:
    """Remove new files, and folders that are then empty, if the block fails."""
    try:
        yield
    except BaseException:
        for place in places:
            with contextlib.suppress(OSError):
                place.unlink()
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        raise


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be read
        return False


def _difference(path: Path, expected: FileInfo) -> str:
    if not _is_file(path):
        return "is missing"
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            return f"has {size:,} bytes where the manifest says {expected.bytes:,}"
        actual = sha256(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if actual == expected.sha256 else "does not have the manifest's SHA-256"


def _parse(file: Path) -> Manifest:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read as JSON: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise BundleError(
            f"{file} has schema version {version}, this fewstep reads up to {SCHEMA}; "
            "upgrade with: pip install --upgrade fewstep"
        )
    with _manifest_errors(file):
        return Manifest.model_validate_json(json.dumps(content))


def _validated(fields: Mapping[str, Any], path: Path) -> Manifest:
    with _manifest_errors(path / MANIFEST_NAME):
        return Manifest.model_validate(fields)


@contextlib.contextmanager
def _manifest_errors(file: Path) -> Iterator[None]:
    """Turn what pydantic says of a manifest into a ``BundleError``."""
    try:
        yield
    except ValidationError as error:
        problems = found_wrong(error, "top level")
        raise BundleError(f"{file} is not a valid manifest: {problems}") from error
