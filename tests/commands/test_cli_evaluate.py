"""`sam-gym evaluate` and `sam-gym render`: records, films and strips, by scripted prompters and by models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from sam_gym.data.images import open_pixels
from sam_gym.sb3 import ALGORITHMS, SamVecEnv

Run = Callable[..., tuple[int, str, str]]

TINY = ("--checkpoint", "tiny_random", "--device", "cpu", "--precision", "exact", "--split", "val")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained agent that clicks, in the folder of a run."""
    file = tmp_path_factory.mktemp("runs") / "some-run" / "model.zip"
    file.parent.mkdir()
    env = gymnasium.make_vec(
        "SamPrompt-ISBI-v0", num_envs=2, split="val", autoreset_mode="SameStep", checkpoint="tiny_random", device="cpu"
    )
    algorithm, policy = ALGORITHMS["SpatialPolicy"]
    algorithm(policy, SamVecEnv(env), n_steps=2, batch_size=4, seed=0).save(file)
    return file


@pytest.mark.real_images
def test_table_and_records(run: Run, model: Path, tmp_path: Path) -> None:
    command = ("evaluate", "SamPrompt-ISBI-v0", *TINY, "--objects", "3", "--out", str(tmp_path / "out"))
    status, out, _ = run(*command, "--prompter", "oracle-clicks", str(model))
    assert status == 0
    assert "SamPrompt-ISBI-v0, val split, 3 objects, tiny_random" in out
    for name in ("oracle clicks", "some-run"):
        file = tmp_path / "out" / f"{name.replace(' ', '_')}.json"
        assert str(file) in out
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
        assert len(json.loads(file.read_text())["objects"]) == 3
    before = (tmp_path / "out/oracle_clicks.json").stat().st_mtime_ns
    status, again, err = run(*command, "--prompter", "oracle-clicks", str(model), "box_only")
    assert status == 0
    assert "oracle clicks: taken from" in err
    assert (tmp_path / "out/oracle_clicks.json").stat().st_mtime_ns == before
    assert (tmp_path / "out/box_only.json").is_file()


@pytest.mark.real_images
def test_all_scripted_ones_where_none_is_named(run: Run, tmp_path: Path) -> None:
    command = ("evaluate", "SamBoxRefine-ISBI-v0", *TINY, "--objects", "1", "--out", str(tmp_path))
    status, _, _ = run(*command, "--action-mode", "discrete")
    assert status == 0
    names = {"box_only", "random", "iterative_box", "oracle_box"}
    assert {file.stem for file in tmp_path.glob("*.json")} >= names


@pytest.mark.parametrize("command", ["evaluate", "render"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SamPrompt-ISBI-v1",), "there is no environment 'SamPrompt-ISBI-v1'. Did you mean 'SamPrompt-ISBI-v0'"),
        (("SamPrompt-ISBI-v0", "--prompter", "orcle"), "no prompter 'orcle' for action mode 'grid'. Did you mean"),
        (("SamBoxRefine-ISBI-v0", "--prompter", "iterative-box"), "It works in action mode discrete. There are: box"),
        (("SamPrompt-ISBI-v0", "--prompter", "no.zip"), "there is no model no.zip"),
        (("SamBoxRefine-ISBI-v0", "--prompter", "MODEL"), "was trained for SamPrompt, not for SamBoxRefine"),
        (("SamPrompt-ISBI-v0", "--prompter", "MODEL", "--action-mode", "box"), "leave out --action-mode box"),
    ],
)
@pytest.mark.real_images
def test_errors(run: Run, model: Path, tmp_path: Path, command: str, arguments: tuple, message: str) -> None:
    given = [str(model) if argument == "MODEL" else argument for argument in arguments]
    status, out, err = run(command, *given, *TINY, "--out", str(tmp_path / "new.gif"))
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert not (tmp_path / "new.gif").exists()


@pytest.mark.real_images
def test_two_prompters_of_one_name(run: Run, model: Path) -> None:
    status, _, err = run("evaluate", "SamPrompt-ISBI-v0", *TINY, "--prompter", str(model), str(model))
    assert status == 1
    assert "two prompters would be called 'some-run'" in err


@pytest.mark.real_images
def test_a_film(run: Run, model: Path, tmp_path: Path) -> None:
    """One picture a step, the last one longer; the same seed draws the same episode."""
    command = ("render", "SamPrompt-ISBI-v0", *TINY, "--image", "section-22", "--object", "20")
    for name in ("a.gif", "b.gif"):
        status, out, _ = run(*command, "--prompter", str(model), "--out", str(tmp_path / name))
        assert status == 0
    assert out.startswith("some-run: image section-22, object 20 of isbi2012, ")
    prompts = int(out.split(", ")[2].split()[0])
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.size, film.n_frames) == ((448, 512), prompts + 1 + (prompts < 5))
        durations = [film.seek(i) or film.info["duration"] for i in range(film.n_frames)]
    assert durations == [800] * (len(durations) - 1) + [2400]
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


