"""The graph that turns pictures into what a model decodes them from, for editing."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.source import Graph
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families import ModelInfo

_COARSE = 8  # pixels of the example, enlarged: a tokenizer's latents of noise are like no picture's


class Codes(nn.Module):
    """Image ``[B, 3, H, W]`` in 0 … 1 → ids ``[B, N]`` int32, by a tokenizer's ``encode``."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image: Tensor) -> Tensor:
        ids: Tensor = self.tokenizer.encode(image)  # type: ignore[operator]
        return ids.int()


def encoder_graphs(info: ModelInfo, module: nn.Module) -> dict[str, Graph]:
    """The graph by its name, of an editable model; none of another.

    Args:
        info: of the model.
        module: image ``[B, 3, H, W]`` in 0 … 1 → what the manifest says of the graph's output.

    Raises:
        CheckpointError: it gives another number of tokens, or takes images of another size.
    """
    if not info.editable:
        return {}
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, _COARSE, _COARSE, generator=random)
    image = F.interpolate(coarse, info.image_size, mode="bilinear")
    wanted = list(info.tensor_shapes()[ENCODER, "tokens"][1:])
    try:
        with torch.no_grad():
            found = list(cast(Tensor, module.eval()(image[:1])).shape[1:])
    except RuntimeError as error:  # of sizes that do not fit
        height, width = info.image_size
        raise CheckpointError(
            f"the tokenizer's encoder takes no images of {height}×{width} pixels, which its "
            "decoder gives: leave --encoder out"
        ) from error
    if found != wanted:
        raise CheckpointError(
            f"the tokenizer's encoder gives tokens {found} of an image, and its decoder reads "
            f"{wanted}: leave --encoder out"
        )
    return {ENCODER: Graph(module, {"image": image}, ("tokens",))}
