"""Gymnasium finds the environment by an entry point."""

import subprocess
import sys
from pathlib import Path

import gymnasium

from agents.registration import ID
from blockdrop.gym import register_envs

ROOT = Path(__file__).parents[2]


def test_registering_names_the_environment_without_importing_torch() -> None:
    script = (
        "import sys, gymnasium; from blockdrop.gym import register_envs; register_envs(); register_envs();"
        "assert 'torch' not in sys.modules; print(gymnasium.spec('BlockDrop-v0').entry_point)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == "agents.envs:BlockDropEnv", done.stderr


def test_an_environment_that_is_registered_stays() -> None:
    register_envs()
    before = gymnasium.spec(ID)
    register_envs()
    assert gymnasium.spec(ID) is before
