"""The Gymnasium environment with a ten-line fake classifier."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import TransformObservation
from torch import Tensor

import agents.envs
from agents.rewards import Reward, blockdrop_reward

IMAGES = torch.rand(5, 3, 4, 4)
LABELS = torch.tensor([1, 1, 0, 1, 0])


def first_block_says_one(images: Tensor, policy: Tensor) -> Tensor:
    """Predicts class 1 where block 0 runs, class 0 elsewhere."""
    return torch.nn.functional.one_hot(policy[:, 0].long(), 2).float()


def ten_flops_a_block(policy: Tensor) -> Tensor:
    return 10 * policy.sum(-1)


ARGUMENTS = {
    "classifier": first_block_says_one,
    "images": IMAGES,
    "labels": LABELS,
    "num_blocks": 4,
    "penalty": -2.0,
    "flops": ten_flops_a_block,
}


def test_gymnasiums_checker_passes_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("BlockDrop-v0", **ARGUMENTS).unwrapped)


def test_a_right_and_a_wrong_step() -> None:
    env = gymnasium.make("BlockDrop-v0", **ARGUMENTS)
    observation, info = env.reset(options={"index": 2})
    assert info == {"index": 2}
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, IMAGES[2].numpy())
    _, reward, terminated, truncated, info = env.step(np.array([0, 1, 0, 0], dtype=np.int8))
    assert (reward, terminated, truncated) == (1 - 1 / 16, True, False)
    assert info == {"correct": True, "prediction": 0, "label": 0, "blocks_used": 1, "flops": 10}

    env.reset(options={"index": 2})
    _, reward, _, _, info = env.step(np.array([1, 1, 0, 0], dtype=np.int8))
    assert (reward, info["correct"], info["blocks_used"]) == (-2.0, False, 2)


def always_one(images: Tensor) -> Tensor:
    """An answer that is class 1."""
    return torch.tensor([[0.0, 3.0]]).repeat(len(images), 1)


def ten_a_block_and_one_for_looking(policy: Tensor, answered: Tensor) -> Tensor:
    return torch.where(answered, 1, 1 + 10 * policy.sum(-1))


ANSWERING = {**ARGUMENTS, "answers": always_one, "flops": ten_a_block_and_one_for_looking}


def test_an_answer_is_one_more_action_for_which_no_block_and_no_classifier_runs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("BlockDrop-v0", **ANSWERING).unwrapped)
    seen: list[int] = []

    def classifier(images: Tensor, policy: Tensor) -> Tensor:
        seen.append(len(images))
        return first_block_says_one(images, policy)

    env = gymnasium.make("BlockDrop-v0", **{**ANSWERING, "classifier": classifier})
    assert env.action_space == gymnasium.spaces.MultiBinary(5)
    env.reset(options={"index": 0})
    _, reward, _, _, info = env.step(np.array([0, 1, 1, 1, 1], dtype=np.int8))
    assert reward == 1.0  # a right answer costs no blocks, whatever the other entries say
    assert info == {
        "correct": True, "prediction": 1, "label": 1, "blocks_used": 0, "answered": True, "flops": 1
    }  # fmt: skip
    env.reset(options={"index": 2})
    assert env.step(np.array([1, 1, 1, 1, 1], dtype=np.int8))[1] == -2.0  # class 1 is wrong here
    assert seen == []
    env.reset(options={"index": 2})
    _, reward, _, _, info = env.step(np.array([0, 1, 0, 0, 0], dtype=np.int8))
    assert (reward, info["answered"], info["flops"]) == (1 - 1 / 16, False, 11)
    assert seen == [1]


def test_a_batch_mixes_answers_with_policies_and_pays_what_the_reward_function_says() -> None:
    env = gymnasium.make_vec("BlockDrop-v0", num_envs=5, vectorization_mode="vector_entry_point", **ANSWERING)
    env.reset(seed=0)
    labels = LABELS[env.unwrapped._chosen]  # type: ignore[attr-defined]
    actions = np.array([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    _, rewards, _, _, info = env.step(actions)
    predictions = torch.tensor([1, 1, 1, 0, 1])
    policy = torch.from_numpy(actions[:, :4] * (1 - actions[:, 4:])).bool()
    expected = blockdrop_reward(predictions == labels, policy, -2.0)
    np.testing.assert_allclose(rewards, expected.numpy())
    assert info["answered"].tolist() == [False, True, True, False, False]
    assert info["flops"].tolist() == [11, 1, 1, 21, 41]


def test_curriculum_runs_undecided_blocks() -> None:
    env = gymnasium.make("BlockDrop-v0", **ARGUMENTS, decided_blocks=1)
    env.reset(options={"index": 0})
    assert env.step(np.zeros(4, dtype=np.int8))[-1]["blocks_used"] == 3


@pytest.mark.parametrize("as_tensors", [False, True])
def test_vector_environment_plays_a_batch(as_tensors: bool) -> None:
    envs = gymnasium.make_vec(
        "BlockDrop-v0", num_envs=64, vectorization_mode="vector_entry_point", **ARGUMENTS, as_tensors=as_tensors
    )
    assert isinstance(envs.unwrapped, agents.envs.BlockDropVectorEnv)
    observations, info = envs.reset(seed=3)
    chosen = torch.as_tensor(info["index"])
    actions = torch.rand(64, 4) < 0.5
    following, reward, terminated, truncated, info = envs.step(actions if as_tensors else actions.numpy())
    assert isinstance(observations, Tensor if as_tensors else np.ndarray)
    torch.testing.assert_close(torch.as_tensor(observations), IMAGES[chosen])
    correct = actions[:, 0].long() == LABELS[chosen]
    torch.testing.assert_close(torch.as_tensor(reward), blockdrop_reward(correct, actions, -2.0))
    assert torch.as_tensor(info["correct"]).equal(correct)
    assert torch.as_tensor(info["flops"]).equal(10 * actions.sum(1))
    assert terminated.all()
    assert not truncated.any()
    assert following.shape == (64, 3, 4, 4)


def played_alone(**options: Any) -> Any:
    return gymnasium.make_vec(
        "BlockDrop-v0", num_envs=4, vectorization_mode="vector_entry_point", **ARGUMENTS, **options
    )


def test_autoreset_in_the_next_step_shows_the_judged_images_once_more() -> None:
    envs = played_alone(autoreset_mode="NextStep")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    shown, _ = envs.reset(seed=0)
    judged, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
    np.testing.assert_array_equal(judged, shown)
    assert terminated.all()
    assert not truncated.any()
    assert "correct" in info
    following, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
    assert (following != shown).any()
    assert not rewards.any()
    assert not terminated.any()
    assert not truncated.any()
    assert info == {}


def test_wrappers_that_transform_observations_take_autoreset_in_the_next_step() -> None:
    with pytest.raises(ValueError, match="NEXT_STEP"):
        TransformObservation(played_alone(), lambda observations: observations)
    envs = TransformObservation(played_alone(autoreset_mode=AutoresetMode.NEXT_STEP), lambda shown: 1 - shown)
    shown, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(shown, 1 - envs.unwrapped.reset(seed=0)[0])
    envs.step(envs.action_space.sample())


def test_without_autoreset_each_step_needs_a_reset() -> None:
    envs = played_alone(autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(envs.action_space.sample())
    for _ in range(2):
        envs.reset(options={"reset_mask": np.ones(4, dtype=bool)})
        assert envs.step(envs.action_space.sample())[2].all()
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(envs.action_space.sample())
    with pytest.raises(ValueError, match="reset_mask must hold True alone"):
        envs.reset(options={"reset_mask": np.array([True, False, True, True])})


def test_vector_environment_is_reproducible() -> None:
    envs = gymnasium.make_vec("BlockDrop-v0", num_envs=8, vectorization_mode="vector_entry_point", **ARGUMENTS)
    first, again = envs.reset(seed=5)[0], envs.reset(seed=5)[0]
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES * 255}, r"values in \[0, 1\]"),
        ({"images": IMAGES[:0]}, "M > 0"),
        ({"labels": LABELS[:3]}, r"expected int64 \(5,\)"),
        ({"labels": LABELS.float()}, r"expected int64 \(5,\)"),
        ({"decided_blocks": 5}, "expected 1 to 4"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gymnasium.make("BlockDrop-v0", **(ARGUMENTS | change))


def test_the_environment_pays_the_reward_that_it_is_given() -> None:
    reward = Reward("flops", penalty=-3.0, costs=torch.tensor([1.0, 1.0, 1.0, 5.0]))
    env = gymnasium.make("BlockDrop-v0", **{**ARGUMENTS, "reward": reward})
    env.reset(seed=0, options={"index": 0})
    assert env.step(np.array([1, 0, 0, 1], dtype=np.int8))[1] == pytest.approx(1 - (6 / 8) ** 2)
    env.reset(options={"index": 2})
    assert env.step(np.array([1, 0, 0, 1], dtype=np.int8))[1] == -3.0
    envs = gymnasium.make_vec(
        "BlockDrop-v0", num_envs=3, vectorization_mode="vector_entry_point", **{**ARGUMENTS, "reward": reward}
    )
    envs.reset(seed=0)
    _, rewards, *_, info = envs.step(np.ones((3, 4), dtype=np.int8))
    assert rewards.tolist() == [0.0 if right else -3.0 for right in info["correct"]]


@pytest.mark.parametrize("value", [0.3, 7, -1, float("nan")])
def test_an_action_of_other_numbers_than_0_and_1_is_refused(value: float) -> None:
    env = agents.envs.BlockDropVectorEnv(**ARGUMENTS, num_envs=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action: holds other values than 0 and 1"):
        env.step(np.array([[0, 1, value, 0]] * 2))


def test_masks_are_tensors_where_everything_is() -> None:
    env = agents.envs.BlockDropVectorEnv(**ARGUMENTS, num_envs=2, as_tensors=True)
    _, info = env.reset(seed=0)
    assert all(isinstance(value, Tensor) for value in info.values())
    *_, info = env.step(torch.zeros(2, 4))
    assert all(isinstance(value, Tensor) for value in info.values())
    assert info["_correct"].tolist() == [True, True]
