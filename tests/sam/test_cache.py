"""The disk tier of the embedding cache: what was computed and what was read are the same bits, or it is not used."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from sam_gym._utils.fetching import cache_dir, embeddings_dir
from sam_gym.sam import PromptBatch, SamBackend, embedding_folder, get_backend, load_sam
from sam_gym.sam import backend as backend_module
from sam_gym.sam.cache import content_key
from sam_gym.sam.disk_cache import DiskCache, EntryError, encoder_id, namespace_of, read_entry

NAMESPACE = "0123456789ab-p1-float16"
KEY = "ab" * 32
PRECISIONS = {"exact": torch.float32, "fast": torch.float16}


def picture(seed: int = 0, size: tuple[int, int] = (24, 32)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def tiny_backend(folder: Path | None, precision: str = "exact", **arguments: Any) -> SamBackend:
    return SamBackend("tiny_random", "cpu", precision, disk_cache=folder, **arguments)


def features() -> torch.Tensor:
    return torch.randn((8, 4, 4), generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture
def shared_anew() -> Iterator[Callable[[], None]]:
    """Forget the process's shared backends, as a new process would not have them."""
    backend_module._shared_backend.cache_clear()
    yield backend_module._shared_backend.cache_clear
    backend_module._shared_backend.cache_clear()


# ------------------------------------------------------------------------------------------------- computed or read


@pytest.mark.parametrize("precision", PRECISIONS)
def test_read_equals_computed(tmp_path: Path, precision: str) -> None:
    """To the last bit, in the same layout; and so do the masks that come of it."""
    images = [picture(seed, (20 + seed, 40)) for seed in range(3)]
    plain, first, second = (tiny_backend(folder, precision) for folder in (None, tmp_path, tmp_path))
    results = [backend.encode(images) for backend in (plain, first, second)]
    assert [backend.encoder_calls for backend in (plain, first, second)] == [3, 3, 0]
    for embeddings in zip(*results, strict=True):
        for embedding in embeddings:
            assert embedding.features.dtype == PRECISIONS[precision]
            assert embedding.features.stride() == embeddings[0].features.stride()
            assert embedding.features[None].is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(embedding.features, embeddings[0].features)
            assert embedding.image_size == embeddings[0].image_size
            assert embedding.input_size == embeddings[0].input_size
    prompts = PromptBatch.from_lists(boxes=[(2, 3, 15, 18)] * 3)
    masks = [
        backend.decode(embeddings, prompts).logits
        for backend, embeddings in zip((plain, first, second), results, strict=True)
    ]
    assert masks[0].isfinite().all()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_memory_then_disk_then_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = tiny_backend(tmp_path, cache_bytes=1)  # memory for one embedding
    asked: list[str] = []
    get = DiskCache.get

    def counted(self: DiskCache, key: str) -> torch.Tensor | None:
        asked.append(key)
        return get(self, key)

    monkeypatch.setattr(DiskCache, "get", counted)
    a, b = picture(1), picture(2)
    calls = []
    for image in (a, a, b, a):
        backend.encode([image])
        calls.append((len(asked), backend.encoder_calls))
    assert calls == [(1, 1), (1, 1), (2, 2), (3, 2)]  # encoded; in memory; encoded, which drops a; on disk


def test_precisions_do_not_mix(tmp_path: Path) -> None:
    image = picture()
    exact, fast = (tiny_backend(tmp_path, precision) for precision in PRECISIONS)
    exact.encode([image])
    fast.encode([image])
    assert fast.encoder_calls == 1
    rounded = exact.encode([image])[0].features.half()
    assert torch.equal(fast.encode([image])[0].features, rounded)
    namespaces = {entry.namespace for entry in embedding_folder.entries(tmp_path)}
    identity = encoder_id(load_sam("tiny_random"))
    assert namespaces == {f"{identity}-p1-float32", f"{identity}-p1-float16"}


def test_sizes_on_disk(tmp_path: Path) -> None:
    """MobileSAM's embedding: 2 MiB in float16, 4 MiB in float32, and little more."""
    for dtype, mib in (("float16", 2), ("float32", 4)):
        cache = DiskCache(tmp_path, f"0123456789ab-p1-{dtype}")
        cache.put(KEY, torch.randn(256, 64, 64).to(getattr(torch, dtype)), (512, 512))
        assert mib <= cache.path(KEY).stat().st_size / 2**20 < mib + 0.01


def test_layout(tmp_path: Path) -> None:
    image = picture()
    backend = tiny_backend(tmp_path)
    backend.encode([image])
    (entry,) = embedding_folder.entries(tmp_path)
    key = content_key(image)
    assert entry.path == tmp_path / namespace_of(backend.sam, torch.float32) / key[:2] / f"{key}.safetensors"
    assert read_entry(entry.path).shape == (16, 16, 32)


