"""Masked autoregression over continuous tokens, each drawn by a diffusion head: MAR."""

from __future__ import annotations

from fewstep.runtime.families.mar.family import MarFamily

FAMILY = MarFamily()
