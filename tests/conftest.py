"""What the tests share: where they find real data and models, what they do without them, and how hypothesis runs.

The process that starts a test run asks once for what is not there: real files go into the cache, as `gymnasium.make`
would put them, and so do MobileSAM's weights. Tests that need what cannot be had are skipped, each kind with one line
that says how to get it; with SAM_GYM_REQUIRE=1, as in .ci/run, they fail.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

# One thread unless told otherwise, before torch is loaded: a tiny SAM gains nothing from more, and on a busy machine
# threads that wait for each other cost fifty times the work. Tests of threading ask for two themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test may depend on embeddings that an earlier run left; tests of the disk tier name a folder of their own.
os.environ["SAM_GYM_EMBEDDINGS"] = "off"

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

import sam_gym  # noqa: F401  (registers the environments)
from sam_gym._utils import fetching
from sam_gym.cli import main
from sam_gym.data import DATASETS, sources
from sam_gym.evaluation.records import EpisodeCase, Record
from sam_gym.sam.checkpoints import CHECKPOINTS, CheckpointError, file_of

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 5
"""How long a server may be silent before the tests go on without it."""
REQUIRE = "SAM_GYM_REQUIRE"
LACKS = "SAM_GYM_TESTS_LACK"
"""Environment variable that hands what is missing, a JSON object of reasons, on to the processes of pytest-xdist."""

if (ROOT.parent / "shared" / "data").is_dir():
    os.environ.setdefault("SAM_GYM_DATA", str(ROOT.parent / "shared" / "data"))

settings.register_profile("sam_gym", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("sam_gym")


def pytest_configure(config: pytest.Config) -> None:
    """Before a worker of pytest-xdist starts: find, else fetch, what the tests need beyond this repository."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # downloads show their bars
        found = {"real": _fetch_data(), "weights": _fetch_weights()}
    os.environ[LACKS] = json.dumps({kind: reason for kind, reason in found.items() if reason})


def _fetch_data() -> str | None:
    """Point $SAM_GYM_DATA at a folder with the files of all data sets; else say what is missing."""
    specs = [spec for spec in DATASETS.values() if spec.files]
    chosen, cache = os.environ.get(sources.ENVIRONMENT_VARIABLE), sources.data_cache()
    for root in [*([Path(chosen).expanduser().resolve()] if chosen else []), cache]:
        if all((root / file.path).is_file() for spec in specs for file in spec.files):
            os.environ[sources.ENVIRONMENT_VARIABLE] = str(root)
            return None
    missing = []
    for spec in specs:
        try:
            if not missing:  # one host has them all: if it does not answer, it is not asked again
                sources.download(spec, cache, timeout=SECONDS)
                continue
        except (fetching.FetchError, OSError) as error:
            print(f"sam_gym: {textwrap.shorten(str(error), 200)}", file=sys.stderr)
        missing.append(spec.name)
    if not missing:
        os.environ[sources.ENVIRONMENT_VARIABLE] = str(cache)
        return None
    return (
        f"needs the real images of {', '.join(missing)}: set SAM_GYM_DATA to their folder, or run"
        f" `sam-gym fetch {' '.join(missing)}` with a network"
    )


def _fetch_weights() -> str | None:
    try:
        with mock.patch.dict(os.environ, npm_config_fetch_timeout=str(2000 * SECONDS)):  # npm's own is five minutes
            file_of(CHECKPOINTS["mobile_sam"])
    except CheckpointError:
        return "needs the weights of MobileSAM: run `sam-gym fetch mobile_sam` with a network, or with npm on the path"
    return None


def _missing(kind: str) -> str | None:
    """Why the real images ("real") or MobileSAM's weights ("weights") are not there; None if they are."""
    return json.loads(os.environ.get(LACKS, "{}")).get(kind)


def _need(kind: str) -> None:
    if reason := _missing(kind):
        _lacking(reason)


