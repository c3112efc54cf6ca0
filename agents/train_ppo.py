"""Train an agent that prompts SAM: clone the oracle, then PPO; keep whichever is better on the validation split.

    python agents/train_ppo.py                                  the default agent on SamPrompt-ISBI-v0
    python agents/train_ppo.py --env SamPrompt-Synthetic-v0     on generated sections, with nothing downloaded
    python agents/train_ppo.py --env SamBoxRefine-ISBI-v0       move the sides of boxes instead of clicking
    python agents/train_ppo.py --env SamPromptSemantic-WBC-v0   click until all of a class is found, told by a text
    python agents/train_ppo.py --clone-steps 0 --ppo-steps 8000 PPO from scratch
    python agents/train_ppo.py --resume runs/NAME               go on where an interrupted run stopped

Everything goes to one folder under runs/: model.zip (the agent), clone.zip, record.json, table.md, learning_curve.png,
episodes.png, tensorboard/. Ctrl-C stops cleanly: what was trained is kept, and --resume goes on.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

# Before torch is loaded: compute threads that wait by spinning take the cores from whoever else has work. With one
# other busy process on two cores a training step took seven times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONFIG = Path(__file__).parent / "configs" / "ppo.yml"


@dataclass(frozen=True)
class Arguments:
    """Train an agent that prompts SAM, and print how it does on sections it never saw."""

    env: str = "SamPrompt-ISBI-v0"
    """Environment id; `python -c "import sam_gym; print(sam_gym.env_ids())"` lists them."""
    config: Path = CONFIG
    """Hyper-parameters in rl-zoo form: a YAML file with one section per environment id."""
    seed: int = 0
    """Seed of everything that is drawn while training. Evaluation episodes are fixed."""
    clone_steps: int | None = None
    """Environment steps of the warm start (0: none); default from the config."""
    ppo_steps: int | None = None
    """Environment steps of PPO (0: none); default from the config."""
    data: str = "auto"
    """auto: real images, else a marked stand-in; real: an error instead; synthetic: the stand-in."""
    checkpoint: str = "mobile_sam"
    """SAM weights: a name or a file."""
    device: str = "auto"
    """Where SAM and the policy run: auto, cpu, cuda."""
    precision: str = "auto"
    """SAM's decoder: exact (float32), fast (bfloat16), auto (fast where the hardware has bfloat16)."""
    reward: str | None = None
    """What PPO is rewarded for: iou, dice, hit, clip; default the environment's own. Cloning has an oracle that knows
    the truth: with clip and --clone-steps 0 none is needed to train."""
    clip: str = "clip-micro"
    """CLIP of targets in words and of the reward clip."""
    eval_objects: int = 81
    """Validation objects at each evaluation while training, evenly spread over the split."""
    evaluations: int = 3
    """Evaluations in each stage."""
    test_objects: int | None = None
    """Held-out objects for the final table; default all."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of this run; default runs/ENV-seedN-TIME."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of an interrupted run: its arguments are taken over and it goes on where it stopped."""


def main() -> None:
    """Parse the arguments, train, report."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        import gymnasium
        from training import Training
    except ImportError as error:
        sys.exit(f"{error}\nTraining needs the extra: pip install -e '.[sb3]'")
    from sam_gym.data import DataUnavailableError
    from sam_gym.sam import CheckpointError
    from sam_gym.semantics import ClipError

    run: Any = None
    started = time.perf_counter()
    try:
        run = Training.open(arguments)
        run.clone()
        run.ppo()
        run.report()
    except (DataUnavailableError, CheckpointError, ClipError, ValueError, gymnasium.error.Error) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if run is None:
            sys.exit("\nstopped before training began; nothing to keep")
        sys.exit(f"\nstopped. {run.keep()}\ngo on with: python agents/train_ppo.py --resume {run.folder}")
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes; everything is in {run.folder}")


if __name__ == "__main__":
    main()
