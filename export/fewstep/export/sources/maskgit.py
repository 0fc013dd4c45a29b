"""MaskGIT in AdaNAT's files: the same transformer and tokenizer, with fixed schedules.

Every step decides at least one token, as in MaskGIT. A policy network can be added untrained, and
tuned for it.
"""

from __future__ import annotations

from fewstep.export.sources.adanat import FILES, MORE, UViTSource

SOURCE = UViTSource(
    "maskgit",
    "MaskGIT: a masked token transformer with fixed schedules, and a policy if it is tuned here.",
    (*FILES, *MORE),
    needs_policy=False,
    at_least_one=True,
)
