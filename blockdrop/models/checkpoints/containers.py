"""Where in a file of other people's the weights are, and under which names: containers, prefixes, heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

CONTAINERS = (
    "state_dict", "model_state_dict", "model", "net", "module", "network", "weights", "params", "backbone",
    "ema_state_dict", "state_dict_ema", "model_ema", "ema", "model_ema_state_dict",
)  # fmt: skip
"""Keys that files have their state dict under, those of averaged weights last: they are taken only if there are no
others."""
AVERAGED = re.compile(r"(^|_)ema($|_)")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "resnet.")
"""What wrappers and training libraries put before every name: DataParallel, torch.compile, Lightning, …."""
COUNTERS = ("n_averaged",)
"""Tensors of `torch.optim.swa_utils.AveragedModel`, which are no weights."""
RESNET_BLOCK = re.compile(r"blocks\.\d+\.\d+\.conv1\.")
HEAD = re.compile(r"(?:fc|head|classifier|last_linear|linear|logits|output)(?:\.\d+|\.fc)?\.(weight|bias)")


def is_state_dict(value: Any) -> bool:
    """Whether it is a mapping with tensors in it, as a state dict is."""
    return isinstance(value, Mapping) and any(
        isinstance(item, Tensor) and "." in str(key) for key, item in value.items()
    )


def find_state(content: Mapping[Any, Any]) -> tuple[Mapping[Any, Any] | None, str | None]:
    """The state dict in a file's content, and the name of another one beside it that was passed over (averaged
    weights). None where there is none.

    >>> import torch
    >>> find_state({"epoch": 3, "model": {"fc.bias": torch.ones(1)}, "model_ema": {"fc.bias": torch.ones(1)}})
    ({'fc.bias': tensor([1.])}, 'model_ema')
    """
    if is_state_dict(content):
        return content, None
    found = [key for key in CONTAINERS if is_state_dict(content.get(key))]
    if found:
        averaged = [key for key in found[1:] if AVERAGED.search(key)]
        return content[found[0]], averaged[0] if averaged and not AVERAGED.search(found[0]) else None
    for key in CONTAINERS:  # {"model": {"state_dict": …}}
        inner = content.get(key)
        if isinstance(inner, Mapping):
            state, other = find_state(inner)
            if state is not None:
                return state, other
    return None, None


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without prefixes and counters: a prefix goes where all weights of the network's stem and body
    have it; the head may stand beside.

    >>> list(plain_names({"module._orig_mod.conv1.weight": 1, "module._orig_mod.fc.weight": 2}))
    ['conv1.weight', 'fc.weight']
    """
    names = {key: value for key, value in state.items() if key not in COUNTERS}
    while prefix := _prefix_of(names):
        stripped = {key.removeprefix(prefix): value for key, value in names.items()}
        if len(stripped) < len(names):  # two would get the same name
            break
        names = stripped
    return names


def _prefix_of(names: Mapping[str, Any]) -> str | None:
    body = [key for key in names if not HEAD.fullmatch(key)]
    return next((prefix for prefix in PREFIXES if body and all(key.startswith(prefix) for key in body)), None)


def head_as_fc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's state dict with its head called `fc`, if it has one linear layer under a name that heads have,
    such as `fc.1` behind a dropout layer."""
    if "fc.weight" in state or not any(RESNET_BLOCK.match(key) for key in state):
        return dict(state)
    names = [key for key in state if HEAD.fullmatch(key) and key.endswith("weight")]
    heads = [key for key in names if state[key].dim() == 2]
    if len(heads) != 1:
        return dict(state)
    prefix = heads[0].removesuffix("weight")
    return {
        f"fc.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: value for key, value in state.items()
    }
