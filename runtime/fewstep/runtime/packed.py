"""A bundle in one ``.zip`` file, as releases carry one: packed the same byte for byte, unpacked
checked.

Inside is one folder, named as the file is, with ``bundle.json`` and the files that it lists.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.files import replacing, replacing_folder
from fewstep.runtime.manifest import MANIFEST_NAME

SUFFIX = ".zip"
_MODE = 0o100644 << 16  # a plain file, where ZIP has Unix's modes
_UNIX = 3


def pack(bundle: Bundle, path: Path) -> None:
    """Write a bundle into one file; the same bundle gives the same bytes (by the same zlib).

    Raises:
        BundleError: a file of the bundle is missing or damaged.
        OutputError: ``path`` is not writable.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in (MANIFEST_NAME, *sorted(bundle.manifest.files)):
            source = bundle.path / name if name == MANIFEST_NAME else bundle.verified(name)
            entry = zipfile.ZipInfo(f"{path.stem}/{name}")  # dated 1980, whenever it was made
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _MODE
            entry.create_system = _UNIX
            archive.writestr(entry, source.read_bytes(), compresslevel=9)


def unpack(path: Path, out: Path) -> Bundle:
    """Unpack a bundle to the folder ``out``, in the place of another bundle that may be there.

    Only what its ``bundle.json`` lists is unpacked, and every hash is checked.

    Raises:
        BundleError: ``path`` is no such file, or damaged.
        OutputError: ``out`` is something else than a bundle, or not writable.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    with file, replacing_folder(out, overwrite=True, marker=MANIFEST_NAME) as folder:
        try:
            with zipfile.ZipFile(file) as archive:
                _extract(archive, folder)
        except OSError:
            raise
        except Exception as error:  # what is no archive, or half of one, raises anything
            what = str(error).replace(str(folder), path.name)
            raise BundleError(
                f"{path} is not a bundle in a {SUFFIX} file, or damaged: download it again ({what})"
            ) from error
    return Bundle.read(out)


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    """Unpack the manifest, then what it lists, into an empty folder.

    Raises:
        BundleError: no manifest, an unsound one, or files that are not as it says.
    """
    found = [each for each in map(PurePosixPath, archive.namelist()) if _is_manifest(each)]
    if len(found) != 1:
        raise BundleError(f"expected one {MANIFEST_NAME} in it, found {len(found)}")
    _copy(archive, found[0], folder / MANIFEST_NAME)
    bundle = Bundle.read(folder)
    for name in bundle.manifest.files:
        _copy(archive, found[0].parent / name, bundle.locate(name))
    if damage := bundle.damage():
        raise BundleError("; ".join(f"{name} {what}" for name, what in damage.items()))


def _is_manifest(path: PurePosixPath) -> bool:
    return path.name == MANIFEST_NAME and len(path.parts) <= 2


def _copy(archive: zipfile.ZipFile, name: PurePosixPath, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(str(name)) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)
