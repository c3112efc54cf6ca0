"""The leaderboard: run what is missing, show the tables, check every record, add an agent or a record.

    python benchmarks/leaderboard.py run                                         everything; what is stored stays
    python benchmarks/leaderboard.py run --env SamPrompt-WBC-v0 --entry random   a part of it
    python benchmarks/leaderboard.py table                                       LEADERBOARD.md and leaderboard.html
    python benchmarks/leaderboard.py check                                       is every stored record what it says?
    python benchmarks/leaderboard.py add --help                                  your own agent, or a record of it

A record is evaluated on the fixed episodes of the held-out split, real data, the same SAM for all. `check` recomputes
its summary from its objects and compares its hashes with leaderboard_manifest.json.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gymnasium
import tyro
from board import HERE, SCRIPTED, US, Board, BoardError, Entry, find, oracle_of, task_of
from PIL import Image

from sam_gym import report
from sam_gym.data import DATASETS
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation import (
    encode_images,
    episode_list_hash,
    evaluate,
    is_current,
    make_evaluation_env,
    select_cases,
)
from sam_gym.fetching import atomic_path, write_json
from sam_gym.prompters import Prompter, baselines
from sam_gym.records import Record

NUM_ENVS = 16
PICTURE_WIDTH = 1200
"""Of the gallery's pictures, in pixels."""
PACKAGED = HERE.parent / "sam_gym" / "scores.json"
"""Scores that `sam-gym list` shows."""


Folder = Annotated[Path, tyro.conf.arg(name="board", metavar="DIR", help="Folder of the board; there may be others.")]


def run(env: tuple[str, ...] = (), entry: tuple[str, ...] = (), device: str = "auto", folder: Folder = HERE) -> None:
    """Evaluate what is not stored yet with the same hashes; after Ctrl-C the same command goes on.

    Args:
        env: Environment ids; default all of the manifest.
        entry: Names of entries ("random", "oracle clicks", an agent's); default all.
        device: Where SAM and the agents run.
        folder: Of the board.
    """
    board = Board(folder)
    chosen = find(board.entries(), env, entry)
    where_from = report.provenance()  # before anything is written, or the commit would count as changed
    if str(where_from["git_commit"]).endswith("-dirty"):
        print("the working tree has changes: `check` will refuse these records until they are run from a commit",
              file=sys.stderr)  # fmt: skip
    done = 0
    encoded: set[str] = set()
    for number, one in enumerate(chosen, start=1):
        if not one.scripted and not board.model_file(one).is_file():
            if board.read(one) is None:
                raise BoardError(f"{one}: neither {board.relative(board.model_file(one))} nor a record is there")
            print(f"[{number}/{len(chosen)}] {one}: kept, its model is not here", file=sys.stderr)
            continue
        environment, prompter = posed(board, one, device)
        pin(board, environment, one.env_id)
        stored, most = board.read(one), board.manifest["max_objects"]
        if stored is not None and is_current(stored["record"], prompter, environment, most):
            continue
        if one.env_id not in encoded:  # with a bar of its own; the other entries find the embeddings there
            encode_images(environment.engine.backend, [environment.engine.data])
            encoded.add(one.env_id)
        record = evaluate(prompter, environment, name=one.name, max_objects=most)
        write(board, one, record, where_from)
        done += 1
        print(f"[{number}/{len(chosen)}] {one}: IoU {record.curve[0]:.3f} -> {record.curve[-1]:.3f}, "
              f"{record.seconds:.0f} s", file=sys.stderr)  # fmt: skip
    for env_id in dict.fromkeys(one.env_id for one in chosen):
        picture(board, env_id, device)
    print(f"{done} of {len(chosen)} evaluated, the others were stored already; now: "
          "python benchmarks/leaderboard.py table")  # fmt: skip


