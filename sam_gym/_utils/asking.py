"""Settings of an environment as somebody types them: --root FOLDER and --set NAME=VALUE. Nothing runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_gym._utils.naming import question
from sam_gym.registration import env_ids, unlisted_ids


def env_settings(env_id: str, root: Path | None, given: Sequence[str]) -> dict[str, Any]:
    """The settings that --root and --set ask for, after the id was checked.

    Args:
        env_id: An environment id.
        root: Folder of images and masks, for ids of folders.
        given: NAME=VALUE each.

    Raises:
        ValueError: There is no such id, setting or value; says what may have been meant.
    """
    known = env_ids() + unlisted_ids()
    if env_id not in known:
        raise ValueError(f"there is no environment {env_id!r}.{question(env_id, known)} `sam-gym list` shows all")
    folder = "-Folder-" in env_id
    if folder != (root is not None):
        example = f"--root FOLDER is for ids such as SamPrompt-Folder-v0, and those need it; got {env_id}"
        raise ValueError(f"{example} and {'none' if root is None else root}")
    settings: dict[str, Any] = {} if root is None else {"root": str(root)}
    if given:
        settings |= _parsed(env_id, given)
    return settings


def _parsed(env_id: str, given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE each, as values of the type that the setting has."""
    from dataclasses import fields
    from importlib import import_module

    import gymnasium

    module, _, name = str(gymnasium.spec(env_id).entry_point).partition(":")
    kinds = {field.name: field for field in fields(getattr(import_module(module), name).settings_class)}
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"--set takes NAME=VALUE, got {text!r}.{question(name, kinds)}")
        settings[name] = _value(kinds[name].default, value, text)
    return settings


def _value(default: Any, text: str, where: str) -> Any:
    """A value of the kind of a default: text stays text, all else is read as JSON."""
    if isinstance(default, str) and not text.startswith("{"):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--set {where}: {text!r} is no number, list or JSON ({error})") from error
    whole = isinstance(default, int) and not isinstance(default, bool)
    if whole and not (isinstance(value, int) and not isinstance(value, bool)):
        raise ValueError(f"--set {where}: a whole number is needed, such as {default}")
    if isinstance(default, float) and not isinstance(value, int | float):
        raise ValueError(f"--set {where}: a number is needed, such as {default:g}")
    return value
