"""What fills a board: entries are evaluated, agents and records added, each bound to the hashes of the manifest."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.hub import PREFIX, agent_path
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation import encode_images, episode_list_hash, evaluate, is_current, report, select_cases
from sam_gym.evaluation.records import Record
from sam_gym.leaderboard.board import BEST_MASK, SCRIPTED, Board, BoardError, Entry, find, load_agent, task_of
from sam_gym.leaderboard.gallery import draw_picture
from sam_gym.leaderboard.posing import posed


def run_missing(
    board: Board,
    envs: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    device: str = "auto",
    executor: Executor | None = None,
) -> str:
    """Evaluate what is not stored yet with the same hashes, and draw what the gallery lacks.

    Args:
        board: Where records are kept.
        envs: Environment ids; default all of the manifest.
        names: Of entries; default all.
        device: Where SAM and the agents run.
        executor: Whose processes share the work; None: it is done here.

    Returns:
        A sentence: how many were evaluated, and how many were there.
    """
    chosen = find(board.entries(), envs, names)
    where_from = report.provenance()  # before anything is written, or the commit would count as changed
    commit = where_from["git_commit"]
    if commit is None or commit.endswith("-dirty"):
        state = "this sam_gym is no clone" if commit is None else "the working tree has changes"
        print(f"{state}: `sam-gym leaderboard check` will refuse these records until they are run from a commit",
              file=sys.stderr)  # fmt: skip
    done = 0
    encoded: set[str] = set()
    for number, one in enumerate(chosen, start=1):
        if not one.scripted and not board.model_file(one).exists():
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
            encode_images(environment.backend, [environment.data])
            encoded.add(one.env_id)
        record = evaluate(prompter, environment, name=one.name, max_objects=most, executor=executor)
        write(board, one, record, where_from)
        done += 1
        print(f"[{number}/{len(chosen)}] {one}: IoU {record.curve[0]:.3f} -> {record.curve[-1]:.3f}, "
              f"{record.seconds:.0f} s", file=sys.stderr)  # fmt: skip
    for env_id in dict.fromkeys(one.env_id for one in chosen):
        draw_picture(board, env_id, device)
    return f"{done} of {len(chosen)} evaluated, the others were stored already"


def pin(board: Board, env: EngineVectorEnv, env_id: str) -> None:
    """Note the hashes of an environment that is new on the board; they never change afterwards.

    Raises:
        BoardError: Its episodes or its data are other ones than the board's.
    """
    manifest = board.manifest
    here = {
        "episodes": episode_list_hash(select_cases(env, manifest["max_objects"])),
        "data": env.data.hash(),
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


def add_entries(board: Board, file: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Put an agent, or a record of it, on the board.

    Args:
        board: The board.
        file: An agent as `agent_path` knows it, copied without what only further training needs; or a record, checked.
        entries: What it is to stand there as: one agent and seed, in one environment or several. A record is of one.

    Returns:
        What it stands there as. An agent that has a judge of masks stands there with its best masks, too.

    Raises:
        BoardError: The board has no place for it, or the record does not hold good.
    """
    one, manifest = entries[0], board.manifest
    for entry in entries:
        if entry.env_id not in manifest["environments"]:
            raise BoardError(f"{entry.env_id} is not on the board: add it to {board.manifest_file.name} first")
        if entry.name in SCRIPTED[task_of(entry.env_id)]:
            raise BoardError(f"{entry.name!r} is a scripted entry's name; take another")
    agents = {agent["name"]: agent for agent in manifest["agents"]}
    if one.name in agents and agents[one.name]["by"] != one.by:
        raise BoardError(f"there is a {one.name!r} already, by {agents[one.name]['by']}")
    file = agent_path(file) if str(file).startswith(PREFIX) else file
    if not file.exists():
        raise BoardError(f"there is no file {file}")
    added = list(entries)
    if file.suffix == ".json":
        if len(entries) > 1:
            raise BoardError(f"{file} is a record of one environment, not of {len(entries)}")
        stored = json.loads(file.read_text(encoding="utf-8"))
        board.check_record(stored, one)
        with atomic_path(board.record_file(one)) as path:
            path.write_text(compact(stored), encoding="utf-8")
    else:
        agent = load_agent(file, "cpu")
        for entry in entries:
            agent.check_task(task_of(entry.env_id))
        if agent.judges:
            added += [replace(entry, name=entry.name + BEST_MASK) for entry in entries]
        target = board.model_file(one) if len(added) == 1 else board.shared_model_file(one)
        shutil.rmtree(target.with_suffix(""), ignore_errors=True)  # else it hides a file
        agent.save_for_use(target.with_suffix(".zip"))
    for entry in added:
        known = agents.setdefault(entry.name, {"name": entry.name, "by": entry.by, "seeds": {}})
        known["seeds"][entry.env_id] = sorted({*known["seeds"].get(entry.env_id, ()), entry.seed})
    board.write_manifest({**manifest, "agents": list(agents.values())})
    return added
