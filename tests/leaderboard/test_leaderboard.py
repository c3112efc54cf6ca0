"""The leaderboard: run, check against tampering, add, table, and the page in a browser; tiny SAM, real nuclei."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from sb3_contrib import MaskablePPO

from sam_gym.commands import leaderboard
from sam_gym.commands.listing import read_scores
from sam_gym.commands.segment import GENERALIST
from sam_gym.envs.keeping import RETURNS
from sam_gym.evaluation import episode_list_hash
from sam_gym.evaluation.records import Record
from sam_gym.leaderboard.board import Board, BoardError
from sam_gym.leaderboard.gallery import picture_file, picture_of
from sam_gym.leaderboard.summaries import PACKAGED, Tables
from sam_gym.leaderboard.tables import markdown, standings_of, tables_of
from sam_gym.sam.checkpoints import checkpoint_id
from sam_gym.sb3 import SamVecEnv, SpatialPolicy
from sam_gym.sb3.saved import SavedAgent

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ENV_ID = "SamPrompt-DSB-v1"
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def commands() -> Iterator[ModuleType]:
    """The commands of `sam-gym leaderboard` as a module, on a clean commit."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sam_gym.evaluation.report._git_commit", lambda: COMMIT)
        yield leaderboard


@pytest.fixture(scope="module")
def filled(commands: ModuleType, real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of one environment on which all scripted entries were run."""
    folder = tmp_path_factory.mktemp("there") / "board"
    folder.mkdir()
    manifest = {
        "max_objects": 3, "checkpoint": checkpoint_id("tiny_random"), "precision": "exact",
        "environments": {ENV_ID: None}, "agents": [],
    }  # fmt: skip
    (folder / "leaderboard_manifest.json").write_text(json.dumps(manifest))
    commands.run(device="cpu", board=folder)
    return folder


@pytest.fixture
def board(commands: ModuleType, filled: Path, tmp_path: Path) -> Any:
    """A copy of it to tamper with."""
    shutil.copytree(filled, tmp_path / "board")
    return Board(tmp_path / "board")


@pytest.fixture(scope="module")
def model(real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that has hardly learned anything."""
    env: Any = gymnasium.make_vec(
        ENV_ID, num_envs=2, vectorization_mode="vector_entry_point", autoreset_mode="SameStep", data="real",
        checkpoint="tiny_random", device="cpu",
    )  # fmt: skip
    agent = MaskablePPO(SpatialPolicy, SamVecEnv(env), n_steps=2, batch_size=2, device="cpu", seed=0)
    agent.learn(4)  # so that the optimizer has a state that is not wanted on the board
    file = tmp_path_factory.mktemp("run") / "model.zip"
    agent.save(file)
    env.close()
    return file


def tamper(board: Any, slug: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = board.folder / "results" / "leaderboard" / ENV_ID / f"{slug}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_all_entries_are_there_and_hold_good(board: Any) -> None:
    entries = board.entries()
    assert [(entry.name, entry.seed) for entry in entries] == [
        ("box only", None), ("random", 0), ("random", 1), ("random", 2), ("centre", None), ("uncertainty", None),
        ("oracle clicks", None),
    ]  # fmt: skip
    assert board.check() == []
    stored = board.read(entries[-1])
    assert len(stored["record"]["objects"]) == 3
    assert stored["run"]["git_commit"] == COMMIT


def moved_cue(content: dict[str, Any]) -> None:
    content["record"]["objects"][0]["cue"][0] += 1


def other_episodes(content: dict[str, Any]) -> None:
    moved_cue(content)
    cases = Record.from_json(content["record"]).cases
    content["record"]["provenance"]["episode_list"]["sha256"] = episode_list_hash(cases)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("record", "measures", "final_iou", "mean", value=0.99), "final_iou"),
        (put("record", "measures", "mean_prompts", value=0.0), "mean_prompts"),
        (lambda content: content["record"]["objects"][1].update(dice=0.5), "does not follow from its objects"),
        (lambda content: content["record"]["objects"].pop(), "not those of the episode list"),
        (moved_cue, "not those of the episode list"),
        (other_episodes, "episode_list is"),
        (put("record", "provenance", "episode_list", "version", value=0), "episode_list is"),
        (put("record", "provenance", "checkpoint", value="mobile_sam-0123456789ab"), "checkpoint is"),
        (put("record", "provenance", "data_hash", value="0" * 64), "data_hash is"),
        (put("record", "provenance", "source", value="synthetic-em"), "stand-in"),
        (put("record", "provenance", "data", value="isbi2012"), "stand-in"),
        (put("record", "provenance", "precision", value="fast"), "precision is"),
        (put("record", "provenance", "split", value="val"), "schema.json"),
        (put("run", "git_commit", value=COMMIT + "-dirty"), "commit first"),
        (put("run", "git_commit", value=None), "run it in a clone"),
        (put("record", "format", value=1), "schema.json at record/format"),
        (put("entry", value="centre"), "it says it is 'centre'"),
        (put("seed", value=1), "seed 1"),
        (put("remark", value="best"), "schema.json"),
    ],
)
def test_check_finds_what_was_changed(board: Any, change: Callable[[dict[str, Any]], object], said: str) -> None:
    tamper(board, "oracle-clicks", change)
    wrong = board.check()
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{ENV_ID}, oracle clicks: ")
    assert said in wrong[0]


