"""Folders of the Hugging Face Hub: ``hf://owner/repo[/folder][@revision]``.

Only what an export reads is fetched: JSON and text files, and weights as safetensors, or as .bin
where a network has no others. Copies in other precisions and for other libraries are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from fewstep import __version__
from fewstep.export.hub import SCHEME, HubFile, problem, quiet, require_library
from fewstep.runtime.errors import CheckpointError

_FORM = f"{SCHEME}OWNER/REPO[/FOLDER][@REVISION]"
_WEB = re.compile(r"https?://huggingface\.co/([^/]+/[^/?#]+)(?:/tree/([^/?#]+)(?:/([^?#]*))?)?/?")
_READ = ("*.json", "*.txt", "*.safetensors")
_LEFT = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "*open_clip_*", "*.onnx.json")


def parse(address: str) -> HubFile:
    """A folder's address: ``hf://owner/repo/folder@revision``, ``hf://owner/repo@revision/folder``,
    or what a browser shows, ``https://huggingface.co/owner/repo/tree/revision/folder``.

    Raises:
        CheckpointError: something else.
    """
    if web := _WEB.fullmatch(address.partition("?")[0]):
        return HubFile(web[1], (web[3] or "").rstrip("/"), web[2] or "main")
    if not address.startswith(SCHEME):
        raise CheckpointError(
            f"{address} cannot be fetched: expected {_FORM}; download the folder and pass its path"
        )
    body, at, revision = address.removeprefix(SCHEME).partition("@")
    if body.count("/") == 1 and not revision.startswith("refs/"):  # owner/repo@revision/folder
        revision, _, rest = revision.partition("/")
        body = f"{body}/{rest}"
    owner, _, rest = body.partition("/")
    repo, _, path = rest.partition("/")
    path = path.rstrip("/")
    if not (owner and repo) or (at and not revision) or ".." in path.split("/"):
        raise CheckpointError(f"{address} is no folder of the Hub; expected {_FORM}")
    return HubFile(f"{owner}/{repo}", path, revision or "main")


def fetch(folder: HubFile, *, bars: bool = False) -> Path:
    """The folder's path in huggingface_hub's cache, with what an export reads of it.

    Args:
        folder: its repository, its path there (empty for all of it), and the revision.
        bars: show huggingface_hub's progress bars on stderr.

    Raises:
        CheckpointError: no such folder, no access, no network, or not cached while offline.
        MissingDependencyError: huggingface_hub is not installed.
    """
    require_library()
    inside = f"{folder.path}/" if folder.path else ""
    root = _snapshot(folder, [inside + each for each in _READ], bars)
    place = root / folder.path
    without = [each for each in _networks(place) if not list(each.glob("*.safetensors"))]
    if without:
        names = [each.relative_to(root).as_posix() for each in without]
        _snapshot(folder, ["*.bin" if n == "." else f"{n}/*.bin" for n in names], bars)
    if not place.is_dir() or not any(place.iterdir()):
        what = "such folder" if folder.path else "file that an export reads"
        raise CheckpointError(
            f"{folder} cannot be fetched: the repository has no {what}; see "
            f"https://huggingface.co/{folder.repo}/tree/{folder.revision}"
        )
    return place


def _networks(folder: Path) -> list[Path]:
    """The folders in one that a network was saved to."""
    return sorted(path.parent for path in folder.rglob("config.json")) if folder.is_dir() else []


def _snapshot(folder: HubFile, patterns: list[str], bars: bool) -> Path:
    from huggingface_hub import snapshot_download

    with quiet(bars):
        try:
            path = snapshot_download(
                folder.repo,
                revision=folder.revision,
                allow_patterns=patterns,
                ignore_patterns=list(_LEFT),
                library_name="fewstep",
                library_version=__version__,
            )
        except Exception as error:  # of the Hub, HTTP, the disk, or whatever carries the bytes
            raise CheckpointError(problem(folder, error, "folder", _FORM)) from error
    return Path(path)
