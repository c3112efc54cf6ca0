"""Preferences: the loss is its plain definition, judges rate as they say, and a decoder learns from ratings alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_gym.data import SegmentationData, load_data
from sam_gym.sam.backend import get_backend
from sam_gym.sam.judges import Candidates, ChoiceJudge, OwnEstimate, TruthJudge
from sam_gym.sam.preference import (
    SOURCES,
    PreferenceSettings,
    PreferenceTuner,
    preference_loss,
    rank_weights,
    rating_of,
)

PLAIN = PreferenceSettings(anchor=0.0, keep=0.0, beta=1.0)


BOX = np.zeros(4, np.float32)


def loss_of(logits: torch.Tensor, reference: torch.Tensor, masks: torch.Tensor, weights: Any, how: Any) -> Any:
    rating = rating_of(0, BOX, reference, masks, np.asarray(weights, np.float64))
    assert rating is not None
    return preference_loss(logits, rating, how)


def log_odds(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(K,) sum over all pixels of log p(Y), pixels as independent choices."""
    bernoulli = torch.distributions.Bernoulli(logits=logits.flatten())
    return torch.stack([bernoulli.log_prob(mask.flatten().to(logits.dtype)).sum() for mask in masks])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4]))
def test_the_loss_and_its_gradient_are_those_of_the_plain_definition(seed: int, count: int) -> None:
    """-log sigmoid of the weighted log-ratios, over the number of pixels in which candidates differ."""
    rng = torch.Generator().manual_seed(seed)
    logits, reference = (torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    masks = torch.rand(count, 5, 7, generator=rng) > 0.5
    weights = rank_weights(np.random.default_rng(seed).permutation(count).astype(float))
    found, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = loss_of(found, reference, masks, weights, PLAIN)
    differing = (masks.any(0) & ~masks.all(0)).sum()
    ratios = log_odds(plain, masks) - log_odds(reference, masks)
    expected = -torch.nn.functional.logsigmoid((torch.tensor(weights) * ratios).sum() / differing)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-4, atol=1e-7)


def test_a_step_along_the_loss_raises_what_was_preferred() -> None:
    reference = torch.zeros(4, 4)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3] = True, True
    logits = reference.clone().requires_grad_()
    loss = loss_of(logits, reference, masks, [1, -1], PLAIN)
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    assert (logits.grad[0] < 0).all()  # in the preferred mask alone: up
    assert (logits.grad[2] > 0).all()
    assert (logits.grad[[1, 3]] == 0).all()  # in both, or in neither


def test_nothing_is_learned_where_nothing_is_preferred() -> None:
    logits, same = torch.randn(3, 3), torch.ones(4, 3, 3, dtype=torch.bool)
    assert rating_of(0, BOX, logits, same, np.array([1, 0.5, -0.5, -1])) is None
    different = torch.rand(4, 3, 3) > 0.5
    assert rating_of(0, BOX, logits, different, rank_weights(np.full(4, 2.0))) is None


