"""Train an agent that prompts SAM: clone the oracle, then PPO; keep whichever is better on the validation split.

    python agents/train_ppo.py                                  the default agent on SamPrompt-ISBI-v0
    python agents/train_ppo.py --env SamPrompt-Synthetic-v0     on generated sections, with nothing downloaded
    python agents/train_ppo.py --env SamBoxRefine-ISBI-v0       move the sides of boxes instead of clicking
    python agents/train_ppo.py --env SamPromptSemantic-WBC-v0   click until all of a class is found, told by a text
    python agents/train_ppo.py --clone-steps 0 --ppo-steps 8000 PPO from scratch
    python agents/train_ppo.py --quick                          only to see it work, in about two minutes
    python agents/train_ppo.py --resume runs/NAME               go on where an interrupted run stopped

Everything goes to one folder under runs/: model.zip (the agent), clone.zip, record.json, table.md, learning_curve.png,
episodes.png, tensorboard/. Ctrl-C stops cleanly: what was trained is kept, and --resume goes on. It is `sam-gym train`;
the code is in sam_gym/training/.
"""

from __future__ import annotations

import os
import sys

import tyro

# Before torch is loaded: compute threads that wait by spinning take the cores from whoever else has work. With one
# other busy process on two cores a training step took seven times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sam_gym.training.arguments import Arguments, train


def main() -> None:
    """Parse the arguments, train, report."""
    try:
        train(tyro.cli(Arguments, description=__doc__), "python agents/train_ppo.py")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(f"\n{stopped}")


if __name__ == "__main__":
    main()
