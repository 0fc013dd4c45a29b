"""PyTorch definitions of the supported models, with the official state-dict keys."""

from fewstep.export.models.policy import FixedPolicy, PolicyNet
from fewstep.export.models.uvit import UViT
from fewstep.export.models.vqgan import VQModel

__all__ = ["FixedPolicy", "PolicyNet", "UViT", "VQModel"]
