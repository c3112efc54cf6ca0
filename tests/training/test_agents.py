"""The scripts in agents/: a whole run, Ctrl-C and --resume, evaluation of what was saved, errors that name things."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml
from PIL import Image
from sb3_contrib import MaskablePPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sam_gym.envs import engine as engine_module
from sam_gym.evaluation import evaluate_entries, report
from sam_gym.prompters import centre
from sam_gym.training import Arguments, Training

AGENTS = Path(__file__).resolve().parents[2] / "agents"
ENV_ID = "SamPrompt-Synthetic-v0"
SECTION = {
    "n_envs": 2, "n_timesteps": 32, "policy": "SpatialPolicy", "n_steps": 8, "batch_size": 16, "n_epochs": 1,
    "learning_rate": "lin_1.0e-4", "gamma": 0.99, "reward_scale": 10.0,
    "clone": {"total_timesteps": 24, "round_steps": 4, "gradient_steps": 2, "batch_size": 8},
}  # fmt: skip
TINY = ["--env", ENV_ID, "--checkpoint", "tiny_random", "--device", "cpu"]
FEW = ["--eval-objects", "2", "--test-objects", "4"]

# As if started from a terminal, where Ctrl-C works; a test run in the background may have it switched off
WITH_CTRL_C = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); del sys.argv[0]; "
    "sys.path[0] = sys.argv[0].rsplit('/', 1)[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yml"
    file.write_text(yaml.safe_dump({ENV_ID: SECTION}))
    return file


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A whole run, output to no terminal."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    command = [str(part) for part in ("train_ppo.py", *TINY, *FEW, "--config", config, "--run-dir", folder)]
    said, errors = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(said), redirect_stderr(errors):
        patched.setattr(sys, "argv", command)
        runpy.run_path(str(AGENTS / "train_ppo.py"), run_name="__main__")
    return folder, subprocess.CompletedProcess(command, 0, said.getvalue(), errors.getvalue())


Script = Callable[..., str | None]


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())


# ---------------------------------------------------------------------------------------------------- a whole run


def test_writes_everything(finished: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, _ = finished
    for name in ("model.zip", "clone.zip"):
        assert sum(weights.numel() for weights in MaskablePPO.load(folder / name).policy.parameters()) > 100_000
    with Image.open(folder / "episodes.png") as strip:
        assert strip.size == ((6 * (448 + 8) + 8) // 2, (4 * (512 + 8) + 8) // 2)
        assert len(strip.convert("RGB").getcolors(1 << 24)) > 1000
    with Image.open(folder / "learning_curve.png") as curve:
        assert curve.size == (1430, 546)
    assert not (folder / "clone_rounds").exists()
    assert not [path for path in folder.rglob(".*")]  # no half-written file


def test_a_run_that_draws_searches_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where it was stopped; clone and agent have one sketch and one judge."""
    beside = {"policy": "SketchPolicy", "anchored": True, "ent_coef": 0.1, "env_kwargs": {"copies": 1},
              "eval_env_kwargs": {"copies": 0}, "sketch": {"total_timesteps": 16, "gradient_steps": 2},
              "judge": {"total_timesteps": 16, "gradient_steps": 2}}  # fmt: skip
    section = {**SECTION, **beside, "clone": {**SECTION["clone"], "candidates": 6}}  # type: ignore[dict-item]
    (tmp_path / "sketch.yml").write_text(yaml.safe_dump({ENV_ID: section}))
    folder = tmp_path / "run"
    arguments = Arguments(
        env=ENV_ID, checkpoint="tiny_random", device="cpu", config=str(tmp_path / "sketch.yml"), eval_objects=2,
        test_objects=4, run_dir=folder,
    )  # fmt: skip
    training = Training.open(arguments)
    training.clone()
    training.ppo()
    assert state_of(folder)["stage"] == "judge"
    training = Training.open(Arguments(resume=folder))
    training.judge()
    training.report()
    clone, agent = (MaskablePPO.load(folder / name).policy.state_dict() for name in ("clone.zip", "model.zip"))
    shared = [name for name in agent if "sketcher" in name or name.startswith("judge_")]
    assert shared
    assert all((clone[name] == agent[name]).all() for name in shared)
    names = [entry["name"] for entry in json.loads((folder / "record.json").read_text())["evaluation"]]
    assert names[-4:] == ["clone alone", "agent", "clone alone, best kept", "agent, best kept"]


