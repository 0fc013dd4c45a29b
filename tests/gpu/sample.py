"""Exports the Fashion sample into a folder of bundles, where there is PyTorch.

    python tests/gpu/sample.py FOLDER

It gets the kernels of the bundle ``tiny`` beside it, so no compiler is needed, and fp16 graphs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fewstep.build.variants import add_variant
from fewstep.export import flow
from fewstep.export.demo import sample_checkpoints
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.kernels.compile import CompiledKernels
from fewstep.runtime.kernels.cubins import add_kernels

ROOT = Path(__file__).resolve().parents[2]


def export(folder: Path) -> Path:
    """Export it to ``FOLDER/sample``."""
    checkpoints = sample_checkpoints(ROOT / "samples" / "fashion")
    bundle = flow.export("adanat", checkpoints, folder / "sample", command="pytest")
    add_variant(add_kernels(bundle, _kernels(Bundle.read(folder / "tiny"))), "fp16")
    return bundle.path


def _kernels(bundle: Bundle) -> CompiledKernels:
    info = bundle.manifest.kernels
    assert info is not None, f"{bundle.path} has no kernels"
    cubins = {name: bundle.verified(file).read_bytes() for name, file in info.cubins.items()}
    return CompiledKernels(cubins, info.compiler, info.sources_sha256, ())


if __name__ == "__main__":
    export(Path(sys.argv[1]))
