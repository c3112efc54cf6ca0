"""Train clip-micro, the small CLIP that ships with sam_gym, on generated regions and the training images of DSB 2018.

    python -m sam_gym.semantics.train_clip                      writes runs/clip-micro/weights.safetensors
    python -m sam_gym.semantics.train_clip --steps 3000 --threads 2

To ship what it wrote, copy it to sam_gym/semantics/clip_micro/ and note its sha256 in docs/clip-micro.md. At the end it
prints its zero-shot accuracy on real regions of the validation splits of WBC, DSB 2018 and VNC, none of which it was
trained on. After Ctrl-C the same command goes on. What is trained and how is in sam_gym/semantics/training.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from sam_gym._utils.progress import run_with_bar
from sam_gym.data import DataUnavailableError, load_data
from sam_gym.semantics.models import ClipError, ClipModel
from sam_gym.semantics.scorer import RegionScorer
from sam_gym.semantics.training import ClipTrainer, ClipTrainingSettings
from sam_gym.semantics.views import VIEWS
from sam_gym.semantics.zero_shot import MIN_NUCLEUS, TASKS, classify, task_regions


@dataclass(frozen=True)
class Arguments:
    """Train clip-micro."""

    steps: int = ClipTrainingSettings.steps
    """Steps of AdamW; the learning rate falls to 0 over them."""
    regions: int = ClipTrainingSettings.regions
    """Regions of each class that are drawn ahead."""
    seed: int = 0
    """Of everything: regions, first weights, order."""
    threads: int = 1
    """Threads of torch. Another number rounds otherwise and so gives other weights."""
    device: str = "cpu"
    """Where it trains: cpu, cuda."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("runs/clip-micro/weights.safetensors")
    """The file to write."""


def main() -> None:
    """Parse the arguments, train, save, print the accuracy on validation splits."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.out.exists():
        sys.exit(f"error: {arguments.out} is there already: remove it, or name another file with --out")
    if arguments.threads < 1:
        sys.exit(f"error: --threads {arguments.threads} must be at least 1")
    try:
        train(arguments)
    except (ClipError, DataUnavailableError, ValueError) as error:
        sys.exit(f"error: {error}")


def train(arguments: Arguments) -> None:
    """Run the steps that are left, save, report."""
    torch.set_num_threads(arguments.threads)
    settings = ClipTrainingSettings(steps=arguments.steps, regions=arguments.regions, seed=arguments.seed)
    nuclei = load_data("dsb2018", "train", "real", min_area=MIN_NUCLEUS)
    state = arguments.out.with_suffix(".state")
    trainer = ClipTrainer(nuclei, settings, state, device=arguments.device)
    try:
        run_with_bar(trainer, "clip-micro")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped after {trainer.steps_done} steps; the same command goes on from there")
    sha256 = trainer.save(arguments.out)
    state.unlink(missing_ok=True)
    print(f"saved in {arguments.out}, {arguments.out.stat().st_size / 1e6:.1f} MB, sha256 {sha256}")
    report(trainer.trained())


def report(clip: ClipModel) -> None:
    """Print zero-shot accuracy on validation regions by view and class; what cannot be had is said so."""
    print("zero-shot accuracy on real regions of the validation splits:")
    for task in TASKS:
        try:
            regions = task_regions(task, "val")
        except DataUnavailableError as error:
            print(f"  {task.name}: not measured, {str(error).splitlines()[0]}")
            continue
        for view in VIEWS:
            result = classify(RegionScorer(clip, view), regions, task.texts)
            classes = ", ".join(f"{text} {accuracy:.3f}" for text, accuracy in result.by_class.items())
            print(f"  {task.name}, {view}: {result.accuracy:.3f} (chance {result.chance:.3f}): {classes}")


if __name__ == "__main__":
    main()