def test_encoder_id_is_that_of_the_encoder() -> None:
    """Another decoder is the same encoder; the least change of weights or of preprocessing is another one."""
    sam = load_sam("tiny_random")
    before = encoder_id(sam)
    assert len(before) == 12
    assert encoder_id(load_sam("tiny_random")) == before
    with torch.no_grad():
        next(sam.mask_decoder.parameters()).add_(1)
        assert encoder_id(sam) == before
        sam.pixel_mean[0] += 1
        assert encoder_id(sam) != before
        sam.pixel_mean[0] -= 1
        assert encoder_id(sam) == before
        next(sam.image_encoder.parameters()).view(-1)[0] += 1e-6
        assert encoder_id(sam) != before


def test_a_pickled_backend_keeps_its_folder(tmp_path: Path, shared_anew: Callable[[], None]) -> None:
    backend = tiny_backend(tmp_path)
    backend.encode([picture()])
    copy = pickle.loads(pickle.dumps(backend))
    copy.encode([picture()])
    assert copy.encoder_calls == 0


def test_a_hit_counts_as_use(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, NAMESPACE)
    cache.put(KEY, features(), (4, 4))
    os.utime(cache.path(KEY), (1e9, 1e9))
    assert cache.get(KEY) is not None
    assert time.time() - cache.path(KEY).stat().st_mtime < 60


def test_wrong_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes float16 features, got torch.float32"):
        DiskCache(tmp_path, NAMESPACE).put(KEY, features().float(), (4, 4))


# --------------------------------------------------------------------------------------------------- environments


def test_second_process_encodes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny: dict[str, Any],
    shared_anew: Callable[[], None],
    same: Callable[[Any, Any], None],
) -> None:
    """Resets on images that an earlier process encoded run the encoder zero times, and observe the same."""
    monkeypatch.setenv("SAM_GYM_EMBEDDINGS", str(tmp_path))
    calls, observations = [], []
    for _ in range(2):
        shared_anew()
        env = gymnasium.make("SamPrompt-ISBI-v0", **tiny, precision="fast")
        observations.append([env.reset(seed=seed)[0] for seed in range(4)])
        calls.append(get_backend("tiny_random", "cpu", "fast").encoder_calls)
        env.close()
    assert calls == [2, 0]  # the validation split has two sections
    same(*observations)
    assert observations[0][0]["embedding"].dtype == np.float32


def test_folder_of_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert embeddings_dir() is None  # conftest.py sets SAM_GYM_EMBEDDINGS=off
    assert get_backend("tiny_random", "cpu").disk_cache is None
    monkeypatch.setenv("SAM_GYM_EMBEDDINGS", str(tmp_path))
    assert embeddings_dir() == tmp_path
    monkeypatch.setenv("SAM_GYM_EMBEDDINGS", "~/here")
    assert embeddings_dir() == Path.home() / "here"
    monkeypatch.delenv("SAM_GYM_EMBEDDINGS")
    assert embeddings_dir() == cache_dir() / "embeddings"


def test_a_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, is a file; name a folder in SAM_GYM_EMBEDDINGS"):
        tiny_backend(tmp_path / "file")


# ---------------------------------------------------------------------------------------------- damage and forgery


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def copy_of_another_image(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def copy_of_another_encoder(path: Path, other: Path) -> None:
    """From another checkpoint's folder: the right key, a whole file."""
    elsewhere = DiskCache(path.parents[2], "f" * 12 + "-p1-float32")
    elsewhere.put(path.stem, torch.randn(32, 16, 16), (24, 32))
    shutil.copyfile(elsewhere.path(path.stem), path)


def copy_of_another_precision(path: Path, other: Path) -> None:
    elsewhere = DiskCache(path.parents[2], path.parents[1].name.replace("float32", "float16"))
    elsewhere.put(path.stem, torch.randn(32, 16, 16).half(), (24, 32))
    shutil.copyfile(elsewhere.path(path.stem), path)


def another_file(path: Path, other: Path) -> None:
    save_file({"embedding": torch.zeros(16, 16, 32)}, path)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (truncate, "cannot be read"),
        (empty, "cannot be read"),
        (flip_a_bit, "its sha256 is"),
        (copy_of_another_image, "its key is"),
        (copy_of_another_encoder, "its namespace is 'ffffffffffff-p1-float32'"),
        (copy_of_another_precision, "its namespace is .*float16"),
        (another_file, "cannot be read"),
    ],
)
def test_a_damaged_entry_is_reported_and_replaced(
    tmp_path: Path, damage: Callable[[Path, Path], None], cause: str
) -> None:
    image, another = picture(1), picture(2)
    writer = tiny_backend(tmp_path)
    expected = writer.encode([image, another])[0].features
    assert writer.disk_cache is not None
    path, other = (writer.disk_cache.path(content_key(each)) for each in (image, another))
    whole = path.read_bytes()
    damage(path, other)
    reader = tiny_backend(tmp_path)
    with pytest.warns(UserWarning, match=cause) as caught:
        assert torch.equal(reader.encode([image])[0].features, expected)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    assert reader.encoder_calls == 1
    assert path.read_bytes() == whole
    assert torch.equal(tiny_backend(tmp_path).encode([image])[0].features, expected)  # and without a warning


