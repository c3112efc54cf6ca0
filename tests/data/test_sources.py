"""Downloads: resumed, checked, failing fast, leaving nothing half done. A local server stands for the network."""

import hashlib
import http.server
import socket
import threading

import pytest

from sam_gym.data.sources import DataUnavailableError, locate
from sam_gym.data.spec import DatasetSpec, FileRecord

CONTENT = {f"tiny/{k}.bin": bytes([k]) * (1000 + k) for k in range(4)}


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        self.requested: list[str] = []
        self.truncate: set[str] = set()  # announce the whole, send half, hang up
        self.wrong: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.requested.append(path)
        if path not in CONTENT:
            self.send_error(404)
            return
        body = b"<html>login</html>" if path in self.server.wrong else CONTENT[path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if path in self.server.truncate else body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def server():
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _spec(base: str, names=tuple(CONTENT)) -> DatasetSpec:
    return DatasetSpec(
        name="tiny",
        title="four small files",
        licence="licence-of-tiny",
        citation="cite-tiny",
        splits={"train": ()},
        read=lambda _root, _image_id: (None, None),
        text="number",
        folder="tiny",
        files=tuple(
            FileRecord(name, len(CONTENT[name]), hashlib.sha256(CONTENT[name]).hexdigest(), f"{base}/{name}")
            for name in names
        ),
    )


def _files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _base(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_download_all(server, fresh, capfd):
    spec = _spec(_base(server))
    root = locate(spec)
    assert root == fresh / "data"
    assert _files(root) == sorted(CONTENT)
    assert all((root / name).read_bytes() == body for name, body in CONTENT.items())
    shown = capfd.readouterr()
    assert "licence-of-tiny" in shown.err
    assert "cite-tiny" in shown.err
    assert shown.err.index("licence-of-tiny") < shown.err.index("4/4")
    assert not shown.out
    assert locate(spec) == root
    assert len(server.requested) == 4


@pytest.mark.parametrize("kind", ["truncate", "wrong"])
def test_bad_download_leaves_nothing_behind_and_is_resumed(kind, server, fresh):
    spec = _spec(_base(server))
    getattr(server, kind).add("tiny/2.bin")
    with pytest.raises(DataUnavailableError, match=r"download: tiny/2\.bin from http://.*: "):
        locate(spec)
    kept = _files(fresh / "data")
    assert kept in (["tiny/0.bin", "tiny/1.bin"], ["tiny/0.bin", "tiny/1.bin", "tiny/3.bin"])
    getattr(server, kind).clear()
    server.requested.clear()
    locate(spec)
    assert sorted(server.requested) == sorted(set(CONTENT) - set(kept))


def test_without_a_network_one_request_says_so(fresh, unreachable):
    with pytest.raises(DataUnavailableError, match="no route"):
        locate(_spec("http://127.0.0.1:9"))
    assert unreachable == ["http://127.0.0.1:9/tiny/0.bin"]


def test_damaged_file_in_the_cache_is_replaced(server, fresh):
    spec = _spec(_base(server))
    (fresh / "data/tiny").mkdir(parents=True)
    for name, body in CONTENT.items():
        (fresh / "data" / name).write_bytes(body)
    (fresh / "data/tiny/1.bin").write_bytes(b"?")
    locate(spec)
    assert server.requested == ["tiny/1.bin"]
    assert (fresh / "data/tiny/1.bin").read_bytes() == CONTENT["tiny/1.bin"]


def test_missing_on_the_server(server, fresh):
    base = _base(server) + "/moved"
    with pytest.raises(DataUnavailableError, match="404"):
        locate(_spec(base))
    assert server.requested == ["moved/tiny/0.bin"]


def test_refused_connection_fails_fast(fresh):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataUnavailableError, match="download: tiny/0.bin from http://127"):
        locate(_spec(f"http://127.0.0.1:{port}"))
    assert _files(fresh / "data") == []


def test_file_urls(fresh, tmp_path):
    for name, body in CONTENT.items():
        (tmp_path / "mirror" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror" / name).write_bytes(body)
    root = locate(_spec((tmp_path / "mirror").as_uri()))
    assert _files(root) == sorted(CONTENT)


def test_unwritable_cache_is_reported(fresh, tmp_path, monkeypatch):
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    monkeypatch.setenv("SAM_GYM_CACHE", str(blocker))
    with pytest.raises(DataUnavailableError, match="download: .*a-file"):
        locate(_spec("http://127.0.0.1:9"))


def test_environment_folder_comes_first(server, fresh, tmp_path, monkeypatch):
    for name, body in CONTENT.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(body)
    monkeypatch.setenv("SAM_GYM_DATA", str(tmp_path / "mine"))
    assert locate(_spec(_base(server))) == tmp_path / "mine"
    assert not server.requested
