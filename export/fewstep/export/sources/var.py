"""VAR: next-scale prediction, with or without AdaGen's policy network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewstep.export.source import Exportable, Option

if TYPE_CHECKING:
    from fewstep.export.config import ExportConfig


class VarSource:
    """Files of the VAR repository, and policies of AdaGen's."""

    name, kind = "var", "var"
    summary = "VAR: next-scale prediction, and AdaGen's policy network if there is one."
    options = (
        Option("transformer", "Transformer checkpoint (var_d16.pth).", required=True),
        Option(
            "tokenizer", "Multi-scale tokenizer checkpoint (vae_ch160v4096z32.pth).", required=True
        ),
        Option("policy", "AdaGen policy checkpoint (var_d16_policy.pth)."),
        Option(
            "untrained_policy",
            "A policy network as its training begins. It follows AdaGen's recipe until fewstep "
            "calibrate policy tunes it.",
            "flag",
        ),
        Option(
            "tuned_policy",
            "What calibrate policy wrote; repeat for more, the newest last.",
            "files",
        ),
    )

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        """Read the models and check that they belong together."""
        from fewstep.export.var import Checkpoints, load

        return load(Checkpoints(**given), config)


SOURCE = VarSource()
