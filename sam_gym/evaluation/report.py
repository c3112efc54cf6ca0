"""What is shown after training or evaluation: the table, the learning curve, the film strip, and where it came from.

It draws and prints; it measures nothing.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from sam_gym._utils.fetching import atomic_path
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.rendering import film_strip
from sam_gym.evaluation.bootstrap import Interval
from sam_gym.evaluation.records import Record
from sam_gym.prompters import Prompter

PACKAGES = ("sam_gym", "gymnasium", "torch", "timm", "segment-anything", "numpy", "stable-baselines3", "sb3-contrib")


def provenance() -> dict[str, Any]:
    """Versions, git commit, hardware and command, JSON-able; unknown stays None."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    script = Path(sys.argv[0])  # an installed command has a whole path, which says where this machine keeps things
    command = [script.name if script.is_absolute() else sys.argv[0], *sys.argv[1:]]
    hardware = {"machine": platform.machine(), "processor": _processor(), "cpus": os.cpu_count(), "gpu": _gpu()}
    return {"versions": versions, "git_commit": _git_commit(), "hardware": hardware, "command": command}


def print_table(records: Sequence[Record], title: str) -> None:
    """IoU after 0..T prompts and the gain over the first mask, a row per prompter."""
    width = max(80, Console().width if sys.stdout.isatty() else 120)
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1 if width >= 100 else 0),  # it fits into 80 columns
        caption="mean IoU after 0..T prompts; a prompter that stops keeps its last mask. "
        f"gain: last IoU - IoU of {records[0].start}, same objects, 95 % paired bootstrap interval",
    )  # fmt: skip
    table.add_column("prompter", no_wrap=True)
    for column in (*map(str, _steps(records[0])), "gain", "95 % interval", "prompts"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in records:
        table.add_row(record.name, *_cells(record))
    Console(width=width).print(table)


def markdown_table(records: Sequence[Record]) -> str:
    """The same table as Markdown."""
    head = ["prompter", *map(str, _steps(records[0])), "gain", "95 % interval", "prompts"]
    rows = [[record.name, *_cells(record)] for record in records]
    return markdown([head, ["---", *["---:"] * (len(head) - 1)], *rows])


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of its rows, the one under the head that rules and aligns included."""
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _steps(record: Record) -> list[int]:
    """After which numbers of prompts the IoU is shown: all of up to 7, else 0 to 3, then every fifth, and the last."""
    last = record.iou.shape[1] - 1
    return [step for step in range(last + 1) if last <= 7 or step <= 3 or step % 5 == 0 or step == last]


def _cells(record: Record) -> list[str]:
    gain: Interval = record.gain
    interval = f"{gain.low:+.3f}..{gain.high:+.3f}"
    curve = (f"{record.curve[step]:.3f}" for step in _steps(record))
    return [*curve, f"{gain.mean:+.3f}", interval, f"{record.prompts.mean():.1f}"]


def plot_learning(path: Path, points: Sequence[Mapping[str, Any]], records: Sequence[Record], title: str) -> None:
    """Validation gain along training, and IoU against prompts on the split of `records`, as one PNG.

    Args:
        path: Where to write.
        points: {"stage", "timesteps", "gain", "return"} in order of training; timesteps count through all stages.
            The return, the sum of an episode's rewards, is drawn where it is another number than the gain; older points
            have none. Without any points only the other panel is drawn.
        records: Evaluations on one split.
        title: Over the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = 2 if points else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.2), layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=10)
    if points:
        _plot_training(axes[0, 0], points, records[0].start)
    right = axes[0, -1]
    for record in records:
        style: dict[str, Any] = (
            {"linewidth": 2.5, "color": "black"} if record.name == "agent" else {"linewidth": 1.2, "alpha": 0.9}
        )
        right.plot(range(len(record.curve)), record.curve, "o-", markersize=3, label=record.name, **style)
    right.set(xlabel="prompts", ylabel="mean IoU", title=f"{records[0].provenance['split']} split")
    right.legend(frameon=False, fontsize=8)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def _plot_training(axis: Any, points: Sequence[Mapping[str, Any]], start: str) -> None:
    for stage, colour, label in (("ppo", "tab:orange", "PPO"), ("clone", "tab:blue", "cloning the oracle")):
        mine = [p for p in points if p["stage"] == stage]
        if mine:
            if stage == "ppo":  # PPO begins where cloning ended
                mine = [p for p in points if p["stage"] == "clone"][-1:] + mine
            axis.plot([p["timesteps"] for p in mine], [p["gain"] for p in mine], "o-", color=colour, label=label)
    axis.axhline(0, color="0.5", linewidth=1)
    axis.set(xlabel="environment steps", ylabel=f"IoU gain over {start}", title="validation split")
    if any(abs(p.get("return", p["gain"]) - p["gain"]) > 1e-5 for p in points):  # rewarded by something else
        other = axis.twinx()
        other.plot([p["timesteps"] for p in points], [p["return"] for p in points], "s--", color="tab:green")
        other.set_ylabel("return (dashed): sum of the rewards it is trained on", color="tab:green")
        other.spines["top"].set_visible(False)
    axis.legend(frameon=False)


def save_film_strip(path: Path, prompter: Prompter, record: Record, env: EngineVectorEnv) -> None:
    """Four episodes of `record`, from a poor one to a good one, a row each with a picture after every prompt.

    Of episodes with more than seven prompts eight pictures are shown, evenly spread.

    Args:
        path: PNG to write.
        prompter: Whose episodes they are; it acts again.
        record: Its evaluation on the split of `env`; the episodes at the 5, 35, 65 and 95 % quantiles of its gain.
        env: Vector environment of 1 with autoreset_mode="Disabled" and render_mode="rgb_array".
    """
    order = np.argsort(record.iou[:, -1] - record.iou[:, 0], kind="stable")
    columns = min(env.settings.max_prompts, 7) + 1
    frames: list[NDArray[np.uint8]] = []
    for quantile in (0.05, 0.35, 0.65, 0.95):
        case = record.cases[order[round(quantile * (len(order) - 1))]]
        episode = episode_frames(prompter, env, case.pose())
        if len(episode) > columns:
            episode = [episode[i] for i in np.linspace(0, len(episode) - 1, columns).round().astype(int)]
        blank = np.full_like(episode[0], 24)
        frames += [*episode, *[blank] * columns][:columns]
    picture = Image.fromarray(film_strip(frames, columns))
    with atomic_path(path) as temporary:
        picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS).save(temporary, "PNG")


def episode_frames(
    prompter: Prompter, env: EngineVectorEnv, posed: Mapping[str, Any], seed: int | None = None
) -> list[NDArray[np.uint8]]:
    """One whole episode as pictures (512, 448, 3) uint8: where it begins, and after every step.

    Args:
        prompter: Acts.
        env: Vector environment of 1 with autoreset_mode="Disabled" and render_mode="rgb_array".
        posed: Reset options; what they do not fix is drawn.
        seed: Of what is drawn.
    """
    observations, _ = env.reset(seed=seed, options=dict(posed))
    frames = [_picture(env)]
    terminated = np.zeros(1, np.bool_)
    while not terminated.all():
        observations, _, terminated, _, _ = env.step(prompter(observations, env))
        frames.append(_picture(env))
    return frames


def _picture(env: EngineVectorEnv) -> NDArray[np.uint8]:
    frames = env.render()
    if frames is None:
        raise ValueError("pictures need an environment made with render_mode='rgb_array'")
    return frames[0]


def _git_commit() -> str | None:
    file = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=file.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed package may lie inside somebody else's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
