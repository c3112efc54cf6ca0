"""Every measured number in README.md and docs/results/ stands in a stored result that the same section names.

A section of README.md lies between marks, `<!-- name -->` and `<!-- /name -->`, and outside of them it has no measured
number. A section of a page is what stands below a heading of the second level, or before the first one. Tables of
studies are the stored ones, row by row.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BOARD = (ROOT / "LEADERBOARD.md").read_text(encoding="utf-8")
PAGES = {file.stem: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs" / "results").glob("*.md"))}
CARD = (ROOT / "docs" / "clip-micro.md").read_text(encoding="utf-8")

MARKED = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)
HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
VERSION = re.compile(r"Python \d\.\d+")
SOURCE = re.compile(r"benchmarks/results/[\w*-]+\.\w+|LEADERBOARD\.md")
NUMBER = re.compile(r"(?<![\w.-])[+-]?\d*\.\d{2,}(?!\w)")

STUDIES = {
    "recipes": ["recipes.md"],
    "box_error": ["box_error-ISBI.md", "box_error-VNCMitochondria.md"],
    "clip_reward": ["clip_reward.md"],
    "semantics": ["semantics.md"],
    "proposals": ["proposals.md"],
    "preference": ["preference.md"],
    "alignsam": ["alignsam.md"],
    "fovea": ["fovea.md"],
    "learning": ["learning.md"],
    "generalist": ["generalist.md"],
    "workers": ["workers.md"],
    "throughput": ["throughput-mobile_sam.md", "throughput-vit_b_random.md"],
}
"""Page in docs/results/ -> the stored results that its sections may quote, of which it must name all."""


def sections(page: str) -> dict[str, str]:
    """Heading -> text below it; what stands before the first heading is under the empty name."""
    first, *rest = HEADING.split(page)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


SECTIONS = {
    **{f"README {name}": text for name, text in MARKED.findall(README)},
    **{f"{page} {heading}": text for page, whole in PAGES.items() for heading, text in sections(whole).items()},
    **{f"clip-micro {heading}": sections(CARD)[heading] for heading in ("Accuracy", "Limits")},
}


def measured(text: str) -> list[str]:
    """Numbers with two decimals or more, but for those in code and for versions of Python."""
    return NUMBER.findall(VERSION.sub("", CODE.sub("", text)))


def sources(text: str) -> list[Path]:
    """The stored results that a text names, and what is stored beside them in words.

    LEADERBOARD.md counts as one: another test makes it anew from the records.
    """
    files = [file for name in SOURCE.findall(text) for file in sorted(ROOT.glob(name))]
    beside = [file.with_suffix(".md") for file in files if file.with_suffix(".md").is_file()]
    return list(dict.fromkeys([*beside, *(file for file in files if file.suffix in (".json", ".md"))]))


def number(text: str) -> str:
    """A number as results write it: without a sign, with a zero before the point."""
    digits = text.lstrip("+-")
    return f"0{digits}" if digits.startswith(".") else digits


def untraceable(text: str, stored: str) -> list[str]:
    """Numbers of a text, with two decimals or more, that are not in what is stored."""
    there = {number(found) for found in NUMBER.findall(stored)}
    return [found for found in measured(text) if number(found) not in there]


def stored_rows(file: str, table: int = 0) -> list[str]:
    """Lines of a table of a stored result, the head included."""
    blocks = (ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8").split("\n\n")
    tables = [[line for line in block.splitlines() if line.startswith("|")] for block in blocks]
    rows = [rows for rows in tables if rows][table]
    assert len(rows) > 5
    return rows


@pytest.mark.parametrize("name", [name for name, text in SECTIONS.items() if measured(text)])
def test_numbers_are_in_the_results_that_are_named(name: str) -> None:
    files = sources(SECTIONS[name])
    assert files, f"section {name!r} names no file in benchmarks/results/"
    assert not untraceable(SECTIONS[name], "\n".join(file.read_text(encoding="utf-8") for file in files))


def test_readme_has_no_measured_number_outside_of_its_sections() -> None:
    assert not measured(MARKED.sub("", README))


@pytest.mark.parametrize("name", SECTIONS)
def test_results_that_are_named_are_there(name: str) -> None:
    missing = [source for source in SOURCE.findall(SECTIONS[name]) if not list(ROOT.glob(source))]
    assert not missing


def test_sections_are_the_ones_meant() -> None:
    assert [name for name, _ in MARKED.findall(README)] == ["agents"]
    assert PAGES.keys() == {"index", *STUDIES}


@pytest.mark.parametrize("page", STUDIES)
def test_every_study_has_measured_numbers_its_files_and_its_command(page: str) -> None:
    results = sections(PAGES[page])["Results"]
    assert measured(results)
    assert {file.name for file in sources(results)} >= set(STUDIES[page])
    assert f"`python benchmarks/{page}.py`" in results
    assert "**What was asked.**" in sections(PAGES[page])[""]
    assert f"({page}.md)" in PAGES["index"]


def test_a_number_from_nowhere_is_found() -> None:
    stored = "| agent | 0.687 | +0.080 |"
    assert untraceable("gain +.080 to .69 of .687, with 2.5 prompts, Python 3.10", stored) == [".69"]


def test_sections_end_at_the_next_heading() -> None:
    assert sections("a\n## B\nc\n### d\n## E\nf") == {"": "a\n", "B": "\nc\n### d\n", "E": "\nf"}


def test_the_first_table_is_the_leaderboards() -> None:
    lines = dict(MARKED.findall(README))["agents"].splitlines()
    rows = [line for line in lines if line.startswith("| SamPrompt-")]
    assert [row.split("-")[1] for row in rows] == ["ISBI", "VNCMitochondria", "WBC", "DSB"]
    board = BOARD.splitlines()
    head = next(line for line in lines if line.startswith("| environment"))
    assert all(row in board for row in [head, *rows])


@pytest.mark.parametrize(
    ("page", "file"), [("recipes", "recipes.md"), *(("box_error", file) for file in STUDIES["box_error"])]
)
def test_tables_are_the_stored_ones(page: str, file: str) -> None:
    """The first table of the stored result stands in the page, head and all rows in order."""
    assert "\n".join(stored_rows(file)) in PAGES[page]


def table_of(text: str, columns: int) -> dict[str, list[str]]:
    """First cell -> the other cells, of all rows with so many columns."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in rows if len(others) == columns - 1}


