"""AdaGen's MaskGIT: AdaNAT's networks, and a policy whose actions are smoothed over the steps."""

from __future__ import annotations

from fewstep.export.source import Option
from fewstep.export.sources.adanat import FILES, MORE, UViTSource

SOURCE = UViTSource(
    "adagen",
    "AdaGen's MaskGIT: a masked token transformer with its policy network for 16 steps.",
    (*FILES, Option("policy", "AdaGen policy checkpoint (maskgit_policy.pth)."), *MORE),
    needs_policy=True,
    at_least_one=False,
    adagen=True,
)