def posed(board: Board, entry: Entry, device: str, **more: Any) -> tuple[EngineVectorEnv, Prompter]:
    """The environment that an entry is measured in, and its prompter."""
    settings: dict[str, Any] = {}
    agent = None
    if entry.scripted:
        settings["action_mode"] = SCRIPTED[task_of(entry.env_id)][entry.name]
    else:
        from sam_gym.sb3.saved import SavedAgent

        agent = SavedAgent.load(board.model_file(entry), device)
        agent.check_task(task_of(entry.env_id))
        settings.update(agent.settings)
    manifest = board.manifest
    num_envs = 1 if "render_mode" in more else min(NUM_ENVS, manifest["max_objects"])
    environment = make_evaluation_env(
        entry.env_id, "test", num_envs, data="real", device=device, precision=manifest["precision"],
        checkpoint=manifest["checkpoint"].rpartition("-")[0], **settings, **more,
    )  # fmt: skip
    if agent is not None:
        return environment, agent.prompter(environment)
    return environment, baselines(environment.settings, entry.seed or 0)[entry.name]


def pin(board: Board, env: EngineVectorEnv, env_id: str) -> None:
    """Note the hashes of an environment that is new on the board; they never change afterwards.

    Raises:
        BoardError: Its episodes or its data are other ones than the board's.
    """
    manifest = board.manifest
    here = {
        "episodes": episode_list_hash(select_cases(env, manifest["max_objects"])),
        "data": env.engine.data.hash(),
    }
    known = manifest["environments"][env_id]
    if not known:
        board.write_manifest({**manifest, "environments": {**manifest["environments"], env_id: here}})
    elif known != here:
        changed = ", ".join(name for name in here if here[name] != known[name])
        raise BoardError(
            f"{env_id}: other {changed} than the records on the board have. If that is meant, it is a new version of "
            f"the environment; else restore what {board.manifest_file.name} was made with"
        )


def write(board: Board, entry: Entry, record: Record, where_from: dict[str, Any]) -> None:
    """Store the record of an entry."""
    content = {
        "entry": entry.name, "seed": entry.seed, "by": entry.by, "run": where_from, "record": record.to_json(),
    }  # fmt: skip
    with atomic_path(board.record_file(entry)) as path:
        path.write_text(compact(content), encoding="utf-8")


def compact(content: dict[str, Any]) -> str:
    """JSON with one object (image, IoU curve, ...) a line, so that differences can be read."""
    objects = content["record"]["objects"]
    shell = {**content, "record": {**content["record"], "objects": []}}
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in objects)
    head, tail = json.dumps(shell, separators=(",", ":")).rsplit('"objects":[]', 1)
    return f'{head}"objects":[\n{lines}\n]{tail}\n'


def picture(board: Board, env_id: str, device: str) -> None:
    """Draw four episodes for the gallery, of the first agent or else of the oracle, unless theirs are drawn already.

    Images that not everybody may republish are left out: the page is in the repository.
    """
    file = picture_file(board, env_id)
    if not DATASETS[gymnasium.spec(env_id).kwargs["dataset"]].may_be_shown:
        return
    there = [entry for entry in board.entries() if entry.env_id == env_id and board.read(entry) is not None]
    shown = next((one for one in there if not one.scripted and board.model_file(one).is_file()), None) or next(
        (one for one in there if one.name == oracle_of(env_id)), None
    )
    if shown is None or (file.is_file() and picture_of(file) == str(shown)):
        return
    stored = board.read(shown)
    assert stored is not None, "it is there"
    environment, prompter = posed(board, shown, device, render_mode="rgb_array")
    with tempfile.TemporaryDirectory() as folder:
        strip = Path(folder) / "strip.png"
        report.save_film_strip(strip, prompter, Record.from_json(stored["record"]), environment)
        image = Image.open(strip).convert("RGB")
    image.thumbnail((PICTURE_WIDTH, 10 * PICTURE_WIDTH), Image.Resampling.LANCZOS)
    with atomic_path(file) as path:
        image.save(path, "JPEG", quality=72, comment=str(shown).encode())


def picture_of(file: Path) -> str:
    """Whose episodes a picture shows."""
    with Image.open(file) as image:
        return str(image.info["comment"].decode())