def test_check_finds_what_is_missing_or_too_much(
    board: Any, commands: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = board.folder / "results" / "leaderboard" / ENV_ID
    (folder / "random-seed1.json").rename(folder / "random-seed7.json")
    with pytest.raises(SystemExit) as ended:
        commands.check(board.folder)
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "random, seed 1: there is no record" in said
    assert "random-seed7.json: the manifest has no such entry" in said
    assert "7 entries, 2 problems" in said


def test_run_skips_what_is_stored_and_repeats_to_the_bit(
    board: Any, commands: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = board.entries()[2]
    before = board.record_file(entry).read_text()
    commands.run(device="cpu", board=board.folder)
    assert "0 of 7 evaluated" in capsys.readouterr().out
    board.record_file(entry).unlink()
    commands.run(env=(ENV_ID,), entry=("random",), device="cpu", board=board.folder)
    assert "1 of 3 evaluated" in capsys.readouterr().out
    first, second = (json.loads(text)["record"] for text in (before, board.record_file(entry).read_text()))
    assert first["measures"] == second["measures"]
    assert first["objects"] == second["objects"]


def test_run_refuses_other_episodes_than_the_boards(board: Any, commands: ModuleType) -> None:
    board.write_manifest({**board.manifest, "max_objects": 2})
    with pytest.raises(BoardError, match="other episodes than the records"):
        commands.run(device="cpu", board=board.folder)


def test_unknown_names_are_told(board: Any, commands: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="is no board: it has no leaderboard_manifest.json"):
        commands.check(tmp_path / "nowhere")
    with pytest.raises(BoardError, match="unknown entry of the board 'randon'; did you mean 'random'"):
        commands.run(entry=("randon",), board=board.folder)
    with pytest.raises(BoardError, match="unknown environment of the board 'x'; there are SamPrompt-DSB-v1"):
        commands.run(env=("x",), board=board.folder)


def test_an_agent_is_added_measured_and_bound_to_its_file(board: Any, commands: ModuleType, model: Path) -> None:
    for seed in (0, 1):
        commands.add(model, "mine", "A. Name", (ENV_ID,), seed, board=board.folder)
    assert board.manifest["agents"] == [{"name": "mine", "by": "A. Name", "seeds": {ENV_ID: [0, 1]}}]
    assert sum("there is no record" in sentence for sentence in board.check()) == 2
    shown = picture_file(board, ENV_ID)
    assert picture_of(shown) == f"{ENV_ID}, oracle clicks"
    commands.run(entry=("mine",), device="cpu", board=board.folder)
    assert picture_of(shown) == f"{ENV_ID}, mine, seed 0"
    assert board.check() == []
    mine = next(entry for entry in board.entries() if entry.name == "mine")
    assert board.model_file(mine).stat().st_size < model.stat().st_size / 2
    kept = SavedAgent.load(board.model_file(mine), "cpu").model
    assert SavedAgent.load(model, "cpu").model._last_obs is not None
    assert kept._last_obs is None  # parts of images that nobody else may republish
    assert SavedAgent.load(board.model_file(mine), "cpu").identity == SavedAgent.load(model, "cpu").identity

    other = SavedAgent.load(model, "cpu")
    next(other.model.policy.parameters()).data.add_(1)
    other.save_for_use(board.model_file(mine))
    assert len(wrong := board.check()) == 1
    assert "it is of policy" in wrong[0]


def test_a_record_is_added_if_it_holds_good(
    board: Any, commands: ModuleType, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.add(model, "theirs", "B", (ENV_ID,), board=board.folder)
    commands.run(entry=("theirs",), device="cpu", board=board.folder)
    entry = next(entry for entry in board.entries() if entry.name == "theirs")
    elsewhere = tmp_path / "record.json"
    shutil.move(board.record_file(entry), elsewhere)
    board.model_file(entry).unlink()
    board.write_manifest({**board.manifest, "agents": []})
    with pytest.raises(BoardError, match="says it is 'theirs', seed 0, by 'B'"):
        commands.add(elsewhere, "theirs", "C", (ENV_ID,), board=board.folder)
    commands.add(elsewhere, "theirs", "B", (ENV_ID,), board=board.folder)
    assert board.check() == []
    commands.run(device="cpu", board=board.folder)
    assert "kept, its model is not here" in capsys.readouterr().err
    board.record_file(entry).unlink()
    with pytest.raises(BoardError, match="neither"):
        commands.run(entry=("theirs",), device="cpu", board=board.folder)


def test_an_agent_with_a_judge_is_kept_once_and_measured_by_two_masks(board: Any, commands: ModuleType) -> None:
    there = {**board.manifest["environments"], "SamPrompt-Synthetic-v0": None}
    board.write_manifest({**board.manifest, "environments": there})
    commands.add(GENERALIST, "mine", "A", tuple(there), board=board.folder)
    assert [file.name for file in board.folder.rglob("*.zip")] == ["mine-seed0.zip"]
    last, best, *others = (entry for entry in board.entries() if not entry.scripted)
    assert (last.name, best.name, len(others)) == ("mine", "mine, best mask", 2)
    assert (last.returns, best.returns) == RETURNS
    scripted = board.entries()[0]
    stored = board.read(scripted) | {"entry": best.name}
    with pytest.raises(BoardError, match="returned as 'last', not 'best_predicted'"):
        board.check_record(stored, dataclasses.replace(scripted, name=best.name))
    record = board.record_file(scripted)
    with pytest.raises(BoardError, match="is a record of one environment, not of 2"):
        commands.add(record, "theirs", "B", tuple(there), board=board.folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"env": ("SamPrompt-ISBI-v0",)}, "not on the board"),
        ({"name": "random"}, "scripted entry's name"),
        ({"file": Path("nowhere.zip")}, "no file nowhere.zip"),
    ],
)
def test_add_refuses(board: Any, commands: ModuleType, model: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BoardError, match=said):
        commands.add(**{"file": model, "name": "mine", "by": "A", "env": (ENV_ID,), "board": board.folder, **change})


