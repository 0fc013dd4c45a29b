"""From checkpoints to an artifact for devices, on a machine without a GPU.

    export → pre-flight → engines and kernels → verify on the CPU → hashes and provenance

The artifact folder then holds ``bundle/``, ``verify.md``, ``provenance.json`` and ``SHA256SUMS``.
Every step is left out when its result is there and was made of the same inputs: the export when
the bundle records the same checkpoints and the same fewstep, the engines when
``fewstep build --check`` finds none stale, the rest when nothing has changed since. So the folder
can be cached between runs; ``--print-key`` gives the key to cache it under.

Engines are built here and never run: that takes the GPU that they are for.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.runtime.files import sha256

_CHECKPOINTS = ("transformer", "tokenizer", "policy", "config", "unconditional_text")
_TOOLS = ("fewstep", "torch", "onnx", "onnxruntime", "tensorrt-rtx-cu12", "nvidia-cuda-nvrtc")
_SOURCE = {
    "repository": "GITHUB_REPOSITORY",
    "commit": "GITHUB_SHA",
    "workflow_run": "GITHUB_RUN_ID",
}


@dataclass(frozen=True)
class Recipe:
    """What to make: checkpoints and their SHA-256 by name of the export option; and how."""

    family: str
    untrained_policy: bool
    checkpoints: dict[str, Path]
    hashes: dict[str, str]
    capabilities: tuple[str, ...]
    precision: str
    max_batch: int
    out: Path

    @property
    def bundle(self) -> Path:
        """Where the bundle goes."""
        return self.out / "bundle"

    def options(self) -> dict[str, Any]:
        """Everything else that decides what comes out."""
        return {
            "family": self.family,
            "untrained_policy": self.untrained_policy,
            "compute_capabilities": list(self.capabilities),
            "precision": self.precision,
            "max_batch": self.max_batch,
        }

    def key(self) -> str:
        """Hash of the inputs, the options and the versions of the tools."""
        content = {"inputs": self.hashes, "options": self.options(), "tools": tools()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the artifact, or print its key."""
    given = parser().parse_args(arguments)
    recipe = _recipe(given)
    if given.print_key:
        print(recipe.key())
        return
    if not exported(recipe):
        fewstep(*export_command(recipe))
    build = build_command(recipe)
    if not fewstep(*build, "--check", may_fail=True):
        fewstep(*build, "--preflight")
        fewstep(*build)
        fewstep(*build, "--check")
    if not documented(recipe):
        fewstep(*verify_command(recipe))
        document(recipe)
    print(f"{recipe.out}: bundle, verify.md, provenance.json and SHA256SUMS are up to date")


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    options = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    options.add_argument("--family", required=True, help="as fewstep export takes it")
    options.add_argument("--transformer", type=Path, required=True)
    options.add_argument("--tokenizer", type=Path, required=True)
    options.add_argument("--policy", type=Path)
    options.add_argument("--untrained-policy", action="store_true", help="in its place")
    options.add_argument("--config", type=Path, help="not for published sizes")
    options.add_argument("--unconditional-text", type=Path, help="for text-conditional models")
    options.add_argument("--compute-capability", nargs="+", required=True, metavar="X.Y")
    options.add_argument("--precision", default="fp16", help="default: fp16")
    options.add_argument("--max-batch", type=int, default=8, help="default: 8")
    options.add_argument("--out", type=Path, required=True, help="the artifact folder")
    options.add_argument("--print-key", action="store_true", help="only print the cache key")
    return options


def _recipe(given: argparse.Namespace) -> Recipe:
    paths = {name: getattr(given, name) for name in _CHECKPOINTS}
    checkpoints = {name: path for name, path in paths.items() if path is not None}
    if absent := [str(path) for path in checkpoints.values() if not path.is_file()]:
        sys.exit(f"error: no such file: {', '.join(absent)}")
    return Recipe(
        family=given.family,
        untrained_policy=given.untrained_policy,
        checkpoints=checkpoints,
        hashes={name: sha256(path) for name, path in checkpoints.items()},
        capabilities=tuple(sorted(set(given.compute_capability))),
        precision=given.precision,
        max_batch=given.max_batch,
        out=given.out,
    )


# --- Commands


def export_command(recipe: Recipe) -> list[str]:
    """``fewstep export``, in the place of an older bundle."""
    files = [
        part
        for name, path in recipe.checkpoints.items()
        for part in (f"--{name.replace('_', '-')}", str(path))
    ]
    untrained = ["--untrained-policy"] if recipe.untrained_policy else []
    return ["export", recipe.family, *files, *untrained, "--out", str(recipe.bundle), "--force"]


def build_command(recipe: Recipe) -> list[str]:
    """``fewstep build``: engines for the GPUs, and the CUDA kernels with them."""
    return [
        *("build", str(recipe.bundle), "--backend", "tensorrt-rtx"),
        *("--compute-capability", *recipe.capabilities),
        *("--precision", recipe.precision, "--max-batch", str(recipe.max_batch)),
    ]


