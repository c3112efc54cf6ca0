"""The command `sam-gym`: what it does, what it says, and its exit status."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_gym.data import load_data, load_whole_class
from sam_gym.sam import SamBackend, embedding_folder

TINY = ("--checkpoint", "tiny_random", "--device", "cpu", "--precision", "exact")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAM_GYM_EMBEDDINGS", str(tmp_path / "embeddings"))
    return tmp_path / "embeddings"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of different kinds in a folder with a subfolder, and what is none."""
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "deep/c.tif", "deep/d.bmp", "e.jpeg"):
        pixels = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels if name != "a.png" else pixels[..., 0]).save(images / name)
    (images / "notes.txt").write_text("no image")
    (images / "g.png").mkdir()
    return images


# ---------------------------------------------------------------------------------------------------------- encode


@pytest.mark.real_images
def test_encode_a_dataset_twice(run: Run, cache: Path) -> None:
    status, out, _ = run("encode", "isbi2012", "--split", "val", *TINY)
    assert status == 0
    assert out.startswith("2 of 2 images: 2 encoded, 0 found, 0 failed; 0.1 MiB, ")
    (namespace,) = {entry.namespace for entry in embedding_folder.entries(cache)}
    assert out.rstrip().endswith(str(cache / namespace))
    status, out, _ = run("encode", "SamPrompt-ISBI-v0", "--split", "val", *TINY)
    assert status == 0
    assert out.startswith("2 of 2 images: 0 encoded, 2 found, 0 failed; 0.1 MiB, ")


@pytest.mark.real_images
def test_encode_the_tiles_of_an_environment(run: Run, cache: Path) -> None:
    status, out, _ = run("encode", "SamPromptSemantic-VNCMitochondria-v0", "--split", "val", *TINY)
    assert status == 0
    assert out.startswith("8 of 8 images: 8 encoded, 0 found, 0 failed; ")
    backend = SamBackend("tiny_random", "cpu", "exact", disk_cache=cache)
    backend.encode([load_whole_class("vnc-mitochondria", "val").image(0)])
    assert backend.encoder_calls == 0


def test_two_processes_encode_what_one_does(run: Run, cache: Path, folder: Path) -> None:
    (folder / "c.png").write_bytes(b"not an image")
    status, out, err = run("encode", str(folder), "--workers", "2", *TINY)
    assert status == 1
    assert "cannot encode" in err
    assert out.startswith("6 of 6 images: 5 encoded, 0 found, 1 failed; 0.2 MiB, ")
    there = {path.name: path.read_bytes() for path in cache.rglob("*.safetensors")}
    for path in cache.rglob("*.safetensors"):
        path.unlink()
    run("encode", str(folder), *TINY)
    assert {path.name: path.read_bytes() for path in cache.rglob("*.safetensors")} == there
    status, out, _ = run("encode", "synthetic-em", "--split", "val", "--workers", "2", *TINY)
    assert status == 0
    assert out.startswith("8 of 8 images: 8 encoded, ")


def test_environments_find_what_was_encoded(run: Run, cache: Path) -> None:
    """Every image of every split; in the other precision, none."""
    status, out, _ = run("encode", "synthetic-em", *TINY)
    assert status == 0
    found, other = (SamBackend("tiny_random", "cpu", each, disk_cache=cache) for each in ("exact", "fast"))
    images = [
        data.image(image_id)
        for data in (load_data("synthetic-em", split) for split in ("train", "val", "test"))
        for image_id in data.image_ids
    ]
    assert out.startswith(f"{len(images)} of {len(images)} images: {len(images)} encoded")
    found.encode(images)
    other.encode(images[:1])
    assert (found.encoder_calls, other.encoder_calls) == (0, 1)


def test_encode_a_folder(run: Run, cache: Path, folder: Path) -> None:
    status, out, err = run("encode", str(folder), *TINY)
    assert status == 0
    assert out.startswith("5 of 5 images: 5 encoded, 0 found, 0 failed; 0.2 MiB, ")
    assert "cannot" not in err
    assert len(embedding_folder.entries(cache)) == 5


def test_a_broken_image_stops_nobody(run: Run, cache: Path, folder: Path) -> None:
    (folder / "b.JPG").write_bytes((folder / "b.JPG").read_bytes()[:200])
    (folder / "c.png").write_text("not an image at all")
    status, out, err = run("encode", str(folder), *TINY)
    assert status == 1
    assert out.startswith("6 of 6 images: 4 encoded, 0 found, 2 failed; ")
    assert f"cannot encode {folder / 'b.JPG'}: {folder / 'b.JPG'} is truncated or damaged" in err
    assert f"cannot encode {folder / 'c.png'}: {folder / 'c.png'} (19 bytes) is not an image" in err


