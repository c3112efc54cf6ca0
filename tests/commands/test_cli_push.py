"""`sam-gym push`, and agents by folder and by name on the Hub wherever an agent is asked for. Nothing is uploaded.

The Hub's client is replaced by a stand-in with its own signatures; where there is no network the client itself is run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import errors
from PIL import Image

from sam_gym.leaderboard import board as boards
from sam_gym.leaderboard.posing import posed
from sam_gym.sb3 import ALGORITHMS, SamVecEnv, save_agent

Run = Callable[..., tuple[int, str, str]]
ENV_ID = "SamPrompt-Synthetic-v0"
TINY = ("--checkpoint", "tiny_random", "--device", "cpu", "--precision", "exact")
EVALUATE = ("evaluate", ENV_ID, *TINY, "--objects", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained agent in the folder of a run."""
    file = tmp_path_factory.mktemp("runs") / "mine" / "model.zip"
    file.parent.mkdir()
    env: Any = gymnasium.make_vec(ENV_ID, num_envs=2, autoreset_mode="SameStep", checkpoint="tiny_random", device="cpu")
    algorithm, policy = ALGORITHMS["LightPolicy"]
    agent: Any = algorithm(policy, SamVecEnv(env), n_steps=2, batch_size=4, seed=0, device="cpu")
    save_agent(agent, file)
    return file


@pytest.fixture
def folder(run: Run, model: Path, tmp_path: Path) -> Path:
    assert run("push", str(model), "--to", str(tmp_path / "cells"))[0] == 0
    return tmp_path / "cells"


