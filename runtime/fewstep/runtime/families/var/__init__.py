"""Next-scale prediction: VAR, and AdaGen's policies for it."""

from __future__ import annotations

from fewstep.runtime.families.var.family import VarFamily

FAMILY = VarFamily()
