"""Recordings of official implementations, replayed through bundles exported from their weights.

    python tests/official.py FILE…

A file is a recording as ``tests/data/README.md`` describes; what it builds on is looked up beside
it, then in ``tests/data``. Its weights are exported as ``fewstep export`` does, and every recorded
run is replayed through the bundle's engines (ONNX Runtime): a line a run, with the largest error
of each stage, and whether all ids are as recorded. The exit code is the verdict: 0 if everything
is as recorded, 1 if something differs, 2 for a file that nobody here can replay.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # not this folder, whose names are those of others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fewstep.runtime.errors import FewstepError
from tests.officials import amused, clip_text, halton, mar, masked, maskgit_torch, one_d, var, vqgan
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, UnusableError

FINE, DIFFERENT, UNUSABLE = 0, 1, 2


class _Kind(NamedTuple):
    """A kind of recording, and how it is replayed."""

    knows: Callable[[Mapping[str, Any]], bool]
    replays: Callable[[Fixture, Path], Iterator[Comparison]]


_MODULES = (masked, vqgan, var, mar, halton, one_d, maskgit_torch, amused, clip_text)
KINDS = tuple(_Kind(each.knows, each.replays) for each in _MODULES)


def check(path: Path) -> Iterator[Comparison]:
    """Replay a recording, run by run.

    Raises:
        UnusableError: it cannot be read, or nobody here can replay it.
        FewstepError: a form refuses its weights.
    """
    fixture = Fixture.read(path)
    kind = next((each for each in KINDS if each.knows(fixture.cfg)), None)
    if kind is None:
        said = ", ".join(sorted(fixture.cfg)) or "nothing"
        raise UnusableError(f"is of no known kind, its cfg has {said}")
    count = 0
    with tempfile.TemporaryDirectory(prefix="official-") as folder:
        for found in kind.replays(fixture, Path(folder)):
            count += 1
            yield found
    if not count:
        raise UnusableError("has no recorded run")


def verdict(path: Path) -> int:
    """Print a line for every run of a recording, and return what the exit code says of it."""
    code = FINE
    try:
        for found in check(path):
            print(f"{'ok  ' if found.fine else 'FAIL'} {path.stem}, {found.line()}", flush=True)
            code = code if found.fine else DIFFERENT
    except UnusableError as error:
        print(f"{path} {error}", file=sys.stderr)
        return UNUSABLE
    except FewstepError as error:
        print(f"FAIL {path.stem}: {error}", flush=True)
        return DIFFERENT
    return code


def main(arguments: Sequence[str]) -> int:
    """Check files, and return the exit code: the worst of theirs."""
    if not arguments or any(each.startswith("-") for each in arguments):
        print("usage: python tests/official.py FILE…", file=sys.stderr)
        return UNUSABLE
    warnings.filterwarnings("ignore")  # of torch's exporter, for whoever maintains it
    return max([verdict(Path(each)) for each in arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
