"""What agents/train_rllib.py and agents/train_torchrl.py share: arguments, the run's folder, bar, log, going on later.

What an update is, is the trainer's business; this file only counts them.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import tyro

from sam_gym._utils.asking import env_settings
from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.training.arguments import told_in_one_line

LOG = "returns.csv"
"""A line for each update: steps so far, seconds so far, mean return of recent episodes in units of the reward."""

MODEL = "model.zip"
"""The agent's file in a run's folder."""


@dataclass(frozen=True)
class Arguments:
    """Train an agent that prompts SAM by PPO, from scratch; compare it with the box alone on sections it never saw."""

    env: str = "SamPrompt-ISBI-v0"
    """Environment id, with discrete actions; sam-gym list shows them."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="YAML")] = None
    """Hyper-parameters; default the file of this script's name in agents/configs/."""
    steps: int = 20_000
    """Environment steps."""
    minutes: float | None = None
    """Stop after so many minutes of training, if the steps are not done by then."""
    runners: int = 0
    """Processes beside this one that step environments, each with its own SAM; 0: this one does (RLlib only)."""
    seed: int = 0
    """Seed of everything that is drawn while training."""
    data: Literal["auto", "real", "synthetic"] = "auto"
    """auto: real images, else a marked stand-in; real: an error instead; synthetic: the stand-in."""
    checkpoint: str = "mobile_sam"
    """SAM weights: a name or a file."""
    attention: Literal["full", "foveated"] = "foveated"
    """How SAM looks while training: full, at whole images; foveated, closely at the object only, many times quicker."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of your own images and masks, for ids such as SamPrompt-Folder-v0 (docs/data.md)."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Settings of the environment; its page lists them."""
    test_objects: int = 60
    """Held-out objects for the table at the end, evenly spread; 0: no table."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of this run; default runs/TRAINER-ENV-seedN-TIME."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of a run to go on with: its arguments are taken, but for --steps and --minutes."""


class Update(NamedTuple):
    """After an update: environment steps so far, and the mean return of recent episodes, as the trainer says."""

    steps: int
    mean_return: float


