"""Exported episodes are those that `evaluate` runs, and an environment that Minari recovers repeats them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import minari
import numpy as np
import pytest

from sam_gym.evaluation import evaluate, make_evaluation_env, select_cases
from sam_gym.evaluation.exporting import export_episodes
from sam_gym.prompters import oracle_box, oracle_clicks

TINY: dict[str, Any] = {"checkpoint": "tiny_random", "device": "cpu", "grid": 8, "max_prompts": 3}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def clicks(**more: Any) -> Any:
    return make_evaluation_env("SamPrompt-Synthetic-v0", "train", 2, **{**TINY, **more})


def test_what_is_stored_is_what_is_evaluated() -> None:
    env = clicks()
    dataset = export_episodes(oracle_clicks, env, "cells/oracle-v0", name="oracle", max_objects=5)
    record = evaluate(oracle_clicks, env, max_objects=5, progress=False)
    again: Any = dataset.recover_environment()
    assert (again.observation_space, again.action_space) == (dataset.observation_space, dataset.action_space)
    assert (dataset.total_episodes, dataset.total_steps) == (5, record.prompts.sum())
    for number, (episode, case) in enumerate(zip(dataset.iterate_episodes(), record.cases, strict=True)):
        steps = len(episode.rewards)
        assert episode.rewards.sum() == pytest.approx(record.returns[number], abs=1e-6)
        np.testing.assert_allclose(episode.infos["iou"], record.iou[number, : steps + 1], atol=1e-6)
        assert episode.infos["action_masks"][np.arange(steps), episode.actions].all()
        assert episode.terminations.tolist() == [False] * (steps - 1) + [True]
        assert not episode.truncations.any()
        observation, _ = again.reset(options=case.pose())
        for step in range(steps + 1):
            for name, array in observation.items():
                assert np.array_equal(array, episode.observations[name][step])
            assert np.array_equal(again.unwrapped.action_masks(), episode.infos["action_masks"][step])
            if step < steps:
                observation, reward, *_ = again.step(episode.actions[step])
                assert reward == pytest.approx(episode.rewards[step], abs=1e-9)
    said = json.loads(dataset.storage.metadata["sam_gym"])
    assert (said["prompter"], said["source"], said["observation"]) == ("oracle", "synthetic-em", "full")


def test_an_interrupted_export_goes_on() -> None:
    whole = export_episodes(oracle_clicks, clicks(), "cells/whole-v0", max_objects=5)
    calls = 0

    def stopped(observations: Any, env: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return oracle_clicks(observations, env)

    stopped.identity = identity = "oracle"  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        export_episodes(stopped, clicks(), "cells/part-v0", max_objects=5)
    assert minari.load_dataset("cells/part-v0").total_episodes == 2

    def resumed(observations: Any, env: Any) -> Any:
        return oracle_clicks(observations, env)

    resumed.identity = identity  # type: ignore[attr-defined]
    part = export_episodes(resumed, clicks(), "cells/part-v0", max_objects=5)
    assert part.total_episodes == whole.total_episodes
    for one, other in zip(part.iterate_episodes(), whole.iterate_episodes(), strict=True):
        assert np.array_equal(one.actions, other.actions)
        assert np.array_equal(one.observations["maps"], other.observations["maps"])
    for other in ({"max_objects": 4}, {"name": "another"}, {"env": clicks(observation="reference")}):
        with pytest.raises(
            ValueError, match=r"a Minari dataset cells/part-v0 already, of other episodes: take another"
        ):
            export_episodes(resumed, **{"env": clicks(), "max_objects": 5, **other}, dataset_id="cells/part-v0")


def test_continuous_actions_by_reference_and_truncated() -> None:
    env = make_evaluation_env(
        "SamBoxRefine-Synthetic-v0", "train", 4, **{**TINY, "observation": "reference"}, max_episode_steps=2
    )
    dataset = export_episodes(oracle_box, env, "boxes/oracle-v0", max_objects=3)
    assert dataset.total_episodes == len(select_cases(env, 3)) == 3  # a row rests
    episode = dataset[0]
    assert episode.actions.dtype == np.float32
    assert set(episode.infos) == {"iou"}
    assert set(episode.observations) == set(env.single_observation_space.keys())
    assert len(episode.rewards) <= 2
    assert bool(episode.truncations[-1]) is not bool(episode.terminations[-1])


def test_the_command(run: Callable[..., tuple[int, str, str]], store: Path) -> None:
    command = ("export", "SamPrompt-Synthetic-v0", "--checkpoint", "tiny_random", "--device", "cpu", "--set", "grid=8")
    status, out, _ = run(*command, "--dataset", "cells/some-v3", "--objects", "2")
    assert status == 0
    assert out.startswith("cells/some-v3: 2 episodes of oracle clicks, ")
    assert minari.load_dataset("cells/some-v3").storage.metadata["algorithm_name"] == "oracle clicks"
    status, _, err = run(*command, "--dataset", "no name", "--objects", "2")
    assert status == 1
    assert "Malformed dataset ID: no name" in err
    assert set(minari.list_local_datasets()) == {"cells/some-v3"}
    with mock.patch.dict("sys.modules", minari=None):
        assert "exported by Minari: pip install 'sam_gym[minari]'" in run(*command, "--dataset", "cells/some-v4")[2]