def _lacking(reason: str) -> NoReturn:
    """Skip with a reason; where everything is required, fail."""
    if os.environ.get(REQUIRE):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """`lacking(reason)` skips a test that needs what this machine lacks; where everything is required, it fails."""
    return _lacking


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here what fixtures would skip too, so that a summary has one line for each kind of thing that is missing."""
    fixtures, with_weights = getattr(item, "fixturenames", ()), item.get_closest_marker("weights") is not None
    if with_weights:
        _need("weights")
    if item.get_closest_marker("real_images") or "real_folder" in fixtures or (with_weights and "tiny" in fixtures):
        _need("real")


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The folder of all real files."""
    _need("real")
    return Path(os.environ["SAM_GYM_DATA"])


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings for tests of mechanics: two sections, and a SAM of random weights that takes milliseconds.

    The sections are real where they can be had, else generated.
    """
    if os.environ.get(REQUIRE):
        _need("real")
    data = "synthetic" if _missing("real") else "real"
    return {"split": "val", "data": data, "checkpoint": "tiny_random", "device": "cpu"}


@pytest.fixture(scope="session")
def child() -> Callable[..., str]:
    """`child(code, **environment)`: what Python code prints in a process of its own with these variables set."""

    def run(code: str, **environment: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a CLIP of random weights that takes milliseconds, as the argument `clip` takes it in any process."""
    import open_clip
    import safetensors.torch

    folder = tmp_path_factory.mktemp("tiny_clip")
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def _settings(env_id: str, tiny: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    settings = {**tiny, **changes}
    dataset = DATASETS.get({**gymnasium.spec(env_id).kwargs, **settings}["dataset"])
    if settings["data"] == "synthetic" and dataset is not None and dataset.files and dataset.stand_in is None:
        _need("real")
    return settings


@pytest.fixture
def make_env(tiny: dict[str, Any]) -> Iterator[Callable[..., gymnasium.Env]]:
    """`gymnasium.make` with the settings of `tiny` where no others are given."""
    made = []

    def make(env_id: str = "SamPrompt-ISBI-v0", **changes: Any) -> gymnasium.Env:
        made.append(gymnasium.make(env_id, **_settings(env_id, tiny, changes)))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def make_vec(tiny: dict[str, Any]) -> Iterator[Callable[..., gymnasium.vector.VectorEnv]]:
    """`gymnasium.make_vec` with the settings of `tiny` where no others are given."""
    made = []

    def make(num_envs: int, env_id: str = "SamPrompt-ISBI-v0", **changes: Any) -> gymnasium.vector.VectorEnv:
        made.append(gymnasium.make_vec(env_id, num_envs=num_envs, **_settings(env_id, tiny, changes)))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`answer(env, respond)`: from now on SAM's mask (H, W) of a box is what `respond(box)` says."""

    def patch(env: Any, respond: Callable[[NDArray], NDArray[np.bool_]]) -> None:
        from sam_gym.sam.masks import Masks, measure

        backend, known = env.unwrapped.engine.backend, []

        def decode(embeddings: list, prompts: Any, *, multimask: bool, truths: list, statistics: bool) -> Any:
            assert not multimask
            first = len(known)
            known.extend(torch.as_tensor(respond(box)) for box in prompts.boxes)
            numbers = torch.arange(first, len(known), dtype=torch.float32)  # logits that say which mask is meant
            logits = numbers[:, None, None, None].expand(-1, 1, *backend.mask_size)
            against = None if truths is None else torch.stack(list(truths))
            measured = measure(torch.stack(known[first:])[:, None], against, boxes=statistics)
            return Masks(logits, torch.zeros(len(numbers), 1), measured)

        monkeypatch.setattr(backend, "decode", decode)
        monkeypatch.setattr(backend, "upscale", lambda logits, embedding: known[int(logits[0, 0])].float() - 0.5)

    return patch


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """A record of given IoU curves (M, T + 1); everything else is plausible unless given."""

    def make(iou: Any, **given: Any) -> Record:
        iou = np.asarray(iou, np.float64)
        cases = [EpisodeCase(0, i + 1, (0.0, 0.0, 9.0, 9.0)) for i in range(len(iou))]
        last, prompts = iou[:, -1], np.full(len(iou), iou.shape[1] - 1)
        values = {
            "name": "some", "iou": iou, "prompts": prompts, "dice": last, "boundary_iou": last,
            "area": np.full(len(iou), 30), "decodes": prompts + 1.0, "returns": last - iou[:, 0],
            "cases": cases, "provenance": {}, "seconds": 1.5,
        }  # fmt: skip
        return Record(**{**values, **given})

    return make


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], None]:
    """Assert that two results are equal to the last bit: nested dicts and sequences, types, dtypes and shapes too."""
    return _same


