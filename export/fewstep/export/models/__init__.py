"""PyTorch definitions of the supported models, with the official state-dict keys."""

from fewstep.export.models.policy import PolicyNet
from fewstep.export.models.uvit import UViT
from fewstep.export.models.vqgan import VQModel

__all__ = ["PolicyNet", "UViT", "VQModel"]
