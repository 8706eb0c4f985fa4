"""Makes Gymnasium know `BlockDrop-v0` wherever this package is installed: `gymnasium.make` calls it by an entry
point, and imports the environment (and torch) when one is made."""

from __future__ import annotations

from importlib.util import find_spec

ID = "BlockDrop-v0"


def register_envs() -> None:
    """Registers the environment, unless it is."""
    import gymnasium

    module = "blockdrop.agents.envs" if find_spec("blockdrop.agents") else "agents.envs"
    if ID not in gymnasium.registry:
        gymnasium.register(
            id=ID, entry_point=f"{module}:BlockDropEnv", vector_entry_point=f"{module}:BlockDropVectorEnv"
        )
