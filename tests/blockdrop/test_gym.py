"""Gymnasium finds the environment by its name."""

import subprocess
import sys
from pathlib import Path

import gymnasium

from agents.registration import ID, register_envs

ROOT = Path(__file__).parents[2]


def test_a_name_with_the_module_needs_no_import_and_the_module_alone_no_torch() -> None:
    script = (
        "import sys, gymnasium, gymnasium.envs.registration as registration;"
        "name = 'blockdrop.gym:BlockDrop-v0'; registration._find_spec(name); assert 'torch' not in sys.modules;"
        "import torch; data = {'images': torch.zeros(3, 1, 2, 2), 'labels': torch.zeros(3).long()};"
        "data['num_blocks'] = 2;"
        "env = gymnasium.make(name, classifier=lambda images, policy: torch.zeros(len(images), 2), **data);"
        "print(env.spec.entry_point, env.action_space)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == "agents.envs:BlockDropEnv MultiBinary(2)", done.stderr


def test_an_environment_that_is_registered_stays() -> None:
    register_envs()
    before = gymnasium.spec(ID)
    register_envs()
    assert gymnasium.spec(ID) is before