def test_anchor_and_smoothing_hold_back() -> None:
    reference, masks = torch.zeros(2, 2), torch.tensor([[[1, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()
    fallen = torch.tensor([[-2.0, 0], [0, 0]])
    anchored = loss_of(fallen, reference, masks, [1, -1], PreferenceSettings(anchor=2.0, keep=0.0, beta=1.0))
    free = loss_of(fallen, reference, masks, [1, -1], PLAIN)
    lost = (torch.nn.functional.softplus(torch.tensor(2.0)) - np.log(2)) / 2  # of two pixels that differ
    assert float(anchored - free) == pytest.approx(2 * float(lost), abs=1e-6)
    sure = torch.tensor([[50.0, -50], [0, 0]])
    smoothed = loss_of(
        sure, reference, masks, [1, -1], PreferenceSettings(anchor=0.0, keep=0.0, beta=1.0, smoothing=0.1)
    )
    assert float(smoothed) == pytest.approx(0.1 * 50, abs=1e-3)  # the margin is 50


def test_what_candidates_agree_in_is_kept() -> None:
    """Nothing is lost by standing still; a pixel outside of all candidates costs what it diverges, and pulls back."""
    reference, masks = torch.full((3, 3), -2.0), torch.zeros(2, 3, 3, dtype=torch.bool)
    reference[0, 0], masks[0, 0, 0] = 3.0, True
    keep = PreferenceSettings(anchor=0.0, keep=1.0, beta=1.0)
    still = loss_of(reference, reference, masks, [1, -1], keep)
    assert float(still) == pytest.approx(np.log(2), abs=1e-6)
    moved = reference.clone()
    moved[2, 2] = 4.0
    moved.requires_grad_()
    loss = loss_of(moved, reference, masks, [1, -1], keep)
    p, q = 1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-4.0))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert loss.item() == pytest.approx(np.log(2) + divergence / 9 + divergence / 1, abs=1e-5)
    loss.backward()
    assert moved.grad[2, 2] > 0


def test_equal_ratings_share_their_weights() -> None:
    assert rank_weights(np.array([1.0, 2, 3, 4])).tolist() == [-1, -0.5, 0.5, 1]
    assert rank_weights(np.array([4.0, 1, 4, 1])).tolist() == [0.75, -0.75, 0.75, -0.75]
    assert rank_weights(np.array([0.2, 0.7])).tolist() == [-1, 1]


# ----------------------------------------------------------------------------------------------------------- judges


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return load_data("synthetic-em", "val")


def candidates(data: SegmentationData, key: str = "a") -> Candidates:
    """The object itself, and ever larger parts of it missing."""
    image, object_id = int(data.objects.image_index[3]), int(data.objects.object_id[3])
    truth = data.mask(image, object_id)
    rows = np.flatnonzero(truth.any(axis=1))
    masks = np.stack(
        [truth & (np.arange(len(truth))[:, None] >= rows[int(part * len(rows))]) for part in (0, 0.3, 0.4, 0.7)]
    )
    return Candidates(key, data, image, object_id, masks, np.array([0.1, 0.4, 0.3, 0.2]))


def test_the_simulated_judge_gives_grades_and_is_wrong_as_often_as_asked(data: SegmentationData) -> None:
    grades = TruthJudge().rate(candidates(data))
    assert grades[0] == 4
    assert (np.diff(grades) <= 0).all()
    assert grades[-1] < 3
    exact = TruthJudge(exact=True).rate(candidates(data))
    assert exact[0] == 1
    assert (np.diff(exact) < 0).all()
    for error in ("neighbour", "any"):
        judge = TruthJudge(0.3, error)
        rated = np.stack([judge.rate(candidates(data, str(k))) for k in range(300)])
        assert (rated != grades).mean() == pytest.approx(0.3, abs=0.05)
        steps = np.abs(rated - grades).max()
        assert steps == 1 if error == "neighbour" else steps > 1
        np.testing.assert_array_equal(rated[7], judge.rate(candidates(data, "7")))
    assert OwnEstimate().rate(candidates(data)).tolist() == [0.1, 0.4, 0.3, 0.2]


def test_choices_of_a_person_are_read_and_checked(data: SegmentationData, tmp_path: Path) -> None:
    file = tmp_path / "choices.csv"
    between = "1 2 30 40,1 2 30 40; 2 2 30 40; 3 3 30 40; 4 4 30 40"

    def judge(*rows: str) -> ChoiceJudge:
        file.write_text("\n".join(["image,object,box,candidates,choice", *rows]))
        return ChoiceJudge(file)

    known = judge(f"a,1,{between},2", f"a,1,{between},2", f"a,2,{between},")
    ratings = [known.rate(candidates(data, one.key)).tolist() for one in known.comparisons]
    assert ratings == [[0, 0, 1, 0], [0, 0, 0, 0]]
    for rows, message in (
        ([f"a,1,{between},4"], "line 2: choice 4 is none of the candidates 0 to 3"),
        ([f"a,1,{between},best"], "line 2: object and choice are whole numbers"),
        (["a,1,1 2 3,1 2 3 4; 5 6 7 8,1"], "line 2: a box has 4 numbers"),
        (["a,1,1 2 3 4,1 2 3 4,0"], "at least 2 candidates"),
        ([f"a,1,{between},0", f"a,1,{between},1"], "line 3: object 1 of image a was judged otherwise before"),
    ):
        with pytest.raises(ValueError, match=message):
            judge(*rows)
    with pytest.raises(ValueError, match="has no choice for b"):
        judge(f"a,1,{between},0").rate(candidates(data, "b"))
    file.write_text("key,a,b\n")
    with pytest.raises(ValueError, match="needs the columns image,object,box,candidates,choice; it has"):
        ChoiceJudge(file)
    for arguments in ({"wrong": 2}, {"error": "all"}, {"exact": True, "wrong": 0.1}):
        with pytest.raises(ValueError, match="a judge is wrong in a share"):
            TruthJudge(**arguments)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ tuning


@pytest.fixture
def make(data: SegmentationData) -> Callable[..., PreferenceTuner]:
    def tuner(judge: Any = None, labelled: Any = None, state: Path | None = None, **more: Any) -> PreferenceTuner:
        chosen = PreferenceSettings(**{"steps": 4, "batch_size": 2, "learning_rate": 1e-3, **more})
        backend = get_backend("tiny_random", "cpu")
        return PreferenceTuner("tiny_random", data, chosen, backend, judge or TruthJudge(exact=True), labelled, state)

    return tuner


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [2, 4])
def test_a_decoder_learns_and_its_reference_does_not(
    make: Callable[..., PreferenceTuner], source: str, count: int
) -> None:
    tuner = make(candidates=source, count=count, anchor=0.0)
    before = [weights.clone() for weights in tuner._parameters]
    box = tuner.data.objects.box[3]
    embedding = tuner._embeddings(tuner.data, np.array([3]))[0]
    first = tuner._rated(3, embedding, box)
    losses: list[float] = []
    tuner.run(lambda _, loss: losses.append(loss))
    assert len(losses) == 4
    assert any(not one.equal(two) for one, two in zip(before, tuner._parameters, strict=True))
    again = tuner._rated(3, embedding, box)
    torch.testing.assert_close(again[0], first[0], rtol=0, atol=0)
    assert again[1].equal(first[1])
    assert first[1].shape[0] == count


def test_each_object_is_rated_once_and_equal_ones_are_counted(make: Callable[..., PreferenceTuner]) -> None:
    class Counting(TruthJudge):
        rated: ClassVar[list[str]] = []

        def rate(self, candidates: Candidates) -> Any:
            self.rated.append(candidates.key)
            return np.zeros(4) if len(self.rated) % 2 else super().rate(candidates)

    tuner = make(Counting(exact=True), steps=30)
    tuner.run(lambda *_: None)
    assert len(Counting.rated) == len(set(Counting.rated)) == min(60, len(tuner.data.objects))
    assert tuner.skipped >= len(Counting.rated) // 2
    assert tuner.skipped + len(tuner._ratings) == len(Counting.rated)

    class Indifferent(OwnEstimate):
        def rate(self, candidates: Candidates) -> Any:
            return np.zeros(4)

    with pytest.raises(ValueError, match="nothing can be learned from 8 comparisons"):
        make(Indifferent()).run(lambda *_: None)


def test_a_preferred_candidate_gains_on_the_others(make: Callable[..., PreferenceTuner]) -> None:
    """The same objects again and again: what the judge prefers rises, relative to what it does not."""
    tuner = make(steps=30, batch_size=1, anchor=0.0, learning_rate=3e-4)
    tuner._rate()
    tuner._ratings = tuner._ratings[:1]
    losses = [tuner._step() for _ in range(30)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert losses[-1] < losses[0] - 0.02


def test_it_goes_on_where_it_stopped_and_only_with_the_same_judge(
    make: Callable[..., PreferenceTuner], data: SegmentationData, tmp_path: Path
) -> None:
    file = tmp_path / "state.pt"
    whole, part = make(labelled=data), make(labelled=data, state=file)
    whole.run(lambda *_: None)

    class Stop(Exception):
        pass

    def stop(tuner: Any, loss: float) -> None:
        if tuner.steps_done == 2:
            tuner.store()
            raise Stop

    with pytest.raises(Stop):
        part.run(stop)
    rest = make(labelled=data, state=file)
    assert rest.steps_done == 2
    rest.run(lambda *_: None)
    for one, two in zip(whole._parameters, rest._parameters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="was stored with other settings"):
        make(OwnEstimate(), labelled=data, state=file)


def test_truths_reach_the_judge_and_nothing_else(make: Callable[..., PreferenceTuner], data: SegmentationData) -> None:
    """With a judge that does not look at it, another truth in the same boxes is the same training."""

    class Untruthful(SegmentationData):
        def mask(self, image: int | str, object_id: int) -> Any:
            raise AssertionError("nobody has a business with it")

    every = range(len(data.image_ids))
    blind = Untruthful(data.name, data.split, data.source, data.image_ids, [data.image(i) for i in every],
                       [data.labels(i) for i in every])  # fmt: skip
    chosen = PreferenceSettings(steps=2, batch_size=2)
    tuner = PreferenceTuner("tiny_random", blind, chosen, get_backend("tiny_random", "cpu"), OwnEstimate())
    tuner.run(lambda *_: None)
    assert tuner.steps_done == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"candidates": "tresholds"}, "thresholds"), ({"count": 3}, "2 or 4"), ({"smoothing": 0.5}, "below one half")],
)
def test_bad_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceSettings(**wrong)
