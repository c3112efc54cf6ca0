"""The writer: examples, what it learns of them, that a run can be interrupted, and what its command says."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_gym.data.smears import generate_smear
from sam_gym.reports import Region, describe, parse, write
from sam_gym.reports import train_writer as training
from sam_gym.reports.examples import MADE, PART, TRUE, TYPES, Examples, cells_of, load_examples, turned_quadrant
from sam_gym.reports.facts import LARGEST, QUADRANTS
from sam_gym.reports.language import vocabulary
from sam_gym.reports.train_writer import TrainingSettings, WriterTrainer, look, score_of, turned, written
from sam_gym.reports.writer import LOOKS, Writer, WriterSettings, positions
from sam_gym.sam.backend import get_backend

SMALL = {"channels": 32, "width": 32, "layers": 1, "heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def examples(folder: Path) -> Examples:
    return load_examples("train", 12, get_backend("tiny_random", "cpu"), folder)


def small(looks: str = "tokens", seed: int = 0) -> Writer:
    torch.manual_seed(seed)
    return Writer(WriterSettings(looks=looks, **SMALL))


def test_examples_are_what_the_smears_show(examples: Examples, folder: Path) -> None:
    backend = get_backend("tiny_random", "cpu")
    assert len(examples) == 12
    for row in range(3):
        cells = cells_of(generate_smear(700_000 + row))
        assert {cell.type for cell in cells} <= set(TYPES)
        assert examples.facts_of(row) == [one.fact for one in describe(cells, TYPES)]
        true = examples.masks_of(row, TRUE)
        assert [int(mask.sum()) for mask in true] == sorted((cell.area for cell in cells), reverse=True)[:8]
        kinds = [TYPES[kind] for kind in examples.types[row] if kind >= 0]
        assert kinds == [cell.type for cell in sorted(cells, key=lambda cell: -cell.area)[:8]]
        assert examples.masks_of(row, MADE).shape == true.shape
        np.testing.assert_allclose(examples.maps[row, TRUE][len(true) :], 0)
        if len(true):
            np.testing.assert_allclose(examples.maps[row, TRUE, 0].mean(), true[0].mean(), rtol=0.01)
    assert (examples.image != examples.marked).any()
    assert sorted(file.name for file in folder.glob("train*")) == ["train-000000.npz", f"train-{PART:06d}.npz"]
    before = backend.encoder_calls
    again = load_examples("train", 12, backend, folder)
    assert backend.encoder_calls == before
    for field in fields(Examples):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(examples, field.name))


def test_symmetries_turn_images_and_facts_alike() -> None:
    mask = np.zeros((40, 40), np.bool_)
    for quadrant in range(len(QUADRANTS)):
        mask[:] = False
        mask[5 + 20 * (quadrant // 2) :, :][:6, 5 + 20 * (quadrant % 2) :][:, :9] = True
        facts = [one.fact for one in describe([Region.of(TYPES[0], mask)], TYPES[:1])]
        for which in range(8):
            there = training._turned(torch.as_tensor(mask), which).numpy()
            assert turned(facts, which) == [one.fact for one in describe([Region.of(TYPES[0], there)], TYPES[:1])]
            assert turned_quadrant(quadrant, which) == next(f.value for f in turned(facts, which) if f.kind == LARGEST)


def test_words_are_numbers_and_back(examples: Examples) -> None:
    writer = small()
    assert writer.words[3:] == vocabulary(TYPES)
    texts = [write(examples.facts_of(row), np.random.default_rng(row)) for row in range(12)]
    for text, row in zip(texts, writer.numbers_of(texts).tolist(), strict=True):
        assert writer.text_of(row) == text
        assert parse(writer.text_of(row), strict=True)
    with pytest.raises(ValueError, match="'cow'"):
        writer.numbers_of(["One cow is seen."])


@pytest.mark.parametrize("looks", LOOKS)
def test_it_learns_what_it_is_shown(examples: Examples, looks: str) -> None:
    """A few examples by heart; what it writes is what a greedy choice without a cache would."""
    settings = TrainingSettings(steps=60, batch_size=8, learning_rate=5e-3, mask_dropout=0.0)
    writer, losses = small(looks), []
    WriterTrainer(writer, examples, settings, None).run(lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.4 * losses[0]
    seen = look(examples, np.arange(3), MADE, marked=looks == "marks")
    texts = writer.write(seen)
    with torch.no_grad():
        tokens, there = writer.before(seen)
        numbers = torch.ones(3, 1, dtype=torch.int64)
        for _ in range(12):
            embedded = torch.cat([tokens, writer.model.transformer.wte(numbers)], dim=1)
            mask = torch.cat([there, torch.ones_like(numbers, dtype=torch.bool)], dim=1)
            places = positions(mask)
            logits = writer.model(inputs_embeds=embedded, attention_mask=mask.long(), position_ids=places).logits[:, -1]
            numbers = torch.cat([numbers, logits.argmax(dim=1)[:, None]], dim=1)
    for text, row in zip(texts, numbers.tolist(), strict=True):
        assert text.startswith(writer.text_of(row).rstrip("."))


def test_regions_count_only_where_they_are_shown(examples: Examples) -> None:
    rows = np.arange(6)
    for looks in LOOKS:
        writer = small(looks).eval()
        true, made = (look(examples, rows, whose) for whose in (TRUE, MADE))
        made.image = true.image
        texts = [write(examples.facts_of(row)) for row in rows]
        same = torch.equal(writer.loss(true, texts), writer.loss(made, texts))
        assert same == (looks in ("image", "marks"))
        true.there[:] = False
        hidden = writer.loss(true, texts)
        true.features[:], true.maps[:] = 9.0, 1.0
        torch.testing.assert_close(writer.loss(true, texts), hidden)  # what is not there is not looked at


def test_an_interrupted_run_goes_on_to_the_same_weights(examples: Examples, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=6, batch_size=4)
    whole = small()
    WriterTrainer(whole, examples, settings, None).run(lambda *_: None)

    def stop(trainer: WriterTrainer, _: float) -> None:
        if trainer.steps_done == 3:
            trainer.store()
            raise KeyboardInterrupt

    state = tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        WriterTrainer(small(), examples, settings, state).run(stop)
    resumed = small(seed=5)
    trainer = WriterTrainer(resumed, examples, settings, state)
    assert trainer.steps_done == 3
    trainer.run(lambda *_: None)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="other settings"):
        WriterTrainer(small(), examples, TrainingSettings(steps=7, batch_size=4), state)


def test_what_is_saved_writes_the_same(examples: Examples, tmp_path: Path) -> None:
    writer = small("masks")
    writer.save(tmp_path / "writer.safetensors")
    loaded = Writer.load(tmp_path / "writer.safetensors")
    assert loaded.settings == writer.settings
    assert written(loaded, examples, TRUE) == written(writer, examples, TRUE)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no writer"):
        Writer.load(tmp_path / "other.safetensors")


def test_scores_of_texts(examples: Examples) -> None:
    texts = [write(examples.facts_of(row)) for row in range(3)]
    assert [score.total.f1 for score in score_of(texts, examples)] == [1, 1, 1]
    assert [score.total.f1 for score in score_of(["Nice."] * 2, examples)] == [0, 0]


def test_the_command(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "VALIDATION", 2)
    out = tmp_path / "new" / "writer.safetensors"
    given = {"checkpoint": "tiny_random", "examples": 12, "steps": 2, "cache": folder, "out": out}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_writer", *words])
    training.main()
    shown = capsys.readouterr()
    assert "validation, SAM's masks: F1 0." in shown.out
    assert "parameters" in shown.err
    assert 1e6 < Writer.load(out).parameters_in_all < 3e6
    with pytest.raises(SystemExit, match="is there already"):
        training.main()
    monkeypatch.setattr(sys, "argv", ["train_writer", "--looks", "token", "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit, match="choose from image, marks, masks, tokens"):
        training.main()


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'sam_gym\[reports\]'"):
        small()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"mask_dropout": 1.5}, {"made_masks": -0.1}])
def test_bad_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingSettings(**wrong)
    with pytest.raises(ValueError, match="did you mean 'tokens'"):
        WriterSettings(looks="token")
