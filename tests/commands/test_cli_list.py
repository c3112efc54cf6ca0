"""`sam-gym list` and `sam-gym fetch`: what there is, what is said of it, how quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sam_gym
from sam_gym.data import DATASETS, load_data, load_whole_class
from sam_gym.data.spec import read_object_counts
from sam_gym.data.windows import load_windows
from sam_gym.registration import CLASSES, REPORT_SETTINGS, REPORTS, SETTINGS
from sam_gym.registration import OBJECTS as SHORT

Run = Callable[..., tuple[int, str, str]]


def test_all_ids_with_real_files(run: Run, real_folder: Path) -> None:
    status, out, _ = run("list", "--json")
    rows = json.loads(out)
    assert (status, [row["id"] for row in rows]) == (0, sam_gym.env_ids())
    isbi = rows[0]
    assert (isbi["state"], isbi["folder"]) == ("there", str(real_folder))
    assert isbi["objects"] == {"train": 2045, "val": 162, "test": 504}
    assert {row["state"] for row in rows if row["dataset"] == "synthetic-em"} == {"generated"}
    status, out, _ = run("list")
    assert status == 0
    assert all(any(line.startswith(f"{env_id} ") for line in out.splitlines()) for env_id in sam_gym.env_ids())
    assert "2045/162/504" in out
    scores = next(row["scores"] for row in rows if row["id"] == "SamPrompt-WBC-v0")
    assert scores["scripted"]["random"] < max(scores["scripted"].values()) < scores["oracle"]["oracle clicks"] < 1
    line = next(line for line in out.splitlines() if line.startswith("SamPrompt-WBC-v0 "))
    best = [f"{max(values.values()):.3f}"[1:] if values else "-" for values in scores.values()]
    assert f" {'/'.join(best)} " in line


def test_where_nothing_is_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAM_GYM_DATA", raising=False)
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    status, out, _ = run("list")
    assert status == 0
    states = {line.split()[0]: line for line in out.splitlines() if line.startswith("SamPrompt-")}
    assert "to be fetched, 6.5 MB * " in states["SamPrompt-ISBI-v0"]
    assert "to be fetched, 6.3 MB   " in states["SamPrompt-WBC-v0"]
    assert "generated" in states["SamPrompt-Synthetic-v0"]
    assert "`sam-gym fetch ID`" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("short", "name"), SHORT.items())
@pytest.mark.real_images
def test_packaged_numbers_of_objects(short: str, name: str) -> None:
    counted = {split: len(load_data(name, split, **SETTINGS.get(short, {})).objects) for split in DATASETS[name].splits}
    assert read_object_counts(name) == counted


@pytest.mark.parametrize("name", CLASSES.values())
@pytest.mark.real_images
def test_packaged_numbers_of_images_with_a_class(name: str) -> None:
    counted = {split: len(load_whole_class(name, split).objects) for split in DATASETS[name].splits}
    assert read_object_counts(name, "classes") == counted


@pytest.mark.parametrize(("short", "name"), REPORTS.items())
@pytest.mark.real_images
def test_packaged_numbers_of_windows(short: str, name: str) -> None:
    side = REPORT_SETTINGS.get(short, {}).get("window_side")
    counted = {split: len(load_windows(name, split, side=side).objects) for split in DATASETS[name].splits}
    assert read_object_counts(name, "windows") == counted


def test_listing_loads_no_torch() -> None:
    program = """
import sys
from sam_gym.cli import main
main(["list"])
print(*{"torch", "timm", "stable_baselines3", "matplotlib"} & set(sys.modules), "loaded")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1].strip() == "loaded"


def test_fetch_checks_what_is_there(run: Run, real_folder: Path) -> None:
    status, out, _ = run("fetch", "SamPrompt-ISBI-v0", "wbc-cell", "synthetic-em", "tiny_random")
    assert status == 0
    made = "made by the program, nothing to fetch"
    assert out.splitlines() == [
        f"SamPrompt-ISBI-v0: {real_folder}",
        f"wbc-cell: {real_folder}",
        f"synthetic-em: {made}",
        f"tiny_random: {made}",
    ]


def test_fetch_goes_on_after_a_failure(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_GYM_DATA", str(tmp_path))
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "sam_gym._utils.fetching.download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    status, out, err = run("fetch", "wbc-cell", "synthetic-em")
    assert (status, out) == (1, "synthetic-em: made by the program, nothing to fetch\n")
    assert "cannot fetch wbc-cell: The real files of wbc-cell could not be had" in err
    assert "no network" in err


def test_fetch_names_what_it_does_not_know(run: Run) -> None:
    status, out, err = run("fetch", "isbi2012", "mobile_sma")
    assert (status, out) == (1, "")
    assert "'mobile_sma' is no dataset, environment id or SAM weights. Did you mean 'mobile_sam' or 'medsam'?" in err