def verify_command(recipe: Recipe) -> list[str]:
    """``fewstep verify``: the graphs, in the engines' precision, on ONNX Runtime's CPU."""
    report = str(recipe.out / "verify.md")
    return [
        *("verify", str(recipe.bundle), "--backend", "onnxruntime", "--device", "cpu"),
        *("--precision", verified_precision(recipe), "--report", report),
    ]


def verified_precision(recipe: Recipe) -> str:
    """The engines' precision, or fp32 where ONNX Runtime's CPU cannot run it."""
    return "fp32" if recipe.precision == "bf16" else recipe.precision


def fewstep(*arguments: str, may_fail: bool = False) -> bool:
    """Run a command; whether it succeeded. A failure ends this script unless it may fail."""
    print("$ fewstep", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "fewstep", *arguments], check=False).returncode
    if code != 0 and not may_fail:
        sys.exit(f"error: fewstep {arguments[0]} ended with code {code}")
    return code == 0


# --- What is there already


def exported(recipe: Recipe) -> bool:
    """Whether the bundle was exported of these checkpoints by this fewstep."""
    manifest = _read(recipe.bundle / "bundle.json")
    if manifest is None or manifest["family"] != recipe.family:
        return False
    made = manifest["provenance"]
    hashes = {name: each["sha256"] for name, each in made["checkpoints"].items()}
    policy = manifest["model"]["policies"].get("policy")
    untrained = policy is not None and policy.get("untrained_seed") is not None
    return (
        hashes == recipe.hashes
        and untrained == recipe.untrained_policy
        and made["tools"]["fewstep"] == tools()["fewstep"]
        and _intact(recipe, manifest)
    )


def _intact(recipe: Recipe, manifest: dict[str, Any]) -> bool:
    """Whether what the export wrote is there as it was; the rest is for ``fewstep build``."""
    graphs = manifest["graphs"].values()
    files = [file for graph in graphs for file in (graph["file"], *graph["external"])]
    wanted = [*files, manifest["golden"]]
    paths = {name: recipe.bundle / name for name in wanted}
    return all(
        path.is_file() and sha256(path) == manifest["files"][name]["sha256"]
        for name, path in paths.items()
    )


def documented(recipe: Recipe) -> bool:
    """Whether this very bundle was verified and described, and no file has changed since."""
    provenance = _read(recipe.out / "provenance.json")
    return (
        provenance is not None
        and provenance["key"] == recipe.key()
        and _sums(recipe) == _text(recipe.out / "SHA256SUMS")
    )


# --- Provenance


def document(recipe: Recipe) -> None:
    """Write ``provenance.json``, then the hashes of everything."""
    damaged = [
        name
        for name, file in _manifest(recipe)["files"].items()
        if sha256(recipe.bundle / name) != file["sha256"]
    ]
    if damaged:
        sys.exit(f"error: {', '.join(damaged)}: not what bundle.json says")
    text = json.dumps(provenance(recipe), indent=2) + "\n"
    (recipe.out / "provenance.json").write_text(text, encoding="utf-8")
    (recipe.out / "SHA256SUMS").write_text(_sums(recipe), encoding="utf-8")


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Where the bundle came from and what was done with it."""
    manifest = _manifest(recipe)
    return {
        "key": recipe.key(),
        "bundle": {"name": manifest["name"], "sha256": sha256(recipe.bundle / "bundle.json")},
        "source": {what: os.environ[name] for what, name in _SOURCE.items() if name in os.environ},
        "inputs": manifest["provenance"]["checkpoints"],
        "options": recipe.options(),
        "tools": tools(),
        "export": manifest["provenance"],
        "engines": manifest["engines"],
        "kernels": manifest["kernels"],
        "verified": {
            "what": "the ONNX graphs; engines were built and not run",
            "backend": "onnxruntime",
            "device": "cpu",
            "precision": verified_precision(recipe),
        },
    }


def tools() -> dict[str, str | None]:
    """Versions of what makes the artifact."""
    return {name: _version(name) for name in _TOOLS}


def _sums(recipe: Recipe) -> str:
    """A line for every file of the artifact, as ``sha256sum --check`` reads them."""
    beside = (recipe.out / name for name in ("provenance.json", "verify.md"))
    files = [path for path in (*recipe.bundle.rglob("*"), *beside) if path.is_file()]
    return "".join(
        f"{sha256(path)}  {path.relative_to(recipe.out).as_posix()}\n" for path in sorted(files)
    )


def _manifest(recipe: Recipe) -> dict[str, Any]:
    manifest = _read(recipe.bundle / "bundle.json")
    if manifest is None:
        sys.exit(f"error: {recipe.bundle} holds no bundle")
    return manifest


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file, or ``None`` where there is none, or only half of one."""
    try:
        found: dict[str, Any] = json.loads(_text(path) or "")
    except json.JSONDecodeError:
        return None
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
