"""Bundles that many tests share: exported once, and again when what they are made of has changed.

    python -m tests.exported NAME FOLDER    # FOLDER/bundle, and what it was made of

They are kept in the cache. What went into an export is seen rather than declared: the modules of
this repository that a process has loaded by the end of it, the sample's files, and the versions of
the tools. Importing this needs no PyTorch, nor does a bundle that is in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.cache import cache_folder, fill, key_of, locked, remove_oldest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = (
    *("tiny", "tiny-cached", "tiny-text", "tiny-wide", "tiny-amused", "tiny-var", "tiny-mar"),
    *("toy", "sample"),
)
"""Class-conditional with a policy; the same with cached context and an image encoder;
text-conditional without; with a wider decoder; aMUSEd with its text encoder; VAR with a policy and
an image encoder; MAR with an image encoder; the family that lives in the tests; and the trained
Fashion sample."""

_SAMPLE = ROOT / "samples" / "fashion"
_FOLDERS = tuple(ROOT / name for name in ("export", "runtime", "calibration", "tests"))
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "numba")
_SOURCES = "sources.json"

Sources = dict[str, str]


def copy_of(name: str, target: Path) -> Path:
    """Copy a bundle of ``BUNDLES`` to ``target``, which does not exist yet.

    Raises:
        CalledProcessError: it has to be exported, and that fails; stderr says why.
    """
    kept = cache_folder() / "test-bundles" / name
    with locked(kept):
        entry = next((each for each in kept.glob("?" * 16) if _is_current(each)), None)
        if entry is None:
            entry = fill(
                kept,
                lambda folder: _start(name, folder),
                lambda folder: key_of([(folder / _SOURCES).read_bytes()]),
            )
            remove_oldest(kept.glob("?" * 16))
        os.utime(entry)
        return Path(shutil.copytree(entry / "bundle", target))


def _start(name: str, folder: Path) -> None:
    """Export in a process of its own, which has loaded nothing else."""
    paths = os.pathsep.join(map(str, (ROOT, *_FOLDERS)))
    command = [sys.executable, "-m", "tests.exported", name, str(folder)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT, check=True)


def _export(name: str, folder: Path) -> None:
    from fewstep.export import flow
    from fewstep.export.demo import sample_checkpoints
    from tests import tiny, tiny_amused, tiny_mar, tiny_var
    from tests.toy.source import export_toy

    bundle = folder / "bundle"
    with tempfile.TemporaryDirectory() as checkpoints:
        work = Path(checkpoints)
        if name == "tiny":
            tiny.export(tiny.checkpoints(work), bundle)
        elif name == "tiny-cached":
            more = {"cached_context": True, "encoder": True}
            tiny.export(tiny.checkpoints(work) | more, bundle)
        elif name == "tiny-text":
            tiny.export_text(tiny.text_checkpoints(work), bundle)
        elif name == "tiny-wide":
            tiny.export_text(tiny.wide_checkpoints(work), bundle)
        elif name == "tiny-amused":
            folder_of = {"folder": tiny_amused.write_amused(work / name)}
            flow.export("amused", folder_of, bundle, command="pytest")
        elif name == "tiny-var":
            tiny_var.export(tiny_var.checkpoints(work), bundle)
        elif name == "tiny-mar":
            tiny_mar.export(tiny_mar.checkpoints(work), bundle)
        elif name == "toy":
            export_toy(work / "toy.pt", bundle)
        else:
            flow.export("adanat", sample_checkpoints(_SAMPLE), bundle, command="pytest")
    files = _loaded()
    if name == "sample":
        files += [_SAMPLE / "config.json", *(_SAMPLE / "weights").iterdir()]
    sources = _tools() | {str(file.relative_to(ROOT)): _digest(file) for file in files}
    (folder / _SOURCES).write_text(json.dumps(sources, indent=1, sort_keys=True))


def _loaded() -> list[Path]:
    """The files of this repository's modules that this process has loaded."""
    modules = [getattr(module, "__file__", None) for module in sys.modules.values()]
    files = [Path(file).resolve() for file in modules if file]
    return [file for file in files if any(file.is_relative_to(each) for each in _FOLDERS)]


def _tools() -> Sources:
    python = "{}.{}".format(*sys.version_info)
    return {"Python": python} | {name: version(name) for name in _TOOLS}


def _is_current(entry: Path) -> bool:
    """Whether all that an export was made of is still the same."""
    sources: Sources = json.loads((entry / _SOURCES).read_text())
    tools = _tools()
    files = sources.keys() - tools.keys()
    return sources == tools | {file: _digest(ROOT / file) for file in files}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "absent"


if __name__ == "__main__":
    _export(sys.argv[1], Path(sys.argv[2]))
