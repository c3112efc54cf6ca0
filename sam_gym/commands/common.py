"""What several commands of `sam-gym` need: messages, folders, prompters by name. Nothing slow is imported up here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sam_gym._utils.fetching import embeddings_dir
from sam_gym._utils.hub import agent_path, is_agent, prompter_name
from sam_gym._utils.naming import question

if TYPE_CHECKING:
    from rich.console import Console

    from sam_gym.envs.base import EngineVectorEnv
    from sam_gym.prompters import Prompter
    from sam_gym.sb3.saved import SavedAgent

MIB = 2**20

EnvId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
Precision = Literal["auto", "exact", "fast", "official"]
Split = Literal["train", "val", "test"]
DataMode = Literal["auto", "real", "synthetic"]
Sets = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE ...")]
"""Settings of an environment, on a command line."""


def say(message: str) -> None:
    """A message on stderr, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def console() -> Console:
    """Where tables are printed: as wide as the terminal, 120 columns in a file, never below 80."""
    from rich.console import Console

    return Console(width=max(80, Console().width if sys.stdout.isatty() else 120))


def embedding_root() -> Path:
    """The folder of the embedding cache; ValueError if there is none."""
    root = embeddings_dir()
    if root is None:
        raise ValueError("SAM_GYM_EMBEDDINGS=off: there is no embedding cache; unset it, or name a folder in it")
    return root


# ------------------------------------------------------------------------------------------------------- prompters


@dataclass(frozen=True)
class NamedPrompter:
    """What stands after --prompter: an agent, or the name of a scripted prompter.

    Attributes:
        name: As records and tables call it.
        agent: The model, or None.
    """

    name: str
    agent: SavedAgent | None

    @classmethod
    def parse(cls, given: str, device: str) -> NamedPrompter:
        """An agent (`is_agent`), or a name: "oracle-clicks" is "oracle clicks"."""
        if not is_agent(given):
            return cls(given.replace("-", " ").replace("_", " "), None)
        return cls(prompter_name(given), load_agent(given, device))

    def settings(self, env_id: str, action_mode: str | None) -> dict[str, Any]:
        """The settings that an environment needs for it.

        Raises:
            ValueError: The model is one of another task, or of another action mode than the one asked for.
        """
        if self.agent is None:
            return {} if action_mode is None else {"action_mode": action_mode}
        self.agent.check_task(env_id.partition("-")[0])
        if action_mode not in (None, self.agent.settings.get("action_mode")):
            trained = self.agent.settings.get("action_mode", "of its own")
            raise ValueError(
                f"{self.agent.file} acts in action mode {trained!r}: leave out --action-mode {action_mode}"
            )
        return self.agent.settings

    def prompter(self, env: EngineVectorEnv, seed: int = 0) -> Prompter:
        """It itself, for an environment made with `settings`.

        Raises:
            ValueError: No scripted prompter has this name in the environment's action mode; or the model was trained
                on other observations.
        """
        from sam_gym.prompters import PROMPTERS, baselines

        if self.agent is not None:
            return self.agent.prompter(env)
        mode = env.settings.action_mode
        there = baselines(env.settings, seed, slow=True)
        if self.name in there:
            return there[self.name]
        elsewhere = [other for other, names in PROMPTERS.items() if self.name in names]
        if elsewhere and mode not in elsewhere:  # else it has another name here: "no prompt" for "box only"
            hint = f" It works in action mode {' or '.join(elsewhere)}."
        else:
            hint = question(self.name, there)
        raise ValueError(
            f"there is no prompter {self.name!r} for action mode {mode!r}.{hint} There are: {', '.join(there)}; or "
            "an agent: its file, its folder, or hf:OWNER/NAME"
        )


def load_agent(name: str | Path, device: str) -> SavedAgent:
    """An agent by its file, folder or name on the Hub; what is missing is told as an error of one line."""
    path = agent_path(name)
    from sam_gym.leaderboard import board

    return board.load_agent(path, device)
