"""A judge of masks: which IoU has the mask that an agent sees? Trained on the masks that agents make.

It has features of its own (`LightPolicy(judge=True)`), so that what the agent does is the same with it and without it.
With `returns="best_predicted"` an episode then ends with the mask that the judge thinks best. Ground truth is looked at
while training only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.sb3.fitting import Update, fit
from sam_gym.sb3.policy import LightPolicy
from sam_gym.sb3.teachers import turn


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is trained.

    Attributes:
        total_timesteps: Environment steps in which masks are collected.
        gradient_steps: Adam steps on them.
        batch_size: Masks in an Adam step.
        learning_rate: Of Adam, falling linearly to zero.
        random_actions: Share of the actions that are drawn among those allowed, for masks worse than the agent's.
        weight_decay: Of Adam.
    """

    total_timesteps: int = 3200
    gradient_steps: int = 800
    batch_size: int = 64
    learning_rate: float = 3e-3
    random_actions: float = 0.15
    weight_decay: float = 1e-4


def train_judge(
    policy: LightPolicy,
    env: EngineVectorEnv,
    settings: JudgeSettings,
    seed: int,
    update: Update = lambda steps, shown: None,
) -> float:
    """Train the judge of a policy, and nothing else of it.

    Args:
        policy: Acts, by chance as its distribution says.
        env: Training environment, a vector with autoreset_mode="SameStep" and observation="full".
        settings: See `JudgeSettings`.
        seed: Of actions and batches.
        update: Told how many steps more have been done, of both kinds, and what is going on.

    Returns:
        Mean absolute error of the IoU that it predicts, over the last tenth of the steps.
    """
    rng = np.random.default_rng([seed, 7])
    masks, embeddings = _collect(policy, env, settings, rng, update)
    episode = masks.pop("episode").long()
    policy.set_training_mode(True)
    named = policy.named_parameters()
    parameters = [weight for name, weight in named if name.startswith("judge_") and weight.requires_grad]

    def batch() -> tuple[Tensor, float]:
        picked = torch.as_tensor(rng.integers(len(episode), size=settings.batch_size), device=policy.device)
        which = int(rng.integers(8))
        observations = {
            "maps": turn(masks["maps"][picked], which),
            "embedding": turn(embeddings[episode[picked]], which).float(),
            "state": masks["state"][picked],
        }
        logits, iou = policy.judged(observations), masks["iou"][picked]
        error = float((logits.detach().sigmoid() - iou).abs().mean())
        # Cross-entropy with a share as its target is least where the prediction is the expected IoU
        return F.binary_cross_entropy_with_logits(logits, iou), error

    error = fit(parameters, settings, batch, update, "fitting")
    policy.set_training_mode(False)
    return error


def _collect(
    policy: LightPolicy,
    env: EngineVectorEnv,
    settings: JudgeSettings,
    rng: np.random.Generator,
    update: Update,
) -> tuple[dict[str, Tensor], Tensor]:
    """Masks that the policy makes, their IoU, and the embeddings of their episodes."""
    n = env.num_envs
    observations, _ = env.reset(seed=int(rng.integers(2**31)))
    columns: dict[str, list[NDArray]] = {name: [] for name in ("maps", "state", "iou", "episode")}
    embeddings, episode = [*observations["embedding"].astype(np.float16)], np.arange(n)
    policy.set_training_mode(False)
    for _ in range(-(-settings.total_timesteps // n)):
        columns["maps"].append(observations["maps"])
        columns["state"].append(observations["state"])
        columns["iou"].append(env.engine.quality.iou.astype(np.float32))
        columns["episode"].append(episode.copy())
        allowed = env.action_masks()
        actions = policy.predict(observations, deterministic=False, action_masks=allowed)[0]
        for row in np.flatnonzero(rng.random(n) < settings.random_actions):
            actions[row] = rng.choice(np.flatnonzero(allowed[row]))
        observations, _, terminated, truncated, infos = env.step(actions)
        for row in np.flatnonzero(terminated | truncated):  # its last mask is seen nowhere else
            for name in ("maps", "state"):
                columns[name].append(infos["final_obs"][row][name][None])
            columns["iou"].append(infos["final_info"]["iou"][row : row + 1].astype(np.float32))
            columns["episode"].append(episode[row : row + 1].copy())
            episode[row] = len(embeddings)
            embeddings.append(observations["embedding"][row].astype(np.float16))
        update(n, "looking at masks")
    device = policy.device
    masks = {name: torch.as_tensor(np.concatenate(column), device=device) for name, column in columns.items()}
    return masks, torch.as_tensor(np.stack(embeddings), device=device)