def test_encode_goes_on_after_an_interruption(
    run: Run, cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = SamBackend.encode

    def interrupted(self: SamBackend, images: list) -> list:
        if self.encoder_calls == 2:
            raise KeyboardInterrupt
        return encode(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(SamBackend, "encode", interrupted)
        status, out, err = run("encode", str(folder), *TINY)
    assert status == 130
    assert out.startswith("2 of 5 images: 2 encoded, 0 found, 0 failed")
    assert "stopped; the same command goes on from here" in err
    status, out, _ = run("encode", str(folder), *TINY)
    assert status == 0
    assert out.startswith("5 of 5 images: 3 encoded, 2 found, 0 failed")


def test_encode_replaces_what_is_damaged(run: Run, cache: Path, folder: Path) -> None:
    run("encode", str(folder), *TINY)
    path = embedding_folder.entries(cache)[0].path
    path.write_bytes(path.read_bytes()[:-1])
    # In a process of its own, since in this one warnings are errors.
    command = [sys.executable, "-c", "from sam_gym.cli import main; main()", "encode", str(folder), *TINY]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("5 of 5 images: 1 encoded, 4 found, 0 failed")
    assert f"warning: {path} cannot be read" in ended.stderr
    assert "UserWarning" not in ended.stderr
    assert run("cache", "verify")[0] == 0


def test_encode_stops_where_nothing_can_be_stored(
    run: Run, cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    status, out, err = run("encode", str(folder), *TINY)
    assert status == 1
    assert out.startswith("1 of 5 images: 1 encoded, 0 found, 0 failed; 0.0 MiB")
    assert "error: stopped, since the last embedding could not be stored: [Errno 28] No space left on device" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("isbi2013",), "'isbi2013' is no dataset, environment id or folder. Did you mean 'isbi2012'"),
        (("SamPrompt-ISBI-v1",), "Did you mean 'SamPrompt-ISBI-v0'"),
        (("/no/such/folder",), "'/no/such/folder' is no dataset, environment id or folder. Known names: isbi2012"),
        ((__file__,), "is a file; name its folder"),
        (("synthetic-em", "--checkpoint", "mobile_sma"), "unknown checkpoint 'mobile_sma'. Did you mean 'mobile_sam'?"),
        (("synthetic-em", "--split", "val", "--device", "tpu9000"), "device 'tpu9000' is unknown"),
    ],
)
def test_encode_names_what_it_does_not_know(run: Run, cache: Path, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run("encode", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err


def test_folders_without_images_or_splits(run: Run, cache: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = run("encode", str(tmp_path / "empty"))
    assert status == 1
    assert f"error: {tmp_path / 'empty'} and its subfolders hold no image file (.png, .jpg" in err
    status, _, err = run("encode", str(folder), "--split", "val")
    assert status == 1
    assert "error: a folder has no splits: leave out --split val" in err


def test_help_explains_precisions(run: Run) -> None:
    status, out, _ = run("encode", "--help")
    words = " ".join(out.replace("│", " ").split())
    assert status == 0
    assert "exact: float32, 4 MiB an image with MobileSAM; the default of gymnasium.make. fast: float16, 2 MiB" in words


def test_help_is_quick() -> None:
    """It loads nothing that is slow to load."""
    program = """
import sys
from sam_gym.cli import main
try:
    main(["--help"])
finally:
    print(*{"torch", "scipy", "PIL", "timm"} & set(sys.modules), "loaded")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "sam-gym encode" in ended.stdout
    assert ended.stdout.splitlines()[-1].strip() == "loaded"


# ----------------------------------------------------------------------------------------------------------- cache


def test_info(run: Run, cache: Path, folder: Path) -> None:
    status, out, _ = run("cache", "info")
    assert status == 0
    assert f"0 entries, 0 leftovers   {cache}" in out
    run("encode", str(folder), *TINY)
    first, second, *_ = (entry.path for entry in embedding_folder.entries(cache))
    leftover = second.parent / f".{second.name}.abcdefgh"
    leftover.write_bytes(b"x")
    for path in (first, leftover):
        os.utime(path, (1e9, 1e9))
    status, out, _ = run("cache", "info")
    assert status == 0
    (row,) = [line.split() for line in out.splitlines() if line.startswith(first.parents[1].name)]
    day, today = (time.strftime("%Y-%m-%d", time.localtime(when)) for when in (1e9, second.stat().st_mtime))
    assert row[1:3] == ["5", "0.2"]
    assert (row[3], row[5]) == (day, today)
    assert f"0.2 MiB, 5 entries, 1 leftovers   {cache}" in out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["embeddings", "checkpoints", "data"]


def test_verify(run: Run, cache: Path, folder: Path) -> None:
    run("encode", str(folder), *TINY)
    status, out, _ = run("cache", "verify")
    assert (status, out) == (0, f"5 entries, 0 damaged or foreign: {cache}\n")
    flipped, foreign, whole, *_ = (entry.path for entry in embedding_folder.entries(cache))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 128
    flipped.write_bytes(content)
    foreign.write_bytes(whole.read_bytes())
    for arguments, end in (((), "; --delete removes them, and using one replaces it"), (("--delete",), ", removed")):
        status, out, err = run("cache", "verify", *arguments)
        assert (status, out) == (1, f"5 entries, 2 damaged or foreign{end}: {cache}\n")
        assert f"{flipped} is damaged or belongs elsewhere: its sha256 is" in err
        assert f"{foreign} is damaged or belongs elsewhere: its key is '{whole.stem}'" in err
        assert str(whole) not in err
    assert run("cache", "verify")[:2] == (0, f"3 entries, 0 damaged or foreign: {cache}\n")


def test_prune(run: Run, cache: Path, folder: Path) -> None:
    run("encode", str(folder), *TINY)
    paths = sorted(entry.path for entry in embedding_folder.entries(cache))
    for days, path in enumerate(reversed(paths)):  # the first is the oldest
        os.utime(path, (time.time() - days * 86_400,) * 2)
    stale = paths[0].parent / f".{paths[0].name}.abcdefgh"
    stale.write_bytes(b"x")
    os.utime(stale, (1e9, 1e9))
    status, out, _ = run("cache", "prune")
    assert status == 0
    assert f"removed {stale}\nonly leftovers of killed processes were looked for; --max-gib and --unused-days" in out
    assert f"removed 1 leftovers (0.0 MiB) and 0 entries (0.0 MiB); 5 entries (0.2 MiB) stay in {cache}" in out
    status, out, _ = run("cache", "prune", "--unused-days", "2.5")
    assert status == 0
    assert out.splitlines()[:-1] == [f"removed {path}" for path in paths[:2]]
    limit = 2.5 * paths[2].stat().st_size / 2**30
    status, out, _ = run("cache", "prune", "--max-gib", f"{limit:.9f}")
    assert status == 0
    assert out.splitlines()[:-1] == [f"removed {paths[2]}"]
    assert [path.exists() for path in paths] == [False, False, False, True, True]


@pytest.mark.parametrize("option", ["--max-gib", "--unused-days"])
@pytest.mark.parametrize("value", ["-1", "nan"])
def test_limits_that_make_no_sense(run: Run, cache: Path, option: str, value: str) -> None:
    status, _, err = run("cache", "prune", option, value)
    assert status == 1
    assert f"error: {option} must be at least 0" in err


@pytest.mark.parametrize(
    "command", [("encode", "isbi2012"), ("cache", "info"), ("cache", "verify"), ("cache", "prune")]
)
def test_no_cache_at_all(run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("SAM_GYM_EMBEDDINGS", "off")
    status, out, err = run(*command)
    assert (status, out) == (1, "")
    assert err == "error: SAM_GYM_EMBEDDINGS=off: there is no embedding cache; unset it, or name a folder in it\n"


COMMANDS = "list, fetch, encode, evaluate, render, train, segment, play, push, export, leaderboard, cache"


@pytest.mark.parametrize(
    ("command", "there_is"),
    [
        (
            ("encod", "isbi2012"),
            COMMANDS,
        ),
        ((), COMMANDS),
        (("cache", "purge"), "info, verify, prune"),
        (("cache",), "info, verify, prune"),
        (("leaderboard", "tabel"), "run, table, check, add"),
    ],
)
def test_unknown_commands(run: Run, command: tuple[str, ...], there_is: str) -> None:
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert there_is in " ".join(err.replace("│", " ").split())


# ------------------------------------------------------------------------------------------------------ completion


def test_completion(run: Run, tmp_path: Path) -> None:
    """Bash takes the script, and completes commands, options and values by it."""
    status, script, _ = run("--tyro-print-completion", "bash")
    assert status == 0
    file = tmp_path / "sam-gym"
    file.write_text(script)
    ask = (
        f'source {file}; COMP_WORDS=(sam-gym $0 $@); COMP_CWORD=$#; ((COMP_CWORD++)); COMP_LINE="${{COMP_WORDS[*]}}"; '
    )
    ask += '_tyro_sam_gym; printf "%s\\n" "${COMPREPLY[@]}"'
    for words, expected in {
        ("lea",): ["leaderboard"],
        ("leaderboard", "r"): ["run"],
        ("train", "--con"): ["--config"],  # whose help has lines
        ("evaluate", "SamPrompt-ISBI-v0", "--split", "t"): ["train", "test"],
    }.items():
        answer = subprocess.run(["bash", "-c", ask, *words], capture_output=True, text=True, check=True)
        assert answer.stdout.split("\n")[:-1] == expected
        assert not answer.stderr
    for shell in ("zsh", "fish"):
        assert "sam-gym" in run("--tyro-print-completion", shell)[1]
    assert "prints completions for bash, zsh, fish" in run("--tyro-print-completion", "dash")[2]
