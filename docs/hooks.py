"""What mkdocs builds beyond the pages in docs/: a page for each environment, and files that pages link to.

Pages of environments are made here out of docstrings, tables and stored records, so that nobody writes them a second
time. A link that leads out of docs/ takes its file along into the site, under repository/, and LEADERBOARD.md becomes
part of its page. Nothing is computed or drawn: docs/pictures.py draws the pictures, `sam-gym leaderboard` measures.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from PIL import Image

import sam_gym
from sam_gym.commands.listing import describe
from sam_gym.data import DATASETS
from sam_gym.evaluation.report import markdown as table
from sam_gym.registration import DENOISE, TASKS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RECORDS = "benchmarks/results/leaderboard"
OUTSIDE = "repository"
"""Folder of the site for files that are not in docs/."""

LEADERBOARD_MARK, DATASETS_MARK = "<!-- LEADERBOARD.md -->", "<!-- datasets -->"
DENOISE_MARK = "<!-- denoise specification -->"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
"""The target of a relative link or picture, without its anchor."""


# ------------------------------------------------------------------------------------------------------ mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of environments into the navigation, by task."""
    ids = [{task.name: [f"environments/{task.env_id(short)}.md" for short in task.datasets]} for task in TASKS]
    pages = {"Environments": ["environments/index.md", *ids]}
    config.nav = [pages if entry == "environments" else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages, and what any page links to outside of docs/."""
    for uri, text in generated_pages().items():
        files.append(File.generated(config, uri, content=text))
    for file in [one for one in files if one.is_documentation_page()]:
        for target in links_out(included(file.content_string), file.src_uri):
            if files.get_file_from_path(f"{OUTSIDE}/{target}") is None:
                files.append(File.generated(config, f"{OUTSIDE}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what stands for marks, and turn links that lead out of docs/ to the copies in the site."""
    uri = page.file.src_uri
    return markdown if uri.startswith(OUTSIDE) else turned(included(markdown), uri)


# ------------------------------------------------------------------------------------------------------------- links


def included(text: str) -> str:
    """A page with what stands for its marks: LEADERBOARD.md, or what writes it; the datasets; a specification."""
    if LEADERBOARD_MARK in text:
        text = text.replace(LEADERBOARD_MARK, leaderboard())
    if DENOISE_MARK in text:
        text = text.replace(DENOISE_MARK, specification(_docstring(DENOISE.entry_point)))
    return text.replace(DATASETS_MARK, datasets()) if DATASETS_MARK in text else text


def leaderboard() -> str:
    """LEADERBOARD.md without its title, with links as docs/leaderboard.md needs them."""
    file = ROOT / "LEADERBOARD.md"
    if not file.is_file():
        return nothing_measured("on the leaderboard")
    board = re.sub(r"\A# .*\n", "", file.read_text(encoding="utf-8"))
    return LINK.sub(lambda link: f"../{link[1]}", board)


def datasets() -> str:
    """Terms and citations as the modules of the datasets state them."""
    head = [["dataset", "images and objects", "in ids", "files", "terms", "cite", "stand-in"], ["---"] * 7]
    rows = []
    for spec in DATASETS.values():
        shorts = {short: None for task in TASKS for short, name in task.datasets.items() if name == spec.name}
        size = f"{sum(file.bytes for file in spec.files) / 1e6:.0f} MB" if spec.files else "generated"
        ids = ", ".join(f"`{short}`" for short in shorts)
        stand_in = f"`{spec.stand_in}`" if spec.stand_in else "none"
        rows.append([f"`{spec.name}`", spec.title, ids, size, spec.licence, spec.citation, stand_in])
    return table([*head, *rows])


def links_out(text: str, uri: str) -> Iterator[str]:
    """Files of the repository outside of docs/ that a page links to, as paths below the root."""
    for link in LINK.finditer(text):
        target = _target(link[1], uri)
        if not target.startswith("docs/") and (ROOT / target).is_file():
            yield target


def turned(text: str, uri: str) -> str:
    """A page whose links are right in the site, where docs/ is the top and other files lie in `OUTSIDE`."""

    def right(link: re.Match[str]) -> str:
        target = _target(link[1], uri)
        if not target.startswith("docs/") and (ROOT / target).is_file():
            return os.path.relpath(f"{OUTSIDE}/{target}", os.path.dirname(uri) or ".")
        if link[1].startswith("../") and target.startswith("docs/"):
            return os.path.relpath(target.removeprefix("docs/"), os.path.dirname(uri) or ".")
        return link[1]

    return LINK.sub(right, text)


def _target(link: str, uri: str) -> str:
    return os.path.normpath(os.path.join("docs", os.path.dirname(uri), link))


# ---------------------------------------------------------------------------------------------- environments' pages


def generated_pages() -> dict[str, str]:
    """Path below docs/ -> text, of the overview and of every id."""
    pages = {f"environments/{env_id}.md": environment_page(env_id) for env_id in sam_gym.env_ids()}
    return {"environments/index.md": overview(), **pages}


def overview() -> str:
    """All ids in one table."""
    rows = []
    for env_id in sam_gym.env_ids():
        facts = describe(env_id)
        objects = " / ".join(map(str, facts["objects"].values())) or "generated"
        rows.append([f"[{env_id}]({env_id}.md)", DATASETS[facts["dataset"]].title, objects, facts["licence"]])
    tasks = "".join(f"- **{task.name}**: {_first_line(_docstring(task.entry_point))}\n" for task in TASKS)
    return f"""# Environments

An id is a task, a dataset and a version.

{tasks}
{table([["id", "images and objects", "train / val / test", "terms of the data"], ["---"] * 4, *rows])}
Train / val / test are numbers of objects. For `SamPromptSemantic` and `SamReport` they are numbers of images, or
of windows of images.

`SamPrompt-Folder-v0` and the other tasks of single objects take `root=`, any folder of images and masks:
[Data and licences](../data.md). They have no page of their own, because their specification is that of the other
ids of the task.
"""


def environment_page(env_id: str) -> str:
    """What is particular to one id, then its task's specification."""
    facts, spec = describe(env_id), gymnasium.spec(env_id)
    entry_point = str(spec.entry_point)
    text = _docstring(entry_point)
    name = entry_point.partition(":")[2]
    objects = "".join(f", {count} in {split}" for split, count in facts["objects"].items())
    dataset = DATASETS[facts["dataset"]]
    rows = [
        ["data", f"`{dataset.name}`{objects}: {dataset.title}"],
        ["target in words", f"“{dataset.text}”"],
        ["terms", dataset.licence],
        ["cite", dataset.citation],
        ["stand-in", f"`{dataset.stand_in}`" if dataset.stand_in else "none"],
        ["registered with", f"`{json.dumps(dict(spec.kwargs))}`"],
        ["classes", f"`{_dotted(entry_point)}` and `{_dotted(spec.vector_entry_point)}`"],
    ]
    return f"""---
hide: [toc]
---
# {env_id}

{_first_line(text)}

{picture(env_id)}

| | |
|---|---|
{table(rows)}
## Scores

{scores(env_id)}

## Specification

This is the docstring of `{name}`. It is the same for every dataset of the task, so an id in it is one of several.

{specification(text)}
"""


def specification(docstring: str) -> str:
    """A docstring without its first line, its headings one level down."""
    return re.sub(r"^## ", "### ", docstring.partition("\n")[2].strip(), flags=re.MULTILINE)


def picture(env_id: str) -> str:
    """The picture of an episode with a line about its pixels, or nothing where there is none."""
    file = DOCS / "pictures" / f"{env_id}.png"
    if not file.is_file():
        return ""
    with Image.open(file) as image:
        source = str(image.info["Source"])
    shown = DATASETS.get(source)
    if shown is None or not shown.files:
        pixels = f"*generated* images, {source}"
    else:
        pixels = f"{source} ({shown.licence}; {shown.citation})"
    return (
        f"![An episode of {env_id}](../pictures/{env_id}.png)\n\n"
        f"One episode of the oracle on {pixels}. Blue: SAM's mask. Yellow: outline of the truth. White, dashed: the "
        "cue, where there is one. Orange: the box that has replaced it. Green and red: foreground and background "
        "clicks. Numbers: regions, where a report is written of them. Drawn by `python docs/pictures.py`. One episode "
        "is an example, not a result."
    )


def scores(env_id: str) -> str:
    """The stored records of an id as a table, best first, each with its file."""
    files = sorted((ROOT / RECORDS / env_id).glob("*.json"))
    if not files:
        return nothing_measured("in this environment")
    rows = []
    for file in files:
        stored = json.loads(file.read_text(encoding="utf-8"))
        measures: dict[str, Any] = stored["record"]["measures"]
        iou = measures["final_iou"]
        seed = "" if stored["seed"] is None else str(stored["seed"])
        link = f"[record](../../{file.relative_to(ROOT).as_posix()})"
        interval = f"{iou['low']:.3f} to {iou['high']:.3f}"
        rows.append((-iou["mean"], [stored["entry"], seed, f"{iou['mean']:.3f}", interval, link]))
    head = [["prompter", "seed", "final IoU", "95 % interval over objects", ""], ["---", "---:", "---:", "---", "---"]]
    return table([*head, *(row for _, row in sorted(rows))]) + (
        "\nMean IoU of the last mask. Oracles look at the truth. How it is measured: [Leaderboard](../leaderboard.md)."
    )


def nothing_measured(where: str) -> str:
    """What stands in the place of numbers that nobody has measured."""
    return f"Nothing has been measured {where} yet: `sam-gym leaderboard run` does it."


def _docstring(entry_point: str) -> str:
    module, _, name = entry_point.partition(":")
    return str(inspect.getdoc(getattr(import_module(module), name)))


def _dotted(entry_point: Any) -> str:
    return str(entry_point).replace(":", ".")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
