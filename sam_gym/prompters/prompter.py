"""What a prompter is, and the two questions that those on a grid ask of an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from numpy.typing import NDArray

from sam_gym.envs.episode import Cells, GridActions
from sam_gym.envs.labelling import LabelledCells

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv


class Prompter(Protocol):
    """Anything that chooses actions for a batch of episodes."""

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """Choose one action per sub-environment.

        Args:
            observations: Of all N sub-environments, stacked.
            env: The environment itself, for `action_masks()`; oracles also take the truth from it.

        Returns:
            N actions.
        """
        ...


def cells_of(env: EngineVectorEnv) -> Cells:
    """The cells that can be clicked; ValueError where actions are no clicks on a grid."""
    if not isinstance(env.actions, Cells):
        raise ValueError(f"this prompter clicks on the grid; action_mode is {env.settings.action_mode!r}")
    return env.actions


def grid_of(env: EngineVectorEnv) -> GridActions:
    """The same where the prompter labels its clicks; ValueError where a module does, or all are of one kind."""
    cells = cells_of(env)
    if not isinstance(cells, GridActions):
        if isinstance(cells, LabelledCells):
            raise ValueError(
                "this prompter labels its clicks itself; here a module does: make the environment without one"
            )
        raise ValueError(
            "this prompter clicks foreground and background until one mask is right; here each click makes a region"
        )
    return cells
