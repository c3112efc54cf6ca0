"""The gallery of a board: a picture of four episodes of each environment, drawn once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gymnasium
from PIL import Image

from sam_gym._utils.fetching import atomic_path
from sam_gym.data import DATASETS
from sam_gym.evaluation import report
from sam_gym.evaluation.records import Record
from sam_gym.leaderboard.board import Board, oracle_of
from sam_gym.leaderboard.posing import posed

PICTURE_WIDTH = 1200
"""In pixels."""


def draw_picture(board: Board, env_id: str, device: str) -> None:
    """Draw four episodes for the gallery, of the first agent or else of the oracle, unless theirs are drawn already.

    Images that not everybody may republish are left out: the page is in the repository.
    """
    file = picture_file(board, env_id)
    if not DATASETS[gymnasium.spec(env_id).kwargs["dataset"]].may_be_shown:
        return
    there = [entry for entry in board.entries() if entry.env_id == env_id and board.read(entry) is not None]
    shown = next((one for one in there if not one.scripted and board.model_file(one).exists()), None) or next(
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