@dataclass(frozen=True)
class Run:
    """A training and its folder.

    Attributes:
        folder: Where everything goes.
        arguments: Of the training.
        config: Its hyper-parameters.
        done: Steps that were done before.
    """

    folder: Path
    arguments: Arguments
    config: dict[str, Any]
    done: int = 0

    @classmethod
    def open(cls, given: Arguments, trainer: str, config: Path) -> Run:
        """Begin a run, or take up the one in `given.resume`.

        Args:
            given: Arguments of this call.
            trainer: Beginning of the folder's name.
            config: Taken where the arguments name none.

        Raises:
            ValueError: There is no such run, or the folder of a new one holds one already.
        """
        if given.resume is not None:
            file = given.resume / "run.json"
            if not file.is_file():
                raise ValueError(f"there is no run of this script in {given.resume}: it has no run.json")
            stored = json.loads(file.read_text(encoding="utf-8"))
            paths = {name: stored["arguments"][name] and Path(stored["arguments"][name]) for name in ("config", "root")}
            old = Arguments(**{**stored["arguments"], **paths, "set": tuple(stored["arguments"]["set"])})
            arguments = replace(old, steps=given.steps, minutes=given.minutes)
            rows = read_log(given.resume)
            return cls(given.resume, arguments, stored["config"], rows[-1].steps if rows else 0)
        import yaml

        chosen = given.config or config
        if not chosen.is_file():
            raise ValueError(f"there is no file of hyper-parameters {chosen}; agents/configs/ has examples")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = given.run_dir or Path("runs") / f"{trainer}-{given.env}-seed{given.seed}-{stamp}"
        if (folder / "run.json").exists():
            raise ValueError(
                f"{folder} holds a run already: go on with it by --resume {folder}, or name another folder"
            )
        run = cls(folder, given, yaml.safe_load(chosen.read_text(encoding="utf-8")))
        folder.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(asdict(given), default=str))
        write_json(folder / "run.json", {"arguments": {**plain, "resume": None, "run_dir": None}, "config": run.config})
        return run

    def settings(self) -> dict[str, Any]:
        """Of the training's environment; its reward is `reward_scale` times what was asked for."""
        from sam_gym.envs.rewards import parse_reward

        asked = env_settings(self.arguments.env, self.arguments.root, self.arguments.set)
        terms = parse_reward(asked.get("reward", "iou"))
        scale = self.config["reward_scale"]
        given = {name: getattr(self.arguments, name) for name in ("data", "checkpoint", "attention")}
        return {
            "split": "train", "observation": "reference", **given, **asked,
            "reward": {name: scale * weight for name, weight in terms.items()},
        }  # fmt: skip

    def follow(self, updates: Iterable[Update], keep: Callable[[], None]) -> bool:
        """Train until steps or minutes are used up; after each update its return is logged and the state kept.

        Args:
            updates: The training; asked for the next update only when another is wanted.
            keep: Stores what is needed to go on.

        Returns:
            Whether it came to its end; False after Ctrl-C, when at most one update is lost.
        """
        minutes, before = self.arguments.minutes, read_log(self.folder)
        spent = before[-1].seconds if before else 0.0
        started = time.monotonic()
        with progress_bar("PPO", self.arguments.steps, "step", done=self.done) as bar:
            try:
                if self.done >= self.arguments.steps:
                    return True
                for update in updates:
                    mean, seconds = update.mean_return / self.config["reward_scale"], time.monotonic() - started
                    keep()
                    _log(self.folder, Logged(update.steps, round(spent + seconds, 1), mean))
                    bar.set_postfix_str(f"return {mean:+.4f}", refresh=False)
                    bar.update(update.steps - bar.n)
                    if update.steps >= self.arguments.steps or (minutes is not None and seconds >= 60 * minutes):
                        break
            except KeyboardInterrupt:
                return False
        return True

    def tell_how_to_go_on(self, script: str) -> NoReturn:
        """After Ctrl-C, once the agent is stored.

        Raises:
            KeyboardInterrupt: Always; says what to call.
        """
        raise KeyboardInterrupt(
            f"the agent as it is now: {self.folder / MODEL}\ngo on with: python agents/{script} --resume {self.folder}"
        )

    def show_table(self) -> None:
        """The agent beside the box alone on held-out objects: full attention, exact, as for any other agent."""
        given = self.arguments
        if given.test_objects:
            from sam_gym.commands.evaluate import evaluate

            evaluate(
                given.env, prompter=("box-only", str(self.folder / MODEL)), objects=given.test_objects, data=given.data,
                checkpoint=given.checkpoint, precision="exact", root=given.root, set=given.set,
                out=self.folder / "evaluations",
            )  # fmt: skip
        print(f"\neverything is in {self.folder}")


def command(train: Callable[[Arguments], None], description: str | None) -> None:
    """A script of agents/: parse, train, and end in one line after Ctrl-C or where something is missing."""
    try:
        with told_in_one_line():
            train(tyro.cli(Arguments, description=description))
    except (ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(f"\nstopped; {stopped}" if stopped.args else "\nstopped before training began")


class Logged(NamedTuple):
    """A line of the log."""

    steps: int
    seconds: float
    mean_return: float


def read_log(folder: Path) -> list[Logged]:
    """What `Run.follow` has logged so far."""
    file = folder / LOG
    if not file.is_file():
        return []
    with open(file, encoding="utf-8", newline="") as lines:
        rows: Iterable[Mapping[str, str]] = csv.DictReader(lines)
        return [Logged(int(row["steps"]), float(row["seconds"]), float(row["mean_return"])) for row in rows]


def _log(folder: Path, row: Logged) -> None:
    new = not (folder / LOG).is_file()
    with open(folder / LOG, "a", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        if new:
            writer.writerow(Logged._fields)
        writer.writerow(row)
