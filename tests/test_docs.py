"""The documentation says what is so: its examples run, its commands, links and pictures are there, the site builds.

Whether prose is true no test can tell.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import gymnasium
import pytest
from PIL import Image

from sam_gym.cli import main
from sam_gym.data import DATASETS
from sam_gym.registration import TASKS, denoise_ids, env_ids, unlisted_ids

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def load_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()
README = "../README.md"
WRITTEN = {
    os.path.relpath(file, DOCS).replace(os.sep, "/"): file.read_text(encoding="utf-8")
    for file in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
"""Path below docs/ -> text."""
GENERATED: dict[str, str] = hooks.generated_pages()
PAGES = WRITTEN | GENERATED
FIRST_IDS = [f"environments/{task.env_id(next(iter(task.datasets)))}.md" for task in TASKS]


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Line number and content of each block of code in a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in found]


# ---------------------------------------------------------------------------------------------------- examples


@pytest.fixture
def registry() -> Iterator[None]:
    """Ids that an example registers go again."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def run_page(name: str, text: str) -> None:
    namespace: dict[str, Any] = {"__name__": name}
    for line, code in blocks(text, "python"):
        exec(compile("\n" * line + code, name, "exec", dont_inherit=True), namespace)


NEED_WEIGHTS = {README, "quickstart.md"}
"""Pages whose examples run MobileSAM; those of the others run a SAM of random weights on generated images."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=(pytest.mark.weights, pytest.mark.real_images) if name in NEED_WEIGHTS else ())
        for name in WRITTEN
        if blocks(WRITTEN[name], "python")
    ],
)
def test_examples_run(name: str, registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, in one namespace a page, from the repository's top."""
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ):
        run_page(name, WRITTEN[name])


