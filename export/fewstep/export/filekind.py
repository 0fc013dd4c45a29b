"""What a file that is no checkpoint is, by its first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

_LFS = b"version https://git-lfs"
_TAR_AT = 257
_HEAD_BYTES = 512
_SHOWN_CHARACTERS = 60
"""Enough for any key of a model here, so that a long list of keys stays a short message."""

_ARCHIVES = {
    b"\x1f\x8b": "compressed with gzip: unpack it first (gunzip)",
    b"BZh": "compressed with bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first (unzstd)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
}
_OTHERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras, TensorFlow)",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
}
_EXPECTED = "expected weights saved by torch.save or as safetensors"


def head(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is a safetensors file: a header's length, then its JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def problem(path: Path, start: bytes) -> str | None:
    """What is wrong with a file that begins with ``start``; ``None`` if it may be a checkpoint."""
    if not start:
        return "is empty; download or copy it again"
    if start.startswith(_LFS):
        return "is a Git LFS pointer, not the weights: run git lfs pull in its repository"
    for magic, what in _ARCHIVES.items():
        if start.startswith(magic):
            return f"is {what}"
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            return f"is {what}; {_EXPECTED}"
    if start[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return "is a tar archive: unpack it first (tar xf)"
    if start.startswith(b"PK"):
        return _zip_problem(path)
    return None if is_safetensors(start) else _text_problem(start)


def _zip_problem(path: Path) -> str | None:
    """``None`` for what torch.save writes, and for a damaged archive, which torch reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is a TorchScript program, whose code is never run here; load it where you trust it "
            "and save its state_dict() with torch.save"
        )
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"is an .npz archive of NumPy arrays; {_EXPECTED}"
    some = shown(", ".join(names[:3])) or "nothing"
    return f"is a zip archive of something else ({some}); unpack it, and pass the weights in it"


def _text_problem(start: bytes) -> str | None:
    if b"\x00" in start:
        return None
    text = start.decode("utf-8", "replace").strip().lstrip("\ufeff")
    low = text.lower()
    if low.startswith(("<!doctype html", "<html", "<head", "<!-- ")) or "<html" in low:
        return (
            f"is a web page saved in the place of the file ({shown(_title(text))}): download the "
            "file itself (a page that asks for a confirmation, a log-in or a licence comes first)"
        )
    printable = sum(each.isprintable() or each.isspace() for each in text)
    if text and printable == len(text) and "\ufffd" not in text:
        return f"is a text file that begins with {shown(text)!r}; {_EXPECTED}"
    return None


def _title(text: str) -> str:
    begin = text.lower().find("<title>")
    return text[begin + len("<title>") :].split("<")[0] if begin >= 0 else text


def shown(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    """A name or text from elsewhere, on one line and short."""
    start = text[: 4 * most]  # keys of a damaged file may be megabytes
    line = " ".join("".join(each if each.isprintable() else " " for each in start).split())
    return line if len(line) <= most and start == text else line[: most - 1] + "…"
