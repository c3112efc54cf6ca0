"""Facts, their language and its scores: the round trip is exact, and nothing counts that is not said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_gym.reports import Fact, Region, ReportError, Score, describe, judge, parse, regions_of, write
from sam_gym.reports.facts import KINDS, LARGEST, MOST, QUADRANTS
from sam_gym.reports.language import NOUNS, NUMBERS, _table, sentences, vocabulary, words_of
from sam_gym.reports.scores import UNREAD

SIDE = 100


def block(top: int, left: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def said(regions: list[Region], *types: str) -> set[str]:
    return {str(statement.fact) for statement in describe(regions, types)}


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    kind = draw(st.sampled_from(KINDS))
    values = len(QUADRANTS) if kind == LARGEST else len(NUMBERS)
    return Fact(draw(st.sampled_from(list(NOUNS))), kind, draw(st.integers(0, values - 1)))


@given(st.lists(facts(), max_size=12), st.integers(0, 2**31), st.sampled_from([str.lower, str.upper, str.title, str]))
def test_what_is_written_is_read_again(given_facts: list[Fact], seed: int, change: object) -> None:
    text = write(given_facts, np.random.default_rng(seed))
    assert parse(text, strict=bool(given_facts)).facts == tuple(given_facts)
    assert text == write(given_facts, np.random.default_rng(seed))
    assert parse(change(f"\n {text.replace(' ', '  ')}")).facts == tuple(given_facts)  # type: ignore[operator]
    assert set(words_of(text)) <= set(vocabulary())


@given(st.integers(0, 2**31), st.integers(0, 16))
def test_labels_facts_text_facts(seed: int, objects: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 60), np.int32)
    for k in range(objects):
        (y, x), (h, w) = rng.integers(0, (40, 60)), rng.integers(1, 15, 2)
        labels[y : y + h, x : x + w] = k + 1
    regions = regions_of(labels, "nucleus")
    known = [statement.fact for statement in describe(regions, ["nucleus"])]
    assert parse(write(known, rng), strict=True).facts == tuple(known)
    by_kind = {fact.kind: fact.value for fact in known}
    assert by_kind["count"] == min(len(regions), MOST + 1) == min(len(np.unique(labels)) - (0 in labels), MOST + 1)
    if 0 < len(regions) <= MOST:
        sizes, shapes = (sum(by_kind.get(k, 0) for k in kinds) for kinds in
                         (("small", "medium", "large"), ("round", "elongated")))  # fmt: skip
        assert sizes == shapes == len(regions)


def test_every_sentence_has_one_fact() -> None:
    every = [sentence.lower() for fact in _table().values() for sentence in sentences(fact)]
    assert len(_table()) == len(set(every))
    per_fact = {fact: set(sentences(fact)) for fact in _table().values()}
    assert len(_table()) == sum(map(len, per_fact.values()))  # none stands for two facts


def test_facts_are_what_the_masks_show() -> None:
    first, second = block(5, 5, 8, 8), block(5, 14, 8, 30)  # one column lies between them
    far, large = block(70, 90, 10, 10), block(60, 10, 30, 30)
    regions = [Region.of("nucleus", mask) for mask in (first, second, far, large)]
    assert said(regions, "nucleus") == {
        "nucleus: count 4", "nucleus: small 1", "nucleus: medium 2", "nucleus: large 1", "nucleus: round 3",
        "nucleus: elongated 1", "nucleus: touching 2", "nucleus: edge 1", "nucleus: largest lower left",
    }  # fmt: skip
    statements = {statement.fact.kind: statement.evidence for statement in describe(regions, ["nucleus"])}
    np.testing.assert_array_equal(statements["touching"], first | second)
    np.testing.assert_array_equal(statements[LARGEST], large)
    np.testing.assert_array_equal(statements["edge"], far)


@pytest.mark.parametrize(("gap", "touching"), [(0, True), (2, True), (3, False)])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_touches_and_what_is_at_the_edge(gap: int, touching: bool, axis: int) -> None:
    place = (20 + 10 + gap, 33) if axis == 0 else (33, 20 + 10 + gap)
    one = Region.of("cell", block(*((20, 25) if axis == 0 else (25, 20)), 10, 10))
    other = Region.of("cell", block(*place, 10, 10))
    assert one.touches(other) == other.touches(one) == touching
    for top, left in ((gap, 40), (40, gap), (90 - gap, 40), (40, 90 - gap)):
        assert Region.of("cell", block(top, left, 10, 10)).at_edge == touching


def test_absence_is_a_fact_and_overlap_is_none() -> None:
    assert said([], "cell", "nucleus") == {"cell: count 0", "nucleus: count 0"}
    assert write([Fact("cell", "count", 0)]) == "No cell is seen."
    twice = [Region.of("cell", block(5, 5, 8, 8)), Region.of("cell", block(8, 8, 8, 8))]
    assert {"cell: count 2", "cell: touching 2"} <= said(twice, "cell")
    with pytest.raises(ValueError, match="empty mask"):
        Region.of("cell", np.zeros((4, 4), np.bool_))
    with pytest.raises(ValueError, match="type 'cell'"):
        describe(twice, ["nucleus"])


def test_a_text_that_is_no_report_says_where() -> None:
    text = "Two cells are seen. Two cels are small. One cell is round."
    with pytest.raises(ReportError, match=r"character 20: 'Two cels are small\.'.*'two cells are small\.'") as caught:
        parse(text, strict=True)
    assert caught.value.position == text.index("Two cels")
    with pytest.raises(ReportError, match="no sentence"):
        parse(" \n", strict=True)
    reading = parse(text)
    assert [fact and str(fact) for fact in reading.facts] == ["cell: count 2", None, "cell: round 1"]
    assert [text[place:][:7] for place in reading.positions] == ["Two cel", "Two cel", "One cel"]
    for wrong, message in ((Fact("cel", "count", 1), "did you mean 'cell'"), (Fact("cell", "count", 14), "no words")):
        with pytest.raises(ValueError, match=message):
            write([wrong])


def test_scores_count_facts() -> None:
    masks = [block(5, 5, 8, 8), block(40, 40, 8, 8)]
    truth = describe([Region.of("cell", mask) for mask in masks], ["cell"])
    facts = [statement.fact for statement in truth]
    whole = judge(write(facts), truth).total
    assert (whole.precision, whole.recall, whole.f1) == (1, 1, 1)
    # Two true sentences, one of them twice, one wrong, one that nobody can read: 2 of 5, and 2 of all there are
    text = "Two cells are seen. Two cells are present. Two cells are small. One cell is large. Cells are nice."
    score = judge(text, truth)
    assert (score.total.precision, score.total.recall) == (2 / 5, 2 / len(truth))
    assert score.total.f1 == pytest.approx(2 * (2 / 5) * (2 / len(truth)) / (2 / 5 + 2 / len(truth)))
    assert (score.kinds[UNREAD].written, score.kinds["large"].precision, score.kinds["small"].recall) == (1, 0, 1)
    assert judge("", truth).total.f1 == 0
    both = sum([score, judge(write(facts), truth)], Score())
    assert both.total.written == 5 + len(facts)


def test_grounding_asks_for_more_than_half_of_the_pixels() -> None:
    truth = describe([Region.of("cell", block(20, 20, 20, 20))], ["cell"])
    text = write([statement.fact for statement in truth])

    def grounded(mask: NDArray[np.bool_]) -> tuple[int, int]:
        regions = describe([Region.of("cell", mask)], ["cell"])
        counts = judge(text, truth, {one.fact: one.evidence for one in regions}).total
        return counts.true_grounded, counts.found_grounded

    # "None touches" and "none is at the edge" speak of no pixel, and are right wherever they are said
    everything, nothing = len(truth), 2
    assert grounded(block(20, 20, 20, 20)) == (everything, everything)
    assert grounded(block(29, 20, 20, 20)) == (everything, everything)
    assert grounded(block(30, 20, 20, 20)) == (nothing, nothing)  # exactly half
    assert grounded(block(22, 22, 10, 10)) == (everything, nothing)  # inside of it, a quarter
    assert judge(text, truth).total.true_grounded == nothing
    assert judge(text, truth, {}).total.f1 == 1
