"""The first part of ``fewstep demo`` in a clone: the shipped sample's checkpoints → bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.progress import Progress, no_progress

FORM = "adanat"


def export_sample(sample: Path, out: Path, *, progress: Progress = no_progress) -> Bundle:
    """Export a trained sample to ``out/bundle``, in the place of an older one.

    Args:
        sample: folder with ``config.json``, ``weights/{transformer,tokenizer}`` and, if there
            are any, tuned policies ``weights/policy-*`` and ``weights/decoder-small``.
        out: where the bundle goes.
        progress: called as each stage begins.

    Raises:
        CheckpointError: a file of the sample is missing or damaged.
        ExportError: a graph cannot be exported or disagrees with PyTorch.
        OutputError: ``out`` cannot be written.
    """
    command = shlex.join(["fewstep", "demo", "--sample", str(sample), "--out", str(out)])
    files = sample_checkpoints(sample)
    return export(FORM, files, out / "bundle", overwrite=True, command=command, progress=progress)


def sample_checkpoints(sample: Path) -> dict[str, Any]:
    """What to export of a trained sample's folder, with an untrained policy."""
    weights = sample / "weights"
    small = weights / "decoder-small.safetensors"
    return {
        "transformer": weights / "transformer.safetensors",
        "tokenizer": weights / "tokenizer.safetensors",
        "untrained_policy": True,
        "tuned_policy": sorted(weights.glob("policy-*.safetensors")),
        "config": sample / "config.json",
        "encoder": True,
        "small_decoder": small if small.exists() else None,
    }
