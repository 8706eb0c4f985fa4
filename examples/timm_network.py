"""A timm network, and DataLoaders with a sampler and worker processes of their own.

python examples/timm_network.py PHOTOS [NETWORK]

PHOTOS holds train/<class>/… and test/<class>/… (without it, a small ResNet sees noise); NETWORK is timm's name.
"""

import sys

import timm
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision.datasets import FakeData, ImageFolder

import blockdrop


def main(photos: str | None = None, network: str = "resnet50d") -> None:
    classes = len(ImageFolder(f"{photos}/train").classes) if photos else 4
    size, epochs = (224, 30) if photos else (32, 1)
    model = timm.create_model(network if photos else "resnet18", pretrained=bool(photos), num_classes=classes)
    dynamic = blockdrop.make_dynamic(model, policy_net="stem", image_size=size)
    if photos:
        train, test = (ImageFolder(f"{photos}/{part}", dynamic.transform) for part in ("train", "test"))
    else:
        train, test = (FakeData(count, (3, size, size), classes, dynamic.transform) for count in (32, 16))
    labels = torch.tensor(train.targets if photos else [int(label) for _, label in train])
    weights = 1 / labels.bincount(minlength=classes)[labels]  # rare classes as often as others
    train_loader = DataLoader(train, 16, sampler=WeightedRandomSampler(weights, len(train)), num_workers=2)
    test_loader = DataLoader(test, 16, num_workers=2)
    dynamic, report = blockdrop.train(dynamic, train_loader, test_loader, budget=0.6, epochs=epochs, run_dir="run")
    print(report)
    dynamic.save("mine.t7")
    logits, policy = blockdrop.load("mine.t7", model=model).compile()(next(iter(test_loader))[0])
    print(f"{len(logits)} images, {policy.double().mean():.0%} of their blocks ran")


if __name__ == "__main__":  # worker processes may import this file
    main(*sys.argv[1:])
