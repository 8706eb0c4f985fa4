"""Where Gymnasium's entry point leads: `gymnasium.make("BlockDrop-v0")` works wherever this is installed."""

from agents.registration import register_envs

__all__ = ["register_envs"]
