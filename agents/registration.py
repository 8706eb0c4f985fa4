"""Makes Gymnasium know `BlockDrop-v0`, without importing the environment (and torch) before one is made."""

from __future__ import annotations

import gymnasium

ID = "BlockDrop-v0"


def register_envs() -> None:
    """Registers the environment, unless it is."""
    if ID not in gymnasium.registry:
        module = f"{__package__}.envs"
        gymnasium.register(
            id=ID, entry_point=f"{module}:BlockDropEnv", vector_entry_point=f"{module}:BlockDropVectorEnv"
        )
