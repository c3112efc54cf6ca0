"""A session is an episode that a person and an agent share: what is done can be undone, stored and done again."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_gym.annotate import Segmenter, Session
from sam_gym.annotate.history import IDLE, History
from sam_gym.envs.prompt import SamPromptVectorEnv
from sam_gym.sb3.saved import SavedAgent

SAM = {"checkpoint": "tiny_random", "device": "cpu", "precision": "exact"}
BOX = (40.0, 60.0, 120.0, 130.0)


@pytest.fixture
def session(segmenter: Segmenter, sections: Any) -> Session:
    ticks = itertools.count()
    return Session(sections.image(0), segmenter, "a.png", clock=lambda: float(next(ticks)))


def test_it_is_an_episode(segmenter: Segmenter, sections: Any, agent_file: Any) -> None:
    """The agent's clicks, and a person's in cells, lead to the masks of an environment that takes them as actions."""
    agent = SavedAgent.load(agent_file, "cpu")
    env = SamPromptVectorEnv(
        1, dataset="synthetic-em", split="val", autoreset_mode="Disabled", attention="foveated", **SAM, **agent.settings
    )
    prompter = agent.prompter(env)
    index, number = int(sections.objects.image_index[5]), int(sections.objects.object_id[5])
    box = sections.objects.box[5].tolist()
    session = Session(sections.image(index), segmenter)
    session.begin_box(box)
    seen, _ = env.reset(options={"image": index, "object": number, "cue": np.array(box, np.float32)})
    np.testing.assert_array_equal(session.mask(), env.mask(0))
    for turn in range(5):
        if turn == 2:  # the person takes a turn, in the middle of a cell
            action = np.array([env.actions.cells + 40])
            left, top, side = env.episodes.view[0].astype(float)
            session.click(left + 8.5 / 16 * side, top + 2.5 / 16 * side, 0)
        else:
            action = prompter(seen, env)
            assert session.agent_step() is not None
        seen, *_ = env.step(action)
        np.testing.assert_array_equal(session.mask(), env.mask(0))
        assert session.segment().predicted_iou == pytest.approx(float(seen["state"][0, 1]))
    assert [click.by for click in session.objects[0].clicks] == ["agent", "agent", "person", "agent", "agent"]


def test_two_objects_and_what_comes_of_them(session: Session) -> None:
    first = session.begin_box(BOX)
    kept = session.mask()
    session.accept()
    second = session.begin_click(200, 200.5, kind=3)
    assert session.active.clicks[0].label == 1
    session.click(10, 10, 0)  # far outside of the object's box
    proposed = session.agent_run()
    assert all(click.by == "agent" for click in proposed)
    session.move_box((150, 150, 250, 250))
    assert session.active.box == (150, 150, 250, 250)
    assert len(session.active.clicks) == 2 + len(proposed)
    if not session.segment().area:
        session.click(200, 200, 1)
    session.accept()
    with pytest.raises(ValueError, match="no object is chosen"):
        session.click(5, 5, 1)
    export = session.export()
    assert export.labels.dtype == np.uint16
    assert {0, first, second} >= set(np.unique(export.labels).tolist()) > {0}
    np.testing.assert_array_equal(session.mask(first), kept)
    assert export.rows[first]["how"] == "as proposed"
    assert export.rows[first]["seconds"] == 1  # begun at 0, accepted at 1
    assert export.rows[second]["how"] == "corrected"
    assert export.rows[second] == export.rows[second] | {"began": "click", "kind": 3, "boxes_moved": 1}


def test_the_agent_keeps_the_mask_that_it_thinks_best(session: Session, segmenter: Segmenter, monkeypatch: Any) -> None:
    estimates = iter([0.2, 0.5, 0.9, 0.4, 0.1, 0.3])
    judge = property(lambda self: lambda seen: np.array([next(estimates)]))
    monkeypatch.setattr(type(segmenter.prompter), "judge", judge)
    session.begin_box(BOX)
    assert len(session.agent_run()) == 2
    session.undo()
    assert not session.active.clicks


def test_a_stored_session_gives_the_same_masks(session: Session, segmenter: Segmenter, sections: Any) -> None:
    session.begin_box(BOX)
    session.agent_run()
    session.click(70.25, 80.125, 0)
    session.undo()
    session.begin_click(30, 200)
    stored = json.loads(json.dumps(session.to_json()))
    again = Session.load(stored, sections.image(0), segmenter)
    assert again.objects == session.objects
    assert again.active == session.active
    for one in session.objects:
        np.testing.assert_array_equal(again.mask(one.id), session.mask(one.id))
    again.undo()  # also what can be undone is there again
    assert len(again.objects) == 1
    with pytest.raises(ValueError, match="other pixels"):
        Session.load(stored, sections.image(1), segmenter)


def test_what_cannot_be(session: Session, sections: Any) -> None:
    for wrong in (lambda: session.undo(), lambda: session.redo(), lambda: session.agent_step()):
        with pytest.raises(ValueError, match="nothing to|no object is chosen"):
            wrong()
    session.begin_box((-50, 10, 40, 900))
    assert session.active.box == (0, 10, 40, 256)
    for x, y, label in ((-1, 5, 1), (5, 257, 1), (float("nan"), 5, 1), (5, 5, 2)):
        with pytest.raises(ValueError, match="outside the image|label of a click"):
            session.click(x, y, label)
    with pytest.raises(ValueError, match="a session needs one that clicks"):
        Session(sections.image(0), _box_agent())
    assert len(session.history.log) == 1


def _box_agent() -> Any:
    class BoxAgent:
        settings: dict[str, Any] = {"action_mode": "continuous"}

    return BoxAgent()


EVENTS = st.lists(
    st.one_of(
        st.just({"do": "begin", "box": [1, 2, 3, 4], "clicks": [], "kind": 1}),
        st.integers(0, 9).map(lambda x: {"do": "click", "clicks": [{"x": x, "y": 1, "label": 1, "by": "person"}]}),
        st.integers(0, 9).map(lambda x: {"do": "box", "box": [x, 2, 30, 40]}),
        st.sampled_from([{"do": what} for what in ("accept", "remove", "undo", "redo")]),
        st.integers(1, 3).map(lambda number: {"do": "select", "object": number}),
    ),
    max_size=25,
)


@settings(max_examples=200)
@given(EVENTS)
def test_undoing_all_leads_back_and_redoing_all_forth(events: list[dict[str, Any]]) -> None:
    history = History()
    for second, event in enumerate(events):
        before, log = history.state, len(history.log)
        try:
            history.do({**event, "at": float(second)})
        except ValueError:  # there is nothing to click on, to undo, ...: then nothing has happened
            assert (history.state, len(history.log)) == (before, log)
            continue
        if event["do"] not in ("undo", "redo", "select"):
            history.do({"do": "undo", "at": float(second)})
            assert history.state == before
            history.do({"do": "redo", "at": float(second)})
    assert History(history.log).state == history.state
    assert sum(one["seconds"] for one in history.work().values()) <= len(events) * IDLE
    last, steps = history.state, 0
    while history.undoable:
        history.do({"do": "undo", "at": 0.0})
        steps += 1
    assert history.state.objects == ()
    for _ in range(steps):
        history.do({"do": "redo", "at": 0.0})
    assert history.state.objects == last.objects
    ids = [one.id for one in last.objects]
    assert len(set(ids)) == len(ids)
