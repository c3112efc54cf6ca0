"""Evaluations shared out: the same record for any number of processes, and what cannot be shared is named."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from sb3_contrib import MaskablePPO

from sam_gym.data import SegmentationData, load_data
from sam_gym.evaluation import Record, evaluate, evaluate_entries, make_evaluation_env, select_cases
from sam_gym.evaluation.parallel import processes
from sam_gym.evaluation.records import COLUMNS
from sam_gym.prompters import RandomPrompter, oracle_clicks
from sam_gym.sb3 import LightPolicy, ModelPrompter, SamVecEnv

SETTINGS: dict[str, Any] = {"checkpoint": "tiny_random", "device": "cpu", "max_prompts": 2}
ID = "SamPrompt-Synthetic-v0"


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with processes(2) as made:
        yield made


@pytest.fixture
def env() -> Any:
    return make_evaluation_env(ID, "val", 4, **SETTINGS)


def assert_equal(one: Record, two: Record) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), name)
    assert one.cases == two.cases
    assert one.provenance == two.provenance


def test_two_processes_find_what_one_does(pool: Executor, env: Any, tmp_path: Path) -> None:
    entries = {"random": RandomPrompter(3), "oracle": oracle_clicks}
    here = evaluate_entries(entries, env, tmp_path / "here", 20)
    there = evaluate_entries(entries, env, tmp_path / "there", 20, pool)
    for one, two in zip(here, there, strict=True):
        # What one process has in common with other entries, such as first masks, it decodes once
        assert_equal(one, two)


def test_agents_travel(pool: Executor, env: Any) -> None:
    vectors: Any = gymnasium.make_vec(ID, num_envs=2, autoreset_mode="SameStep", **SETTINGS)
    agent = ModelPrompter(MaskablePPO(LightPolicy, SamVecEnv(vectors), n_steps=2, batch_size=2, seed=0))
    again = pickle.loads(pickle.dumps(agent))
    assert again.identity == agent.identity
    assert pickle.loads(pickle.dumps(ModelPrompter(agent.model.policy))).identity == agent.identity
    assert_equal(evaluate(agent, env, max_objects=12), evaluate(agent, env, max_objects=12, executor=pool))


def test_some_cases_alone(env: Any) -> None:
    some = select_cases(env, None)[3:9]
    whole, part = evaluate(oracle_clicks, env), evaluate(oracle_clicks, env, cases=some)
    assert part.cases == some
    np.testing.assert_array_equal(part.iou, whole.iou[3:9])


def test_parts_must_be_of_one_whole(env: Any) -> None:
    record = evaluate(oracle_clicks, env, max_objects=5)
    both = Record.merge([record, record], record.provenance, 1.0)
    np.testing.assert_array_equal(both.iou, np.concatenate([record.iou] * 2))
    other = replace(record, provenance={**record.provenance, "policy": "another"})
    with pytest.raises(ValueError, match="a part is of another policy: 'another'"):
        Record.merge([record, other], record.provenance, 1.0)


def test_images_that_processes_do_not_find(pool: Executor) -> None:
    data = load_data("synthetic-em", "val")
    every = range(len(data.image_ids))
    images = [255 - data.image(i) for i in every]
    own = SegmentationData("own", "val", "own", data.image_ids, images, [data.labels(i) for i in every])
    env: Any = gymnasium.make_vec(ID, num_envs=4, autoreset_mode="Disabled", split="val", images=own, **SETTINGS)
    with pytest.raises(ValueError, match="a part is of another"):
        evaluate(oracle_clicks, env, max_objects=5, executor=pool)
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        evaluate(oracle_clicks, env, max_objects=5, workers=0)