def test_the_tables_say_what_the_records_say(board: Any, commands: ModuleType, model: Path) -> None:
    commands.add(model, "mine", "A. Name", (ENV_ID,), board=board.folder)
    commands.run(entry=("mine",), device="cpu", board=board.folder)
    commands.table(board.folder)
    text = (board.folder.parent / "LEADERBOARD.md").read_text()
    rows = {line.split("](")[0][3:]: line for line in text.splitlines() if line.startswith("| [")}
    assert list(rows) == ["box only", "random", "centre", "uncertainty", "mine", "oracle clicks"]
    for entry in board.entries():
        row = rows[entry.name]
        files = re.findall(r"\]\(([^)]+)\)", row)
        assert (board.folder.parent / files[entry.seed or 0]) == board.record_file(entry)
        if entry.seed is None:
            measures = board.read(entry)["record"]["measures"]
            cells = [cell.strip() for cell in row.split("|")]
            assert cells[3:5] == [f"{measures['iou_after_prompts'][i]:.3f}" for i in (0, -1)]
            assert f"{measures['mean_prompts']:.1f}" in cells
    assert "(by A. Name)" in rows["mine"]
    assert " 1.00 | 100% |" in rows["oracle clicks"]
    assert "mine - " in text
    means = {
        name: board.read(next(entry for entry in board.entries() if entry.name == name))["record"]["measures"]
        for name in ("box only", "mine", "oracle clicks")
    }
    closed = next(line for line in text.splitlines() if line.startswith(f"| {ENV_ID} |"))
    first, last, most = (means[name]["final_iou"]["mean"] for name in means)
    assert [cell.strip() for cell in closed.split("|")][3:6] == ["mine, 1 seed", f"{first:.3f}", f"{last:.3f}"]
    assert closed.endswith(f"| {most:.3f} | {(last - first) / (most - first):.0%} |")


