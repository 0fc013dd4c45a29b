"""The logits of the recorded official models in PyTorch, for devices that have no PyTorch.

``tests/cuda/test_official_rollouts.py`` feeds them to the CUDA kernels. Where PyTorch is, it asks
this file; elsewhere it reads ``FILE`` from the folder of bundles that was made in advance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FILE = "official-logits.npz"
ROLLOUTS = ("class", "text-heu0", "text-heu1")
_DATA = Path(__file__).parents[1] / "data"


def write(folder: Path) -> Path:
    """Store the logits of every rollout under its name."""
    path = folder / FILE
    arrays: dict[str, Any] = {name: logits(name) for name in ROLLOUTS}
    np.savez_compressed(path, **arrays)
    return path


def logits(rollout: str) -> Array:
    """``[T, 2B, N, V]`` float32: what the model says of the recorded tokens before every step, with
    the recorded conditions in the first B rows and with none in the others."""
    if rollout == "class":
        data, weights = _recorded("adanat_rollout_class"), _recorded("adanat_uvit_class")
        arguments = json.loads(str(weights["cfg"]))
        condition = data["in/context"].reshape(-1)
        nothing = np.full(2, json.loads(str(data["cfg"]))["empty_ctx"])
        tokens = data["out/masked_ids_in"]
    else:
        data = weights = _recorded("adanat_text")
        arguments = json.loads(str(data["cfg"]))["uvit"]
        condition = data["in/context"]
        nothing = np.broadcast_to(data["in/empty_context"], condition.shape)
        tokens = data[f"out/{rollout.removeprefix('text-')}/masked_ids_in"]
    both = np.concatenate([condition, nothing])
    return _passes(weights, arguments, tokens.astype(np.int32), both)


def _passes(
    weights: dict[str, Array], arguments: dict[str, Any], tokens: Array, condition: Array
) -> Array:
    """Each step is one pass with both conditions."""
    import torch

    from fewstep.export import presets
    from fewstep.export.models import UViT

    state = {
        key.removeprefix("sd/"): torch.from_numpy(value)
        for key, value in weights.items()
        if key.startswith("sd/")
    }
    model = presets.load(UViT, state, Path("recorded.pth"), arguments)
    with torch.no_grad():
        passes = [
            model(torch.from_numpy(np.concatenate([ids, ids])), torch.from_numpy(condition))[0]
            for ids in tokens
        ]
    return np.stack([logits.numpy() for logits in passes])


def _recorded(name: str) -> dict[str, Array]:
    with np.load(_DATA / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
