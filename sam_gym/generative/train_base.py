"""Train what a denoising environment needs: a diffusion model of small pictures, and two classifiers of them.

    python -m sam_gym.generative.train_base                     the generated smears
    python -m sam_gym.generative.train_base --dataset DSB       nuclei of DSB 2018; also WBC, Synthetic

It writes base.safetensors, reward.safetensors and judge.safetensors, where environments find them by themselves, and
beside them a sheet of samples every 1,000 steps: look at it. At the end it prints how well the two classifiers do on
pictures that nobody trained on. After Ctrl-C the same command goes on; so it does with more --steps.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from sam_gym._utils.progress import run_with_bar
from sam_gym.data import DataUnavailableError
from sam_gym.generative.classifier import ROLES, Classifier, confusion, train_classifier
from sam_gym.generative.files import NAMES, trained_folder
from sam_gym.generative.model import ModelError
from sam_gym.generative.sheets import sample_sheet, write_sheet
from sam_gym.generative.sources import Pictures, load_pictures
from sam_gym.generative.training import BaseSettings, BaseTrainer

SHEET_STEPS = 1000


@dataclass(frozen=True)
class Arguments:
    """Train the models of a denoising environment."""

    dataset: Literal["Smears", "DSB", "WBC", "Synthetic"] = "Smears"
    """The set of pictures, as in the environment's id."""
    steps: int = BaseSettings.steps
    """Steps of the diffusion model. More of them later go on from where it stood."""
    classifier_steps: int = 1000
    """Steps of each classifier."""
    seed: int = 0
    """Of everything."""
    threads: int = 2
    """Threads of torch."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The folder to write; by default in sam_gym's cache."""


def main() -> None:
    """Parse the arguments, train, report."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.threads < 1:
        sys.exit(f"error: --threads {arguments.threads} must be at least 1")
    torch.set_num_threads(arguments.threads)
    try:
        train(arguments)
    except (ModelError, DataUnavailableError, ValueError) as error:
        sys.exit(f"error: {error}")


def train(arguments: Arguments) -> None:
    """Train what is not there yet."""
    name = next(key for key, short in NAMES.items() if short == arguments.dataset)
    folder = arguments.out or trained_folder(name)
    settings = BaseSettings(steps=arguments.steps, seed=arguments.seed)
    pictures = load_pictures(name, "train")
    pictures.check()
    print(f"{name}: {', '.join(f'{count} {kind}' for kind, count in pictures.counts.items())}; writing to {folder}")
    for role in ROLES:
        path = folder / f"{role}.safetensors"
        if not path.is_file():
            train_classifier(pictures, role, steps=arguments.classifier_steps, seed=arguments.seed).save(path)
    train_denoiser(pictures, settings, folder)
    report(name, folder)


def train_denoiser(pictures: Pictures, settings: BaseSettings, folder: Path) -> None:
    """The steps that are left, with sheets on the way; writes base.safetensors at the end."""
    trainer = BaseTrainer(pictures, settings, folder / "base.state")
    if trainer.steps_done >= settings.steps:
        print(f"the diffusion model has had its {trainer.steps_done} steps; --steps with a larger number goes on")

    def look() -> None:
        if trainer.steps_done % SHEET_STEPS == 0:
            sheet(trainer, folder)

    try:
        run_with_bar(trainer, "diffusion", decimals=4, memory=0.98, after=look)
    except KeyboardInterrupt:
        sys.exit(f"\nstopped after {trainer.steps_done} steps; the same command goes on from there")
    trainer.store()
    sheet(trainer, folder)
    path = folder / "base.safetensors"
    sha256 = trainer.average.model.save(path)  # type: ignore[operator]
    print(f"saved {path}, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}, after {trainer.steps_done} steps")


def sheet(trainer: BaseTrainer, folder: Path) -> None:
    """Samples of the averaged weights as they are now."""
    path = folder / "sheets" / f"{trainer.steps_done:06d}.png"
    write_sheet(path, sample_sheet(trainer.average.model, trainer.settings.seed))  # type: ignore[arg-type]


def report(name: str, folder: Path) -> None:
    """Print what the classifiers say of the test pictures."""
    pictures = load_pictures(name, "test")
    for role in ROLES:
        table = confusion(Classifier.load(folder / f"{role}.safetensors", pictures.classes), pictures)
        right = table.diagonal() / table.sum(1).clip(1)
        each = ", ".join(f"{kind} {share:.3f}" for kind, share in zip(pictures.classes, right, strict=True))
        print(f"{role} classifier on {len(pictures)} test pictures: {table.trace() / table.sum():.3f}: {each}")


if __name__ == "__main__":
    main()
