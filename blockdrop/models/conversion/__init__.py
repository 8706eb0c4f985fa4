"""Networks that people bring, made droppable: torchvision's, timm's, and any that is given by its parts."""

from blockdrop.models.conversion.convert import Origin, convert, convert_like
from blockdrop.models.conversion.facts import num_classes_of, preprocessing_of
from blockdrop.models.conversion.resnets import from_torchvision

__all__ = [
    "Origin",
    "convert",
    "convert_like",
    "from_torchvision",
    "num_classes_of",
    "preprocessing_of",
]