def _same(a: Any, b: Any, path: str = "result") -> None:
    assert type(a) is type(b), f"{path}: {type(a)} and {type(b)}"
    if isinstance(a, dict):
        assert sorted(a) == sorted(b), f"{path}: keys {sorted(a)} and {sorted(b)}"
        for key in a:
            _same(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), f"{path}: lengths {len(a)} and {len(b)}"
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            _same(left, right, f"{path}[{i}]")
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert b.dtype == object, f"{path}: dtypes object and {b.dtype}"
        _same(a.tolist(), b.tolist(), path)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{path}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        different = int((a != b).sum())
        assert not different, f"{path}: {different} of {a.size} entries differ, by {_largest(a, b)} at most"
    else:
        assert a == b, f"{path}: {a!r} and {b!r}"


def _largest(a: NDArray, b: NDArray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; its exit status, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        status: object = 0
        try:
            main(arguments)
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        if isinstance(status, str):  # as Python does at the end of a program
            status, err = 1, f"{err}{status}\n"
        assert isinstance(status, int)
        return status, out, err

    return command


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """Run a script of agents/ in this process; what it says when it exits early, else None."""
    agents = ROOT / "agents"
    monkeypatch.syspath_prepend(str(agents))

    def run(name: str, *arguments: Any) -> str | None:
        monkeypatch.setattr(sys, "argv", [name, *(str(a) for a in arguments)])
        try:
            runpy.run_path(str(agents / name), run_name="__main__")
        except SystemExit as exit_:
            return str(exit_.code)
        return None

    return run


TINY_SAM = {"checkpoint": "tiny_random", "device": "cpu", "precision": "exact"}


@pytest.fixture(scope="session")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained agent that clicks and judges masks, for a SAM of random weights."""
    from sb3_contrib import MaskablePPO

    from sam_gym.sb3 import LightPolicy, SamVecEnv, save_agent

    env: Any = gymnasium.make_vec(
        "SamPrompt-Synthetic-v0", num_envs=2, split="val", autoreset_mode="SameStep", **TINY_SAM
    )
    policy = {"judge": True}
    model = MaskablePPO(LightPolicy, SamVecEnv(env), n_steps=2, batch_size=4, seed=3, policy_kwargs=policy)
    file = tmp_path_factory.mktemp("agent") / "model.zip"
    save_agent(model, file)
    return file


@pytest.fixture(scope="session")
def segmenter(agent_file: Path) -> Any:
    """That SAM with that agent, as sessions take it."""
    from sam_gym.annotate import Segmenter
    from sam_gym.sb3.saved import SavedAgent

    return Segmenter(SavedAgent.load(agent_file, "cpu"), **TINY_SAM)


@pytest.fixture(scope="session")
def sections() -> Any:
    """Eight generated sections, and their objects."""
    from sam_gym.data import load_data

    return load_data("synthetic-em", "val")


@pytest.fixture(scope="session")
def browser(lacking: Callable[[str], NoReturn]) -> str:
    """The path of Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or lacking("needs Chromium on the path: apt install chromium")


# ---------------------------------------------------------------------------------------------- the denoising family


@pytest.fixture(scope="session")
def denoise(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of Denoise environments with models of random weights for two classes, and few steps."""
    from sam_gym.generative.classifier import REWARD, Classifier
    from sam_gym.generative.model import Denoiser

    folder, classes = tmp_path_factory.mktemp("denoise"), ("dark", "bright")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Denoiser(classes, "smears").save(folder / "base.safetensors")
        Classifier(classes, REWARD, "smears").save(folder / "reward.safetensors")
    files = {"model": str(folder / "base.safetensors"), "classifier": str(folder / "reward.safetensors")}
    return {"steps": 3, "device": "cpu", **files}


@pytest.fixture
def cached_models(denoise: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which `train_base` seems to have trained the models of the smears."""
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    folder = tmp_path / "denoise" / "smears"
    folder.mkdir(parents=True)
    for name, key in (("base", "model"), ("reward", "classifier")):
        (folder / f"{name}.safetensors").write_bytes(Path(denoise[key]).read_bytes())
    return folder
