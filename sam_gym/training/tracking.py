"""A run on Weights & Biases, by the integration that it has for Stable-Baselines3. Needs the extra `wandb`.

It takes what the run writes to TensorBoard, together with its arguments and hyper-parameters. Models, images and code
are not uploaded.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

PROJECT = "sam_gym"
"""On Weights & Biases, unless WANDB_PROJECT names another."""


def tracked(folder: Path, state: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Show a run from now on, if its arguments say so; call it before TensorBoard's files are opened.

    Args:
        folder: Of the run.
        state: Of the run; it keeps the id by which a resumed run goes on.

    Returns:
        Both, for whoever passes them on.

    Raises:
        ValueError: Weights & Biases is not installed, or nobody is logged in.
    """
    if state["arguments"]["wandb"]:
        try:
            import wandb
            from wandb.integration import tensorboard
        except ImportError as error:
            raise ValueError(f"--wandb needs the extra wandb: pip install 'sam_gym[wandb]' ({error})") from error
        folder.mkdir(parents=True, exist_ok=True)
        if not wandb.patched["tensorboard"]:  # init does it too, but for a folder of its own choice, and says so
            tensorboard.patch(root_logdir=str(folder))
        try:
            wandb.init(
                dir=folder, name=folder.name, id=state.setdefault("wandb", uuid.uuid4().hex), resume="allow",
                config={**state["config"], **state["arguments"]}, sync_tensorboard=True, save_code=False,
                settings=wandb.Settings(project=wandb.Settings().project or PROJECT),
            )  # fmt: skip
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases cannot show this run: {error}. Run `wandb login`, or set WANDB_MODE=offline"
            ) from error
    return folder, state


def callbacks_of(state: dict[str, Any]) -> list[BaseCallback]:
    """What PPO calls, beside its own callbacks."""
    if not state["arguments"]["wandb"]:
        return []
    from wandb.integration.sb3 import WandbCallback

    return [WandbCallback()]


def finish(state: dict[str, Any]) -> None:
    """End the run there; what was not sent yet is sent."""
    if state["arguments"]["wandb"]:
        import wandb
        from wandb.integration import tensorboard

        wandb.finish()
        tensorboard.unpatch()
