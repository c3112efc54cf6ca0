"""The leaderboard's entries and records: what belongs on it, where it lies, and whether a stored record holds good.

It evaluates nothing and draws nothing: `running.py` does the one, `page.py` the other. The manifest,
leaderboard_manifest.json, says which episodes, which SAM and which agents the board is about; a record is one JSON file
under results/leaderboard/. The published board is the folder benchmarks/ of the repository.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from sam_gym._utils.fetching import write_json
from sam_gym._utils.naming import unknown
from sam_gym.envs.keeping import BEST_PREDICTED, LAST
from sam_gym.evaluation import EPISODE_LIST_VERSION, episode_list_hash
from sam_gym.evaluation.records import Record, is_record

if TYPE_CHECKING:
    from sam_gym.sb3.saved import SavedAgent

SCHEMA = Path(__file__).resolve().parent / "schema.json"
MANIFEST = "leaderboard_manifest.json"
US = "this repository"
NEEDS_EXTRA = "it needs the extra leaderboard: pip install 'sam_gym[leaderboard]'"

SCRIPTED: dict[str, dict[str, str]] = {
    "SamPrompt": {name: "grid" for name in ("box only", "random", "centre", "uncertainty", "oracle clicks")},
    "SamBoxRefine": {
        "box only": "continuous", "random": "continuous", "iterative box": "discrete", "oracle box": "continuous",
    },
    "SamProofread": {name: "grid" for name in ("given mask", "random", "centre", "uncertainty", "oracle clicks")},
    "SamPromptSemantic": {name: "grid" for name in ("no prompt", "random", "centre", "uncertainty", "oracle clicks")},
}  # fmt: skip
"""Task -> its scripted entries, and the action mode that each acts in. The last one is the oracle."""

UNPROMPTED = ("box only", "given mask", "no prompt")
"""Names of the entry that stops at once, one for each way in which a task begins."""

BEST_MASK = ", best mask"
"""Ends the name of an agent that returns the mask which its own judge thinks best; the same agent without is another
entry, so that what the judge gains is not taken for what the clicks gain."""

RANDOM = "random"
SEEDS = (0, 1, 2)
"""Of whatever is drawn or trained."""


class BoardError(ValueError):
    """Something on the board does not hold good."""


def task_of(env_id: str) -> str:
    """The task of an environment id."""
    return env_id.partition("-")[0]


def oracle_of(env_id: str) -> str:
    """The entry that stands for 1 on the normalised scale."""
    return list(SCRIPTED[task_of(env_id)])[-1]


@dataclass(frozen=True)
class Entry:
    """One thing to measure: a prompter in an environment, with one seed.

    Attributes:
        env_id: The environment.
        name: What tables call it.
        seed: Of its training or of its choices; None if there is nothing to draw.
        by: Who made it.
        scripted: Whether it is one of `sam_gym.prompters`.
    """

    env_id: str
    name: str
    seed: int | None
    by: str = US
    scripted: bool = True

    @property
    def slug(self) -> str:
        """Its name in names of files."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") + seed

    @property
    def returns(self) -> str:
        """Which of its masks counts: the last one, unless its name says `BEST_MASK`."""
        return BEST_PREDICTED if self.name.endswith(BEST_MASK) else LAST

    def __str__(self) -> str:
        """As messages call it."""
        return f"{self.env_id}, {self.name}" + ("" if self.seed is None else f", seed {self.seed}")


def board_here() -> Path | None:
    """The board that commands work on unless they are told another: benchmarks/ of a clone, else this folder."""
    return next((folder for folder in (Path("benchmarks"), Path()) if (folder / MANIFEST).is_file()), None)


def begin(folder: Path, manifest: dict[str, Any]) -> bool:
    """Make a folder a board, with the episodes, data and SAM of `manifest` and no agents; False if it is one already.

    Raises:
        BoardError: It holds other files.
    """
    if (folder / MANIFEST).is_file():
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BoardError(f"{folder} is no board and not empty: name a board, or a new folder, to begin one there")
    Board(folder).write_manifest({**manifest, "agents": []})
    return True


