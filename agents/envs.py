"""Gymnasium environments in which an action is a policy: which blocks to run for one image.

Importing this module registers `BlockDrop-v0`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from agents.answers import split_decisions
from agents.curriculum import keep_undecided
from agents.registration import register_envs
from agents.rewards import Reward

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(images (N, C, H, W), policy bool (N, K)) to logits (N, classes)."""
FlopCounter = Callable[..., Tensor]
"""policy bool (N, K) to FLOPs int64 (N,); with answers (policy, answered bool (N,))."""
Answers = Callable[[Tensor], Tensor]
"""images (N, C, H, W) to the answers' logits (N, classes)."""


class _Images:
    """Images to draw from, the classifier that runs them, and what a policy earns on them."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        num_blocks: int,
        *,
        reward: Reward,
        flops: FlopCounter | None,
        decided_blocks: int | None,
        answers: Answers | None,
    ):
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        if images.dim() != 4 or images.dtype != torch.float32 or len(images) == 0:
            raise ValueError(
                f"images: got {images.dtype} of shape {tuple(images.shape)}; expected float32 (M, C, H, W), M > 0"
            )
        if images.min() < 0 or images.max() > 1:
            raise ValueError("images: expected values in [0, 1]; the classifier normalises them")
        if labels.shape != (len(images),) or labels.is_floating_point():
            raise ValueError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; expected int64 ({len(images)},)"
            )
        if decided_blocks is not None and not 1 <= decided_blocks <= num_blocks:
            raise ValueError(f"decided_blocks: got {decided_blocks}; expected 1 to {num_blocks}")
        self.classifier, self.images, self.labels = classifier, images, labels.to(images.device)
        self.num_blocks, self.reward, self.flops, self.answers = num_blocks, reward, flops, answers
        self.decided_blocks = num_blocks if decided_blocks is None else decided_blocks
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, tuple(images.shape[1:]), np.float32)
        self.num_decisions = num_blocks + (answers is not None)
        self.action_space = gymnasium.spaces.MultiBinary(self.num_decisions)

    def draw(self, generator: np.random.Generator, count: int) -> Tensor:
        """Indices int64 (count,) of images drawn with replacement."""
        return torch.from_numpy(generator.integers(0, len(self.images), count)).to(self.images.device)

    def play(self, chosen: Tensor, actions: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards float32 (N,) and infos (N,) of running images `chosen` (N,) under the actions (N, K), or, with
        answers, (N, K + 1)."""
        given = torch.as_tensor(actions, device=self.images.device)
        if not bool(((given == 0) | (given == 1)).all()):
            raise ValueError(f"action: holds other values than 0 and 1 ({given[(given != 0) & (given != 1)][0]})")
        decisions = given.bool()
        if decisions.shape != (len(chosen), self.num_decisions):
            raise ValueError(
                f"action: got shape {tuple(decisions.shape)}; expected {(len(chosen), self.num_decisions)}"
            )
        images, labels = self.images[chosen], self.labels[chosen]
        policy, answered = keep_undecided(decisions[:, : self.num_blocks], self.decided_blocks), None
        with torch.no_grad():
            if self.answers is None:
                logits = self.classifier(images, policy)
            else:
                policy, answered = split_decisions(torch.cat([policy, decisions[:, -1:]], 1))
                logits = self.answers(images).log_softmax(-1)
                if not bool(answered.all()):
                    logits[~answered] = self.classifier(images[~answered], policy[~answered]).to(logits.dtype)
        prediction = logits.argmax(-1)
        info = {
            "correct": prediction == labels,
            "prediction": prediction,
            "label": labels,
            "blocks_used": policy.sum(-1),
        }
        if answered is not None:
            info["answered"] = answered
        if self.flops is not None:
            info["flops"] = self.flops(policy) if answered is None else self.flops(policy, answered)
        return self.reward(logits, labels, policy), info


class BlockDropEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Decide which residual blocks to run for an image.

    ## Description
    One step per episode: `reset` shows an image, the action says which blocks of the classifier run for it,
    and the reward weighs a right prediction against the blocks it took (arXiv:1711.08393).

    ## Action Space
    `MultiBinary(K)`: 1 runs block k, 0 drops it. With `answers` `MultiBinary(K + 1)`: where the last entry is 1
    the image is answered, the classifier doesn't run, and the other entries don't matter.

    ## Observation Space
    `Box(0, 1, (C, H, W), float32)`: the image, not normalised.

    ## Rewards
    1 - (blocks used / K)² if the prediction is right, `penalty` if it is wrong; or what `reward` pays. A right
    answer earns 1, as it uses no blocks.

    ## Info
    After `step`: `correct` (bool), `prediction`, `label`, `blocks_used` (int), with `answers` `answered` (bool)
    and, where `flops` was given, `flops` (int). After `reset`: `index`, the image's row.

    ## Starting State
    An image drawn at random (seeded by `reset(seed=…)`), or the one of `options={"index": i}`.

    ## Episode End
    Always after one step.

    ## Arguments
    - `classifier`: callable (images float32 (N, C, H, W) in [0, 1], policy bool (N, K)) to logits (N, classes).
    - `images`, `labels`: float32 (M, C, H, W) in [0, 1] and int64 (M,).
    - `num_blocks`: K.
    - `penalty`: reward of a wrong prediction.
    - `reward`: an `agents.rewards.Reward` in its place, such as `Reward("flops", penalty=-5.0, costs=costs)`.
    - `flops`: optional callable, policy bool (N, K) to int64 (N,); with `answers` (policy, answered bool (N,)), as
      `DynamicNetwork.flops` takes them.
    - `answers`: optional callable, images as above to logits (N, classes): makes answering an action.
    - `decided_blocks`: only the last so many blocks follow the action, earlier ones run (curriculum learning).

    >>> def classifier(images, policy):  # right if block 0 runs
    ...     return torch.nn.functional.one_hot(policy[:, 0].long(), 2).float()
    >>> env = gymnasium.make("BlockDrop-v0", classifier=classifier, images=torch.zeros(5, 3, 4, 4),
    ...                      labels=torch.ones(5, dtype=torch.int64), num_blocks=2)
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(np.array([1, 0], dtype=np.int8))
    >>> reward, terminated, info["correct"], info["blocks_used"]
    (0.75, True, True, 1)

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # Gymnasium's own convention

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        num_blocks: int,
        penalty: float = -1.0,
        flops: FlopCounter | None = None,
        decided_blocks: int | None = None,
        *,
        reward: Reward | None = None,
        answers: Answers | None = None,
    ):
        self._game = _Images(
            classifier, images, labels, num_blocks,
            reward=reward or Reward(penalty=penalty), flops=flops, decided_blocks=decided_blocks, answers=answers,
        )  # fmt: skip
        self.observation_space = self._game.observation_space
        self.action_space = self._game.action_space
        self._chosen = torch.zeros(1, dtype=torch.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        index = (options or {}).get("index")
        self._chosen = self._game.draw(self.np_random, 1)
        if index is not None:
            if not 0 <= index < len(self._game.images):
                raise ValueError(f"index: got {index}; expected 0 to {len(self._game.images) - 1}")
            self._chosen.fill_(index)
        return self._observation(), {"index": int(self._chosen)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, info = self._game.play(self._chosen, np.asarray(action)[None])
        return self._observation(), float(reward), True, False, {k: v.item() for k, v in info.items()}

    def _observation(self) -> np.ndarray:
        return self._game.images[self._chosen[0]].cpu().numpy().copy()


class BlockDropVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """`BlockDropEnv` for a batch of images at once, computed where the images lie (CPU or GPU).

    Every step ends all episodes. By default it shows the next images at once (`AutoresetMode.SAME_STEP`); `info`
    holds arrays (num_envs,), and Gymnasium's `_key` masks beside them. The images just judged are not copied into
    `final_obs`, as nothing follows from them.

    ## Arguments
    As `BlockDropEnv`, and
    - `num_envs`: images per step.
    - `as_tensors`: observations, rewards and infos stay torch tensors on the images' device instead of
      becoming NumPy arrays; actions may be either.
    - `autoreset_mode`: an `AutoresetMode` or its value. Wrappers that refuse `SAME_STEP`, such as those that
      transform observations, take `NEXT_STEP`: every second step ignores its actions, shows the next images, earns
      0 and ends nothing. `DISABLED`: `reset` must be called after each step.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        num_blocks: int,
        penalty: float = -1.0,
        flops: FlopCounter | None = None,
        decided_blocks: int | None = None,
        *,
        reward: Reward | None = None,
        answers: Answers | None = None,
        num_envs: int = 1,
        as_tensors: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ):
        self._game = _Images(
            classifier, images, labels, num_blocks,
            reward=reward or Reward(penalty=penalty), flops=flops, decided_blocks=decided_blocks, answers=answers,
        )  # fmt: skip
        if num_envs < 1:
            raise ValueError(f"num_envs: got {num_envs}; expected at least 1")
        self.num_envs, self.as_tensors = num_envs, as_tensors
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._ended = self.autoreset_mode is AutoresetMode.DISABLED
        self.single_observation_space = self._game.observation_space
        self.single_action_space = self._game.action_space
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._chosen = torch.zeros(num_envs, dtype=torch.int64)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.asarray(mask).all():
            raise ValueError("options: reset_mask must hold True alone, as each step ends all episodes")
        if options and "index" in options:
            raise ValueError("options: the vector environment draws its images; index is for the single one")
        if isinstance(seed, list):
            raise ValueError("seed: one number seeds the whole batch; got a list")
        super().reset(seed=seed, options=options)
        self._chosen = self._game.draw(self.np_random, self.num_envs)
        self._ended = False
        return self._give(self._game.images[self._chosen]), self._infos({"index": self._chosen})

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        if self._ended and self.autoreset_mode is AutoresetMode.DISABLED:
            raise gymnasium.error.ResetNeeded("all episodes have ended; call reset() before the next step()")
        if begins := self._ended:  # NEXT_STEP: this step only shows the next images
            reward = torch.zeros(self.num_envs, device=self._chosen.device)
            info: dict[str, Tensor] = {}
        else:
            reward, info = self._game.play(self._chosen, actions)
        if begins or self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._chosen = self._game.draw(self.np_random, self.num_envs)
        self._ended = not begins and self.autoreset_mode is not AutoresetMode.SAME_STEP
        terminated = torch.full((self.num_envs,), not begins, device=reward.device)
        return (
            self._give(self._game.images[self._chosen]),
            self._give(reward),
            self._give(terminated),
            self._give(torch.zeros_like(terminated)),
            self._infos(info),
        )

    def _give(self, tensor: Tensor) -> Any:
        return tensor if self.as_tensors else tensor.cpu().numpy()

    def _infos(self, info: dict[str, Tensor]) -> dict[str, Any]:
        present = self._give(torch.ones(self.num_envs, dtype=torch.bool))
        return {k: self._give(v) for k, v in info.items()} | {f"_{k}": present for k in info}


register_envs()
