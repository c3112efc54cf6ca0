"""`train`: a whole training from its `Arguments`; nothing slow is imported before it begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

NEEDS_EXTRA = "it needs the extra sb3: pip install 'sam_gym[sb3]'"


@dataclass(frozen=True)
class Arguments:
    """Train an agent that prompts SAM, and print how it does on sections it never saw."""

    env: str = "SamPrompt-ISBI-v0"
    """Environment id; sam-gym list shows them."""
    config: str = "ppo"
    """Hyper-parameters in rl-zoo form: a YAML file with one section per environment id; or a packaged recipe: ppo,
    clip (agreement with a text as the only reward), alignsam (as published), alignsam_gain (as we would have it)."""
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
    """SAM's decoder while training and validating: exact (float32), fast (bfloat16), auto (fast where the hardware has
    bfloat16). The held-out table is always exact."""
    attention: Literal["full", "foveated"] = "foveated"
    """How SAM looks while training and validating: full, at whole images; foveated, closely at the object only, which
    is many times quicker. The held-out table is always full."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of your own images and masks, for ids such as SamPrompt-Folder-v0 (docs/data.md)."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Settings of the environment, in training and evaluation; its page lists them."""
    reward: str | None = None
    """What PPO is rewarded for: iou, dice, hit, clip; default the environment's own. Cloning has an oracle that knows
    the truth: with clip and --clone-steps 0 none is needed to train."""
    clip: str = "clip-micro"
    """CLIP of targets in words and of the reward clip."""
    eval_objects: int | None = None
    """Validation objects at each evaluation while training, evenly spread over the split; default 81."""
    evaluations: int | None = None
    """Evaluations in each stage; default 3."""
    test_objects: int | None = None
    """Held-out objects for the final table; default all."""
    quick: bool = False
    """Two minutes, only to see it work: fewer steps and objects, where you name none. What comes out is marked quick,
    and is no result."""
    wandb: bool = False
    """Show the run on Weights & Biases as well (extra wandb); WANDB_MODE=offline keeps it on this disk."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of this run; default runs/ENV-seedN-TIME, and runs/ENV-quick-seedN-TIME with --quick."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of an interrupted run: its arguments are taken over and it goes on where it stopped."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """What a user can mend, data, weights, ids, becomes a ValueError; whatever else goes wrong keeps its traceback."""
    import gymnasium

    from sam_gym.data import DataUnavailableError
    from sam_gym.sam import CheckpointError
    from sam_gym.semantics import ClipError

    try:
        yield
    except (DataUnavailableError, CheckpointError, ClipError, gymnasium.error.Error) as error:
        raise ValueError(str(error)) from error


def train(arguments: Arguments, command: str = "sam-gym train") -> None:
    """Clone, PPO, report; tables and progress are printed, everything else goes into the run's folder.

    Args:
        arguments: What to train, on what.
        command: What the user called; after Ctrl-C it is told how to go on with it.

    Raises:
        ValueError: Something asked for is not there; one line says what.
        KeyboardInterrupt: After Ctrl-C; what was trained is kept, and the message says where.
    """
    try:
        from sam_gym.training.run import Training
    except ImportError as error:
        raise ValueError(f"training cannot begin, {NEEDS_EXTRA} ({error})") from error

    run: Training | None = None
    started = time.perf_counter()
    try:
        with told_in_one_line():
            run = Training.open(arguments)
            run.clone()
            run.ppo()
            run.judge()
            run.report()
    except KeyboardInterrupt:
        if run is None:
            raise KeyboardInterrupt("stopped before training began; nothing to keep") from None
        raise KeyboardInterrupt(f"stopped. {run.keep()}\ngo on with: {command} --resume {run.folder}") from None
    finally:
        if run is not None:
            run.close()
    minutes = f"{(time.perf_counter() - started) / 60:.1f} minutes"
    print(f"\n{f'{run.mark}, {minutes}' if run.mark else minutes}; everything is in {run.folder}")
