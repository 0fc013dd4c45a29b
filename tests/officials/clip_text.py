"""CLIP's text encoder as transformers has it: states and vectors of texts, by the PyTorch class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture

from fewstep.export import presets
from fewstep.export.models.clip_text import CLIPTextModelWithProjection

_STATES = ("penultimate", "last_hidden_state")


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of a CLIP text encoder."""
    return "clip" in cfg


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every activation and every rule for the end of a text."""
    state = {key: torch.from_numpy(value) for key, value in fixture.under("sd/").items()}
    ids = torch.from_numpy(fixture["in/ids"].astype(np.int64))
    for name in fixture.runs("/text_embeds"):
        act, _, end = name.rpartition("_")
        said = {**fixture.cfg["clip"], "hidden_act": act, "eos_token_id": int(end)}
        model = presets.load(CLIPTextModelWithProjection, dict(state), Path("clip"), said)
        found = Comparison(f"{act}, end {end} (PyTorch)")
        with torch.no_grad():
            vector, *states = model(ids)
        found.floats("vector", vector.numpy(), fixture[f"out/{name}/text_embeds"])
        for kind, own in zip(_STATES, states, strict=True):
            found.floats(kind, own.numpy(), fixture[f"out/{act}/{kind}"])
        yield found