def test_the_table_of_clip_rewards_is_made_of_the_stored_ones() -> None:
    shown = table_of(sections(PAGES["clip_reward"])["Results"], 7)
    stored = sections((ROOT / "benchmarks" / "results" / "clip_reward.md").read_text(encoding="utf-8"))
    datasets = {"WBC, the nucleus": "WBCNucleus", "WBC, the whole cell": "WBC", "DSB, all nuclei": "DSB"}
    for label, dataset in datasets.items():
        rows = table_of(next(text for heading, text in stored.items() if heading.startswith(f"{dataset}:")), 6)
        names = ("random", "centre", "its first mask", "agent", "oracle clicks")
        assert shown[label] == [rows["agent"][0], *(rows[name][1] for name in names)]


def test_the_table_of_alignsam_is_made_of_the_stored_ones() -> None:
    shown = table_of(sections(PAGES["alignsam"])["Results"], 4)
    stored = sections((ROOT / "benchmarks" / "results" / "alignsam.md").read_text(encoding="utf-8"))
    rows = {
        "full": "full, explicit",
        "without RL: random cells, labelled by the module": "without RL, explicit",
        "without recalibration: all of its clicks foreground": "all clicks foreground, explicit",
        "without recalibration: an agent that labels its clicks itself": "without recalibration",
        "the module's own mask, without SAM": "the module alone, explicit",
        "oracle clicks": "oracle clicks",
    }
    parts = [
        table_of(next(text for heading, text in stored.items() if heading.startswith(f"{dataset}:")), 7)
        for dataset in ("VNCMitochondria", "DSB", "WBC")
    ]
    for label, name in rows.items():
        assert shown[label] == [part[name][3] for part in parts]  # after 15 clicks
