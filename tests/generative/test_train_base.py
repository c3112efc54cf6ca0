"""Pictures of cells; training the diffusion model and the classifiers on them; where weights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam_gym.data.smears import NUCLEI, generate_smear
from sam_gym.generative import sources, train_base
from sam_gym.generative.classifier import JUDGE, REWARD, ROLES, Classifier, confusion, train_classifier
from sam_gym.generative.files import weights_file
from sam_gym.generative.model import Denoiser, ModelError, to_pixels, to_samples
from sam_gym.generative.sources import SETS, Pictures, PicturesError, load_pictures
from sam_gym.generative.training import BaseSettings, BaseTrainer

CLASSES = ("dark", "bright")


@pytest.fixture
def pictures() -> Pictures:
    """Pictures of two classes: dark and bright noise, 40 and 24 of them."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 24])
    images = rng.integers(0, 128, (64, 32, 32, 3)) + 127 * labels[:, None, None, None]
    return Pictures("test", "train", CLASSES, images.astype(np.uint8), labels)


@pytest.fixture
def few_smears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "SMEAR_COUNTS", {"train": (20, 18, 17, 16), "test": (2, 2, 2, 2)})


# ------------------------------------------------------------------------------------------------------------ pictures


def test_smears(few_smears: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of each class as stated; a second time they come from the cache."""
    pictures = load_pictures("smears", progress=False)
    assert pictures.counts == dict(zip(NUCLEI, (20, 18, 17, 16), strict=True))
    assert pictures.images.shape == (71, 32, 32, 3)
    monkeypatch.setattr(sources, "generate_smear", None)
    again = load_pictures("smears", progress=False)
    np.testing.assert_array_equal(again.images, pictures.images)
    np.testing.assert_array_equal(again.labels, pictures.labels)


def test_the_nucleus_is_the_one_asked_for() -> None:
    """Nuclei of many lobes fall into more parts than those of two, and those into more than a kidney."""
    from scipy import ndimage

    parts = {}
    for nucleus in NUCLEI:
        smears = [generate_smear(seed, 64, nucleus=nucleus) for seed in range(20)]
        parts[nucleus] = np.mean([ndimage.label(smear.classes == 3)[1] for smear in smears])
    assert parts["many lobes"] > parts["two lobes"] > parts["kidney"]
    with pytest.raises(ValueError, match="did you mean 'kidney'"):
        generate_smear(0, nucleus="kidny")


def test_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "EM_COUNTS", {"train": 24, "test": 12})
    pictures = load_pictures("synthetic-em", "test", progress=False)
    assert pictures.counts == {"cytoplasm": 12, "membrane": 12, "mitochondrion": 12}
    middle = pictures.images[:, 15:17, 15:17].mean((1, 2, 3))
    assert middle[pictures.labels == 0].mean() > middle[pictures.labels == 1].mean()  # membranes are dark


@pytest.mark.real_images
def test_real_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts by class, as the documentation states them. Of eosinophils and basophils there are none to train on."""
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path))
    assert load_pictures("wbc-cell", progress=False).counts == {"neutrophil": 42, "lymphocyte": 35, "monocyte": 18}
    counts = load_pictures("dsb2018-153", "test", progress=False).counts
    assert counts == {"fluorescence": 293, "stained tissue": 65, "bright field": 92}


def test_pictures_that_are_none(pictures: Pictures) -> None:
    with pytest.raises(PicturesError, match="did you mean 'smears'"):
        load_pictures("smear")
    with pytest.raises(PicturesError, match="unknown split 'val'"):
        load_pictures("smears", "val")
    few = Pictures("mine", "train", (*CLASSES, "grey"), pictures.images[:50], pictures.labels[:50])
    with pytest.raises(PicturesError, match=r"mine train to train on: 'bright' has 10, 'grey' has 0, and 16 of each"):
        BaseTrainer(few, BaseSettings())
    with pytest.raises(PicturesError, match="unequal"):
        Pictures("mine", "train", CLASSES, pictures.images, pictures.labels[:3])
    with pytest.raises(PicturesError, match=r"must be uint8 \(N, 32, 32, 3\)"):
        Pictures("mine", "train", CLASSES, pictures.images[:, :30], pictures.labels)


# ------------------------------------------------------------------------------------------------------------ training


def test_the_error_falls(pictures: Pictures) -> None:
    trainer, losses = BaseTrainer(pictures, BaseSettings(steps=50, batch=16, learning_rate=2e-3)), []
    trainer.run(lambda _, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_going_on_is_as_never_having_stopped(pictures: Pictures, tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole = BaseTrainer(pictures, BaseSettings(steps=4, batch=4))
    whole.run(lambda *_: None)
    first = BaseTrainer(pictures, BaseSettings(steps=2, batch=4), state)
    first.run(lambda *_: None)
    first.store()
    second = BaseTrainer(pictures, BaseSettings(steps=4, batch=4), state)
    second.run(lambda *_: None)
    for a, b in zip(whole.average.model.parameters(), second.average.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    with pytest.raises(ValueError, match="other settings or pictures"):
        BaseTrainer(pictures, BaseSettings(steps=4, batch=8), state)


def test_classifiers(pictures: Pictures, tmp_path: Path) -> None:
    """Both learn; from different halves, with different networks; their files keep what they are."""
    said = []
    for role in ROLES:
        model = train_classifier(pictures, role, steps=25, batch=16, progress=False)
        table = confusion(model, pictures)
        assert table.sum() == 64
        assert table.trace() >= 62
        model.save(tmp_path / role)
        loaded = Classifier.load(tmp_path / role, CLASSES)
        said.append(loaded(to_samples(pictures.images[:5])))
        torch.testing.assert_close(said[-1], model(to_samples(pictures.images[:5])), atol=0.05, rtol=0.05)
    assert not torch.allclose(*said)
    halves = [pictures.half(which) for which in (0, 1)]
    assert [half.counts for half in halves] == [{"dark": 20, "bright": 12}] * 2
    assert not {image.tobytes() for image in halves[0].images} & {image.tobytes() for image in halves[1].images}
    with pytest.raises(ModelError, match="apart, not"):
        Classifier.load(tmp_path / JUDGE, ("dark", "grey"))


def test_pixels_and_samples(pictures: Pictures) -> None:
    np.testing.assert_array_equal(to_pixels(to_samples(pictures.images)), pictures.images)


def test_command(
    few_smears: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains what is not there, goes on with more steps, and environments find what it wrote."""
    monkeypatch.setattr(train_base, "SHEET_STEPS", 2)
    for steps in ("2", "3"):
        arguments = ["train_base", "--steps", steps, "--classifier-steps", "2", "--threads", "1"]
        monkeypatch.setattr("sys.argv", arguments)
        train_base.main()
    folder = tmp_path / "denoise" / "smears"
    assert sorted(path.name for path in (folder / "sheets").iterdir()) == ["000002.png", "000003.png"]
    assert Denoiser.load(weights_file("smears", "base")).classes == NUCLEI
    assert weights_file("smears", REWARD).parent == folder
    said = capsys.readouterr().out
    assert "after 3 steps" in said
    assert "judge classifier on 8 test pictures" in said


def test_every_set_has_a_command() -> None:
    assert set(train_base.NAMES) == set(SETS)