def test_record(finished: tuple[Path, subprocess.CompletedProcess]) -> None:
    record = json.loads((finished[0] / "record.json").read_text())
    assert record["versions"]["sam_gym"]
    assert record["versions"]["torch"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["git_commit"])
    assert record["hardware"]["cpus"] == os.cpu_count()
    assert record["command"][0].endswith("train_ppo.py")
    assert record["config"] == SECTION
    assert [entry["name"] for entry in record["evaluation"]] == [
        "box only", "random", "centre", "uncertainty", "oracle clicks", "clone alone", "agent"
    ]  # fmt: skip
    for entry in record["evaluation"]:
        assert (entry["split"], entry["source"], entry["objects"]) == ("test", "synthetic-em", 4)
        assert entry["data_hash"] == record["evaluation"][0]["data_hash"]
        assert len(entry["episode_list"]["sha256"]) == 64
        assert entry["checkpoint"].startswith("tiny_random-")
        assert len(entry["iou_after_prompts"]) == 6
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert (record["quick"], record["arguments"]["attention"]) == (False, "foveated")
    assert record["table"] == {"split": "test", "attention": "full", "precision": "exact"}
    shares = {
        "clone": ["environment", "fits", "teacher"], "ppo": ["learning", "rollout", "rollout/environment"],
        "table": ["decoder", "encoder", "prompters and measuring"],
    }  # fmt: skip
    for stage, parts in shares.items():
        timing = record["timing"][stage]
        assert sorted({*timing["shares"]} - {"policy"}) == parts
        assert sum(share for part, share in timing["shares"].items() if "/" not in part) == pytest.approx(1, abs=0.01)
        assert timing["steps_a_second"] == pytest.approx(timing["steps"] / timing["seconds"], rel=0.01)
    assert [record["timing"][stage]["steps"] for stage in ("clone", "ppo")] == [24, 32]
    # three evaluations between rounds of 8 steps, then two between rollouts of 16
    points = [(point["stage"], point["stage_timesteps"], point["timesteps"]) for point in record["points"]]
    assert points == [("clone", n, n) for n in (8, 16, 24)] + [("ppo", n, 24 + n) for n in (16, 32)]
    assert record["best"]["gain"] == max(point["gain"] for point in record["points"])
    assert state_of(finished[0])["stage"] == "done"


def test_table_and_what_is_printed(finished: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, done = finished
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == "| prompter | 0 | 1 | 2 | 3 | 4 | 5 | gain | 95 % interval | prompts |"
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[2:]] == [
        "box only", "random", "centre", "uncertainty", "oracle clicks", "clone alone", "agent"
    ]  # fmt: skip
    agent = json.loads((folder / "record.json").read_text())["evaluation"][-1]
    assert [float(cell) for cell in lines[-1].split(" | ")[1:7]] == pytest.approx(agent["iou_after_prompts"], abs=6e-4)
    assert "test split, 4 objects" in done.stdout
    assert all(cell in done.stdout for cell in lines[-1].strip("| ").split(" | "))
    assert re.search(
        r"clone +8 steps: validation IoU 0\.\d+ -> 0\.\d+ \(gain [+-]0\.\d+, [\d.]+ prompts\)", done.stdout
    )
    assert done.stdout.rstrip().endswith(f"everything is in {folder}")
    assert "attention full, exact" in done.stdout
    assert "quick" not in done.stdout.lower()
    rate = r"in \d+ s, [\d.,]+ a second: "
    for line in (
        rf"cloning: 24 states {rate}environment \d+ % \([\d.,]+/s\); .*fits \d+ %",
        rf"PPO: 32 steps {rate}rollout \d+ % .*, of which environment \d+ %; learning \d+ %",
        rf"held-out table: \d+ masks {rate}",
    ):
        assert re.search(line, done.stdout), line
    # a log is not flooded: each of ten bars begins, ends, and comes back after a line of text
    assert len(done.stderr.replace("\r", "\n").split("\n")) < 80


