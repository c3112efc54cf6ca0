"""TorchRL: the vector environments as one of its environments, and a policy of `sam_gym.sb3` as actor and critic.

Needs the extra `torchrl`. Nothing is trained here: agents/train_torchrl.py is a PPO of TorchRL's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

try:
    from tensordict.nn import TensorDictModule
    from torchrl.envs import ActionMask, Compose, GymWrapper, RewardSum, TransformedEnv
    from torchrl.envs.utils import ExplorationType, set_exploration_type
    from torchrl.modules import ActorValueOperator, ProbabilisticActor, ValueOperator
except ImportError as error:
    raise ImportError("sam_gym.trainers.torchrl needs TorchRL: pip install 'sam_gym[torchrl]'") from error

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.engine import ACTION_MASK
from sam_gym.evaluation.records import EpisodeCase
from sam_gym.sb3 import ChoicePolicy, SpatialPolicy
from sam_gym.trainers.comparing import Compared, compare
from sam_gym.trainers.policies import allowed_logits

RENAMED = {"state": "observation"}
"""Names of observations that `GymWrapper` changes."""


def make_env(env_id: str, num_envs: int, **settings: Any) -> TransformedEnv:
    """N episodes as one TorchRL environment of batch size (N,), with one call of SAM a step.

    Ended episodes are reset by TorchRL, those alone (`options["reset_mask"]`). Random actions are allowed ones.

    Args:
        env_id: A registered id of this suite, with discrete actions.
        num_envs: N.
        **settings: Of the environment, as for `gymnasium.make_vec`.
    """
    vectors: Any = gymnasium.make_vec(
        env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", autoreset_mode="Disabled",
        **{**settings, ACTION_MASK: True},
    )  # fmt: skip
    wrapped = GymWrapper(vectors, categorical_action_encoding=True)
    return TransformedEnv(wrapped, Compose(ActionMask(), RewardSum()))


def suite_env(env: TransformedEnv) -> EngineVectorEnv:
    """The suite's own environment in one of `make_env`."""
    inner: Any = env.base_env
    return inner._env


def actor_critic(policy: SpatialPolicy | ChoicePolicy) -> ActorValueOperator:
    """A policy of `sam_gym.sb3` as TorchRL's actor and critic on shared features; its weights are the policy's own.

    Args:
        policy: As `sam_gym.trainers.policies.new_policy` makes it for the environment's spaces.

    Returns:
        `get_policy_operator()` acts, and forbidden actions have no chance; `get_value_operator()` values.
    """
    spaces: Any = policy.observation_space
    names = list(spaces)
    inner = 3 if isinstance(policy, SpatialPolicy) else 1  # dimensions of one sample's features

    def features(*seen: Tensor) -> Tensor:
        made = policy.extract_features(dict(zip(names, seen, strict=True)))
        assert isinstance(made, Tensor), "actor and critic share their features"
        return made

    def logits(hidden: Tensor, mask: Tensor) -> Tensor:
        return allowed_logits(policy.action_net(hidden), mask)

    look = _Batched(policy.features_extractor, features, [len(spaces[name].shape) for name in names])
    common = TensorDictModule(look, in_keys=[RENAMED.get(name, name) for name in names], out_keys=["hidden"])
    head = TensorDictModule(
        _Batched(policy.action_net, logits, [inner, 1]), in_keys=["hidden", ACTION_MASK], out_keys=["logits"]
    )
    actor = ProbabilisticActor(
        head, in_keys=["logits"], out_keys=["action"], distribution_class=Categorical, return_log_prob=True
    )
    value = _Batched(policy.value_net, policy.value_net, [inner])
    return ActorValueOperator(common, actor, ValueOperator(value, in_keys=["hidden"]))


class _Batched(nn.Module):
    """A function of batches (N, ...), for any batch dimensions: TorchRL's rollouts have two, (N, T, ...).

    Args:
        part: The part of the policy whose weights the function uses.
        function: Tensors, the first dimension being the batch -> a tensor.
        dims: Dimensions of one sample, for each of the tensors.
    """

    def __init__(self, part: nn.Module, function: Callable[..., Tensor], dims: Sequence[int]) -> None:
        super().__init__()
        self.part = part
        self._function, self._dims = function, dims

    def forward(self, *tensors: Tensor) -> Tensor:
        batch = tensors[0].shape[: tensors[0].ndim - self._dims[0]]
        flat = [one.reshape(-1, *one.shape[one.ndim - n :]) for one, n in zip(tensors, self._dims, strict=True)]
        return self._function(*flat).unflatten(0, batch)


@torch.no_grad()
def evaluate_with_torchrl(
    actor: Callable[..., Any], env: TransformedEnv, episodes: int
) -> tuple[list[EpisodeCase], list[float]]:
    """TorchRL's own evaluation: the likeliest actions in randomly drawn episodes, and what they were.

    Args:
        actor: `actor_critic(policy).get_policy_operator()`.
        env: As `make_env` makes it.
        episodes: At least so many: whole rounds of N.

    Returns:
        The cases, for `sam_gym.evaluation.evaluate(cases=...)` to repeat them, and their returns.
    """
    inner = suite_env(env)
    cases: list[EpisodeCase] = []
    returns: list[float] = []
    while len(cases) < episodes:
        start = env.reset()
        begun = inner.episodes
        cases += [
            EpisodeCase(int(image), int(number), tuple(cue.tolist()))
            for image, number, cue in zip(begun.image, begun.object_id, begun.cue, strict=True)
        ]
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            played = env.rollout(
                inner.settings.max_prompts, actor, auto_reset=False, tensordict=start, break_when_any_done=False
            )
        ended = played["next", "done"][..., 0]
        first = ended.int().argmax(dim=1)  # what follows is of another episode
        returns += played["next", "episode_reward"][torch.arange(len(first)), first, 0].tolist()
    return cases, returns


def compare_evaluations(
    policy: SpatialPolicy | ChoicePolicy, env: TransformedEnv, episodes: int, reward_scale: float = 1.0
) -> Compared:
    """Let TorchRL evaluate a policy on episodes that it draws, and `evaluate` repeat them.

    Args:
        policy: As for `actor_critic`.
        env: As `make_env` makes it.
        episodes: At least so many.
        reward_scale: Returns are divided by it.
    """
    cases, returns = evaluate_with_torchrl(actor_critic(policy).get_policy_operator(), env, episodes)
    inner = suite_env(env)
    settings = {field.name: getattr(inner.settings, field.name) for field in fields(inner.settings)}
    again = type(inner)(inner.num_envs, autoreset_mode="Disabled", **{**settings, ACTION_MASK: False})
    return compare(policy, again, cases, returns, reward_scale)
