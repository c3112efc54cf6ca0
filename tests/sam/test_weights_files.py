"""Weights in files: formats, wrappings and identity of what a path names, and what is said of unusable ones."""

import pytest
import safetensors.torch
import torch

from sam_gym._utils.fetching import sha256_of
from sam_gym.sam import CheckpointError, checkpoint_id, load_sam, weights_files
from sam_gym.sam.architectures import build
from sam_gym.sam.sources import CHECKPOINTS


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(CheckpointError) as error:
        load_sam("MobileSAM")
    assert "Did you mean 'mobile_sam'" in str(error.value)
    assert f"Known names: {', '.join(CHECKPOINTS)}" in str(error.value)
    assert "path" in str(error.value)
    with pytest.raises(CheckpointError, match="unknown checkpoint 'zzz'. Known names"):
        checkpoint_id("zzz")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_path_loads_by_its_architecture(tmp_path, suffix, same_weights):
    model = build("tiny", seed=5)
    path = tmp_path / f"my tiny{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    assert same_weights(load_sam(path), model)
    assert same_weights(load_sam(str(path)), model)
    assert checkpoint_id(path) == f"my_tiny-{sha256_of(path)[:12]}"


def test_half_precision_files_become_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file({k: v.half() for k, v in build("tiny").state_dict().items()}, path)
    assert {parameter.dtype for parameter in load_sam(path).parameters()} == {torch.float32}


def _wrapped(key, prefix=""):
    return lambda state: {key: {prefix + name: tensor for name, tensor in state.items()}, "epoch": 3}


@pytest.mark.parametrize(
    "wrap",
    [
        _wrapped("model"),
        _wrapped("state_dict"),
        _wrapped("model_state_dict"),
        _wrapped("model", "module."),  # MedSAM's training on several GPUs
        _wrapped("model_state", "sam."),  # torch_em
        lambda state: {f"module.sam.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"sam.{name}": tensor.bfloat16() for name, tensor in state.items()},
    ],
)
def test_wrappings_of_training_scripts_are_taken_off(tmp_path, wrap, same_weights):
    model = build("tiny", seed=5)
    state = wrap(model.state_dict())
    if all(isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 for value in state.values()):
        model = model.bfloat16().float()
    torch.save(state, tmp_path / "wrapped.pth")
    loaded = load_sam(tmp_path / "wrapped.pth")
    assert same_weights(loaded, model)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_prefix_that_only_some_names_have_is_not_taken_off(tmp_path):
    state = build("tiny").state_dict()
    state["module.mask_decoder.iou_token.weight"] = state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match=r"1 not expected \(module.mask_decoder.iou_token.weight\)"):
        load_sam(tmp_path / "mixed.pt")


def test_files_in_torchs_old_format_load(tmp_path, same_weights):
    model = build("tiny", seed=5)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_weights(load_sam(tmp_path / "old.pt"), model)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_loaded_model_does_not_depend_on_its_file_any_more(tmp_path, suffix, same_weights):
    path = tmp_path / f"mine{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(build("tiny", 5).state_dict(), path)
    loaded = load_sam(path)
    with path.open("r+b") as file:  # in place, as the file is mapped into memory while it is read
        file.write(bytes(path.stat().st_size))
    assert same_weights(loaded, build("tiny", 5))


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "mine.pt"
    torch.save(build("tiny", 5).state_dict(), path)
    hashed = []
    monkeypatch.setattr(weights_files, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    first = checkpoint_id(path)
    assert checkpoint_id(str(path)) == first
    assert len(hashed) == 1
    torch.save(build("tiny", 6).state_dict(), path)
    assert checkpoint_id(path) == f"mine-{sha256_of(path)[:12]}" != first
    assert len(hashed) == 2


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_truncated_file_is_named_with_the_cause_and_a_way_out(tmp_path, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(build("tiny").state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    with pytest.raises(CheckpointError, match=rf"cut\{suffix} .*cannot be read.*truncated.*fetch it again"):
        load_sam(path)


def test_a_foreign_architecture_is_described(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(CheckpointError) as error:
        load_sam(path)
    for told in (
        str(path),
        "mobile_sam, vit_b, vit_l, vit_h, tiny",
        "weight [2, 3]",
        "Found 2 tensors",
        "missing",
        "not expected",
    ):
        assert told in str(error.value)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    state = build("tiny").state_dict()
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 64)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"with tiny: 1 of another shape \(mask_decoder.iou_token.weight\)"):
        load_sam(tmp_path / "odd.pt")


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="state_dict"):
        load_sam(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="dict of tensors"):
        load_sam(path)


def test_a_missing_file_and_a_strange_one_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pt: there is no such file"):
        load_sam(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_sam(tmp_path)
