"""Files of the Hugging Face Hub: ``hf://owner/repo/path/file[@revision]``.

``huggingface_hub`` fetches them: with its cache, its token, its offline mode and its environment
variables (``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fewstep import __version__
from fewstep.runtime.errors import CheckpointError, missing

SCHEME = "hf://"
_FORM = f"{SCHEME}OWNER/REPO/PATH/FILE[@REVISION]"
_LONGEST = 300  # characters of a message of the library
_WEB = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/([^?#]+)")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class HubFile:
    """A file or folder of a repository; ``revision``: a branch, a tag or a commit."""

    repo: str
    path: str
    revision: str = "main"

    def __str__(self) -> str:
        place = f"{self.repo}/{self.path}" if self.path else self.repo
        return f"{SCHEME}{place}@{self.revision}"


def is_address(place: Path | str) -> bool:
    """Whether it is an address of whatever kind, not a path."""
    return isinstance(place, str) and _URL.match(place) is not None


def parse(address: str) -> HubFile:
    """A file's address: ``hf://owner/repo/file@revision``, ``hf://owner/repo@revision/file``, or
    what a browser shows, ``https://huggingface.co/owner/repo/resolve/revision/file``.

    Raises:
        CheckpointError: something else.
    """
    if web := _WEB.fullmatch(address.partition("?")[0]):
        return HubFile(web[1], web[3], web[2])
    if not address.startswith(SCHEME):
        raise CheckpointError(
            f"{address} cannot be fetched: expected {_FORM}; download the file and pass its path"
        )
    body, _, revision = address.removeprefix(SCHEME).rpartition("@")
    if not body:
        body, revision = revision, "main"
    elif body.count("/") == 1:  # owner/repo@revision/file
        revision, _, rest = revision.partition("/")
        body = f"{body}/{rest}"
    owner, _, rest = body.partition("/")
    repo, _, path = rest.partition("/")
    if not (owner and repo and path and revision) or path.endswith("/") or ".." in path.split("/"):
        raise CheckpointError(f"{address} is no file of the Hub; expected {_FORM}")
    return HubFile(f"{owner}/{repo}", path, revision)


def fetch(file: HubFile, *, bars: bool = False) -> Path:
    """The file's path in huggingface_hub's cache, downloaded unless it is there.

    Raises:
        CheckpointError: no such file, no access, no network, or not cached while offline.
        MissingDependencyError: huggingface_hub is not installed.
    """
    require_library()
    from huggingface_hub import hf_hub_download

    with quiet(bars):
        try:
            path = hf_hub_download(
                file.repo,
                file.path,
                revision=file.revision,
                library_name="fewstep",
                library_version=__version__,
            )
        except Exception as error:  # of the Hub, HTTP, the disk, or whatever carries the bytes
            raise CheckpointError(problem(file, error)) from error
    return Path(path)


def require_library() -> None:
    """Make sure, before it is imported, that huggingface_hub is there and tells nobody of its use.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise missing("huggingface_hub", "export")
    # Read when the library is imported. Without it every request says which tools are in use.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextlib.contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Without the library's warnings of each attempt, the last of which is raised, and its bars.

    What the user set of the bars stands.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as messages
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    verbosity = messages.get_verbosity()
    of_user = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    hide = not (bars or of_user or are_progress_bars_disabled())
    messages.set_verbosity(logging.ERROR)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if hide:
            enable_progress_bars()


def problem(file: HubFile, error: Exception, what: str = "file", form: str = _FORM) -> str:
    """What kept a file or a folder from being fetched, and what to do next; ``form``: of
    addresses."""
    from huggingface_hub import constants, errors

    repo, shown = f"{constants.ENDPOINT}/{file.repo}", str(file)
    log_in = "log in with: hf auth login, or set HF_TOKEN"
    known: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"access is gated; ask for it at {repo}, then {log_in}"),
        (
            errors.RepositoryNotFoundError,
            f"{constants.ENDPOINT} has no such repository, or a private one; check the name, or "
            f"{log_in}",
        ),
        (errors.RevisionNotFoundError, f"no such revision; see {repo}/tree/main for those it has"),
        (errors.LocalEntryNotFoundError, _not_cached(error, what)),
        (errors.EntryNotFoundError, f"no such {what}; see {repo}/tree/{file.revision}"),
        (errors.HFValidationError, f"that is no name of a repository; expected {form}"),
    ]
    for kind, text in known:
        if isinstance(error, kind):
            return f"{shown} cannot be fetched: {text}"
    if isinstance(error, OSError) and error.errno is not None:
        return (
            f"{shown} cannot be kept in {constants.HF_HUB_CACHE}: {error.strerror}; "
            "set HF_HOME to a folder with room, or pass the path of a copy"
        )
    return (
        f"{shown} cannot be fetched: {_short(error)}; try again, or download it by hand from "
        f"{repo}/tree/{file.revision} and pass its path"
    )


def _not_cached(error: Exception, what: str) -> str:
    from huggingface_hub import constants

    place = f"the cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        return (
            f"HF_HUB_OFFLINE is set and the {what} is not in {place}; fetch it once without, or "
            "pass the path of a copy"
        )
    reason = f" ({_short(error.__cause__)})" if error.__cause__ is not None else ""
    return (
        f"{constants.ENDPOINT} does not answer{reason} and the {what} is not in {place}; check the "
        "network, or pass the path of a copy"
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
