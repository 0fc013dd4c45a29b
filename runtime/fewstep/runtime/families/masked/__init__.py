"""Masked decoding of discrete tokens: MaskGIT, and AdaNAT with its policy network."""

from __future__ import annotations

from fewstep.runtime.families.masked.family import MaskedFamily

FAMILY = MaskedFamily()
