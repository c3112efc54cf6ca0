"""The table of environments: task x data set -> id. It runs at `import sam_gym` and loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium

OBJECTS = {
    "ISBI": "isbi2012",
    "VNCCells": "vnc-cells",
    "VNCMitochondria": "vnc-mitochondria",
    "WBC": "wbc-cell",
    "WBCNucleus": "wbc-nucleus",
    "DSB": "dsb2018-153",
    "Synthetic": "synthetic-em",
}
"""Second part of an id -> name of the data set in `sam_gym.data.DATASETS`."""

FOLDER = {"Folder": "folder"}
"""The same for any folder of images and masks. These ids need `root=...`, and so are not in `env_ids`."""

MIXED = {
    "Mixed": "isbi2012+vnc-cells+vnc-mitochondria+wbc-cell+wbc-nucleus+dsb2018-153+synthetic-smear-cells"
    "+synthetic-smear-nuclei+synthetic-em"
}
"""The same for the mixture that the generalist agent is trained on. It loads all of them, and so is in no list."""

CLASSES = {
    "VNCMitochondria": "vnc-mitochondria",
    "WBC": "wbc-cell",
    "WBCNucleus": "wbc-nucleus",
    "DSB": "dsb2018-153",
    "Synthetic": "synthetic-mitochondria",
}
"""The same where the target is a class. Cells are missing: without the membranes they are all of a section."""

REPORTS = {
    "VNCMitochondria": "vnc-mitochondria",
    "VNCCells": "vnc-cells",
    "WBC": "wbc-cell",
    "DSB": "dsb2018-153",
    "Synthetic": "synthetic-mitochondria",
    "Smears": "synthetic-smear-cells",
}
"""The same where an image is described as a whole."""

VERSIONS = {"DSB": 1}
"""Data sets whose environments are of a later version than their task; v0 of them has `EARLIER` images."""

EARLIER = {"DSB": "dsb2018"}
"""What version 0 has, where it is not the present one; still registered, and in no list."""

# Keyword arguments of a data set's environments about single objects that differ from the environments' defaults.
SETTINGS = {
    "DSB": {"min_area": 50},  # px; the default of 200 would leave out 31 % of these nuclei
    "Mixed": {"min_area": 50},
}

REPORT_SETTINGS = {
    "VNCMitochondria": {"window_side": 512},
    "VNCCells": {"window_side": 128},
    "DSB": {"window_side": 128},
    "WBC": {"granularity": "middle"},
}
"""The same of environments in which a report is written; windows are such that most have 12 objects at most."""


@dataclass(frozen=True)
class Task:
    """A kind of environment.

    Attributes:
        name: The id's first part.
        version: Its last, where `VERSIONS` has no other.
        entry_point: The class, as "module:attribute".
        vector_entry_point: The class of vector environments.
        datasets: Second part of the id -> name of the data set.
        settings: Second part of the id -> keyword arguments.
        counted: What an episode is about, of which `sam_gym.data.spec.read_object_counts` has the numbers.
    """

    name: str
    version: int
    entry_point: str
    vector_entry_point: str
    datasets: Mapping[str, str]
    settings: Mapping[str, Mapping[str, int | str]]
    counted: str = "objects"

    def env_id(self, short: str) -> str:
        """The id for one of `datasets`."""
        return f"{self.name}-{short}-v{VERSIONS.get(short, self.version)}"


def _task(
    name: str,
    version: int,
    classes: str,
    datasets: Mapping[str, str],
    settings: Mapping = SETTINGS,
    counted: str = "objects",
) -> Task:
    """A task whose classes are `classes` + "Env" and `classes` + "VectorEnv"."""
    paths = f"sam_gym.envs.{classes}Env", f"sam_gym.envs.{classes}VectorEnv"
    return Task(name, version, *paths, datasets, settings, counted)


TASKS = (
    _task("SamPrompt", 0, "prompt:SamPrompt", OBJECTS),
    _task("SamBoxRefine", 0, "box_refine:SamBoxRefine", OBJECTS),
    _task("SamProofread", 0, "proofread:SamProofread", OBJECTS),
    _task("SamPrefer", 0, "prefer:SamPrefer", OBJECTS),
    _task("SamPromptSemantic", 0, "semantic:SamPromptSemantic", CLASSES, {}, "classes"),
    _task("SamReport", 0, "report:SamReport", REPORTS, REPORT_SETTINGS, "windows"),
)
"""Tasks in which a SAM is prompted."""

DENOISE = _task(
    "Denoise",
    0,
    "denoise:Denoise",
    {"Smears": "smears", "DSB": "dsb2018-153", "WBC": "wbc-cell", "Synthetic": "synthetic-em"},
    {},
)
"""The task in which pictures of cells are drawn. No SAM is in it, and no prompter, oracle or leaderboard knows it."""


def env_ids() -> list[str]:
    r"""All ids in which a SAM is prompted and that can be made without an argument, in the table's order.

    Example:
        >>> print(*env_ids(), sep="\n")
        SamPrompt-ISBI-v0
        SamPrompt-VNCCells-v0
        SamPrompt-VNCMitochondria-v0
        SamPrompt-WBC-v0
        SamPrompt-WBCNucleus-v0
        SamPrompt-DSB-v1
        SamPrompt-Synthetic-v0
        SamBoxRefine-ISBI-v0
        SamBoxRefine-VNCCells-v0
        SamBoxRefine-VNCMitochondria-v0
        SamBoxRefine-WBC-v0
        SamBoxRefine-WBCNucleus-v0
        SamBoxRefine-DSB-v1
        SamBoxRefine-Synthetic-v0
        SamProofread-ISBI-v0
        SamProofread-VNCCells-v0
        SamProofread-VNCMitochondria-v0
        SamProofread-WBC-v0
        SamProofread-WBCNucleus-v0
        SamProofread-DSB-v1
        SamProofread-Synthetic-v0
        SamPrefer-ISBI-v0
        SamPrefer-VNCCells-v0
        SamPrefer-VNCMitochondria-v0
        SamPrefer-WBC-v0
        SamPrefer-WBCNucleus-v0
        SamPrefer-DSB-v1
        SamPrefer-Synthetic-v0
        SamPromptSemantic-VNCMitochondria-v0
        SamPromptSemantic-WBC-v0
        SamPromptSemantic-WBCNucleus-v0
        SamPromptSemantic-DSB-v1
        SamPromptSemantic-Synthetic-v0
        SamReport-VNCMitochondria-v0
        SamReport-VNCCells-v0
        SamReport-WBC-v0
        SamReport-DSB-v1
        SamReport-Synthetic-v0
        SamReport-Smears-v0
    """
    return [task.env_id(short) for task in TASKS for short in task.datasets]


def denoise_ids() -> list[str]:
    r"""The ids of the denoising family, which `env_ids` does not have: they need trained weights.

    Example:
        >>> print(*denoise_ids(), sep="\n")
        Denoise-Smears-v0
        Denoise-DSB-v0
        Denoise-WBC-v0
        Denoise-Synthetic-v0
    """
    return [f"{DENOISE.name}-{short}-v{DENOISE.version}" for short in DENOISE.datasets]


def unlisted_ids() -> list[str]:
    """The other ids of single objects: of folders, which need `root=...`, and of the mixture.

    Example:
        >>> unlisted_ids()[:2]
        ['SamPrompt-Folder-v0', 'SamPrompt-Mixed-v0']
    """
    return [task.env_id(short) for task in TASKS if task.datasets is OBJECTS for short in (*FOLDER, *MIXED)]


def register_envs() -> None:
    """Make every id known to Gymnasium; calling it again changes nothing."""
    for task in TASKS:
        more = {**FOLDER, **MIXED} if task.datasets is OBJECTS else {}  # nobody says which class a folder shows
        names = {task.env_id(short): (short, dataset) for short, dataset in {**task.datasets, **more}.items()}
        names |= {f"{task.name}-{short}-v0": (short, dataset) for short, dataset in EARLIER.items()}
        for name, (short, dataset) in names.items():
            _register(name, task, {"dataset": dataset, **task.settings.get(short, {})})
    for name, dataset in zip(denoise_ids(), DENOISE.datasets.values(), strict=True):
        _register(name, DENOISE, {"dataset": dataset})


def _register(name: str, task: Task, settings: Mapping[str, str | int]) -> None:
    if name not in gymnasium.registry:
        gymnasium.register(
            id=name,
            entry_point=task.entry_point,
            vector_entry_point=task.vector_entry_point,
            kwargs=dict(settings),
        )
