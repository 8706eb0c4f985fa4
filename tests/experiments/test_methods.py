"""The one list of methods: what studies take from it, and the commands that it means."""

from __future__ import annotations

from typing import Any

import pytest

from blockdrop.distillation.stagewise import StagewiseConfig
from blockdrop.errors import BlockdropError
from blockdrop.pretrain import PretrainConfig
from experiments import learning_curve, methods, static_rivals, tradeoff
from experiments.methods import METHODS, RIVALS, Conditions, find, of_kinds, plan


def conditions(**starts: Any) -> Conditions:
    return Conditions(model="R32_C10", starts={"full": "cv/full", **starts}, epochs={"rival": 3, "fast": None})


def test_every_name_means_one_method() -> None:
    names = [name for method in METHODS for name in (method.name, method.also) if name is not None]
    assert len(names) == len(set(names))
    assert all(find(name) in METHODS for name in names)
    with pytest.raises(KeyError, match="slow"):
        find("slow")


def test_each_study_takes_its_own() -> None:
    assert list(learning_curve.ARMS) == [
        "reference", "fast", "fixed", "random", "fast_pooled4", "fast_pooled", "fast_reference", "glance"
    ]  # fmt: skip
    assert [method.name for method in static_rivals.METHODS] == [
        "r20", "plain20", "stagewise", "jointrd", "r8", "kd", "shift", "block",
    ]  # fmt: skip
    assert all(method in tradeoff.METHODS for method in static_rivals.METHODS)
    assert all(method in (*tradeoff.METHODS, *learning_curve.ARMS.values()) for method in METHODS)
    assert learning_curve.ARMS["reference"] is find("reference-p5"), "the reference's penalty is -5"


def test_methods_start_from_what_they_say() -> None:
    (stagewise,) = plan(find("stagewise"), ["cv/s"], conditions(r20="cv/r20"), seed=1)
    assert isinstance(stagewise, StagewiseConfig)
    assert (stagewise.model, stagewise.load, stagewise.cv_dir) == ("R20_C10", ("cv/r20",), "cv/s")
    assert (stagewise.max_epochs, stagewise.seed) == (3, 1)
    scratch, tuned = (plan(find("r20"), ["cv/r20"], conditions(weights=weights))[0] for weights in (None, "w"))
    assert isinstance(scratch, PretrainConfig)
    assert isinstance(tuned, PretrainConfig)
    assert (scratch.init, scratch.lr, tuned.init, tuned.lr) == ((), 0.1, ("w",), 0.05)
    assert plan(find("full"), [], conditions()) == []
    with pytest.raises(BlockdropError, match=r"^--teacher32: name a trained ResNet-32$"):
        plan(find("kd"), ["cv/kd"], conditions())


def test_a_method_s_own_flags_win() -> None:
    for name, target in (("fast", 0.35), ("fast-45", 0.45)):
        shared = Conditions(
            model="R32_C10", starts={"full": "f"}, epochs={"fast": None}, fast_flags={"target_flops": 0.35}
        )
        (step,) = plan(find(name), ["cv"], shared)
        assert step.target_flops == target  # type: ignore[attr-defined]


def test_static_networks_are_of_their_kinds() -> None:
    assert {method.kind for method in of_kinds(*RIVALS)} == set(RIVALS)
    assert methods.of_kinds("full") == (find("full"),)
