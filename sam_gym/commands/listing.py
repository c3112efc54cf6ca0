"""`sam-gym list` and `sam-gym fetch`: which environments there are, and the files that they need."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import resources
from typing import Annotated, Any

import gymnasium
import tyro

from sam_gym._utils.naming import question
from sam_gym.commands.common import console, say
from sam_gym.registration import TASKS, denoise_ids, env_ids

KINDS = ("scripted", "agents", "oracle")
"""Of entries of the leaderboard: needing neither training nor truth, trained, and looking at the truth."""


def list_environments(
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List all environment ids with their data: what is there, what would be fetched, and on which terms.

    For example:

        sam-gym list
        sam-gym list --json

    Objects are those of the training, validation and test split. Scores are the leaderboard's: mean IoU of the last
    mask on held-out objects. Files are looked for by name in $SAM_GYM_DATA and in the cache; nothing is downloaded and
    nothing read.
    """
    rows = [describe(env_id) for env_id in env_ids()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("id", no_wrap=True)
    table.add_column("objects", justify="right", no_wrap=True)
    table.add_column("IoU", justify="center", no_wrap=True)
    table.add_column("data", no_wrap=True)
    table.add_column("terms")
    for row in rows:
        objects = "/".join(str(count) for count in row["objects"].values()) if row["objects"] else ""
        table.add_row(row["id"], objects, _best(row["scores"]), _state(row), row["licence"])
    console().print(table)
    print(f"beside these, without a SAM: {', '.join(denoise_ids())}; see docs/denoise.md")
    print("objects: train/val/test; of SamPromptSemantic and SamReport images, or tiles of them")
    print("IoU: on held-out objects, of the best scripted prompter/agent/oracle on the leaderboard; -: none there")
    if any(row["state"] == "to be fetched" for row in rows):
        print("to be fetched: at first use, or by `sam-gym fetch ID`; *: else generated images stand in, and say so")


def describe(env_id: str) -> dict[str, Any]:
    """What `sam-gym list --json` says of one environment."""
    from sam_gym.data import DATASETS, sources
    from sam_gym.data.spec import read_object_counts

    spec = DATASETS[str(gymnasium.spec(env_id).kwargs["dataset"])]
    counted = next(task.counted for task in TASKS if env_id.startswith(f"{task.name}-"))
    folder = sources.folder_of(spec) if spec.files else None
    return {
        "id": env_id,
        "dataset": spec.name,
        "objects": read_object_counts(spec.name, counted),
        "state": "generated" if not spec.files else "there" if folder else "to be fetched",
        "folder": str(folder) if folder else None,
        "megabytes": round(sum(file.bytes for file in spec.files) / 1e6, 1),
        "stand_in": spec.stand_in,
        "licence": spec.licence,
        "citation": spec.citation,
        "scores": read_scores().get(env_id, {}),
    }


def read_scores() -> dict[str, dict[str, dict[str, float]]]:
    """The published standings: id -> one of `KINDS` -> entry -> mean IoU."""
    stored = json.loads(resources.files("sam_gym.leaderboard").joinpath("standings.json").read_text(encoding="utf-8"))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for env_id, environment in stored["environments"].items():
        scores[env_id] = {kind: {} for kind in KINDS}
        for row in environment["rows"]:
            scores[env_id][row["kind"]][row["name"]] = round(row["iou"]["mean"], 4)
    return scores


def _best(scores: dict[str, dict[str, float]]) -> str:
    """The best of each kind, as ".790/-/.928"; nothing where nothing was measured."""
    best = [max(scores.get(kind, {}).values(), default=None) for kind in KINDS]
    return "/".join("-" if one is None else f"{one:.3f}".removeprefix("0") for one in best) if scores else ""


def _state(row: dict[str, Any]) -> str:
    if row["state"] != "to be fetched":
        return row["state"]
    return f"to be fetched, {row['megabytes']} MB{' *' if row['stand_in'] else ''}"


def fetch(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME ...")],
) -> None:
    """Fetch data and weights ahead of a run, each file checked by its sha256.

    For example:

        sam-gym fetch SamPrompt-ISBI-v0 mobile_sam
        sam-gym fetch isbi2012 vnc-cells

    What is there already is checked and kept; a name that fails is reported and the others go on.

    Args:
        names: Datasets, environment ids, and names of SAM weights.
    """
    from sam_gym.data import DATASETS, sources
    from sam_gym.sam.sources import CHECKPOINTS, file_of

    known = [*DATASETS, *env_ids(), *CHECKPOINTS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{unknown[0]!r} is no dataset, environment id or SAM weights.{question(unknown[0], known)} Known names: "
            f"{', '.join(known)}"
        )
    failed = False
    for name in names:
        if name in CHECKPOINTS:
            weights = CHECKPOINTS[name]
            get = partial(file_of, weights) if weights.seed is None else None
        else:
            spec = DATASETS[str(gymnasium.spec(name).kwargs["dataset"]) if name in env_ids() else name]
            get = partial(sources.locate, spec) if spec.files else None
        try:
            print(f"{name}: {get() if get else 'made by the program, nothing to fetch'}")
        except (RuntimeError, OSError) as error:
            say(f"cannot fetch {name}: {error}")
            failed = True
    if failed:
        sys.exit(1)
