"""Ray RLlib: a configuration of PPO around a policy of `sam_gym.sb3`, and what its evaluations saw.

Environments are this suite's own vector environments, one call of SAM a step, in each of RLlib's runner processes.
Needs the extra `rllib`. Nothing is trained here: that is RLlib's business (agents/train_rllib.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

try:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.callbacks.callbacks import RLlibCallback
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.core.rl_module.torch import TorchRLModule
except ImportError as error:
    raise ImportError("sam_gym.trainers.rllib needs Ray RLlib: pip install 'sam_gym[rllib]'") from error
from torch import Tensor

from sam_gym.envs import references
from sam_gym.envs.engine import ACTION_MASK
from sam_gym.evaluation.records import EpisodeCase
from sam_gym.trainers.comparing import Compared, compare
from sam_gym.trainers.policies import allowed_logits, new_policy

CASES = "sam_gym_cases"
"""Name of the metric that `SeenCases` writes."""

NEVER = 10**9
"""Iterations between evaluations that nobody asks for. With None RLlib evaluates in the training's environments."""


class PolicyModule(TorchRLModule, ValueFunctionAPI):
    """A policy of `sam_gym.sb3` as an RLModule; actions that the observed mask forbids are never taken.

    Its `model_config` is a dict: `policy` (a name, as for `new_policy`), `policy_kwargs`, `env` and `env_config`. By
    the last two a learner whose process has no environment knows the images that references are about.

    Attributes:
        policy: The policy.
    """

    def setup(self) -> None:
        """Make the policy, as RLlib asks when it has made the module."""
        config: Any = self.model_config
        self.policy = new_policy(config["policy"], self.observation_space, self.action_space, **config["policy_kwargs"])
        if "reference" in self.observation_space.spaces and not self.inference_only:
            references.know(_env(config["env"], 1, **config["env_config"]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self._features(batch)
        logits = self.policy.action_net(features)
        return {
            Columns.ACTION_DIST_INPUTS: allowed_logits(logits, batch[Columns.OBS][ACTION_MASK]),
            Columns.EMBEDDINGS: features,
        }

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._forward(batch)[Columns.ACTION_DIST_INPUTS]}  # episodes keep the rest

    _forward_exploration = _forward_inference

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """(N,) values; `embeddings` are the features that a forward pass for training has made."""
        return self.policy.value_net(self._features(batch) if embeddings is None else embeddings)[:, 0]

    def _features(self, batch: dict[str, Any]) -> Tensor:
        seen = {name: values for name, values in batch[Columns.OBS].items() if name != ACTION_MASK}
        features = self.policy.extract_features(seen)
        assert isinstance(features, Tensor), "actor and critic share their features"
        return features


def ppo_config(
    env_id: str,
    settings: Mapping[str, Any],
    *,
    runners: int = 0,
    num_envs: int = 16,
    policy: str = "LightPolicy",
    policy_kwargs: Mapping[str, Any] | None = None,
    seed: int | None = None,
    **training: Any,
) -> PPOConfig:
    """RLlib's PPO on an environment of this suite; `.build_algo()` makes the algorithm.

    Args:
        env_id: A registered id of this suite, with discrete actions.
        settings: Of the environment, as for `gymnasium.make_vec`; they travel, so none may be an object.
        runners: Processes that step environments; 0: the algorithm's own.
        num_envs: Episodes that share a decode, in each of them.
        policy: Name of a policy in `sam_gym.trainers.policies.MASKED`.
        policy_kwargs: Its arguments.
        seed: Of everything that is drawn.
        **training: As for `PPOConfig.training`: lr, train_batch_size_per_learner, ...
    """
    env, env_config = f"sam_gym:{env_id}", {**settings, ACTION_MASK: True}
    module = RLModuleSpec(
        module_class=PolicyModule,
        model_config={
            "policy": policy, "policy_kwargs": dict(policy_kwargs or {}), "env": env, "env_config": env_config,
        },
    )  # fmt: skip
    return (
        PPOConfig()
        .environment(env, env_config=env_config)
        .env_runners(
            num_env_runners=runners, num_envs_per_env_runner=num_envs, gym_env_vectorize_mode="vector_entry_point"
        )
        .rl_module(rl_module_spec=module)
        .training(**training)
        .debugging(seed=seed)
    )


def with_evaluation(config: PPOConfig, episodes: int, **settings: Any) -> PPOConfig:
    """The same configuration, whose algorithm's `evaluate()` takes the likeliest actions and says what it saw.

    Args:
        config: As `ppo_config` makes it.
        episodes: How many an evaluation has.
        **settings: Of the environment, where they differ from those of training: split="test", for example.
    """
    evaluated = PPOConfig.overrides(
        explore=False, env_config={**config.env_config, **settings}, callbacks_class=SeenCases
    )
    return config.evaluation(
        evaluation_interval=NEVER, evaluation_duration=episodes, evaluation_duration_unit="episodes",
        evaluation_num_env_runners=0, evaluation_config=evaluated,
    )  # fmt: skip


class SeenCases(RLlibCallback):
    """Notes which case each episode was of, and its return, for `sam_gym.evaluation.evaluate(cases=...)` to repeat it.

    Needs observation="reference", which tells the cue. RLlib's results hold it at env_runners/sam_gym_cases.
    """

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        """Called by RLlib."""
        cue = episode.get_observations(-1)["reference"][4:]
        info = episode.get_infos(-1)
        case = [str(info["image"]), int(info["object"]), *map(float, cue), float(episode.get_return())]
        metrics_logger.log_value(CASES, case, reduce="item_series")


def seen_cases(results: Mapping[str, Any], env: Any) -> tuple[list[EpisodeCase], list[float]]:
    """The cases of one evaluation and their returns, from what the algorithm's `evaluate()` returned.

    Args:
        results: As above, of an algorithm of `with_evaluation`.
        env: An environment with the same images.
    """
    noted = results["env_runners"][CASES]
    cases = [EpisodeCase(env.data.image_index(image), number, tuple(cue)) for image, number, *cue, _ in noted]
    return cases, [one[-1] for one in noted]


def compare_evaluations(algorithm: Any, reward_scale: float = 1.0) -> Compared:
    """Let RLlib evaluate its policy on episodes that it draws, and `evaluate` repeat them with the same policy.

    Args:
        algorithm: Of a configuration of `with_evaluation`, with observation="reference".
        reward_scale: Returns are divided by it.
    """
    config = algorithm.evaluation_config
    settings = {name: value for name, value in config.env_config.items() if name != ACTION_MASK}
    env = _env(config.env, config.num_envs_per_env_runner, autoreset_mode="Disabled", **settings)
    cases, returns = seen_cases(algorithm.evaluate(), env)
    return compare(algorithm.get_module().policy, env, cases, returns, reward_scale)


def _env(env_id: str, num_envs: int, **settings: Any) -> Any:
    return gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **settings)
