"""Every measured number in README.md stands in a stored result that the same section names; tables row by row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)
SECTIONS = dict(SECTION.findall(README))
SOURCE = re.compile(r"benchmarks/results/[\w*-]+\.\w+|LEADERBOARD\.md")
NUMBER = re.compile(r"(?<![\w.-])[+-]?\d*\.\d{2,}(?!\w)")


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
    return [found for found in NUMBER.findall(text) if number(found) not in there]


@pytest.mark.parametrize("name", SECTIONS)
def test_numbers_are_in_the_results_that_are_named(name: str) -> None:
    text = SECTIONS[name]
    if name == "table":
        text += SECTIONS["notes"]  # where the table's source stands
    files = sources(text)
    assert files, f"section {name} names no file in benchmarks/results/"
    assert not untraceable(SECTIONS[name], "\n".join(file.read_text(encoding="utf-8") for file in files))


def test_results_that_are_named_are_there() -> None:
    missing = [name for name in SOURCE.findall(README) if not list(ROOT.glob(name))]
    assert not missing


def test_sections_are_the_ones_meant() -> None:
    assert {"agents", "table", "notes", "boxes", "semantics", "clip", "speed"} <= SECTIONS.keys()


def test_a_number_from_nowhere_is_found() -> None:
    stored = "| agent | 0.687 | +0.080 |"
    assert untraceable("gain +.080 to .69 of .687, with 2.5 prompts", stored) == [".69"]


def test_the_first_table_is_the_leaderboards() -> None:
    rows = [line for line in SECTIONS["agents"].splitlines() if line.startswith("| SamPrompt-")]
    assert [row.split("-")[1] for row in rows] == ["ISBI", "VNCMitochondria", "WBC", "DSB"]
    board = (ROOT / "LEADERBOARD.md").read_text(encoding="utf-8").splitlines()
    assert all(row in board for row in rows)


@pytest.mark.parametrize("table", ["recipes", "box_error-ISBI", "box_error-VNCMitochondria"])
def test_tables_are_the_stored_ones(table: str) -> None:
    """Row by row: a row of the README that begins as one of the result's is that one."""
    stored = (ROOT / "benchmarks" / "results" / f"{table}.md").read_text(encoding="utf-8")
    rows = [line for line in stored.split("\n\n")[2 if table != "recipes" else 0].splitlines() if line.startswith("|")]
    assert len(rows) > 5
    for row in rows:
        assert row in README