def picture_file(board: Board, env_id: str) -> Path:
    """Where the gallery's picture of an environment lies."""
    return board.folder / "results" / "leaderboard" / env_id / "episodes.jpg"


def table(folder: Folder = HERE) -> None:
    """Write LEADERBOARD.md and leaderboard.html from what is stored, and print the scores over datasets.

    From this repository's board, also the scores that `sam-gym list` shows.

    Args:
        folder: Of the board; LEADERBOARD.md lies beside it.
    """
    from page import write_page
    from standings import bracketed, by_task, mean_ious, over_datasets, standing

    board = Board(folder)
    tasks = by_task([standing(board, env_id) for env_id in board.manifest["environments"]])
    if not tasks:
        raise BoardError("nothing is stored yet: python benchmarks/leaderboard.py run")
    text = markdown(board, tasks)
    (folder.parent / "LEADERBOARD.md").write_text(text, encoding="utf-8")
    pictures = {env_id: picture_file(board, env_id) for env_id in board.manifest["environments"]}
    there = {env_id: (file, picture_of(file)) for env_id, file in pictures.items() if file.is_file()}
    write_page(folder / "leaderboard.html", board, tasks, there)
    if folder == HERE:
        write_json(PACKAGED, {one.env_id: mean_ious(one) for standings in tasks.values() for one in standings})
    for task, standings in tasks.items():
        print(f"\n{task}: IQM over datasets of (IoU - random) / (oracle - random)")
        for name, (datasets, score) in over_datasets(standings).items():
            print(f"  {name:24} {bracketed(score):24} {datasets} dataset{'s' * (datasets > 1)}")
    print(f"\nwritten: LEADERBOARD.md, {folder.name}/leaderboard.html")


def markdown(board: Board, tasks: dict[str, list[Any]]) -> str:
    """LEADERBOARD.md."""
    from standings import HEAD, SHARES_HEAD, bracketed, cells, over_datasets, shares_closed

    def linked(row: Any) -> str:
        files = [board.relative(board.record_file(entry)) for entry in row.entries]
        links = [f"[{row.name}]({files[0]})", *(f"[{n}]({file})" for n, file in enumerate(files[1:], start=2))]
        return " ".join(links) + ("" if row.by == US else f" (by {row.by})")

    manifest = board.manifest
    every = [row for standings in tasks.values() for one in standings for row in one.rows.values()]
    minutes = sum(record.seconds for row in every for record in row.records) / 60
    parts = [
        "# Leaderboard\n\nWritten by `python benchmarks/leaderboard.py table` from the records that each entry links "
        f"to (one a seed); `check` says whether they hold good. Held-out split, at most {manifest['max_objects']} "
        f"objects of an environment, the same episodes for all; SAM {manifest['checkpoint']}, {manifest['precision']} "
        f"decoder. Evaluating all of it takes {minutes:.0f} minutes, encoding left out, where each record says.\n\n"
        "- IoU@0, IoU: mean IoU of the first and the last mask; the interval resamples objects and seeds.\n"
        "- score: (IoU - random) / (oracle - random). closed: share of the way from the first mask to the oracle.\n"
        "- NoC@k: mean prompts to an IoU of k % of those objects that reach it, and in brackets how many do.\n"
        "- failures: last mask empty or worse than the first. decodes: masks that SAM decoded for an object.\n"
    ]
    for task, standings in tasks.items():
        parts.append(f"\n## {task}\n\n")
        if any(one.agents for one in standings):
            aligned = [["---", "---:", "---", *["---:"] * (len(SHARES_HEAD) - 3)]]
            agents = report.markdown([SHARES_HEAD, *aligned, *shares_closed(standings)])
            parts.append(f"Agents, and how far they get from the first mask to the oracle:\n\n{agents}\n")
        parts.append("Over datasets: interquartile mean of scores over datasets and seeds, with a 95 % "
                     "interval by stratified bootstrap.\n\n")  # fmt: skip
        overall = [[name, str(n), bracketed(score)] for name, (n, score) in over_datasets(standings).items()]
        parts.append(report.markdown([["entry", "datasets", "score"], ["---", "---:", "---:"], *overall]))
        for one in standings:
            objects = one.rows[next(iter(one.rows))].final.shape[1]
            parts.append(f"\n### {one.env_id}: {objects} objects\n\n")
            rows = [[linked(row), *cells(one, row)[1:]] for row in one.rows.values()]
            parts.append(report.markdown([list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *rows]))
            rival = one.rival()
            for row in one.rows.values():
                if row.agent and rival is not None and (compared := one.against_rival(row)) is not None:
                    difference, better = compared
                    parts.append(f"\n{row.name} - {rival.name}, the best entry without truth or training: "
                                 f"{bracketed(difference)}; better on an object with probability "
                                 f"{bracketed(better)}.\n")  # fmt: skip
    return "".join(parts)


