"""What tests of masked models share."""

from __future__ import annotations

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.model import MaskedModel


def masked_model(bundle: Bundle) -> MaskedModel:
    """A bundle's model, which is a masked one."""
    model = bundle.manifest.model
    assert isinstance(model, MaskedModel)
    return model
