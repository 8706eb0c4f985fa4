"""Dynamic-inference residual networks: a policy network decides, image by image, which blocks to run."""

from blockdrop.flops import flops_per_image
from blockdrop.inference.executor import compile
from blockdrop.models.checkpoints import load_checkpoint, load_network, save_checkpoint
from blockdrop.models.conversion import from_torchvision
from blockdrop.models.plain import remove_shortcuts
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.zoo import Variant, build, build_static

__all__ = [
    "DroppableResNet",
    "Variant",
    "build",
    "build_static",
    "compile",
    "flops_per_image",
    "from_torchvision",
    "load_checkpoint",
    "load_network",
    "remove_shortcuts",
    "save_checkpoint",
]