class Hub:
    """The Hub as far as agents need it: folders by repository."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        fetch = mock.create_autospec(huggingface_hub.snapshot_download, side_effect=self.fetch)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        self.api = mock.create_autospec(huggingface_hub.HfApi)
        self.api.return_value.create_repo.return_value = "https://hub.test/alice/cells"
        self.api.return_value.upload_folder.side_effect = self.upload
        monkeypatch.setattr("huggingface_hub.HfApi", self.api)

    def fetch(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision in (None, "v1")
        return str(self.root / repo_id)

    def upload(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **more: Any) -> None:
        for name in allow_patterns:
            if (folder_path / name).is_file():
                (self.root / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder_path / name, self.root / repo_id / name)


def test_pushed_and_used_by_name(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, tmp_path / "hub")
    status, out, _ = run("push", str(model), "alice/cells", "--license", "apache-2.0", "--private")
    assert status == 0
    assert "https://hub.test/alice/cells: use it as hf:alice/cells" in out
    hub.api.return_value.create_repo.assert_called_once_with(
        "alice/cells", private=True, repo_type="model", exist_ok=True
    )
    assert {file.name for file in (hub.root / "alice/cells").iterdir()} == {
        "README.md", "policy.safetensors", "sam_gym.json",
    }  # fmt: skip
    names = {
        "mine": str(model),
        "cells": str(folder),
        "alice cells": "hf:alice/cells",
        "alice cells@v1": "hf:alice/cells@v1",
    }
    records = []
    for name, given in names.items():  # a folder each, since equal agents are evaluated once
        assert run(*EVALUATE, "--prompter", given, "--out", str(tmp_path / "out" / name))[0] == 0
        records.append(json.loads((tmp_path / "out" / name / f"{name.replace(' ', '_')}.json").read_text()))
    assert all(record["objects"] == records[0]["objects"] for record in records)
    assert len({record["provenance"]["policy"] for record in records}) == 1
    strip = tmp_path / "strip.png"
    assert run("render", ENV_ID, *TINY, "--prompter", "hf:alice/cells", "--out", str(strip))[0] == 0


def test_the_card_says_what_records_say(run: Run, model: Path, tmp_path: Path) -> None:
    assert run(*EVALUATE, "--prompter", "box-only", str(model), "--out", str(tmp_path / "records"))[0] == 0
    assert run(*EVALUATE, "--prompter", str(model), "--split", "val", "--out", str(tmp_path / "val"))[0] == 0
    out = tmp_path / "cells"
    push = ("push", str(model), "--to", str(out))
    assert "no record was found" in run(*push)[1]
    _, head, text = (out / "README.md").read_text().split("---\n", 2)
    assert "license" not in yaml.safe_load(head)
    assert "| licence of the weights | unknown |" in text
    assert text.endswith("## On images that it never saw\n\nUnknown.\n")
    assert run(*push, "--record", str(tmp_path / "records"), str(tmp_path / "val"), "--license", "mit")[0] == 0
    _, head, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    stored = json.loads((tmp_path / "records" / "mine.json").read_text())
    means = " | ".join(f"{value:.3f}" for value in stored["measures"]["iou_after_prompts"])
    assert f"| **this agent** | {means} |" in text
    assert "synthetic-em, test split, 3 objects" in text
    assert text.count("| box only |") == 1
    assert "val split" not in text
    before = (out / "README.md").read_text()  # a folder keeps its card
    assert run("push", str(out), "--to", str(tmp_path / "copy"))[0] == 0
    assert (tmp_path / "copy" / "README.md").read_text() == before
    status, _, err = run(*push, "--record", str(tmp_path / "val"))
    assert status == 1
    assert "none of the records named is of this agent" in err
    (tmp_path / "val" / "mine.json").write_text("[]")
    assert "is no record of `sam-gym evaluate`" in run(*push, "--record", str(tmp_path / "val"))[2]
    (model.parent / "state.json").write_text('{"quick": true}')
    assert run(*push)[0] == 0
    assert "**QUICK RUN, NO RESULT**" in (out / "README.md").read_text()
    (model.parent / "state.json").unlink()


def test_segment_and_leaderboard_take_folders(run: Run, model: Path, folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)).save(images / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,2,3,40,50\n")
    labels = []
    for agent in (model, folder):
        out = tmp_path / agent.name
        given = ("--images", str(images), "--boxes", str(tmp_path / "boxes.csv"), "--out", str(out))
        assert run("segment", *given, *TINY, "--agent", str(agent))[0] == 0
        labels.append((out / "labels" / "a.png").read_bytes())
    assert labels[0] == labels[1]

    board = boards.Board(tmp_path / "board")
    manifest = {"max_objects": 2, "checkpoint": "tiny_random-0", "precision": "exact", "environments": {ENV_ID: None}}
    boards.begin(board.folder, manifest)
    entry = boards.Entry(ENV_ID, "theirs", 0, "B", scripted=False)
    add = ("--name", "theirs", "--by", "B", "--env", ENV_ID, "--board", str(board.folder))
    for given, there in ((folder, "theirs-seed0"), (model, "theirs-seed0.zip"), (folder, "theirs-seed0")):
        assert run("leaderboard", "add", str(given), *add)[0] == 0
        assert board.model_file(entry).name == there
        env, prompter = posed(board, entry, "cpu")
        assert prompter(env.reset(seed=0)[0], env).shape == (2,)


def response(status: int) -> Any:
    return mock.Mock(status_code=status, headers={}, request=mock.Mock())


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (errors.RepositoryNotFoundError("404", response=response(404)), "shows no repository alice/cells: look at"),
        (errors.RevisionNotFoundError("404 v9", response=response(404)), "has no such revision: 404 v9"),
        (errors.LocalTokenNotFoundError("no token"), "nobody is logged in to the Hub: run `hf auth login`"),
        (errors.HfHubHTTPError("denied", response=response(403)), "status 403: denied. Log in with a token that may"),
        (errors.HfHubHTTPError("busy", response=response(503)), "the Hub refused, status 503: busy"),
        (errors.LocalEntryNotFoundError("no way"), "cannot be reached, and nothing of it is in the cache: no way"),
    ],
)  # fmt: skip
def test_what_the_hub_may_answer(run: Run, monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", mock.Mock(side_effect=raised))
    status, _, err = run(*EVALUATE, "--prompter", "hf:alice/cells")
    assert (status, err.count("\n")) == (1, 1)
    assert message in err


def test_other_errors(run: Run, folder: Path, tmp_path: Path, child: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    for command, message in {
        ("push", str(folder)): "name a repository, OWNER/NAME, or a folder with --to DIR",
        ("push", str(folder), "cells"): "hf:cells: agents on the Hugging Face Hub are named hf:OWNER/NAME",
        ("push", "no.zip", "alice/cells"): "there is no model no.zip",
        (*EVALUATE, "--prompter", "hf:alice"): "hf:alice: agents on the Hugging Face Hub are named hf:OWNER/NAME",
        (*EVALUATE, "--prompter", "hf:al ice/cells"): "hf:al ice/cells: Repo id must use alphanumeric chars",
        (*EVALUATE, "--prompter", str(tmp_path / "empty")): "empty is no agent: it has no sam_gym.json",
        (*EVALUATE, "--prompter", str(folder), "--set", "grid=8"): "does not fit this environment",
    }.items():
        status, _, err = run(*command)
        assert status == 1
        assert message in err
    with mock.patch.dict("sys.modules", huggingface_hub=None):
        assert "needs the extra hub: pip install 'sam_gym[hub]'" in run(*EVALUATE, "--prompter", "hf:a/b")[2]
    ask = "from sam_gym._utils import hub\ntry: hub.{}\nexcept ValueError as error: print(error)"
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none", "HF_HOME": str(tmp_path / "home")}
    assert "in the cache: Got: ConnectError" in child(ask.format("agent_path('hf:alice/cells')"), **nowhere)
    pushed = child(ask.format(f"push_folder(hub.Path({str(folder)!r}), 'alice/cells')"), **nowhere)
    assert "the Hub cannot be reached, [Errno" in pushed
    assert "write a folder with --to DIR" in pushed