def check(folder: Folder = HERE) -> None:
    """Check every stored record: form, summary against its objects, hashes, seeds, real data, clean commit.

    Exits with 1 if something is wrong, and says what.

    Args:
        folder: Of the board.
    """
    board = Board(folder)
    wrong = board.check()
    for sentence in wrong:
        print(sentence)
    print(f"{len(board.entries())} entries, {len(wrong)} problems")
    if wrong:
        sys.exit(1)


def add(
    file: tyro.conf.Positional[Path],
    name: str,
    by: str,
    env: str,
    seed: int = 0,
    folder: Folder = HERE,
) -> None:
    """Put an agent, or a record of it, on the board.

    For example:

        python benchmarks/leaderboard.py add runs/MINE/model.zip --name "mine" --by "A. Name" --env SamPrompt-WBC-v0
        python benchmarks/leaderboard.py add record.json --name "mine" --by "A. Name" --env SamPrompt-WBC-v0 --seed 1

    A model is copied, without what only further training needs, and measured by `run`. A record is what `run` writes,
    on another machine, say; it is checked as `check` does, and stands on the board as what it is: not measured here.

    Args:
        file: model.zip of agents/train_ppo.py, or a record.
        name: What tables call it, the same for all its seeds and environments.
        by: Who made it.
        env: Environment id.
        seed: Of its training.
        folder: Of the board.
    """
    board = Board(folder)
    entry = Entry(env, name, seed, by, scripted=False)
    manifest = board.manifest
    if env not in manifest["environments"]:
        raise BoardError(f"{env} is not on the board: add it to {board.manifest_file.name} first")
    if name in SCRIPTED[task_of(env)]:
        raise BoardError(f"{name!r} is a scripted entry's name; take another")
    known = [one for one in manifest["agents"] if one["name"] == name]
    if known and known[0]["by"] != by:
        raise BoardError(f"there is a {name!r} already, by {known[0]['by']}")
    if not file.is_file():
        raise BoardError(f"there is no file {file}")
    if file.suffix == ".json":
        stored = json.loads(file.read_text(encoding="utf-8"))
        board.check_record(stored, entry)
        with atomic_path(board.record_file(entry)) as path:
            path.write_text(compact(stored), encoding="utf-8")
        follows = "python benchmarks/leaderboard.py table"
    else:
        from sam_gym.sb3.saved import SavedAgent

        agent = SavedAgent.load(file, "cpu")
        agent.check_task(task_of(env))
        agent.save_for_use(board.model_file(entry))
        follows = f"python benchmarks/leaderboard.py run --env {env} --entry {name!r}"
    agents = [one for one in manifest["agents"] if one["name"] != name]
    seeds = dict(known[0]["seeds"]) if known else {}
    seeds[env] = sorted({*seeds.get(env, ()), seed})
    board.write_manifest({**manifest, "agents": [*agents, {"name": name, "by": by, "seeds": seeds}]})
    print(f"{entry} is on the board; now: {follows}")


def main() -> None:
    """Parse the command and do it; what can go wrong is a message of one line."""
    from sam_gym.data import DataUnavailableError
    from sam_gym.sam import CheckpointError

    commands = {"run": run, "table": table, "check": check, "add": add}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    except (BoardError, DataUnavailableError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from there")


if __name__ == "__main__":
    main()
