"""The table of environments: task x data set -> id. It runs at `import sam_gym` and loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium


@dataclass(frozen=True)
class Task:
    """A kind of environment: the id's first part, its version, and its classes as "module:attribute"."""

    name: str
    version: int
    entry_point: str
    vector_entry_point: str


TASKS = (
    Task("SamPrompt", 0, "sam_gym.envs.prompt:SamPromptEnv", "sam_gym.envs.prompt:SamPromptVectorEnv"),
    Task("SamBoxRefine", 0, "sam_gym.envs.box_refine:SamBoxRefineEnv", "sam_gym.envs.box_refine:SamBoxRefineVectorEnv"),
)

DATASETS = {
    "ISBI": "isbi2012",
    "VNCCells": "vnc-cells",
    "VNCMitochondria": "vnc-mitochondria",
    "WBC": "wbc-cell",
    "WBCNucleus": "wbc-nucleus",
    "DSB": "dsb2018",
    "Synthetic": "synthetic-em",
}
"""Second part of an id -> name of the data set in `sam_gym.data.DATASETS`."""

# Keyword arguments of a data set's environments that differ from the environments' defaults.
SETTINGS = {"DSB": {"min_area": 50}}  # px; the default of 200 would leave out 31 % of these nuclei


def env_ids() -> list[str]:
    r"""All ids of this package, in the table's order.

    Example:
        >>> print(*env_ids(), sep="\n")
        SamPrompt-ISBI-v0
        SamPrompt-VNCCells-v0
        SamPrompt-VNCMitochondria-v0
        SamPrompt-WBC-v0
        SamPrompt-WBCNucleus-v0
        SamPrompt-DSB-v0
        SamPrompt-Synthetic-v0
        SamBoxRefine-ISBI-v0
        SamBoxRefine-VNCCells-v0
        SamBoxRefine-VNCMitochondria-v0
        SamBoxRefine-WBC-v0
        SamBoxRefine-WBCNucleus-v0
        SamBoxRefine-DSB-v0
        SamBoxRefine-Synthetic-v0
    """
    return [f"{task.name}-{short}-v{task.version}" for task in TASKS for short in DATASETS]


def register_envs() -> None:
    """Make every id known to Gymnasium; calling it again changes nothing."""
    for task in TASKS:
        for short, dataset in DATASETS.items():
            name = f"{task.name}-{short}-v{task.version}"
            if name not in gymnasium.registry:
                gymnasium.register(
                    id=name,
                    entry_point=task.entry_point,
                    vector_entry_point=task.vector_entry_point,
                    kwargs={"dataset": dataset, **SETTINGS.get(short, {})},
                )