def test_an_entry_that_cannot_be_replaced(tmp_path: Path) -> None:
    """A folder in its place: both failures are said, and the result is right."""
    image = picture()
    backend = tiny_backend(tmp_path)
    expected = backend.encode([image])[0].features
    path = embedding_folder.entries(tmp_path)[0].path
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="cannot be (read|stored)") as caught:
        assert torch.equal(tiny_backend(tmp_path).encode([image])[0].features, expected)
    assert len(caught) == 2


def test_wrong_folder(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, NAMESPACE)
    cache.put(KEY, features(), (4, 4))
    moved = cache.path(KEY).parent.with_name("cd") / cache.path(KEY).name
    moved.parent.mkdir()
    shutil.copyfile(cache.path(KEY), moved)
    with pytest.raises(EntryError, match="its folder is 'cd', expected 'ab'"):
        read_entry(moved)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, torch.Tensor]:
    cache = DiskCache(tmp_path_factory.mktemp("entry"), NAMESPACE)
    cache.put(KEY, features(), (4, 4))
    return cache.path(KEY), cache.path(KEY).read_bytes(), read_entry(cache.path(KEY))


@settings(max_examples=600)
@given(data=st.data(), flip=st.integers(1, 255))
def test_no_flipped_byte_changes_a_value(
    entry: tuple[Path, bytes, torch.Tensor], data: st.DataObject, flip: int
) -> None:
    """Whatever byte changes, in the header or the tensor: it is noticed, or nothing that was read changes by it."""
    path, whole, expected = entry
    start = len(whole) - expected.nbytes
    position = data.draw(st.integers(0, start - 1) | st.integers(start, len(whole) - 1), "position")
    content = bytearray(whole)
    content[position] ^= flip
    path.write_bytes(content)
    if position >= start:
        with pytest.raises(EntryError, match="its sha256 is"):
            read_entry(path)
        return
    try:
        read = read_entry(path)
    except EntryError:
        return
    assert whole[position] == ord(" "), "only padding may change unnoticed"
    assert torch.equal(read, expected)


@given(length=st.integers(0, 4000), tail=st.binary(max_size=20))
def test_no_other_length_is_accepted(entry: tuple[Path, bytes, torch.Tensor], length: int, tail: bytes) -> None:
    path, whole, expected = entry
    content = whole[:length] + tail
    path.write_bytes(content)
    if content == whole:
        assert torch.equal(read_entry(path), expected)
    else:
        with pytest.raises(EntryError, match=str(path)):
            read_entry(path)


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, NAMESPACE)
    cache.put(KEY, features(), (4, 4))
    read = cache.get(KEY)
    assert read is not None
    with open(cache.path(KEY), "r+b") as file:
        file.truncate(10)
    assert torch.equal(read, features())


# ------------------------------------------------------------------------------------------- disks that take nothing


def assert_goes_on_uncached(folder: Path, cause: str) -> None:
    """One warning, however many images; results as without a cache."""
    images = [picture(seed) for seed in range(4)]
    backend = tiny_backend(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embeddings = [*backend.encode(images[:2]), *backend.encode(images[2:])]
    assert len(caught) == 1
    message = str(caught[0].message)
    for part in (str(folder), cause, "free space", "sam-gym cache prune", "SAM_GYM_EMBEDDINGS", "`off`"):
        assert part in message
    assert backend.encoder_calls == 4
    for computed, expected in zip(embeddings, tiny_backend(None).encode(images), strict=True):
        assert torch.equal(computed.features, expected.features)
    assert backend.encode(images)[0].features is embeddings[0].features  # memory works as ever
    assert embedding_folder.entries(folder) == []
    assert not list(folder.glob("*/??/.*"))


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[:100])
        written.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    assert_goes_on_uncached(tmp_path, "No space left on device")
    assert len(written) == 1


def test_no_permission_to_make_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since permissions stop nobody who runs tests as root."""

    def mkdir(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert_goes_on_uncached(tmp_path / "cache", "Permission denied")


def test_read_only_folder_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is read although its time of use cannot be set; what is not is encoded, with one warning."""
    known, new = picture(1), picture(2)
    tiny_backend(tmp_path).encode([known])

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    backend = tiny_backend(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("utime", "open", "mkdir"):
            patch.setattr(os, name, refuse)
        with pytest.warns(UserWarning, match="cannot be stored.*Read-only file system") as caught:
            backend.encode([known, new])
    assert len(caught) == 1
    assert backend.encoder_calls == 1
