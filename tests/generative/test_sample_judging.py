"""What samples are judged by, and what DDPO is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sam_gym.generative.baselines import WeightedSettings, best_of, reward_weighted
from sam_gym.generative.classifier import JUDGE, Classifier, train_classifier
from sam_gym.generative.judging import frechet_distance, judge_samples, nearest
from sam_gym.generative.model import Denoiser, sample, to_samples
from sam_gym.generative.schedule import Schedule
from sam_gym.generative.sources import Pictures

CLASSES = ("dark", "bright")


def brightness(rng: np.random.Generator, n: int) -> Pictures:
    labels = np.arange(n) % 2
    images = rng.integers(0, 128, (n, 32, 32, 3)) + 127 * labels[:, None, None, None]
    return Pictures("test", "train", CLASSES, images.astype(np.uint8), labels)


def test_figures() -> None:
    """Real pictures under the right, the wrong and one class; the same one again and again; training pictures."""
    rng = np.random.default_rng(0)
    train, test, other = (brightness(rng, n) for n in (64, 60, 80))
    judge = train_classifier(train, JUDGE, steps=25, batch=16, progress=False)
    samples, labels = to_samples(other.images), torch.as_tensor(other.labels)
    real = judge_samples(samples, labels, judge, train, test)
    assert real.accuracy == 1
    assert real.diversity == pytest.approx(1, abs=0.1)
    assert real.nearest == pytest.approx(1, abs=0.05)
    assert judge_samples(samples, 1 - labels, judge, train, test).by_class == {"dark": 0, "bright": 0}
    same = judge_samples(samples[labels], labels, judge, train, test)  # only the first two, again and again
    assert same.diversity < 0.1
    assert same.frechet > real.frechet
    by_heart = to_samples(np.rot90(train.images, axes=(1, 2)).copy())
    assert judge_samples(by_heart, torch.as_tensor(train.labels), judge, train, test).nearest < 0.01
    with pytest.raises(ValueError, match="there are 1 samples of 'bright'"):
        judge_samples(samples[[0, 1, 2]], labels[[0, 1, 2]], judge, train, test)


def test_frechet_distance_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (20_000, 2)), rng.normal((3, 0), (1, 2), (20_000, 2))
    assert frechet_distance(one, other) == pytest.approx(3**2 + (2 - 1) ** 2, rel=0.03)


def test_nearest_is_in_pixels() -> None:
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[1] = 1
    assert nearest(torch.full((1, 3, 4, 4), 0.75), pictures).tolist() == pytest.approx([0.25])


@pytest.fixture
def models(denoise: dict[str, Any]) -> tuple[Denoiser, Classifier]:
    return Denoiser.load(denoise["model"]), Classifier.load(denoise["classifier"])


def test_best_of(models: tuple[Denoiser, Classifier]) -> None:
    """One of N is the plain model; more are never worse by the reward, and each is one of those drawn."""
    labels, schedule = torch.tensor([0, 1, 1, 0]), Schedule(2)

    def drawn(n: int) -> torch.Tensor:
        return best_of(n, *models, schedule, labels, torch.Generator().manual_seed(0))

    def worth(samples: torch.Tensor) -> torch.Tensor:
        return models[1](samples)[torch.arange(4), labels]

    generator = torch.Generator().manual_seed(0)
    plain = [sample(models[0], schedule, labels, generator) for _ in range(4)]
    torch.testing.assert_close(drawn(1), plain[0], atol=0, rtol=0)
    torch.testing.assert_close(worth(drawn(4)), torch.stack([worth(one) for one in plain]).amax(0))
    with pytest.raises(ValueError, match="n=0"):
        drawn(0)


def test_reward_weighted_regression(models: tuple[Denoiser, Classifier]) -> None:
    base, classifier = models
    before, rewards = [one.clone() for one in base.parameters()], []
    settings = WeightedSettings(rounds=2, samples=8, steps=2, batch=4)
    tuned = reward_weighted(base, classifier, Schedule(2), settings, rewards.append)
    assert len(rewards) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, tuned.parameters(), strict=True))