def test_a_quick_run_is_marked_everywhere(
    config: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sets what was not given; and whatever an agent is trained with, the table is full and exact."""
    titles: list[str] = []
    plot = report.plot_learning
    monkeypatch.setattr(report, "plot_learning", lambda *a: (titles.append(a[-1]), plot(*a))[1])
    monkeypatch.chdir(tmp_path)
    given = ["--quick", "--precision", "fast", "--clone-steps", "8", "--test-objects", "2"]
    assert script("train_ppo.py", *TINY, "--config", config, *given) is None
    (folder,) = (tmp_path / "runs").glob(f"{ENV_ID}-quick-seed0-*")
    state = state_of(folder)
    assert state["config"]["clone"]["total_timesteps"] == 8
    assert state["config"]["n_timesteps"] == 32  # the recipe has fewer than --quick would take
    counts = [state["arguments"][name] for name in ("eval_objects", "evaluations", "test_objects")]
    assert counts == [27, 1, 2]
    record = json.loads((folder / "record.json").read_text())
    assert record["quick"] is True
    assert record["table"] == {"split": "test", "attention": "full", "precision": "exact"}
    assert {entry["precision"] for entry in record["evaluation"]} == {"exact"}
    assert not any("attention" in entry for entry in record["evaluation"])  # which says that it is full
    mark = "QUICK RUN, NO RESULT"
    assert titles[0].endswith(mark)
    assert mark in (folder / "table.md").read_text()
    said = capsys.readouterr().out.rstrip()
    assert said.split("\n")[-1].startswith(mark)
    assert f"{mark})" in " ".join(said.split())  # over the table, where lines are broken


def test_a_run_of_an_older_version_goes_on_as_it_was(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few: dict[str, Any] = {"eval_objects": 2, "test_objects": 2}
    Training.open(
        Arguments(env=ENV_ID, config=str(config), checkpoint="tiny_random", device="cpu", run_dir=folder, **few)
    )
    state = state_of(folder)
    assert (state["arguments"].pop("attention"), state.pop("quick"), state.pop("timing")) == ("foveated", False, {})
    (folder / "state.json").write_text(json.dumps(state))
    run = Training.open(Arguments(resume=folder))
    assert (run.train.settings.attention, run.val.settings.attention, run.mark) == ("full", "full", "")
    run.clone()
    assert state_of(folder)["timing"]["clone"]["steps"] == 24


def test_tensorboard(finished: tuple[Path, subprocess.CompletedProcess]) -> None:
    events = EventAccumulator(str(finished[0] / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"validation/iou_gain", "clone/kl_to_oracle", "train/approx_kl", "rollout/ep_rew_mean"} <= scalars
    assert [event.step for event in events.Scalars("clone/kl_to_oracle")] == [8, 16, 24]


def test_a_finished_run_is_not_written_over(
    finished: tuple[Path, subprocess.CompletedProcess], config: Path, script: Script
) -> None:
    before = (finished[0] / "model.zip").read_bytes()
    said = script("train_ppo.py", *TINY, "--config", config, "--run-dir", finished[0])
    assert said is not None
    assert "holds a run already" in said
    assert f"--resume {finished[0]}" in said
    assert (finished[0] / "model.zip").read_bytes() == before


def test_evaluate_repeats_the_table(
    finished: tuple[Path, subprocess.CompletedProcess], script: Script, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = finished[0]
    arguments = [folder / "model.zip", *TINY, "--precision", "exact", "--objects", "4", "--out", tmp_path / "out"]
    assert script("evaluate.py", *arguments) is None
    theirs, ours = (json.loads((f / "record.json").read_text())["evaluation"] for f in (folder, tmp_path / "out"))
    for entry in (*theirs, *ours):
        del entry["seconds"]
    assert ours == [entry for entry in theirs if entry["name"] != "clone alone"]
    lines = [(f / "table.md").read_text().splitlines()[-1] for f in (folder, tmp_path / "out")]
    assert lines[0] == lines[1]
    assert picture_size(tmp_path / "out" / "episodes.png") == picture_size(folder / "episodes.png")
    assert picture_size(tmp_path / "out" / "learning_curve.png") == (715, 546)  # there is no training to show

    # the same model again: nothing is evaluated; another one: it is, and the baselines are not
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "evaluations").iterdir()}
    assert len(stored) == 6
    capsys.readouterr()
    assert script("evaluate.py", *arguments) is None
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert capsys.readouterr().err.count(": taken from ") == 6
    other = MaskablePPO.load(folder / "model.zip")
    other.policy.action_net.click.bias.data += 1
    other.save(tmp_path / "other.zip")
    assert script("evaluate.py", tmp_path / "other.zip", *arguments[1:]) is None
    said = capsys.readouterr().err
    assert said.count(": taken from ") == 5
    assert "agent.json was of other episodes or weights; evaluated anew" in said


def test_stored_records_of_other_objects_do_not_count(tmp_path: Path) -> None:
    env = gymnasium.make_vec(
        ENV_ID, num_envs=2, split="val", checkpoint="tiny_random", device="cpu", autoreset_mode="Disabled"
    )
    counts = [len(evaluate_entries({"centre": centre}, env, tmp_path, n)[0].cases) for n in (2, 2, 4)]
    assert counts == [2, 2, 4]


def picture_size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


# ----------------------------------------------------------------------------------------------- Ctrl-C, --resume


def interrupt(line: str, *arguments: Any) -> tuple[int, str]:
    """Start training, press Ctrl-C once `line` was printed; exit code and everything said."""
    command = [sys.executable, "-u", "-c", WITH_CTRL_C, str(AGENTS / "train_ppo.py"), *(str(a) for a in arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    for text in process.stdout:
        said += text
        if line in text:
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    assert line in said, said + rest + errors
    return process.returncode, said + rest + errors


def test_ctrl_c_and_resume(config: Path, script: Script, tmp_path: Path) -> None:
    """Once in the middle of cloning, once in the middle of PPO, and then to the end."""
    folder = tmp_path / "run"
    more = ["--config", config, "--run-dir", folder, "--ppo-steps", "48", "--clone-steps", "32"]
    code, said = interrupt(" 8 steps", *TINY, *FEW, *more, "--evaluations", "4")
    assert code == 1, said
    assert "Traceback" not in said
    assert f"python agents/train_ppo.py --resume {folder}" in said
    assert re.search(r"model.zip is the clone model after \d+ steps", said)
    MaskablePPO.load(folder / "model.zip")
    state = state_of(folder)
    assert state["stage"] == "clone"
    rounds = len(list((folder / "clone_rounds").glob("round_*.npz")))
    assert 1 <= rounds < 4
    begun = state["points"]

    code, said = interrupt("   ppo     16 steps", "--resume", folder)
    assert code == 1, said
    assert "Traceback" not in said
    assert f"python agents/train_ppo.py --resume {folder}" in said
    state = state_of(folder)
    assert state["stage"] == "ppo"
    assert [p["stage_timesteps"] for p in state["points"] if p["stage"] == "clone"] == [8, 16, 24, 32]
    assert state["points"][: len(begun)] == begun
    MaskablePPO.load(folder / "model.zip")
    assert MaskablePPO.load(folder / "checkpoint.zip").num_timesteps in (16, 32)
    assert not (folder / "clone_rounds").exists()

    assert script("train_ppo.py", "--resume", folder) is None
    state = state_of(folder)
    assert state["stage"] == "done"
    assert [p["stage_timesteps"] for p in state["points"] if p["stage"] == "ppo"] == [16, 32, 48]
    assert (folder / "record.json").is_file()
    assert (folder / "episodes.png").is_file()


# -------------------------------------------------------------------------------------------- what is never learnt


def test_training_never_touches_the_held_out_split(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load_data = engine_module.load_data
    monkeypatch.setattr(
        engine_module, "load_data", lambda name, split, *a: (loaded.append(split), load_data(name, split, *a))[1]
    )
    run = Training.open(
        Arguments(env=ENV_ID, config=str(config), checkpoint="tiny_random", device="cpu", eval_objects=2, evaluations=1,
                  clone_steps=8, ppo_steps=16, run_dir=tmp_path / "run")
    )  # fmt: skip
    run.clone()
    run.ppo()
    assert loaded == ["train", "val"]
    assert run.train.settings.split == "train"


# -------------------------------------------------------------------------------------------------- help, errors


BAD_CONFIGS = {
    "unknown entry 'n_step'; did you mean 'n_steps'?": {ENV_ID: {**SECTION, "n_step": 3}},
    "unknown entry 'rounds'": {ENV_ID: {**SECTION, "clone": {"rounds": 3}}},
    "'gamma' is missing": {ENV_ID: {name: value for name, value in SECTION.items() if name != "gamma"}},
    f"section {ENV_ID}, clone: names and values are needed, got None": {ENV_ID: {**SECTION, "clone": None}},
    "unknown policy 'MlpPolicy'; did you mean 'LightPolicy'?": {ENV_ID: {**SECTION, "policy": "MlpPolicy"}},
    f"has no section for '{ENV_ID}'; it has SamPrompt-ISBI-v0": {"SamPrompt-ISBI-v0": SECTION},
    f"has no section for '{ENV_ID}'; it has none": "text",
}


@pytest.mark.parametrize("message", BAD_CONFIGS)
def test_bad_configs_are_named(script: Script, tmp_path: Path, message: str) -> None:
    file = tmp_path / "bad.yml"
    file.write_text(yaml.safe_dump(BAD_CONFIGS[message]))
    said = script("train_ppo.py", *TINY, "--config", file, "--run-dir", tmp_path / "run")
    assert_one_line(said, message)
    assert not (tmp_path / "run").exists()


def test_the_command_trains(
    run: Callable[..., tuple[int, str, str]], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sam-gym train` is the script; it tells how to go on with itself."""
    folder = tmp_path / "run"

    def interrupted(training: Training) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "ppo", interrupted)
        status, _, err = run(
            "train", *TINY, *FEW, "--config", str(config), "--clone-steps", "8", "--run-dir", str(folder)
        )
    assert status == 130
    assert err.endswith(
        f"stopped. model.zip is the clone model after 8 steps\ngo on with: sam-gym train --resume {folder}\n"
    )
    status, out, _ = run("train", "--resume", str(folder))
    assert status == 0
    assert out.endswith(f"everything is in {folder}\n")
    status, _, err = run("train", "--config", "dqn")
    assert (status, err) == (1, "error: unknown recipe 'dqn'; there are alignsam, alignsam_gain, clip, ppo, sketch\n")


