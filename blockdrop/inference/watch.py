"""Whether the weights of networks have changed, noticed from outside."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.models.backbone import Backbone
from blockdrop.models.parts import DroppableParts

SAMPLE = 16
"""Values of a parameter, at most, that stand for all of them where nothing else tells of a change."""

_version = operator.attrgetter("_version")  # a tensor's count of changes in place


class Watch:
    """Notices changes of weights since it was made.

    A change shows
    - if it is made in place, as by an optimiser's step, `load_state_dict` or `copy_`: tensors count these;
    - if it is a pass in train mode: BatchNorm counts its batches;
    - if other numbers take a parameter's place, as by `load_state_dict(assign=True)`,
      `torch.nn.utils.vector_to_parameters` or `p.data = …`: they lie at another address;
    - if values are written through `p.data` or NumPy into all parameters, or into the first row of one, and the
      networks are on the CPU.

    A value written through `p.data` anywhere else leaves no trace. Tensors that were made in inference mode count
    nothing.

    Args:
        networks: whose layers stay the same ones.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        modules = [module for network in networks for module in network.modules()]
        places = [(m._parameters, name) for m in modules for name, p in m._parameters.items() if p is not None]
        self._homes, self._names = [home for home, _ in places], [name for _, name in places]
        parameters = self._parameters()
        counting = [not parameter.is_inference() for parameter in parameters]
        self._all_count = all(counting)
        self._buffers = [
            buffer
            for module in modules
            for buffer in module._buffers.values()
            if buffer is not None and not buffer.is_inference()
        ]
        self._all, self._few = _samples(parameters), _samples(_few(networks))
        self._versions, self._addresses = self._count(parameters), self._where(parameters)
        self._all_values, self._few_values = _read(self._all), _read(self._few)

    def changed(self, single: bool = False) -> bool:
        """Whether anything has changed.

        Args:
            single: for a call with one image, in which this counts: values are read of the first and the last
                layers alone, as a change of all parameters shows there, too.
        """
        parameters = self._parameters()
        if self._where(parameters) != self._addresses or self._count(parameters) != self._versions:
            return True
        if single:
            return not _same(_read(self._few), self._few_values)
        return not _same(_read(self._all), self._all_values)

    def _parameters(self) -> list[Tensor]:
        found = map(dict.__getitem__, self._homes, self._names)
        return cast("list[Tensor]", list(found))

    def _where(self, parameters: Sequence[Tensor]) -> list[int]:
        return list(map(Tensor.data_ptr, parameters))

    def _count(self, parameters: Sequence[Tensor]) -> int:
        buffers = sum(map(_version, self._buffers))
        if self._all_count:
            return buffers + sum(map(_version, parameters))
        return buffers + sum(parameter._version for parameter in parameters if not parameter.is_inference())


def _few(networks: Sequence[nn.Module]) -> list[Tensor]:
    """Parameters of which one changes when all of a network, of a stage or of a kind of layer do."""
    found: list[Tensor] = []
    for network in networks:
        parts: list[nn.Module] = [network]
        if isinstance(network, Backbone):
            parts = [network.bn1, network.fc, *(cast(nn.ModuleList, stage)[-1] for stage in network.blocks)]
        elif isinstance(network, DroppableParts):
            parts = [network.stem_part, network.head_part]
            parts += [cast(nn.ModuleList, stage)[-1] for stage in network.blocks]
        elif isinstance(network, PolicyNetwork):
            parts = [network.features, network.logit]
            parts += [] if network.answer is None else [network.answer]
        for part in parts:
            found += list(part.parameters())[-1:]
    return found


def _samples(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The beginning of the first row of each parameter on the CPU, as views, those of each type together."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.device.type != "cpu":
            continue
        row = parameter.detach()
        while row.dim() > 1:
            row = row[0]
        groups.setdefault(row.dtype, []).append(row.reshape(-1)[:SAMPLE])
    return list(groups.values())


def _read(samples: Sequence[list[Tensor]]) -> list[Tensor]:
    return list(map(torch.cat, samples))


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    """NaN is equal to NaN, or a network that holds one would be prepared anew at every call."""
    return all(
        torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(one, other, strict=True)
    )
