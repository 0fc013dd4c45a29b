"""MAR: masked autoregression over continuous tokens, with a diffusion head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewstep.export.source import Exportable, Option

if TYPE_CHECKING:
    from fewstep.export.config import ExportConfig


class MarSource:
    """Files of the MAR repository."""

    name, kind = "mar", "mar"
    summary = "MAR: masked autoregression over continuous tokens, with a diffusion head."
    options = (
        Option(
            "transformer",
            "Transformer checkpoint, with its diffusion head (mar_base/checkpoint-last.pth).",
            required=True,
        ),
        Option("tokenizer", "KL autoencoder checkpoint (kl16.ckpt).", required=True),
    )

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        """Read the models and check that they belong together."""
        from fewstep.export.mar import Checkpoints, load

        return load(Checkpoints(**given), config)


SOURCE = MarSource()
