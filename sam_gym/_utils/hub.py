"""Where an agent is: a file, a folder, or `hf:OWNER/NAME`, a repository of the Hugging Face Hub.

`agent_path` is the one place that knows such names. Repositories are fetched into huggingface_hub's own cache, and
folders are pushed. What lies in a folder is the business of `sam_gym.sb3.folder`. The Hub needs the extra `hub`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam_gym._utils.naming import first_line

PREFIX = "hf:"
"""What names on the Hub begin with."""

MEMBER = "sam_gym.json"
"""The file of an agent's folder, and the member of its zip file, that says what the agent is."""

WEIGHTS, LABELER, CARD = "policy.safetensors", "labeler.safetensors", "README.md"
"""The other files of a folder; the labeler only where a module labels the clicks."""

FILES = (MEMBER, WEIGHTS, LABELER, CARD)
"""All files of a folder. No others are fetched or pushed."""


def is_agent(name: str) -> bool:
    """Whether a name is that of an agent, there or not, and not that of a scripted prompter."""
    path = Path(name).expanduser()
    named_as_one = name.startswith(PREFIX) or path.suffix == ".zip" or (path / MEMBER).is_file()
    return named_as_one or path.is_file() or (path.is_dir() and os.sep in name)


def agent_path(name: str | Path) -> Path:
    """The file or folder of an agent.

    Args:
        name: A file, a folder, or hf:OWNER/NAME, which is fetched, or hf:OWNER/NAME@REVISION.

    Raises:
        ValueError: There is none; one line says why.
    """
    name = str(name)
    if name.startswith(PREFIX):
        return _fetched(name)
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(f"there is no model {path}; sam-gym train writes runs/NAME/model.zip")
    return path


def prompter_name(name: str) -> str:
    """What tables and records call an agent."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX).replace("/", " ")
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        return path.name
    run = path.parent.name
    return run if path.stem == "model" else f"{run} {path.stem}"


def _fetched(name: str) -> Path:
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    away = (
        "and nothing of it is in the cache: {}. With a network the same command works, and afterwards without one; "
        "or take the agent along as a folder, and name that folder"
    )
    with _told(name, away):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))


def push_folder(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload an agent's folder to the Hub, into a repository that is made if there is none.

    Args:
        folder: The folder; what in it belongs to an agent is uploaded.
        name: hf:OWNER/NAME.
        private: Whether a new repository is for its owner alone.

    Returns:
        The address of the repository.

    Raises:
        ValueError: The Hub cannot be reached, or does not allow it.
    """
    repository = name.removeprefix(PREFIX)
    with _told(name, "{}. Without a network, write a folder with --to DIR, and push that folder later"):
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repository, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, repo_type="model", commit_message="An agent of sam_gym",
            allow_patterns=list(FILES),
        )  # fmt: skip
        return str(address)


@contextmanager
def _told(name: str, away: str) -> Iterator[None]:
    """What the Hub's client raises becomes a ValueError of one line; `away` is said where there is no network."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise ValueError(f"{name} needs the extra hub: pip install 'sam_gym[hub]' ({error})") from error
    repository = name.removeprefix(PREFIX)
    if repository.count("/") != 1:
        raise ValueError(f"{name}: agents on the Hugging Face Hub are named {PREFIX}OWNER/NAME")
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{name}: {first_line(error)}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: the repository has no such revision: {first_line(error)}") from error
    except (
        errors.RepositoryNotFoundError
    ) as error:  # also where it is gated or private: the Hub does not tell them apart
        raise ValueError(
            f"the Hugging Face Hub shows no repository {repository}: look at the name, and if it is private or gated, "
            "log in with `hf auth login`"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(f"{name}: nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        log_in = " Log in with a token that may write: `hf auth login`." if status in (401, 403) else ""
        raise ValueError(f"{name}: the Hub refused, status {status}: {first_line(error)}.{log_in}") from error
    except (errors.HTTPError, OSError) as error:  # no network, a full disk
        raise ValueError(f"{name}: the Hub cannot be reached, {away.format(first_line(error))}") from error
