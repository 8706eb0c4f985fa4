"""Policies that never look at the image: what a learned one has to beat.

FirstK, RandomK and DistK are those of Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

KINDS = ("full", "first_k", "random_k", "dist_k")
LARGEST_FILE = 2**26
"""Bytes of a file of policies."""


@dataclass(frozen=True)
class StaticPolicy:
    """Decisions for any number of images, none of which is seen.

    Either `rows` or `weights` is given.
    """

    name: str
    count: int
    """Blocks kept for each image, where it is the same for all; else -1."""
    rows: Tensor | None = None
    """bool (1, K), the same for all images, or (N, K), one for each."""
    weights: Tensor | None = None
    """float64 (K,): `count` blocks are drawn for each image, without replacement, with these odds."""

    @property
    def num_blocks(self) -> int:
        """K."""
        decided = self.weights if self.rows is None else self.rows
        assert decided is not None
        return decided.shape[-1]

    @property
    def images(self) -> int | None:
        """For how many images it is; None: for any."""
        return None if self.rows is None or len(self.rows) == 1 else len(self.rows)

    def draw(self, images: int, generator: torch.Generator | None = None, start: int = 0) -> Tensor:
        """bool (images, K), on the CPU.

        Args:
            generator: default: torch's own.
            start: the first image's number, where each has a policy of its own.
        Raises:
            ValueError: it is for fewer images.

        >>> make_static_policy("first_k:2", num_blocks=4).draw(2).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0]]
        >>> make_static_policy("random_k:3", num_blocks=5).draw(1000).sum(1).unique()
        tensor([3])
        """
        if self.rows is not None:
            if len(self.rows) == 1:
                return self.rows.expand(images, -1)
            if start + images > len(self.rows):
                raise ValueError(f"{self.name}: {len(self.rows)} policies for {start + images} images")
            return self.rows[start : start + images]
        assert self.weights is not None
        # the largest of log weight + Gumbel noise are a draw without replacement (Vieira 2014; Kool et al. 2019,
        # arXiv:1903.06059)
        uniform = torch.rand(images, self.num_blocks, dtype=torch.float64, generator=generator)
        tiny = torch.finfo(torch.float64).tiny
        scores = self.weights.clamp_min(1e-12).log() - (-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
        chosen = scores.topk(self.count, dim=1).indices
        return torch.zeros(images, self.num_blocks, dtype=torch.bool).scatter_(1, chosen, True)


def make_static_policy(text: str, num_blocks: int, usage: Sequence[float] | None = None) -> StaticPolicy:
    """A static policy by name.

    Args:
        text: `full`; `first_k:8`, the first 8 blocks; `random_k:8`, any 8, drawn for each image; `dist_k:8`, 8
            drawn by a learned policy's usage; or a file with a line of 0 and 1 for all images, or one for each.
        num_blocks: K.
        usage: of `dist_k`: the share of images that run each block under the learned policy.
    Raises:
        ValueError: anything else, in words for the user.
    """
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        return _from_file(text, num_blocks)
    if kind == "full":
        if colon:
            raise ValueError(f"{text}: full takes no number")
        return StaticPolicy(text, num_blocks, rows=torch.ones(1, num_blocks, dtype=torch.bool))
    if not (number.isdecimal() and int(number) <= num_blocks):
        raise ValueError(f"{text}: write {kind}:K, with K from 0 to {num_blocks}, the number of blocks")
    count = int(number)
    if kind == "first_k":
        return StaticPolicy(text, count, rows=(torch.arange(num_blocks) < count)[None])
    if kind == "random_k":
        return StaticPolicy(text, count, weights=torch.ones(num_blocks, dtype=torch.float64))
    if usage is None:
        raise ValueError(f"{text}: draws by a learned policy's usage, and no policy network is given")
    return StaticPolicy(text, count, weights=torch.tensor(usage, dtype=torch.float64))


def _from_file(text: str, num_blocks: int) -> StaticPolicy:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"{text}: neither a file nor one of full, first_k:K, random_k:K, dist_k:K")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{text}: too large for a file of policies")
    try:
        lines = path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{text}: can't be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if len(line) != num_blocks or set(line) - {"0", "1"}:
            raise ValueError(f"{text}: policy {number} isn't {num_blocks} characters 0 or 1, one for each block")
    if not lines:
        raise ValueError(f"{text}: holds no policy")
    rows = torch.tensor([[character == "1" for character in line] for line in lines])
    counts = rows.sum(1).unique()
    return StaticPolicy(text, int(counts) if len(counts) == 1 else -1, rows=rows)
