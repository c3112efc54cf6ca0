"""Tuned decoders: saved with their base, or put on one by "BASE+FILE"; and all that can be wrong with either."""

import copy
import re

import pytest
import safetensors.torch
import torch

from sam_gym._utils.fetching import sha256_of
from sam_gym.sam import CheckpointError, checkpoint_id, load_sam, save_decoder
from sam_gym.sam.architectures import build


@pytest.fixture
def tuned():
    """The tiny SAM with another mask decoder and prompt encoder."""
    return _tune(load_sam("tiny_random"))


def _tune(sam, seed=3):
    torch.manual_seed(seed)
    sam = copy.deepcopy(sam)
    for name, tensor in sam.state_dict().items():
        if not name.startswith("image_encoder."):
            tensor.add_(torch.randn_like(tensor))
    return sam


def _tensors(sam, *parts):
    return {name: tensor for name, tensor in sam.state_dict().items() if name.startswith(parts)}


def _same(first, second, *parts):
    first, second = _tensors(first, *parts), _tensors(second, *parts)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _save(state, path):
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


# ---------------------------------------------------------------------------------------------- saved with its base


def test_a_saved_decoder_comes_back_on_its_base(tuned, tmp_path):
    path = tmp_path / "runs" / "my decoder.safetensors"
    save_decoder(tuned.train().requires_grad_(True), path, "tiny_random")
    for checkpoint in (path, str(path)):
        loaded = load_sam(checkpoint)
        assert _same(loaded, tuned, "mask_decoder.", "prompt_encoder.")
        assert _same(loaded, load_sam("tiny_random"), "image_encoder.")
        assert not any(module.training for module in loaded.modules())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert set(safetensors.torch.load_file(path)) == set(_tensors(tuned, "mask_decoder.", "prompt_encoder."))


