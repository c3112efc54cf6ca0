"""Train an agent that prompts SAM with Ray RLlib's PPO: one call of SAM a step, in this process or in several.

    python agents/train_rllib.py                                  SamPrompt-ISBI-v0, all in this process
    python agents/train_rllib.py --runners 2                      two processes step environments, this one learns
    python agents/train_rllib.py --env SamPrompt-Synthetic-v0     generated sections: only SAM's weights are downloaded
    python agents/train_rllib.py --minutes 10                     stop after ten minutes
    python agents/train_rllib.py --resume runs/NAME --steps 40000 go on with a run

Needs the extra: pip install "sam_gym[rllib]". It brings Gymnasium 1.2.2, which RLlib insists on. Hyper-parameters are
in agents/configs/rllib.yml; what stands there under `training` goes to RLlib's PPOConfig.training as it is.

Everything goes to one folder under runs/: returns.csv (steps, seconds, and the mean return of the last 100 episodes as
RLlib says, in IoU gained), checkpoint/ (RLlib's own, after each update), and model.zip: the agent, which `sam-gym
evaluate`, `render` and `segment` take like those of `sam-gym train`. Ctrl-C stops and keeps what was learned. At the
end RLlib evaluates its policy, and sam_gym repeats these episodes: both have to say the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is loaded, see train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sam_gym.trainers.run import MODEL, Arguments, Run, Update, command

EPISODES = 64
"""Of RLlib's own evaluation."""


def updates(algorithm: Any) -> Iterator[Update]:
    """RLlib's training, update by update."""
    while True:
        results = algorithm.train()["env_runners"]
        yield Update(int(results["num_env_steps_sampled_lifetime"]), float(results.get("episode_return_mean", "nan")))


def train(arguments: Arguments) -> None:
    """Train, store, evaluate."""
    run = Run.open(arguments, "rllib", Path(__file__).parent / "configs" / "rllib.yml")
    arguments, config, settings = run.arguments, run.config, run.settings()
    import ray

    from sam_gym.trainers.policies import save_policy
    from sam_gym.trainers.rllib import compare_evaluations, ppo_config, with_evaluation

    ray.init(num_cpus=arguments.runners + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    given = ppo_config(
        arguments.env, settings, runners=arguments.runners, num_envs=config["num_envs"], policy=config["policy"],
        policy_kwargs=config["policy_kwargs"], seed=arguments.seed, **config["training"],
    )  # fmt: skip
    algorithm = with_evaluation(given, EPISODES, split="test").build_algo()
    try:
        checkpoint = (run.folder / "checkpoint").resolve()
        if checkpoint.is_dir():
            algorithm.restore_from_path(checkpoint)
        finished = run.follow(updates(algorithm), lambda: algorithm.save_to_path(checkpoint))
        save_policy(algorithm.get_module().policy, run.folder / MODEL, arguments.env, settings, config["policy_kwargs"])
        if not finished:
            run.tell_how_to_go_on("train_rllib.py")
        print(compare_evaluations(algorithm, config["reward_scale"]))
    finally:
        algorithm.stop()
        ray.shutdown()
    run.show_table()


if __name__ == "__main__":
    command(train, __doc__)
