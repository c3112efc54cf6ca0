"""Improve a diffusion model by DDPO in a Denoise environment, until its pictures show the class asked for.

    python agents/train_ddpo.py                                       Denoise-Smears-v0, into runs/ddpo-Smears
    python agents/train_ddpo.py --env Denoise-DSB-v0 --kl 0.1         another one, held near the model it began with

Every ten rounds it writes a checkpoint and a sheet of samples with fixed seeds; the model is agent.safetensors, which
environments take as model=. TensorBoard shows the rest: `tensorboard --logdir runs`. After Ctrl-C the same command goes
on, and so it does with more --updates. The reward is what one classifier says; whether another one agrees is what
benchmarks/denoise.py asks. What is trained, and how, is in sam_gym/generative/ddpo.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import gymnasium
import torch
import tyro

import sam_gym  # noqa: F401  (registers the environments)
from sam_gym._utils.progress import progress_bar
from sam_gym.generative.ddpo import Ddpo, DdpoSettings
from sam_gym.generative.sheets import sample_sheet, write_sheet

STORE_UPDATES = 10


@dataclass(frozen=True)
class Arguments:
    """Improve a diffusion model by DDPO."""

    ddpo: Annotated[DdpoSettings, tyro.conf.arg(name="")] = field(default_factory=DdpoSettings)
    env: Annotated[str, tyro.conf.arg(metavar="ID")] = "Denoise-Smears-v0"
    """Environment id."""
    reward: str = "log_probability"
    """Of the environment: log_probability or correct."""
    threads: int = 2
    """Threads of torch."""
    device: str = "auto"
    """Where it trains: auto, cpu, cuda."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The folder to write; default runs/ddpo-<data set>."""


def main() -> None:
    """Parse the arguments, train."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(arguments.threads)
    try:
        train(arguments)
    except (ValueError, TypeError, gymnasium.error.Error) as error:
        sys.exit(f"error: {error}")


def train(arguments: Arguments) -> None:
    """Run the rounds that are left, with a log, sheets and checkpoints."""
    from torch.utils.tensorboard import SummaryWriter

    folder = arguments.out or Path("runs") / f"ddpo-{arguments.env.split('-')[1]}"
    env = gymnasium.make_vec(
        arguments.env, num_envs=arguments.ddpo.samples, autoreset_mode="Disabled", reward=arguments.reward,
        device=arguments.device,
    )  # fmt: skip
    trainer = Ddpo(env, arguments.ddpo, folder / "state.pt")

    def keep() -> None:
        trainer.store()
        trainer.average.model.save(folder / "agent.safetensors")

    def sheet() -> None:
        path = folder / "sheets" / f"{trainer.updates_done:04d}.png"
        write_sheet(path, sample_sheet(trainer.average.model, arguments.ddpo.seed))

    if trainer.updates_done == 0:
        sheet()
    with (
        SummaryWriter(str(folder)) as log,
        progress_bar("DDPO", arguments.ddpo.updates, "round", done=trainer.updates_done) as bar,
    ):

        def after_update(trainer: Ddpo, told: dict[str, float]) -> None:
            for name, value in told.items():
                log.add_scalar(f"ddpo/{name}", value, trainer.updates_done)
            bar.set_postfix_str(f"reward {told['reward']:.2f}, clipped {told['clipped']:.2f}", refresh=False)
            bar.update()
            if trainer.updates_done % STORE_UPDATES == 0:
                keep()
                sheet()

        try:
            trainer.run(after_update)
        except KeyboardInterrupt:
            keep()
            sys.exit(f"\nstopped after {trainer.updates_done} rounds; the same command goes on from there")
    keep()
    sheet()
    print(f"saved {folder / 'agent.safetensors'} after {trainer.updates_done} rounds; samples in {folder / 'sheets'}")


if __name__ == "__main__":
    main()
