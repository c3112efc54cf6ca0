"""`sam-gym play`: the page in the browser. The work is done by `sam_gym.web`."""

from __future__ import annotations

import secrets
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro

from sam_gym._utils.naming import unknown
from sam_gym.commands.common import DataMode, Precision, say
from sam_gym.registration import env_ids

DEFAULT = "SamPrompt-Synthetic-v0"
NEW = "new"
"""Value of --token that asks for one to be drawn."""


def play(
    env_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")] = DEFAULT,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("object",),
    agent: Annotated[str, tyro.conf.arg(metavar="auto|none|MODEL.zip")] = "auto",
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    data: DataMode = "auto",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Precision = "auto",
) -> None:
    """Open a page in the browser: annotate images, play an environment, watch an agent, rate masks.

    For example:

        sam-gym play
        sam-gym play SamPrompt-DSB-v1
        sam-gym play --images photos --out masks --classes nucleus debris

    Annotate (with --images): draw a box around an object, or click on it; the agent proposes a mask, and you correct it
    by clicks. Everything is saved as you go, into --out:

        labels/IMAGE.png    16-bit integers: 0, or the number of an object
        coco.json           the objects as a COCO data set
        log.csv             a row an object: as proposed or corrected, clicks, seconds
        sessions/           what was done; the page goes on from there, and agents can learn from it
        choices.csv         from Rate: which of four masks was picked

    Play: act in an environment yourself, and see what the agent and the oracle get. Watch: what the agent thinks at
    each step. Rate: pick the best of four masks. Needs pip install 'sam_gym[web]'. Ctrl-C ends it; nothing is lost.

    Args:
        env_id: The environment that is shown first; sam-gym list shows all.
        images: Folder of PNG, JPEG, TIFF and BMP files to annotate, those of its subfolders included.
        out: Folder of the results; default DIR-annotated beside --images, else sam-gym-annotated.
        classes: Names of the classes 1, 2, ...
        agent: auto, the agent of the package, where --checkpoint is mobile_sam; none; or a model from sam-gym train,
            whose file can run code: use models of people you trust.
        host: Address to listen on. Any other than 127.0.0.1 lets others on the network in, and needs --token.
        port: Its port; 0 takes a free one.
        token: A word that others have to know; new draws one. It is part of the printed address.
        data: Of environments. auto: real images, else a marked stand-in; real: an error instead; synthetic.
        checkpoint: SAM weights: a name or a file.
        device: Where SAM and the agent run: auto, cpu, cuda.
        precision: SAM's decoder, as in sam-gym segment.
    """
    try:
        for name in ("fastapi", "uvicorn"):
            import_module(name)
    except ImportError as error:
        raise ValueError(
            f"sam-gym play needs {error.name}, which is not installed: pip install 'sam_gym[web]'"
        ) from error
    if env_id not in env_ids():
        raise ValueError(unknown("environment", env_id, env_ids()))
    if images is not None and not images.is_dir():
        raise ValueError(f"--images {images} is no folder")
    if out is None:
        out = (
            Path("sam-gym-annotated")
            if images is None
            else images.resolve().with_name(f"{images.resolve().name}-annotated")
        )
    from sam_gym.commands.segment import agent_of
    from sam_gym.web.app import WebSettings, create_app
    from sam_gym.web.serving import serve

    if token == NEW:
        token = secrets.token_urlsafe(16)
    sam = {"checkpoint": checkpoint, "device": device, "precision": precision}
    settings = WebSettings(
        env_id, _there(env_id, data), images, out, classes, agent_of(agent, checkpoint, device), sam, data, host, token
    )
    serve(create_app(settings), host, port, token, say)


def _there(env_id: str, data: str) -> list[str]:
    """Environments that can be shown without fetching anything, and the one that was asked for."""
    from sam_gym.commands.listing import describe

    return [one for one in env_ids() if one == env_id or describe(one)["state"] != "to be fetched"]
