"""The toy's published form: a state dict of three small modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tests.toy.family import SCALES, ToyFamily, ToyModel
from torch import Tensor, nn

from fewstep.export import flow, source
from fewstep.export.checkpoint import read
from fewstep.export.config import ExportConfig
from fewstep.export.layout import load_into
from fewstep.export.source import Exportable, Graph, Option
from fewstep.runtime import families
from fewstep.runtime.condition import ClassCondition

CODES, WIDTH, CLASSES, SIDE = 24, 64, 3, 8


class Trunk(nn.Module):
    """Logits of some positions from their codes, the class, and the mean of all up to now."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.classes = nn.Embedding(CODES + 1, WIDTH), nn.Embedding(CLASSES + 1, WIDTH)
        self.norm, self.entry = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CODES)

    def forward(self, codes: Tensor, condition: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.codes(codes) + self.classes(condition)[:, None]
        present = self.entry(self.norm(hidden)).transpose(0, 1)
        seen = torch.cat([past, present]).mean(0)[:, None]
        return self.head(torch.tanh(self.mix(hidden + seen))), present


class Grow(nn.Module):
    """The one token of the first scale at the four positions of the second."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.repeat(1, SCALES[1])


class Decoder(nn.Module):
    """A patch of the image for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.patch = nn.Embedding(CODES, WIDTH), nn.Linear(WIDTH, 3 * (SIDE // 2) ** 2)

    def forward(self, tokens: Tensor) -> Tensor:
        patches = torch.sigmoid(self.patch(self.codes(tokens)))  # [B, 4, 3·16]
        rows = patches.reshape(-1, 2, 2, 3, SIDE // 2, SIDE // 2).permute(0, 3, 1, 4, 2, 5)
        return rows.reshape(-1, 3, SIDE, SIDE)


class Toy(nn.Module):
    """All of it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.grow, self.decoder = Trunk(), Grow(), Decoder()


def write_checkpoint(path: Path) -> Path:
    """Random weights, always the same, whose logits prefer some tokens clearly."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model = Toy()
    with torch.no_grad():
        model.trunk.head.weight.mul_(8)
    torch.save(model.state_dict(), path)
    return path


class ToySource:
    """``fewstep export toy --weights FILE``."""

    name, kind, summary = "toy", "toy", "Two scales of tokens."
    options = (Option("weights", "State dict of the toy.", required=True),)

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        path = given["weights"]
        model = Toy()
        load_into(model, read(path), path)
        random = torch.Generator().manual_seed(0)

        def ids(most: int, *shape: int) -> Tensor:
            return torch.randint(most, shape, generator=random, dtype=torch.int32)

        trunk = {"codes": ids(CODES, 2, 4), "condition": ids(CLASSES, 2)}
        trunk["past"] = torch.randn((3, 2, WIDTH), generator=random)
        dynamic = {"codes": {0: "batch", 1: "new"}, "condition": {0: "batch"}}
        dynamic["past"] = {0: "past", 1: "batch"}
        return Exportable(
            name="toy",
            model=ToyModel(
                image_size=(SIDE, SIDE),
                condition=ClassCondition(num_classes=CLASSES, unconditional_id=CLASSES),
                codes=CODES,
                width=WIDTH,
            ),
            graphs={
                "trunk": Graph(model.trunk, trunk, ("logits", "present"), dynamic),
                "grow": Graph(model.grow, {"tokens": ids(CODES, 2, 1)}, ("codes",)),
                "decoder": Graph(model.decoder, {"tokens": ids(CODES, 2, 4)}, ("image",)),
            },
            checkpoints={"weights": path},
        )


def export_toy(checkpoint: Path, out: Path) -> Path:
    """Make the toy known, write its weights, and export them; returns the bundle's folder."""
    families.register(ToyFamily())
    source.register(ToySource())
    return flow.export("toy", {"weights": write_checkpoint(checkpoint)}, out).path
