"""Any network of residual blocks, given as its parts: a stem, stages of blocks, a head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, Self, cast

from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.droppable import Droppable

Residual = Literal["whole", "branch"]
"""What a block's module computes: whole = y = x + F(x) (or relu of it), branch = F alone."""


class DroppableParts(Droppable):
    """A network that runs, for each image, the blocks its policy keeps; a dropped block is the identity.

    Blocks keep their input's shape, whatever it is, as long as images are rows along dimension 0: maps
    (N, C, H, W), tokens (N, T, C). What changes the shape between two stages is a transition and always runs.
    A block must not write to its input, and its rows must not depend on each other.

    Args:
        stem: float images (N, 3, H, W) to the first block's input (N, …).
        blocks: one list of blocks per stage.
        head: the last block's output (N, …) to logits (N, classes).
        transitions: a module before each stage, or None where there is none.
        residual: whether the blocks are given whole or as branches.
        stem_shape: shape (…) of the stem's output for one image, which a policy network that looks through the
            stem must know.

    >>> import torch
    >>> branches = [nn.Linear(12, 12), nn.Linear(12, 12)]
    >>> mlp = DroppableParts(nn.Flatten(), [branches], nn.Linear(12, 5), residual="branch")
    >>> mlp(torch.zeros(3, 3, 2, 2), torch.tensor([[True, False], [False, False], [True, True]])).shape
    torch.Size([3, 5])
    """

    shortcut = None

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[Sequence[nn.Module]],
        head: nn.Module,
        transitions: Sequence[nn.Module | None] | None = None,
        *,
        residual: Residual = "whole",
        stem_shape: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.stem_part = stem
        self.transitions = nn.ModuleList(part or nn.Identity() for part in transitions or [None] * len(blocks))
        self.blocks = nn.ModuleList(nn.ModuleList(stage) for stage in blocks)
        self.head_part = head
        if len(self.transitions) != len(self.blocks):
            raise BlockdropError(f"transitions: got {len(self.transitions)} for {len(self.blocks)} stages")
        self.residual, self.stem_shape = residual, stem_shape
        self.stage_sizes = tuple(len(stage) for stage in blocks)
        # Only a stem without weights could give back the images themselves, which the next block would write to.
        self._stem_may_alias = next(stem.parameters(), None) is None

    def stem(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to the first block's input, or the first transition's (N, …)."""
        x = self.stem_part(images)
        return x.clone() if self._stem_may_alias else x

    def branches(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(block, transition before it or None) in running order."""
        pairs: list[tuple[nn.Module, nn.Module | None]] = []
        for transition, stage in zip(self.transitions, self.blocks, strict=True):
            before = None if isinstance(transition, nn.Identity) else transition
            pairs += [(block, None if i else before) for i, block in enumerate(cast(nn.ModuleList, stage))]
        return pairs

    def head(self, x: Tensor) -> Tensor:
        """The last block's output (N, …) to logits (N, classes)."""
        return self.head_part(x)

    def enter(self, x: Tensor, always: nn.Module | None) -> tuple[None, Tensor]:
        """(None, x behind the transition): a block and its dropping start from the same."""
        return None, x if always is None else always(x)

    def kept(self, branch: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
        """What the block makes of x: itself if given whole, else x + F(x)."""
        return branch(x) if self.residual == "whole" else x + branch(x)

    def folded(self) -> Self:
        """A copy for inference, in eval mode; nothing is folded."""
        return copy.deepcopy(self).eval().requires_grad_(False)
