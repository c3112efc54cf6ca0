"""The model card of an agent's folder: what it is, how it is used, and how it did on images that it never saw.

Numbers come from stored records alone, and what nobody knows stands there as unknown. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam_gym.evaluation.records import Record, is_record
from sam_gym.evaluation.report import markdown, markdown_table
from sam_gym.sb3.description import Description

UNKNOWN = "unknown"

BY_BOX = ("SamPrompt", "SamBoxRefine")
"""Tasks whose agents segment images whose truth nobody knows, from a box."""

NOT_RULES = ("policy", "split", "data", "source", "data_hash", "episode_list")
"""Entries of a record's provenance that a table's heading tells, or that are no rule of its episodes."""


def model_card(
    name: str,
    agent: Description,
    parameters: int,
    records: Sequence[Record],
    licence: str | None = None,
    mark: str = "",
) -> str:
    """The card, Markdown under a YAML head as the Hugging Face Hub reads it.

    Args:
        name: What users are to call the agent, hf:OWNER/NAME or a folder.
        agent: What the agent says of itself.
        parameters: Numbers in its weights.
        records: What `records_of` found of it.
        licence: Of the weights, one of the Hub's identifiers; nothing is said without one.
        mark: Said over everything, such as that of a quick run.
    """
    head = ["library_name: sam_gym", "tags:", "- reinforcement-learning", "- segment-anything", "- gymnasium"]
    head += [] if licence is None else [f"license: {licence}"]
    wrote = ", ".join(f"{package} {version}" for package, version in agent.versions.items())
    facts = {
        "task": agent.task, "trained in": agent.env_id, "dataset": agent.dataset, "SAM": agent.checkpoint,
        "settings": ", ".join(f"{name}={value}" for name, value in agent.settings.items()),
        "policy": f"`{agent.policy}`, {parameters:,} parameters, trained by {agent.algorithm}",
        "identity of the weights": f"`{agent.identity}`", "licence of the weights": licence, "written by": wrote,
    }  # fmt: skip
    use = [f"sam-gym evaluate {agent.env_id or 'ID'} --prompter {name}"]
    if agent.task in BY_BOX:
        use.append(f"sam-gym segment --images photos --boxes boxes.csv --out masks --agent {name}")
    tables = _tables(records, agent.identity) or [f"{UNKNOWN.capitalize()}.", ""]
    return "\n".join(
        [
            "---", *head, "---", "", f"# {name}", "", *([f"**{mark}**", ""] if mark else []),
            "An agent of sam_gym: it looks at an image and at the mask that a frozen Segment Anything Model made, and "
            "says what to prompt it with next.", "",
            markdown([["", ""], ["---", "---"], *([key, value or UNKNOWN] for key, value in facts.items())]),
            "## Use it", "", "Nothing in this folder can run code.", "",
            "```sh", 'pip install "sam_gym[sb3,hub]"', *use, "```", "", "## On images that it never saw", "", *tables,
        ]
    )  # fmt: skip


def records_of(identity: str, files: Iterable[Path]) -> list[Record]:
    """Stored records of an agent on test splits, and of whatever was measured on the same episodes by the same rules.

    Args:
        identity: Of the agent's weights.
        files: Records as `sam-gym evaluate`, training or the leaderboard store them; and folders of such.

    Returns:
        None where no record is of this agent on a test split.

    Raises:
        ValueError: A file is no record of the present format.
    """
    found: dict[str, list[Record]] = {}
    for path in files:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            record = _read(file)
            found.setdefault(_rules(record.provenance), []).append(record)
    groups = [records for records in found.values() if records[0].provenance["split"] == "test"]
    return [one for records in groups if any(_is_of(one, identity) for one in records) for one in records]


def _read(file: Path) -> Record:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a record: {error}") from error
    stored = content.get("record", content) if isinstance(content, dict) else {}
    if not is_record(stored):
        raise ValueError(f"{file} is no record of `sam-gym evaluate`, or one of an older format")
    record = Record.from_json(stored)
    seed = content.get("seed")  # of an entry of the leaderboard
    return record if seed is None else replace(record, name=f"{record.name}, seed {seed}")


def _is_of(record: Record, identity: str) -> bool:
    return record.provenance.get("policy") == identity


def _rules(provenance: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in provenance.items() if name != "policy"}, sort_keys=True)


def _tables(records: Sequence[Record], identity: str) -> list[str]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_rules(record.provenance), []).append(record)
    lines = []
    for rules, group in groups.items():
        known = json.loads(rules)
        others = [one for one in group if not _is_of(one, identity)]
        agent = next(one for one in group if _is_of(one, identity))
        stand_in = "" if known["source"] == known["data"] else f", STAND-IN DATA {known['source']}"
        more = ", ".join(f"{name} {value}" for name, value in known.items() if name not in NOT_RULES)
        lines += [
            f"{known['data']}{stand_in}, {known['split']} split, {len(agent.iou)} objects. Mean IoU after 0..T prompts "
            f"and gain over {agent.start}, same objects, 95 % paired bootstrap interval. {more}.",
            "", markdown_table([*others, replace(agent, name="**this agent**")]),
        ]  # fmt: skip
    return lines
