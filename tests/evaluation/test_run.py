"""evaluate(): each object exactly once from a fixed cue, whatever the number of environments."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from sam_gym.data import SegmentationData, load_data
from sam_gym.envs import SamPromptSemanticVectorEnv, SamPromptVectorEnv
from sam_gym.envs.prompt import PromptSettings
from sam_gym.evaluation import (
    episode_list,
    episode_list_hash,
    evaluate,
    evaluate_entries,
    evaluate_stored,
    is_current,
    make_evaluation_env,
)
from sam_gym.evaluation.metrics import boundary_iou, mask_dice, mask_iou
from sam_gym.evaluation.records import COLUMNS, EpisodeCase, Record
from sam_gym.prompters import PROMPTERS, RandomPrompter, baselines, box_only, centre, oracle_clicks
from sam_gym.sam import PromptBatch
from sam_gym.sam.backend import SamBackend

STOP = 2 * 16 * 16
ISBI_TEST_LIST = "93cf390b4b5bb749d5fd8a721e58f167b4a3d266c066441334ab96c89c39f66e"
"""Changing it changes every published number: raise EPISODE_LIST_VERSION when it must."""

CUES = PromptSettings(box_noise=0.2)

PRINT_LIST = """
from sam_gym.data import load_data
from sam_gym.envs.prompt import PromptSettings
from sam_gym.evaluation import episode_list, episode_list_hash
print(episode_list_hash(episode_list(load_data("synthetic-em", "val"), PromptSettings())))
"""


def make(num_envs: int, **more: Any) -> SamPromptVectorEnv:
    settings = {"split": "val", "checkpoint": "tiny_random", "device": "cpu", "autoreset_mode": "Disabled", **more}
    return gymnasium.make_vec("SamPrompt-Synthetic-v0", num_envs=num_envs, **settings)


def small_split(env: SamPromptVectorEnv, objects: int) -> SegmentationData:
    """Leave only images 0 and 1 with a few objects each."""
    data = env.engine.data
    labels = []
    for image in range(2):
        ids = data.objects.object_id[data.objects.image_index == image][: objects // 2]
        labels.append(np.where(np.isin(data.labels(image), ids), data.labels(image), 0))
    env.engine.data = SegmentationData(
        data.name, data.split, data.source, data.image_ids[:2], [data.image(0), data.image(1)], labels,
        min_area=data.min_area, max_area=data.max_area,
    )  # fmt: skip
    return env.engine.data


class StopsAfter:
    """Clicks the first allowed cells, then stops; how soon depends on the object, so that rows end at odd times."""

    def __call__(self, observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
        episodes = env.engine.episodes
        return np.where(episodes.prompts >= episodes.object_id % 5, STOP, env.action_masks().argmax(axis=1))


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_each_object_exactly_once(num_envs: int) -> None:
    env = make(num_envs)
    data = small_split(env, 10)
    record = evaluate(StopsAfter(), env, name="some", progress=False)
    assert len(data.objects) == 10
    found = [(case.image, case.object_id) for case in record.cases]
    assert found == list(zip(data.objects.image_index.tolist(), data.objects.object_id.tolist(), strict=True))
    assert record.prompts.tolist() == [object_id % 5 for _, object_id in found]
    assert np.isfinite(record.iou).all()


@pytest.mark.parametrize("prompter", [box_only, centre, PROMPTERS["grid"]["random"](0), oracle_clicks, StopsAfter()])
def test_does_not_depend_on_the_number_of_environments(prompter: Any) -> None:
    records = []
    for num_envs in (1, 4, 16):
        env = make(num_envs)
        small_split(env, 6)
        records.append(evaluate(prompter, env, name="some", progress=False))
    for record in records[1:]:
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(record, name), getattr(records[0], name))
        assert record.cases == records[0].cases


def test_the_curve_is_what_an_episode_shows() -> None:
    """Played by hand in a single environment, object by object."""
    env = make(3)
    data = small_split(env, 4)
    record = evaluate(StopsAfter(), env, name="some", progress=False)
    single = make(1)
    for case, curve, prompts in zip(record.cases, record.iou, record.prompts, strict=True):
        posed = {"image": data.image_ids[case.image], "object": case.object_id, "cue": case.cue}
        observations, info = single.reset(options=posed)
        seen, ended = [info["iou"][0]], False
        while not ended:
            observations, _, terminated, _, info = single.step(StopsAfter()(observations, single))
            seen.append(info["iou"][0])
            ended = terminated[0]
        seen = seen[: prompts + 1]  # stop adds no prompt
        np.testing.assert_allclose(curve, [*seen, *[seen[-1]] * 6][:6], atol=1e-6)


def test_the_first_value_is_the_box_alone() -> None:
    env = make(4)
    small_split(env, 6)
    records = {name: evaluate(build(0), env, name=name, progress=False) for name, build in PROMPTERS["grid"].items()}
    box = records["box only"]
    assert box.prompts.tolist() == [0] * 6
    np.testing.assert_array_equal(box.iou, np.repeat(box.iou[:, :1], 6, axis=1))
    assert (box.gain.mean, box.gain.low, box.gain.high) == (0, 0, 0)
    for name, record in records.items():
        np.testing.assert_array_equal(record.iou[:, 0], box.iou[:, 0])
        assert record.provenance["episode_list"] == box.provenance["episode_list"], name
    assert (records["random"].prompts == 5).all()
    assert (records["random"].iou != box.iou).any()


def test_after_stop_the_last_value_is_carried_on() -> None:
    env = make(3)
    small_split(env, 6)
    record = evaluate(centre, env, name="centre", progress=False)
    assert (record.prompts == 1).all()
    assert (record.iou[:, 1] != record.iou[:, 0]).any()
    np.testing.assert_array_equal(record.iou[:, 2:], np.repeat(record.iou[:, 1:2], 4, axis=1))


def test_the_last_masks_are_measured_at_full_size() -> None:
    """Against an environment of one, played to the end by hand."""
    env = make(3)
    data = small_split(env, 6)
    record = evaluate(StopsAfter(), env, name="some", progress=False)
    single = make(1)
    for row, case in enumerate(record.cases):
        posed = {"image": data.image_ids[case.image], "object": case.object_id, "cue": case.cue}
        observations, _ = single.reset(options=posed)
        ended = False
        while not ended:
            observations, _, (ended,), _, _ = single.step(StopsAfter()(observations, single))
        mask, truth = single.engine.mask(0), data.mask(case.image, case.object_id)
        assert record.area[row] == mask.sum()
        assert record.iou[row, -1] == pytest.approx(mask_iou(mask, truth), abs=1e-6)
        assert record.dice[row] == pytest.approx(mask_dice(mask, truth), abs=1e-6)
        assert record.boundary_iou[row] == pytest.approx(boundary_iou(mask, truth), abs=1e-6)


class LooksAhead:
    """Decodes twice for each environment before it chooses, as a planner would."""

    def __call__(self, observations: dict[str, NDArray], env: SamPromptVectorEnv) -> NDArray[np.int64]:
        engine, episodes = env.engine, env.engine.episodes
        for row in range(env.num_envs):
            image = engine.backend.encode([engine.data.image(int(episodes.image[row]))])
            for _ in range(2):
                engine.backend.decode(image, PromptBatch.from_lists(boxes=[tuple(episodes.cue[row].tolist())]))
        return StopsAfter()(observations, env)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_decodes_count_what_the_prompter_asked_for_itself(num_envs: int) -> None:
    env = make(num_envs)
    small_split(env, 6)
    plain, ahead = (evaluate(p, env, name="some", progress=False) for p in (StopsAfter(), LooksAhead()))
    assert plain.decodes.tolist() == (plain.prompts + 1).tolist()
    choices = np.minimum(ahead.prompts + 1, 5)  # one for each prompt, one to say stop
    assert ahead.decodes.tolist() == (ahead.prompts + 1 + 2 * choices).tolist()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many masks each call of the decoder makes, from now on."""
    calls: list[int] = []
    decode = SamBackend.decode

    def counted(backend: SamBackend, embeddings: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(len(embeddings))
        return decode(backend, embeddings, *arguments, **named)

    monkeypatch.setattr(SamBackend, "decode", counted)
    return calls


def test_nothing_is_decoded_that_nobody_asked_for(decoded: list[int]) -> None:
    """Rows for which no object is left rest."""
    env = make(4)
    small_split(env, 6)
    record = evaluate(StopsAfter(), env, name="some", progress=False)
    assert sum(decoded) == record.decodes.sum() == 6 + record.prompts.sum()


def test_entries_share_what_they_have_in_common(decoded: list[int], tmp_path: Path) -> None:
    """First masks, and all of two entries of one policy; no record differs in anything from one made alone."""
    env = make(4)
    small_split(env, 6)
    entries = {"box": box_only, "centre": centre, "random": RandomPrompter(1), "again": RandomPrompter(1)}
    alone = [evaluate(prompter, env, name=name, progress=False).to_json() for name, prompter in entries.items()]
    decoded.clear()
    together = [record.to_json() for record in evaluate_entries(entries, env, tmp_path, None)]
    assert sum(decoded) == 6 + 6 + 5 * 6
    for record in (*alone, *together):
        del record["seconds"]
    assert together == alone
    assert evaluate(box_only, env, name="box", progress=False).decodes.tolist() == [1] * 6  # nothing is left behind
    assert sum(decoded) == 6 + 6 + 5 * 6 + 6


def test_any_function_is_a_prompter() -> None:
    def left_to_right(observations: dict[str, NDArray], env: SamPromptVectorEnv) -> list[int]:
        assert observations["maps"].shape == (3, 7, 64, 64)
        return [8 * 16 + 2 * int(n) for n in env.engine.episodes.prompts]

    env = make(3)
    small_split(env, 4)
    record = evaluate(left_to_right, env, name="mine", progress=False)
    assert record.prompts.tolist() == [5] * 4
    assert record.provenance["policy"].endswith("test_any_function_is_a_prompter.<locals>.left_to_right")
    with pytest.raises(ValueError, match="2 actions for 3 environments"):
        evaluate(lambda observations, env: [0, 0], env, progress=False)


def test_a_time_limit_ends_episodes_too() -> None:
    env = make(2, max_episode_steps=2)
    small_split(env, 4)
    record = evaluate(PROMPTERS["grid"]["random"](0), env, name="random", progress=False)
    assert record.prompts.tolist() == [2] * 4


@pytest.fixture
def semantic(tiny_clip: str) -> SamPromptSemanticVectorEnv:
    settings = {"split": "val", "checkpoint": "tiny_random", "device": "cpu", "clip": tiny_clip}
    return gymnasium.make_vec(
        "SamPromptSemantic-Synthetic-v0", num_envs=3, autoreset_mode="Disabled", max_prompts=9, **settings
    )


def test_whole_classes_are_evaluated_from_no_prompt(semantic: SamPromptSemanticVectorEnv) -> None:
    """Each image once, no cue in the list, and the gain is over nothing."""
    found = baselines(semantic.settings)
    assert list(found) == ["no prompt", "random", "centre", "uncertainty", "oracle clicks"]
    records = {name: evaluate(prompter, semantic, name=name, progress=False) for name, prompter in found.items()}
    for record in records.values():
        assert [(case.image, case.object_id, case.cue) for case in record.cases] == [(i, 1, None) for i in range(6)]
        assert (record.iou[:, 0] == 0).all()
        assert record.start == "no prompt"
        again = Record.from_json(json.loads(json.dumps(record.to_json())))
        assert (again.cases, again.provenance) == (record.cases, record.provenance)
        assert record.summary()["gain_over_no_prompt"]["mean"] == pytest.approx(record.iou[:, -1].mean())
        assert record.provenance["clip"].startswith("local-dir:")
    assert {name: record.prompts.tolist() for name, record in records.items()} == {
        "no prompt": [0] * 6, "random": [9] * 6, "centre": [1] * 6, "uncertainty": [9] * 6, "oracle clicks": [9] * 6,
    }  # fmt: skip
    assert (records["no prompt"].iou == 0).all()
    assert (records["oracle clicks"].iou[:, 1] > 0).all()


def test_baselines_of_tasks_with_a_cue_keep_their_names() -> None:
    assert list(baselines(PromptSettings())) == [name for name in PROMPTERS["grid"] if name != "oracle search"]


# ------------------------------------------------------------------------------------------------- the fixed lists


def test_episode_list_is_the_same_in_a_fresh_process() -> None:
    found = subprocess.run([sys.executable, "-c", PRINT_LIST], capture_output=True, text=True, check=True).stdout
    assert found.strip() == episode_list_hash(episode_list(load_data("synthetic-em", "val"), CUES))


def test_a_cue_does_not_depend_on_other_objects() -> None:
    cases = {(c.image, c.object_id): c for c in episode_list(load_data("synthetic-em", "val"), CUES)}
    fewer = episode_list(load_data("synthetic-em", "val", min_area=600), CUES)
    assert 10 < len(fewer) < len(cases) - 10
    assert all(cases[case.image, case.object_id] == case for case in fewer)
    assert len({case.cue for case in cases.values()}) == len(cases)


def test_cues_are_within_the_noise() -> None:
    data = load_data("synthetic-em", "val")
    for case, tight in zip(episode_list(data, PromptSettings(box_noise=0.1)), data.objects.box, strict=True):
        extent = np.tile(tight[2:] - tight[:2], 2)
        assert (np.abs(np.array(case.cue) - tight) <= 0.1 * extent + 1e-3).all()
    for case, tight in zip(episode_list(data, PromptSettings(box_noise=0.0)), data.objects.box, strict=True):
        assert case.cue == tuple(tight.tolist())


def test_the_published_list(real_folder: Any) -> None:
    cases = episode_list(load_data("isbi2012", "test", "real"), CUES)
    assert episode_list_hash(cases) == ISBI_TEST_LIST


def test_some_objects_are_spread_over_the_list() -> None:
    env = make(4)
    whole = episode_list(env.engine.data, CUES)
    record = evaluate(box_only, env, name="box only", max_objects=5, progress=False)
    assert record.cases == [whole[round(i * (len(whole) - 1) / 4)] for i in range(5)]
    assert record.cases[0] == whole[0]
    assert record.cases[-1] == whole[-1]
    with pytest.raises(ValueError, match="at least one object, got 0"):
        evaluate(box_only, env, name="box only", max_objects=0, progress=False)


# ------------------------------------------------------------------------------------------------------- provenance


def test_provenance_says_what_was_measured() -> None:
    env = make(3)
    data = small_split(env, 4)
    provenance = evaluate(box_only, env, name="box only", progress=False).provenance
    assert provenance["data_hash"] == data.hash()
    assert provenance["checkpoint"].startswith("tiny_random-")
    assert provenance["episode_list"]["sha256"] == episode_list_hash(episode_list(data, CUES))
    named = ("split", "source", "precision", "box_noise", "max_prompts", "policy")
    assert [provenance[name] for name in named] == [
        "val",
        "synthetic-em",
        "exact",
        0.2,
        5,
        "sam_gym.prompters.box_only",
    ]
    changed = asdict(EpisodeCase(0, 1, (0, 0, 1, 1)))
    assert episode_list_hash([EpisodeCase(**changed)]) != episode_list_hash(
        [EpisodeCase(**{**changed, "object_id": 2})]
    )


def test_a_stored_record_is_taken_while_it_is_of_the_same_thing(tmp_path: Path) -> None:
    env, file = make(4), tmp_path / "random.json"
    small_split(env, 4)
    first, taken = evaluate_stored(RandomPrompter(0), "random", env, file)
    assert not taken
    again, taken = evaluate_stored(RandomPrompter(0), "random", env, file)
    assert taken
    assert json.dumps(again.to_json()) == json.dumps(first.to_json()) == json.dumps(json.loads(file.read_text()))
    other, taken = evaluate_stored(RandomPrompter(1), "random", env, file)
    assert not taken
    assert (other.iou != first.iou).any()
    for name in ("format", "provenance"):  # of an older format; without provenance
        stored = json.loads(file.read_text())
        stored[name] = {"format": 1, "provenance": {}}[name]
        file.write_text(json.dumps(stored))
        assert not evaluate_stored(RandomPrompter(1), "random", env, file)[1]
        assert evaluate_stored(RandomPrompter(1), "random", env, file)[1]


def test_a_foveated_record_is_none_of_full_attention() -> None:
    """Records of full attention do not say so: those that are stored were made before there was another."""
    env = make(4)
    small_split(env, 4)
    stored = evaluate(box_only, env, progress=False).to_json()
    assert "attention" not in stored["provenance"]
    assert is_current(stored, box_only, env)
    stored["provenance"]["attention"] = "foveated"
    assert not is_current(stored, box_only, env)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_refuses_environments_that_reset_by_themselves(mode: str) -> None:
    with pytest.raises(ValueError, match="autoreset_mode='Disabled'"):
        evaluate(box_only, make(2, autoreset_mode=mode), name="box only", progress=False)


def test_an_id_and_a_split_are_enough() -> None:
    settings: dict[str, Any] = {"data": "synthetic", "checkpoint": "tiny_random", "device": "cpu", "num_envs": 3}
    by_id = evaluate(box_only, "SamPrompt-Synthetic-v0", "val", max_objects=4, progress=False, **settings)
    env = make_evaluation_env("SamPrompt-Synthetic-v0", "val", **settings)
    same = evaluate(box_only, env, name="box only", max_objects=4, progress=False)
    assert (by_id.name, same.name) == ("sam_gym.prompters.box_only", "box only")
    assert by_id.provenance == same.provenance
    assert (by_id.iou == same.iou).all()
    assert evaluate(box_only, env, "val", max_objects=1, progress=False).provenance["split"] == "val"
    with pytest.raises(ValueError, match="split='test' cannot be had of an environment"):
        evaluate(box_only, env, "test")
    with pytest.raises(ValueError, match="grid, device cannot be had of an environment"):
        evaluate(box_only, env, grid=8, device="cpu")