def test_the_identity_is_that_of_base_and_decoder_together(tuned, tmp_path):
    path, again, other = (tmp_path / f"{name}.safetensors" for name in ("my decoder", "again", "other"))
    save_decoder(tuned, path, "tiny_random")
    save_decoder(tuned, again, "tiny_random")
    save_decoder(_tune(tuned), other, "tiny_random")
    assert re.fullmatch(r"my_decoder-[0-9a-f]{12}", checkpoint_id(path))
    assert checkpoint_id(path) == checkpoint_id(f"tiny_random+{path}")
    assert sha256_of(again) == sha256_of(path), "equal decoders make equal files"
    digests = [checkpoint_id(file)[-12:] for file in (path, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert checkpoint_id("tiny_random")[-12:] not in digests

    base = _save(build("tiny", seed=5).state_dict(), tmp_path / "base.pt")
    bare = _save(_tensors(tuned, "mask_decoder."), tmp_path / "bare.pt")
    assert checkpoint_id(f"{base}+{bare}") != checkpoint_id(f"tiny_random+{bare}")


def test_a_base_may_be_a_file_and_be_given_from_another_folder(tmp_path, monkeypatch):
    base = build("tiny", seed=5)
    _save(base.state_dict(), tmp_path / "base.pt")
    tuned = _tune(base)
    monkeypatch.chdir(tmp_path)
    save_decoder(tuned, "tuned.safetensors", "base.pt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _same(load_sam("../tuned.safetensors"), tuned, "")


def test_a_decoder_tuned_from_a_tuned_one_rests_on_the_same_base(tuned, tmp_path):
    first = tmp_path / "decoder.safetensors"
    save_decoder(tuned, first, "tiny_random")
    further = _tune(load_sam(first), seed=4)
    save_decoder(further, first, first)  # even in its place
    assert _same(load_sam(first), further, "")
    save_decoder(tuned, first, f"tiny_random+{first}")
    assert _same(load_sam(first), tuned, "")


def test_a_model_whose_encoder_was_tuned_too_is_not_saved_as_a_decoder(tuned, tmp_path):
    tuned.image_encoder.state_dict()["pos_embed"].add_(1e-3)
    with pytest.raises(CheckpointError, match=r"not that of tiny_random.*torch\.save\(sam\.state_dict\(\)"):
        save_decoder(tuned, tmp_path / "decoder.safetensors", "tiny_random")
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_is_not_saved_where_it_cannot_be(tuned, tmp_path):
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        save_decoder(tuned, tmp_path / "decoder.pt", "tiny_random")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be saved at"):
        save_decoder(tuned, tmp_path / "file" / "decoder.safetensors", "tiny_random")


@pytest.fixture
def on_file(tmp_path):
    """A decoder that was saved on a base in a file: the paths of both, and the model."""
    base, decoder = tmp_path / "base.pt", tmp_path / "decoder.safetensors"
    _save(build("tiny", seed=5).state_dict(), base)
    tuned = _tune(build("tiny", seed=5))
    save_decoder(tuned, decoder, base)
    return base, decoder, tuned


def test_a_base_that_changed_is_refused_with_both_identities(on_file):
    base, decoder, _ = on_file
    before = checkpoint_id(base)
    _save(build("tiny", seed=6).state_dict(), base)
    for function in (load_sam, checkpoint_id):
        with pytest.raises(CheckpointError) as error:
            function(decoder)
        for told in (str(decoder), f"tuned on {before}", f"now {checkpoint_id(base)}", f"load_sam('BASE+{decoder}')"):
            assert told in str(error.value)


def test_a_missing_base_is_told_and_can_be_named(on_file, tmp_path):
    base, decoder, tuned = on_file
    base_id = checkpoint_id(base)
    moved = base.rename(tmp_path / "moved.pt")
    with pytest.raises(CheckpointError) as error:
        load_sam(decoder)
    for told in (str(decoder), base_id, f"{base}: there is no such file", f"load_sam('BASE+{decoder}')"):
        assert told in str(error.value)
    assert _same(load_sam(f"{moved}+{decoder}"), tuned, "")  # without a warning: these are the weights


def test_another_base_that_is_asked_for_is_used_with_a_warning(on_file):
    _, decoder, tuned = on_file
    with pytest.warns(UserWarning, match=r"was tuned on base-\w{12} and is put on tiny_random-\w{12}"):
        loaded = load_sam(f"tiny_random+{decoder}")
    assert _same(loaded, tuned, "mask_decoder.", "prompt_encoder.")
    assert _same(loaded, load_sam("tiny_random"), "image_encoder.")


def test_a_base_whose_name_is_not_known_here_is_told(tuned, tmp_path, monkeypatch):
    from sam_gym.sam import CHECKPOINTS

    decoder = tmp_path / "decoder.safetensors"
    save_decoder(tuned, decoder, "tiny_random")
    monkeypatch.delitem(CHECKPOINTS, "tiny_random")
    with pytest.raises(CheckpointError, match=r"tuned on tiny_random-\w+.*unknown checkpoint 'tiny_random'"):
        load_sam(decoder)


# ---------------------------------------------------------------------------------------------- BASE+FILE


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("parts", [("mask_decoder.",), ("mask_decoder.", "prompt_encoder.")])
def test_any_decoder_file_is_put_on_a_base(tuned, tmp_path, suffix, parts):
    path = _save(_tensors(tuned, *parts), tmp_path / f"decoder{suffix}")
    base = load_sam("tiny_random")
    loaded = load_sam(f"tiny_random+{path}")
    assert _same(loaded, tuned, *parts)
    untouched = {"image_encoder.", "prompt_encoder."} - set(parts)
    assert _same(loaded, base, *untouched)
    assert not _same(loaded, base, "mask_decoder.")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        lambda state: {"state_dict": {f"sam.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name: tensor.half() for name, tensor in state.items()},
        lambda state: {name.removeprefix("mask_decoder."): tensor for name, tensor in state.items()},
    ],
)
def test_wrapped_decoder_files_are_put_on_a_base(tuned, tmp_path, wrap):
    path = _save(wrap(_tensors(tuned, "mask_decoder.")), tmp_path / "decoder.pt")
    loaded = load_sam(f"tiny_random+{path}")
    for name, tensor in _tensors(tuned, "mask_decoder.").items():
        got = loaded.state_dict()[name]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, tensor, rtol=1e-3, atol=1e-3)


def test_paths_may_have_spaces_and_pluses(tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a + b").mkdir()
    base = build("tiny", seed=5)
    _save(base.state_dict(), tmp_path / "a + b" / "my+base.pt")
    _save(_tensors(tuned, "mask_decoder."), tmp_path / "a + b" / "c++.pt")
    for loaded in (load_sam("a + b/my+base.pt+a + b/c++.pt"), load_sam(f"{tmp_path}/a + b/my+base.pt+a + b/c++.pt")):
        assert _same(loaded, base, "image_encoder.")
        assert _same(loaded, tuned, "mask_decoder.")
    # as it stands, it is the path of a file
    assert _same(load_sam("a + b/my+base.pt"), base, "")
    whole = build("tiny", seed=6)
    _save(whole.state_dict(), tmp_path / "tiny_random+decoder.pt")
    _save(_tensors(tuned, "mask_decoder."), tmp_path / "decoder.pt")
    assert _same(load_sam("tiny_random+decoder.pt"), whole, "")
    (tmp_path / "tiny_random+decoder.pt").unlink()
    assert _same(load_sam("tiny_random+decoder.pt"), tuned, "mask_decoder.")


def test_a_decoder_without_a_base_is_answered_with_the_syntax(tuned, tmp_path):
    path = _save(_tensors(tuned, "mask_decoder."), tmp_path / "decoder.pt")
    with pytest.raises(CheckpointError, match=r"without an image encoder.*'BASE\+FILE', as in 'vit_b\+.*decoder\.pt'"):
        load_sam(path)


@pytest.mark.parametrize(
    ("checkpoint", "told"),
    [
        ("tiny_rnadom+decoder.pt", "'BASE+FILE': unknown checkpoint 'tiny_rnadom'. Did you mean 'tiny_random'"),
        ("gone.pt+decoder.pt", "'BASE+FILE': gone.pt: there is no such file"),
        ("tiny_random+gone.pt", "'BASE+FILE': gone.pt: there is no such file"),
        ("tiny_random+decoder", "'BASE+FILE': decoder: a checkpoint is a file that ends in"),
        ("tiny_random+whole.pt", "whole.pt is not a decoder: it has an image encoder too"),
        ("decoder.pt+decoder.pt", "decoder.pt holds a mask decoder without an image encoder"),
    ],
)
def test_what_cannot_be_read_as_base_and_file_is_told(tuned, tmp_path, monkeypatch, checkpoint, told):
    monkeypatch.chdir(tmp_path)
    _save(_tensors(tuned, "mask_decoder."), tmp_path / "decoder.pt")
    _save(tuned.state_dict(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=re.escape(told)):
        load_sam(checkpoint)


def test_a_decoder_that_does_not_fit_is_described(tuned, tmp_path):
    state = _tensors(tuned, "mask_decoder.")
    del state["mask_decoder.mask_tokens.weight"]
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    state["classifier.weight"] = torch.zeros(2, 2)
    path = _save(state, tmp_path / "decoder.pt")
    with pytest.raises(CheckpointError) as error:
        load_sam(f"tiny_random+{path}")
    for told in (
        "decoder.pt does not fit on its base",
        "1 missing (mask_decoder.mask_tokens.weight)",
        "1 not expected (classifier.weight)",
        "1 of another shape (mask_decoder.iou_token.weight)",
    ):
        assert told in str(error.value)


def test_a_prompt_encoder_alone_is_not_enough(tuned, tmp_path):
    path = _save(_tensors(tuned, "prompt_encoder."), tmp_path / "prompts.pt")
    with pytest.raises(CheckpointError, match=r"missing \(mask_decoder"):
        load_sam(f"tiny_random+{path}")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_decoder_is_told(tuned, tmp_path, kept):
    path = tmp_path / "decoder.safetensors"
    save_decoder(tuned, path, "tiny_random")
    path.write_bytes(path.read_bytes()[:kept])
    for checkpoint in (path, f"tiny_random+{path}"):
        with pytest.raises(CheckpointError, match=r"decoder\.safetensors .*cannot be read.*truncated"):
            load_sam(checkpoint)
