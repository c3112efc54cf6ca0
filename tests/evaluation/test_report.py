"""What people read: the table fits a terminal, and a log is not flooded."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.evaluation import report
from sam_gym.evaluation.records import EpisodeCase, Record


@pytest.fixture
def records(make_record: Callable[..., Record]) -> list[Record]:
    rng = np.random.default_rng(0)
    names = ("box only", "oracle clicks", "agent")
    return [make_record(rng.random((3, 6)).round(6), name=name, prompts=np.array([5, 5, 2])) for name in names]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_table_is_whole_at_any_width(records: list[Record], monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", screen)
    report.print_table(records, "a title")
    lines = screen.getvalue().splitlines()
    for row in report.markdown_table(records).splitlines()[2:]:
        cells = row.strip("| ").split(" | ")
        assert any(all(cell in line for cell in cells) for line in lines), f"no line has {cells}"
    assert max(len(line) for line in lines if "\x1b" not in line) <= max(80, columns)


def test_markdown(records: list[Record]) -> None:
    lines = report.markdown_table(records).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert f"| {records[2].curve[3]:.3f} |" in lines[-1]
    gain = records[2].gain
    assert lines[-1].endswith(f"| {gain.mean:+.3f} | {gain.low:+.3f}..{gain.high:+.3f} | 4.0 |")


def test_of_many_prompts_some_are_shown(records: list[Record], make_record: Callable[..., Record]) -> None:
    """Episodes of 15 prompts and no cue: a table that fits, over the right start."""
    rng = np.random.default_rng(0)
    record = make_record(
        rng.random((3, 16)).round(6), name="agent", prompts=np.array([15, 5, 2]), cases=[EpisodeCase(0, 1, None)] * 3
    )
    head, _, row = report.markdown_table([record]).splitlines()
    assert head.startswith("| prompter | 0 | 1 | 2 | 3 | 5 | 10 | 15 | gain |")
    shown = [f"{record.curve[step]:.3f}" for step in (0, 1, 2, 3, 5, 10, 15)]
    assert row.startswith(f"| agent | {' | '.join(shown)} | ")
    assert (record.start, records[0].start) == ("no prompt", "the box alone")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert (tmp_path / "a.json").read_text() == '{\n "old": 1\n}\n'
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("stream", "least", "most"), [(Terminal, 10, 10_000), (io.StringIO, 1, 3)])
def test_a_bar_writes_seldom_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], least: int, most: int
) -> None:
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr("sam_gym._utils.progress.TERMINAL_SECONDS", 0.0)
    with progress_bar("counting", 50, "sheep") as bar:
        for _ in range(50):
            bar.update()
    assert least <= written.getvalue().count("\r") <= most
    assert "50/50" in written.getvalue()


def test_the_commit_is_that_of_this_package_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed inside somebody else's checkout is of no commit."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    (tmp_path / "report.py").touch()
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    assert report.provenance()["git_commit"] is None
    git("add", "report.py")
    git("commit", "-q", "-m", "ours")
    assert re.fullmatch(r"[0-9a-f]{40}", report.provenance()["git_commit"])
    (tmp_path / "report.py").write_text("changed")
    assert report.provenance()["git_commit"].endswith("-dirty")


def test_a_command_does_not_say_where_this_machine_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for script, told in ((str(tmp_path / "bin" / "sam-gym"), "sam-gym"), ("benchmarks/x.py", "benchmarks/x.py")):
        monkeypatch.setattr("sys.argv", [script, "run", "--env", "A"])
        assert report.provenance()["command"] == [told, "run", "--env", "A"]