def test_bad_arguments_are_named(script: Script, config: Path, tmp_path: Path) -> None:
    (tmp_path / "no.yml").write_text("{: nothing")
    (tmp_path / "model.zip").write_text("no zip")
    (tmp_path / "near.yml").write_text(yaml.safe_dump({"SamPromt-ISBI-v0": SECTION}))
    train, evaluate = "train_ppo.py", "evaluate.py"
    few = [*TINY, "--config", config, "--run-dir", tmp_path / "run"]
    for message, name, *arguments in (
        ("there is no environment 'SamPrompt-Mars-v0'", train, "--env", "SamPrompt-Mars-v0"),
        ("SamPromt-ISBI", train, "--env", "SamPromt-ISBI-v0", "--config", tmp_path / "near.yml"),
        (f"there is no config {tmp_path / 'none.yml'}", train, "--config", tmp_path / "none.yml"),
        ("unknown recipe 'alignsm'; did you mean 'alignsam'?", train, "--config", "alignsm"),
        ("unknown recipe 'dqn'; there are alignsam, alignsam_gain, clip, ppo, sketch", train, "--config", "dqn"),
        ("recipe clip has no section for 'SamPrompt-ISBI-v0'; it has SamPromptSemantic-", train, "--config", "clip"),
        (f"{tmp_path / 'no.yml'} is not YAML", train, "--config", tmp_path / "no.yml"),
        (f"{tmp_path} is not the folder of a run", train, "--resume", tmp_path),
        ("leave out --seed, --ppo-steps", train, "--resume", tmp_path, "--seed", "1", "--ppo-steps", "9"),
        ("unknown checkpoint 'mobil_sam'", train, *few, "--checkpoint", "mobil_sam"),
        ("'slow'", train, *few, "--precision", "slow"),
        ("--eval-objects must be at least 1, got 0", train, *few, "--eval-objects", "0"),
        ("--evaluations must be at least 1, got 0", train, *few, "--evaluations", "0"),
        (f"there is no model {tmp_path / 'none.zip'}", evaluate, tmp_path / "none.zip"),
        ("model.zip", evaluate, tmp_path / "model.zip", *TINY),
    ):
        assert_one_line(script(name, *arguments), message)


def assert_one_line(said: str | None, message: str) -> None:
    assert said is not None, f"no error; expected {message}"
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said.strip()