def test_the_published_board_holds_good_and_its_tables_are_made_of_it(tmp_path: Path) -> None:
    """LEADERBOARD.md, and the standings that the package holds."""
    board = Board(BENCHMARKS)
    assert board.check() == []
    standings = standings_of(board)
    assert markdown(board, standings, tables_of(board, standings)) == (BENCHMARKS.parent / "LEADERBOARD.md").read_text(
        encoding="utf-8"
    )
    tables_of(board, standings).write(tmp_path / "standings.json")
    assert (tmp_path / "standings.json").read_text() == PACKAGED.read_text(encoding="utf-8")
    packaged = Tables.read()
    assert packaged.manifest == board.manifest
    for environments in packaged.tasks.values():
        for one in environments:
            scores = read_scores()[one.env_id]
            assert {(row.kind, row.name) for row in one.rows} == {(k, name) for k in scores for name in scores[k]}
            assert all(scores[row.kind][row.name] == pytest.approx(row.iou.mean, abs=6e-5) for row in one.rows)


def test_the_published_standings_without_a_board(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder the tables are printed, with the numbers of LEADERBOARD.md, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("leaderboard", "table")
    assert status == 0
    assert "the published standings" in out
    shown = {" ".join(line.split()) for line in out.splitlines()}
    text = (BENCHMARKS.parent / "LEADERBOARD.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == sum(len(scores[kind]) for scores in read_scores().values() for kind in scores)
    for row in rows:
        name = row[0].partition("]")[0][1:]
        assert " ".join((name, *row[1:7], row[13])) in shown, row
    assert all(len(line) <= 120 for line in out.splitlines())
    for words in (["check"], ["run"], ["add", "x.zip", "--name", "a", "--by", "b", "--env", ENV_ID]):
        status, _, err = run("leaderboard", *words)
        assert status == 1
        assert err.startswith("error: there is no board here")
        assert err.count("\n") == 1
        assert "--board DIR" in err
    assert not list(tmp_path.iterdir())


def test_a_board_of_ones_own_is_begun(commands: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published episodes, and no agents; a folder of other things is left alone."""
    asked = []
    monkeypatch.setattr("sam_gym.leaderboard.running.run_missing", lambda board, *_: asked.append(board) or "0 of 7")
    commands.run(board=tmp_path / "mine")
    manifest = Board(BENCHMARKS).manifest
    assert asked[0].manifest == {**manifest, "agents": []}
    assert not any("clone" in entry.name for entry in asked[0].entries())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(BoardError, match="no board and not empty"):
        commands.run(board=tmp_path / "other")


PROBE = """<script>
const table = document.querySelectorAll("table.sortable")[1], column = 3;
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join();
const button = table.tHead.rows[0].cells[column].querySelector("button");
const seen = { head: button.textContent, before: names() };
button.click(); seen.down = names();
button.click(); seen.up = names();
const width = svg => svg.getBBox().width, paths = svg => svg.querySelectorAll("path").length;
seen.plots = [...document.querySelectorAll("svg")].map(svg => width(svg) > 100 && paths(svg));
seen.pictures = [...document.images].map(image => image.complete && image.naturalWidth);
seen.requests = performance.getEntriesByType("resource").map(one => one.name).filter(name => !/^data:/.test(name));
document.body.dataset.seen = JSON.stringify(seen);
</script>"""


def test_the_page_works_in_a_browser(board: Any, commands: ModuleType, browser: str, tmp_path: Path) -> None:
    """From a file, without a network: an empty console, plots and pictures there, tables sorted by a click."""
    commands.table(board.folder)
    page = (board.folder / "leaderboard.html").read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", PROBE + "</body>"))
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=3000",
            "--dump-dom", probed.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-seen="([^"]+)"', done.stdout)
    assert found is not None
    seen = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    last: dict[str, list[float]] = {entry.name: [] for entry in board.entries()}
    for entry in board.entries():
        last[entry.name].append(board.read(entry)["record"]["measures"]["iou_after_prompts"][-1])
    shown = {name: round(sum(values) / len(values), 3) for name, values in last.items()}
    assert seen["head"] == "IoU"
    assert seen["before"].split(",") == list(shown)
    assert [shown[name] for name in seen["down"].split(",")] == sorted(shown.values(), reverse=True)
    assert [shown[name] for name in seen["up"].split(",")] == sorted(shown.values())
    assert len(seen["plots"]) == 2
    assert all(paths > 10 for paths in seen["plots"])
    assert len(seen["pictures"]) == 1
    assert all(seen["pictures"])
    assert seen["requests"] == []