@pytest.mark.weights
@pytest.mark.parametrize("name", FIRST_IDS)
def test_examples_of_environments_run(
    name: str, real_folder: Path, registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; of the equal pages of a task one. They show the real images that their id names."""
    monkeypatch.chdir(ROOT)
    run_page(name, PAGES[name])


def test_a_wrong_example_fails() -> None:
    with pytest.raises(AssertionError):
        run_page("page", "```python\nx = 1\n```\n\nand\n\n```python\nassert x == 2\n```\n")


def test_pages_with_code_have_examples() -> None:
    expected = {
        "agents",
        "backends",
        "data",
        "extending",
        "quickstart",
        "reproducibility",
        "semantics",
        "sharing",
        "vector",
    }
    pages = {README, *(f"{page}.md" for page in expected)}
    assert pages <= {name for name in WRITTEN if blocks(WRITTEN[name], "python")}


def test_the_readme_is_short() -> None:
    assert len(WRITTEN[README].split()) <= 900


# ---------------------------------------------------------------------------------------------------- commands


GROUPS = ("cache", "leaderboard")
"""Commands that have commands of their own."""


def printed(call: Callable[[], Any]) -> str | None:
    """What a call prints before it exits, None if it exits with an error."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            call()
    except SystemExit as ended:
        if ended.code:
            return None
    return out.getvalue()


@functools.cache
def help_of(*words: str) -> str | None:
    """What `sam-gym WORDS --help` prints, None if there is no such command."""
    text = printed(lambda: main([*words, "--help"]))
    return text if text and f"usage: sam-gym {' '.join(words)} " in text else None  # else it is the list of commands


@functools.cache
def help_of_script(script: str) -> str | None:
    """What `python SCRIPT --help` prints."""
    file = ROOT / script
    before = set(sys.modules)
    with (
        mock.patch.object(sys, "argv", [script, "--help"]),
        mock.patch.object(sys, "path", [str(file.parent), *sys.path]),
    ):
        text = printed(lambda: runpy.run_path(str(file), run_name="__main__"))
    for name in set(sys.modules) - before:  # modules beside the script, which others of the same name may follow
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == file.parent:
            del sys.modules[name]
    return text


def wrong_commands(text: str) -> list[str]:
    """What a shell would not find: scripts, modules, commands, options of them, ids, make targets, files of ours."""
    wrong = []
    shell = "\n".join(code for _, code in blocks(text, "sh"))
    lines = [line.partition(" #")[0] for line in shell.splitlines() if line.strip()]
    lines += re.findall(r"`((?:python|sam-gym|make) [^`]+)`", text)
    for line in lines:
        program, *words = line.split()
        names = [word for word in words if not word.startswith("-")]
        options = [word for word in words if word.startswith("--")]
        shown: str | None = ""
        if program == "python" and words[0] == "-c":
            continue
        if program == "python" and words[0] == "-m":
            good, options = importlib.util.find_spec(words[1]) is not None, []
        elif program == "python":
            good = (ROOT / words[0]).is_file()
            shown = help_of_script(words[0]) if good and options else ""
        elif program == "sam-gym":
            shown = help_of(*names[: 2 if names[0] in GROUPS else 1])
            good = shown is not None
        elif program == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            good = re.search(rf"^{words[0]}:", makefile, re.MULTILINE) is not None
        elif program == "tensorboard":
            good, options = importlib.util.find_spec(program) is not None, []
        else:
            good, options = line.startswith("pip install -e "), []
        good &= all(re.search(rf"(?<!\S){option}(?![\w-])", shown or "") for option in options)
        known = (*env_ids(), *unlisted_ids(), *denoise_ids())
        good &= all(word in known for word in words if re.fullmatch(r"(Sam\w+|Denoise)-\w+-v\d+", word))
        good &= all((ROOT / word).exists() for word in words if word.startswith("benchmarks/"))
        if not good:
            wrong.append(line)
    return wrong


@pytest.mark.parametrize("name", WRITTEN)
def test_commands_are_there(name: str) -> None:
    assert not wrong_commands(WRITTEN[name])


@pytest.mark.parametrize(
    "line",
    [
        "python agents/none.py",
        "python agents/train_ppo.py --nonsense 3",
        "sam-gym train --nonsense 3",
        "sam-gym train --env SamPrompt-None-v0",
        "python -m sam_gym.none",
        "sam-gym none",
        "sam-gym cache none",
        "sam-gym leaderboard none",
        "sam-gym segment --agent benchmarks/agents/none.zip",
        "sam-gym evaluate SamPrompt-ISBI-v0 --nonsense",
        "make none",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    assert wrong_commands(f"```sh\npython agents/train_ppo.py --help\n{line}  # why\n```\n")[-1:] == [line + " "]


# ------------------------------------------------------------------------------------------------------- links


def broken_links(text: str, uri: str) -> list[str]:
    """Relative links of a page, named as from docs/, that lead nowhere, neither in the site nor in the repository."""
    targets = {
        link[1]: os.path.normpath(f"docs/{os.path.dirname(uri)}/{link[1]}") for link in hooks.LINK.finditer(text)
    }
    return [
        link
        for link, target in targets.items()
        if target.removeprefix("docs/") not in GENERATED and not (ROOT / target).is_file()
    ]


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name: str) -> None:
    assert not broken_links(hooks.included(PAGES[name]), name)


def test_a_broken_link_is_found() -> None:
    text = "[a](index.md) ![b](none.png) [c](../benchmarks/results/none.md#d) [e](https://example.org) [f](#here)"
    assert broken_links(text, "quickstart.md") == ["none.png", "../benchmarks/results/none.md"]


def test_links_out_of_docs_lead_to_copies() -> None:
    text = "[a](../../benchmarks/results/recipes.md#x) [b](../data.md) [c](../../docs/data.md)"
    assert list(hooks.links_out(text, "environments/x.md")) == ["benchmarks/results/recipes.md"]
    expected = "[a](../repository/benchmarks/results/recipes.md#x) [b](../data.md) [c](../data.md)"
    assert hooks.turned(text, "environments/x.md") == expected


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a warning of mkdocs, as of an anchor that is not there, ends it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for env_id in env_ids():
        page = (tmp_path / "environments" / f"{env_id}.html").read_text(encoding="utf-8")
        assert f"../pictures/{env_id}.png" in page
        assert (tmp_path / "pictures" / f"{env_id}.png").is_file()
    page = (tmp_path / "denoise.html").read_text(encoding="utf-8")
    assert all(f"<code>{env_id}</code>" in page for env_id in denoise_ids())
    assert "Version History" in page  # the docstring


# ------------------------------------------------------------------------------------------ environments' pages


@pytest.mark.parametrize("env_id", env_ids())
def test_every_id_has_a_page(env_id: str) -> None:
    page = GENERATED[f"environments/{env_id}.md"]
    dataset = DATASETS[str(gymnasium.spec(env_id).kwargs["dataset"])]
    for part in (f"# {env_id}\n", dataset.licence, dataset.citation, "### Action Space", "## Scores"):
        assert part in page
    assert f"]({env_id}.md)" in GENERATED["environments/index.md"]


@pytest.mark.parametrize("env_id", env_ids())
def test_every_id_has_a_picture_that_may_be_shown(env_id: str) -> None:
    file = DOCS / "pictures" / f"{env_id}.png"
    assert file.stat().st_size <= 80_000
    with Image.open(file) as image:
        shown = DATASETS.get(str(image.info["Source"]))
    assert shown is None or shown.may_be_shown


def test_scores_are_those_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert "Nothing has been measured" in hooks.scores("SamPrompt-ISBI-v0")
    folder = tmp_path / "benchmarks" / "results" / "leaderboard" / "SamPrompt-ISBI-v0"
    folder.mkdir(parents=True)
    for name, seed, mean in (("box only", None, 0.25), ("random", 1, 0.125), ("oracle clicks", None, 0.75)):
        measures = {"final_iou": {"mean": mean, "low": mean - 0.0625, "high": mean + 0.0625}}
        stored = {"entry": name, "seed": seed, "record": {"measures": measures}}
        (folder / f"{name.replace(' ', '-')}.json").write_text(json.dumps(stored))
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in hooks.scores(folder.name).splitlines()[2:5]]
    link = "../../benchmarks/results/leaderboard/SamPrompt-ISBI-v0"
    assert rows == [
        ["oracle clicks", "", "0.750", "0.688 to 0.812", f"[record]({link}/oracle-clicks.json)"],
        ["box only", "", "0.250", "0.188 to 0.312", f"[record]({link}/box-only.json)"],
        ["random", "1", "0.125", "0.062 to 0.188", f"[record]({link}/random.json)"],
    ]


def test_the_leaderboard_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert "Nothing has been measured" in hooks.included(WRITTEN["leaderboard.md"])
    (tmp_path / "LEADERBOARD.md").write_text(
        "# Leaderboard\n\nFirst: [x](benchmarks/x.json) [y](https://example.org)\n"
    )
    page = hooks.included(WRITTEN["leaderboard.md"])
    assert page.endswith("## Standing\n\n\nFirst: [x](../benchmarks/x.json) [y](https://example.org)\n\n")
