"""A network of your own, given by its parts, and a data set of your own: two kinds of stripes in noise.

python examples/own_network.py
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import blockdrop


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Stripes(Dataset):
    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        stripes = torch.arange(32).remainder(8).lt(4).expand(3, 32, 32)
        return (stripes if index % 2 else stripes.mT) + torch.randn(3, 32, 32), index % 2


head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Sequential(*(Block() for _ in range(6))), head)
dynamic = blockdrop.make_dynamic(model, stem="0", blocks="1", head="2", policy_net="stem", image_size=32)
dynamic, report = blockdrop.train(dynamic, Stripes(), Stripes(), budget=0.6, epochs=2, run_dir="run")
print(report)
dynamic.save("mine.t7")
logits, policy = blockdrop.load("mine.t7", model=model).compile()(Stripes()[0][0][None])
print(f"the first image: class {int(logits.argmax())}, {int(policy.sum())} of {dynamic.num_blocks} blocks")
