"""Training clip-micro: everything follows from the seed, interrupted or not; what is saved is what is shipped."""

import pytest
import safetensors.torch
import torch

from sam_gym.semantics import train_clip
from sam_gym.semantics.training import ClipTrainer, ClipTrainingSettings

SETTINGS = ClipTrainingSettings(steps=3, groups=2, sections=2, smears=3, regions=2)


def trained(disks, state=None, stop=None, settings=SETTINGS):
    """A trainer after its steps, or after `stop` of them."""
    trainer = ClipTrainer(disks, settings, state, progress=False)

    def after_step(trainer, _loss):
        if trainer.steps_done == stop:
            trainer.store()
            raise KeyboardInterrupt

    if stop is None:
        trainer.run(after_step)
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(after_step)
    return trainer


@pytest.fixture(scope="module")
def straight(disks):
    return trained(disks)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_the_seed_decides(disks, straight):
    torch.manual_seed(99)  # the global state neither matters nor moves
    before = torch.get_rng_state()
    assert same_weights(trained(disks), straight)
    assert torch.equal(torch.get_rng_state(), before)
    other = ClipTrainingSettings(**{**vars(SETTINGS), "seed": 1})
    assert not same_weights(trained(disks, settings=other), straight)


def test_an_interrupted_training_ends_the_same(disks, straight, tmp_path):
    state = tmp_path / "weights.state"
    assert trained(disks, state, stop=1).steps_done == 1
    resumed = ClipTrainer(disks, SETTINGS, state, progress=False)
    assert resumed.steps_done == 1
    resumed.run(lambda _trainer, _loss: None)
    assert same_weights(resumed, straight)


def test_a_state_of_other_settings_is_refused(disks, tmp_path):
    state = tmp_path / "weights.state"
    trained(disks, state, stop=1)
    with pytest.raises(ValueError, match="other settings or data"):
        ClipTrainer(disks, ClipTrainingSettings(**{**vars(SETTINGS), "groups": 3}), state, progress=False)


def test_what_is_saved_is_what_was_trained(straight, tmp_path):
    file = tmp_path / "weights.safetensors"
    straight.save(file)
    assert file.stat().st_size <= 10e6
    saved = safetensors.torch.load_file(file)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    model = straight.trained().model
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name].float())


@pytest.mark.parametrize("name", ["steps", "groups", "sections", "smears", "regions"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        ClipTrainingSettings(**{name: 0})


def test_the_command_explains_itself_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_clip", "--help"])
    with pytest.raises(SystemExit) as ended:
        train_clip.main()
    assert ended.value.code == 0
    assert "--threads" in capsys.readouterr().out
    there = tmp_path / "weights.safetensors"
    there.write_bytes(b"mine")
    monkeypatch.setattr("sys.argv", ["train_clip", "--out", str(there)])
    with pytest.raises(SystemExit, match="is there already"):
        train_clip.main()
    assert there.read_bytes() == b"mine"
