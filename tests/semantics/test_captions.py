"""Captions and rivals: what a score is computed from."""

import pytest

from sam_gym.semantics.captions import CLASSES, GENERIC_RIVALS, captions, rivals

TARGETS = {
    "mitochondrion": {"membrane", "cell interior"},
    "white blood cell": {"red blood cell", "background of a blood smear"},
    "nucleus of a white blood cell": {"cytoplasm of a white blood cell", "background of a blood smear"},
    "nucleus": {"background"},
}


def test_rivals_of_the_targets():
    assert {text: set(rivals(text)) for text in TARGETS} == TARGETS


def test_every_class_has_rivals_among_the_classes():
    for text in CLASSES:
        assert rivals(text)
        assert set(rivals(text)) <= set(CLASSES) - {text}


def test_synonyms_case_and_spaces_make_no_difference():
    assert rivals("  Mitochondria ") == rivals("MITOCHONDRION") == rivals("mitochondrion")
    assert rivals("White  Blood\nCell") == rivals("leukocyte") == rivals("white blood cell")


@pytest.mark.parametrize("text", ["a dog", "", "something else", "SOMETHING ELSE"])
def test_unknown_texts_get_generic_rivals_other_than_themselves(text):
    assert rivals(text)
    assert set(rivals(text)) == set(GENERIC_RIVALS) - {text.lower()}


def test_no_caption_belongs_to_two_classes():
    every = [caption for text in CLASSES for caption in captions(text)]
    assert len(set(every)) == len(every)
    assert [captions(text)[0] for text in CLASSES] == list(CLASSES)


def test_captions_fit_into_the_context():
    from sam_gym.semantics.models import untrained_micro

    clip = untrained_micro()
    tokens = clip.tokenizer([caption for text in CLASSES for caption in captions(text)])
    assert (tokens[:, -1] == 0).all()  # the end is not cut off
    assert len({tuple(row) for row in tokens.tolist()}) == len(tokens)