@dataclass(frozen=True)
class Board:
    """A folder with a manifest, the models of agents, and records.

    Attributes:
        folder: benchmarks/ of this repository, a copy of it, or a folder that `begin` made one.
    """

    folder: Path

    @property
    def manifest_file(self) -> Path:
        """What the board is about."""
        return self.folder / MANIFEST

    @property
    def manifest(self) -> dict[str, Any]:
        """Contents of `manifest_file`.

        "max_objects", "checkpoint" and "precision" hold for all records. "environments": id -> "episodes", the sha256
        of its list, and "data", that of its images and masks. "agents": "name", "by", and "seeds" by environment.
        """
        if not self.manifest_file.is_file():
            raise BoardError(
                f"{self.folder} is no board: it has no {MANIFEST}; `sam-gym leaderboard run --board DIR` begins one"
            )
        return json.loads(self.manifest_file.read_text(encoding="utf-8"))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace it."""
        write_json(self.manifest_file, manifest)

    def record_file(self, entry: Entry) -> Path:
        """Where the record of an entry lies."""
        return self.folder / "results" / "leaderboard" / entry.env_id / f"{entry.slug}.json"

    def model_file(self, entry: Entry) -> Path:
        """Where the model of an agent lies, a folder or a file; a record that somebody else added may have none."""
        shared = self.shared_model_file(entry)
        own = shared.parent / entry.env_id / shared.name
        places = (shared.with_suffix(""), shared, own.with_suffix(""), own)
        return next((place for place in places if place.exists()), own)

    def shared_model_file(self, entry: Entry) -> Path:
        """Where the model of an agent lies that is on the board in several environments, or with several masks."""
        return self.folder / "agents" / f"{replace(entry, name=entry.name.removesuffix(BEST_MASK)).slug}.zip"

    def entries(self) -> list[Entry]:
        """All entries, in the order of tables: the oracle of each environment comes last."""
        manifest, found = self.manifest, []
        for env_id in manifest["environments"]:
            names = list(SCRIPTED[task_of(env_id)])
            for name in names[:-1]:
                found += [Entry(env_id, name, seed) for seed in (SEEDS if name == RANDOM else (None,))]
            for agent in manifest["agents"]:
                seeds = agent["seeds"].get(env_id, ())
                found += [Entry(env_id, agent["name"], seed, agent["by"], scripted=False) for seed in seeds]
            found.append(Entry(env_id, names[-1], None))
        return found

    def read(self, entry: Entry) -> dict[str, Any] | None:
        """What is stored of an entry, None if nothing is."""
        file = self.record_file(entry)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    # -------------------------------------------------------------------- checks

    def check(self) -> list[str]:
        """What is wrong with the board, a sentence each; empty if all is well.

        Raises:
            ValueError: It cannot be told, for want of an extra.
        """
        wrong = []
        entries = self.entries()
        for entry in entries:
            stored = self.read(entry)
            if stored is None:
                wrong.append(f"{entry}: there is no record {self.relative(self.record_file(entry))}")
                continue
            try:
                self.check_record(stored, entry)
            except BoardError as error:
                wrong.append(f"{entry}: {error}")
        known = {self.record_file(entry) for entry in entries}
        there = sorted((self.folder / "results" / "leaderboard").rglob("*.json"))
        wrong += [f"{self.relative(file)}: the manifest has no such entry" for file in there if file not in known]
        return wrong

    def check_record(self, stored: dict[str, Any], entry: Entry) -> None:
        """Raise `BoardError` unless this may stand on the board as `entry`."""
        errors = sorted(_validator().iter_errors(stored), key=str)
        if errors:
            where = "/".join(str(part) for part in errors[0].absolute_path) or "the whole"
            raise BoardError(f"it does not follow schema.json at {where}: {errors[0].message[:200]}")
        named = stored["entry"], stored["seed"], stored["by"]
        if named != (entry.name, entry.seed, entry.by):
            raise BoardError(f"it says it is {named[0]!r}, seed {named[1]}, by {named[2]!r}")
        commit = stored["run"]["git_commit"]
        if commit is None:
            raise BoardError("it says no commit, as an installed sam_gym has none: run it in a clone of the repository")
        if commit.endswith("-dirty"):
            raise BoardError(f"it was measured on commit {commit}: commit first, then run again")
        returns = stored["record"]["provenance"].get("returns", LAST)
        if returns != entry.returns:
            raise BoardError(f"it measured the mask returned as {returns!r}, not {entry.returns!r}")
        self._check_content(stored["record"], entry.env_id)
        if not entry.scripted and (model := self.model_file(entry)).exists():
            identity, measured = load_agent(model, "cpu").identity, stored["record"]["provenance"]["policy"]
            if identity != measured:
                raise BoardError(f"it is of policy {measured}, but {self.relative(model)} holds {identity}")

    def _check_content(self, content: dict[str, Any], env_id: str) -> None:
        """Objects, episodes, data, SAM and summary of a record."""
        manifest, provenance = self.manifest, content["provenance"]
        if not is_record(content):
            raise BoardError("it is of another format than sam_gym.evaluation.records writes")
        record = Record.from_json(content)
        pins = manifest["environments"][env_id]
        if pins is None:
            raise BoardError("the manifest has no hashes of it yet; `sam-gym leaderboard run` writes them")
        episodes = {"version": EPISODE_LIST_VERSION, "sha256": pins["episodes"]}
        if provenance["source"] != provenance["data"]:
            raise BoardError(f"it was measured on the stand-in {provenance['source']}, not on {provenance['data']}")
        if episode_list_hash(record.cases) != provenance["episode_list"]["sha256"]:
            raise BoardError("its objects are not those of the episode list that it names")
        wanted = {
            "episode_list": episodes, "data_hash": pins["data"], "checkpoint": manifest["checkpoint"],
            "precision": manifest["precision"], "split": "test",
            "data": gymnasium.spec(env_id).kwargs["dataset"],
        }  # fmt: skip
        for name, value in wanted.items():
            if provenance.get(name) != value:
                raise BoardError(f"{name} is {provenance.get(name)}, on this board it is {value}")
        measures = json.loads(json.dumps(record.measures()))
        if measures != content["measures"]:
            differing = [name for name in measures if measures[name] != content["measures"].get(name)]
            raise BoardError(f"its summary does not follow from its objects: {', '.join(differing) or 'more entries'}")

    def relative(self, file: Path) -> str:
        """A file's name from the folder that the board lies in."""
        return file.relative_to(self.folder.parent).as_posix()


def find(entries: list[Entry], envs: tuple[str, ...], names: tuple[str, ...]) -> list[Entry]:
    """Those of some environments and some names; all of them where nothing is asked for.

    Raises:
        BoardError: There is no such environment or name on the board.
    """
    for asked, there, what in (
        (envs, {entry.env_id for entry in entries}, "environment"),
        (names, {entry.name for entry in entries}, "entry"),
    ):
        for one in asked:
            if one not in there:
                raise BoardError(unknown(f"{what} of the board", one, sorted(there)))
    return [entry for entry in entries if (not envs or entry.env_id in envs) and (not names or entry.name in names)]


def load_agent(file: Path, device: str) -> SavedAgent:
    """`SavedAgent.load`; ValueError where the extra `sb3` is missing."""
    try:
        from sam_gym.sb3.saved import SavedAgent
    except ImportError as error:
        raise ValueError(f"{file}: {error}") from error
    return SavedAgent.load(file, device)


@cache
def _validator() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise ValueError(f"records cannot be checked, {NEEDS_EXTRA} ({error})") from error
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
