"""Dynamic-inference residual networks: a policy network decides, image by image, which blocks to run."""

from typing import TYPE_CHECKING

from blockdrop.lazy import lazy_names

if TYPE_CHECKING:
    from blockdrop import data
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.errors import BlockdropError
    from blockdrop.flops import flops_per_image
    from blockdrop.inference.executor import compile
    from blockdrop.loading import load, make_dynamic
    from blockdrop.models.checkpoints.filling import load_checkpoint, load_network
    from blockdrop.models.checkpoints.places import pretrained
    from blockdrop.models.checkpoints.saving import save_checkpoint
    from blockdrop.models.conversion import from_torchvision
    from blockdrop.models.plain import remove_shortcuts
    from blockdrop.models.resnet import DroppableResNet
    from blockdrop.models.specs import Variant
    from blockdrop.models.zoo import build, build_static
    from blockdrop.report.table import Report
    from blockdrop.reporting import evaluate
    from blockdrop.train import train
    from blockdrop.version import __version__
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "data": (),
            "dynamic": ("DynamicNetwork",),
            "errors": ("BlockdropError",),
            "evaluate": (),
            "train": (),
            "flops": ("flops_per_image",),
            "inference.executor": ("compile",),
            "loading": ("load", "make_dynamic"),
            "models.checkpoints.filling": ("load_checkpoint", "load_network"),
            "models.checkpoints.places": ("pretrained",),
            "models.checkpoints.saving": ("save_checkpoint",),
            "models.plain": ("remove_shortcuts",),
            "models.conversion": ("from_torchvision",),
            "models.resnet": ("DroppableResNet",),
            "models.specs": ("Variant",),
            "models.zoo": ("build", "build_static"),
            "report.table": ("Report",),
            "version": ("__version__",),
        },
    )

__all__ = [
    "BlockdropError",
    "DroppableResNet",
    "DynamicNetwork",
    "Report",
    "Variant",
    "__version__",
    "build",
    "build_static",
    "compile",
    "data",
    "evaluate",
    "flops_per_image",
    "from_torchvision",
    "load",
    "load_checkpoint",
    "load_network",
    "make_dynamic",
    "pretrained",
    "remove_shortcuts",
    "save_checkpoint",
    "train",
]
