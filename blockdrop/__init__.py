"""Dynamic-inference residual networks: a policy network decides, image by image, which blocks to run."""

from blockdrop.flops import flops_per_image
from blockdrop.inference.executor import compile
from blockdrop.models.checkpoints import load_checkpoint, save_checkpoint
from blockdrop.models.resnet import DroppableResNet, from_torchvision
from blockdrop.models.zoo import build

__all__ = [
    "DroppableResNet",
    "build",
    "compile",
    "flops_per_image",
    "from_torchvision",
    "load_checkpoint",
    "save_checkpoint",
]
