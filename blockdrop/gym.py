"""The environment by its name: importing this module registers `BlockDrop-v0` with Gymnasium.

`gymnasium.make("blockdrop.gym:BlockDrop-v0", …)` imports it by itself.
"""

from agents.registration import register_envs

register_envs()
