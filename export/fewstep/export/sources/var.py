"""VAR: next-scale prediction, with or without AdaGen's policy network."""

from __future__ import annotations

from fewstep.export.source import IMAGE_ENCODER, FilesSource, Option

SOURCE = FilesSource(
    "var",
    "var",
    "var",
    "VAR: next-scale prediction, and AdaGen's policy network if there is one.",
    (
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
        IMAGE_ENCODER,
    ),
)
