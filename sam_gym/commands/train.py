"""`sam-gym train`: train an agent. The work is done by `sam_gym.training`."""

from __future__ import annotations

import tyro

from sam_gym.training import arguments


def train(training: tyro.conf.OmitArgPrefixes[arguments.Arguments]) -> None:
    """Train an agent that prompts SAM: clone the oracle, then PPO; the better one on the validation split is kept.

    For example:

        sam-gym train
        sam-gym train --env SamPrompt-Synthetic-v0
        sam-gym train --env SamPromptSemantic-WBC-v0 --config clip
        sam-gym train --clone-steps 0 --ppo-steps 8000
        sam-gym train --quick
        sam-gym train --resume runs/NAME

    Everything goes to one folder under runs/: model.zip (the agent), clone.zip, record.json, table.md,
    learning_curve.png, episodes.png, tensorboard/. Ctrl-C stops cleanly: what was trained is kept, and --resume goes
    on. It needs the extra sb3.
    """
    arguments.train(training)
