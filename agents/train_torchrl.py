"""Train an agent that prompts SAM with TorchRL: PPO of its parts, with its ActionMask, on our vector environments.

    python agents/train_torchrl.py                                  SamPrompt-ISBI-v0
    python agents/train_torchrl.py --env SamPrompt-Synthetic-v0     generated: only SAM's weights are downloaded
    python agents/train_torchrl.py --minutes 10                     stop after ten minutes
    python agents/train_torchrl.py --resume runs/NAME --steps 40000 go on with a run

Needs the extra: pip install "sam_gym[torchrl]". Hyper-parameters are in agents/configs/torchrl.yml. This file is meant
to be read and changed: what TorchRL does here is in `updates`.

Everything goes to one folder under runs/: returns.csv (steps, seconds, mean return of the update's episodes, in IoU
gained), state.pt (policy and optimizer, after each update), and model.zip: the agent, which `sam-gym evaluate`,
`render` and `segment` take like those of `sam-gym train`. Ctrl-C stops and keeps what was learned. At the end TorchRL
evaluates its policy, and sam_gym repeats these episodes: both have to say the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is loaded, see train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sam_gym.trainers.run import MODEL, Arguments, Run, Update, command

EPISODES = 64
"""Of TorchRL's own evaluation."""


def updates(env: Any, operator: Any, optimizer: Any, settings: dict[str, Any], done: int) -> Iterator[Update]:
    """PPO, update by update."""
    import torch
    from torchrl.collectors import Collector
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    actor, critic = operator.get_policy_operator(), operator.get_value_operator()
    advantages = GAE(gamma=settings["gamma"], lmbda=settings["lmbda"], value_network=critic, deactivate_vmap=True)
    loss_of = ClipPPOLoss(
        actor, critic, clip_epsilon=settings["clip_epsilon"], entropy_coeff=settings["entropy_coeff"],
        critic_coeff=settings["critic_coeff"], normalize_advantage=True,
    )  # fmt: skip
    collector = Collector(
        env,
        actor,
        frames_per_batch=settings["frames_per_batch"],
        total_frames=-1,
        auto_register_policy_transforms=False,
    )
    for batch in collector:
        done += batch.numel()
        for _ in range(settings["num_epochs"]):
            with torch.no_grad():
                advantages(batch)
            flat = batch.reshape(-1)
            for rows in torch.randperm(len(flat)).split(settings["minibatch_size"]):
                losses = loss_of(flat[rows])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(operator.parameters(), settings["max_grad_norm"])
                optimizer.step()
        ended = batch["next", "done"]
        yield Update(done, batch["next", "episode_reward"][ended].mean().item())


def train(arguments: Arguments) -> None:
    """Train, store, evaluate."""
    run = Run.open(arguments, "torchrl", Path(__file__).parent / "configs" / "torchrl.yml")
    arguments, config, settings = run.arguments, run.config, run.settings()
    if arguments.runners:
        raise ValueError("--runners is for train_rllib.py: here this process steps the environments")
    import torch

    from sam_gym.trainers.policies import new_policy, save_policy
    from sam_gym.trainers.torchrl import actor_critic, compare_evaluations, make_env, suite_env

    torch.manual_seed(arguments.seed + run.done)  # what a resumed run draws differs from what it drew before
    env = make_env(arguments.env, config["num_envs"], **settings)
    env.set_seed(arguments.seed + run.done)
    spaces = suite_env(env).single_observation_space, suite_env(env).single_action_space
    policy = new_policy(config["policy"], *spaces, **config["policy_kwargs"])
    operator = actor_critic(policy)
    optimizer = torch.optim.Adam(operator.parameters(), lr=config["training"]["lr"])
    state = run.folder / "state.pt"
    if state.is_file():
        stored = torch.load(state, weights_only=True)
        policy.load_state_dict(stored["policy"])
        optimizer.load_state_dict(stored["optimizer"])

    def keep() -> None:
        torch.save({"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}, state)

    finished = run.follow(updates(env, operator, optimizer, config["training"], run.done), keep)
    save_policy(policy, run.folder / MODEL, arguments.env, settings, config["policy_kwargs"])
    if not finished:
        run.tell_how_to_go_on("train_torchrl.py")
    test = make_env(arguments.env, config["num_envs"], **{**settings, "split": "test"})
    test.set_seed(arguments.seed)
    print(compare_evaluations(policy, test, EPISODES, config["reward_scale"]))
    run.show_table()


if __name__ == "__main__":
    command(train, __doc__)
