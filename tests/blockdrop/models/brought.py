"""Small networks of residual blocks, as people write them: on maps with downsampling between stages, on tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.conftest import randomise_statistics


class MapBlock(nn.Module):
    """y = x + F(x) on maps (N, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


class TokenBlock(nn.Module):
    """y = x + F(x) on tokens (N, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


class Pooled(nn.Module):
    """Logits of maps (N, C, H, W)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class ToTokens(nn.Module):
    """images to tokens (N, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images).flatten(2).movedim(1, 2)


class FirstToken(nn.Module):
    """Logits of tokens (N, T, C)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, 0])


class MapNet(nn.Module):
    """Two stages of two blocks and one block, a convolution of stride 2 between them, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.first = nn.Sequential(MapBlock(6), MapBlock(6))
        self.down = nn.Conv2d(6, 10, 2, 2)
        self.second = nn.Sequential(MapBlock(10))
        self.head = Pooled(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.down(self.first(self.stem(images)))))


class TokenNet(nn.Module):
    """Three blocks on tokens, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ToTokens(8)
        self.blocks = nn.ModuleList(TokenBlock(8) for _ in range(3))
        self.head = FirstToken(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BY_NAME: dict[type[nn.Module], dict[str, Any]] = {
    MapNet: {"stem": "stem", "blocks": ["first", "second"], "transitions": [None, "down"], "head": "head"},
    TokenNet: {"stem": "stem", "blocks": "blocks", "head": "head"},
}
"""Their parts, as `convert` takes them."""


def make(kind: type[nn.Module]) -> nn.Module:
    """In eval mode, with weights and statistics that matter."""
    net = kind()
    randomise_statistics(net)
    return net.eval()


def images_of(count: int = 5, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size)