@pytest.mark.real_images
def test_a_strip(run: Run, tmp_path: Path) -> None:
    status, out, _ = run(
        "render", "SamBoxRefine-ISBI-v0", *TINY, "--prompter", "random", "--out", str(tmp_path / "a.png")
    )
    assert status == 0
    assert "random: image section-" in out
    assert open_pixels(tmp_path / "a.png").shape == (512 + 16, 6 * (448 + 8) + 8, 3)


@pytest.mark.real_images
def test_an_mp4_is_fed_every_picture(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder itself is not among the requirements: a stand-in takes the frames."""
    taken: list[tuple[int, ...]] = []

    def write_frames(path: str, size: tuple[int, int], **options: Any) -> Any:
        assert size == (448, 512)
        Path(path).write_bytes(b"film")
        return SimpleNamespace(send=lambda f: f is None or taken.append(np.shape(f)), close=lambda: taken.append(()))

    module = ModuleType("imageio_ffmpeg")
    module.write_frames = write_frames  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", module)
    command = ("render", "SamPrompt-ISBI-v0", *TINY, "--prompter", "box-only", "--out", str(tmp_path / "new/a.mp4"))
    assert run(*command)[0] == 0
    assert taken == [(512, 448, 3)] * (8 + 24) + [()]
    assert (tmp_path / "new/a.mp4").read_bytes() == b"film"


def test_files_that_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for name, message in (
        ("a.mp4", "error: --out a.mp4: MP4 needs imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg"),
        ("a.avi", "error: --out a.avi: the name must end in .gif, .mp4, .png"),
        ("a", "error: --out a: the name must end in"),
    ):
        status, out, err = run("render", "SamPrompt-ISBI-v0", "--out", name)
        assert (status, out) == (1, "")
        assert err.startswith(message)
    assert "error: --object needs --image" in run("render", "SamPrompt-ISBI-v0", "--out", "a.gif", "--object", "1")[2]


def test_a_folder_of_ones_own_and_settings_are_taken(run: Run, tmp_path: Path) -> None:
    """Evaluated, recorded and drawn like any dataset; what is asked for is what the records say."""
    labels = np.zeros((30, 40), np.uint8)
    labels[2:10, 3:13], labels[12:28, 20:38] = 1, 2
    for name in ("a", "b"):
        for kind, pixels in (
            ("images", np.full((30, 40, 3), 90, np.uint8) + labels[..., None] * 40),
            ("masks", labels),
        ):
            (tmp_path / "cells" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "cells" / kind / f"{name}.png")
    where = ("--root", str(tmp_path / "cells"))
    sets = ("--set", "min_area=50", "max_prompts=2", "shares=[0, 0, 100]", "box_noise=0.1")
    tiny = (*TINY[:-1], "test")
    status, out, _ = run(
        "evaluate",
        "SamPrompt-Folder-v0",
        *where,
        *tiny,
        *sets,
        "--prompter",
        "oracle-clicks",
        "--out",
        str(tmp_path / "o"),
    )
    assert status == 0
    assert "SamPrompt-Folder-v0, test split, 4 objects" in out
    record = json.loads((tmp_path / "o/oracle_clicks.json").read_text())
    assert (record["provenance"]["data"], record["provenance"]["max_prompts"]) == ("folder:cells", 2)
    status, out, _ = run("render", "SamProofread-Folder-v0", *where, *tiny, *sets, "--out", str(tmp_path / "film.png"))
    assert status == 0
    assert "of folder:cells" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SamPrompt-Folder-v0",), "--root FOLDER is for ids such as SamPrompt-Folder-v0, and those need it"),
        (("SamPrompt-ISBI-v0", "--root", "cells"), "got SamPrompt-ISBI-v0 and cells"),
        (("SamPrompt-ISBI-v0", "--set", "max_promts=3"), "Did you mean 'max_prompts'"),
        (("SamPrompt-ISBI-v0", "--set", "max_prompts=3.5"), "a whole number is needed, such as 5"),
        (("SamPrompt-ISBI-v0", "--set", "box_noise=much"), "is no number, list or JSON"),
        (("SamPrompt-ISBI-v0", "--set", "box_noise=0.9"), "box_noise=0.9 is outside"),
    ],
)
def test_settings_that_cannot_be(run: Run, arguments: tuple[str, ...], message: str) -> None:
    for command in (("evaluate",), ("render", "--out", "film.png")):
        status, _, err = run(command[0], *arguments, *command[1:], *TINY)
        assert status == 1
        assert message in err.replace("\n", " ")
