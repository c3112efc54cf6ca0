"""The server answers its own page, and refuses everybody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sam_gym.sam.choices import read_choices
from sam_gym.sb3.saved import SavedAgent
from sam_gym.web.app import WebSettings, create_app

SAM = {"checkpoint": "tiny_random", "device": "cpu", "precision": "exact"}
HERE = "http://127.0.0.1:8765"
ME, YOU = {"X-Sam-Gym-Browser": "browser-of-me"}, {"X-Sam-Gym-Browser": "browser-of-you"}
BOX = [40.0, 60.0, 120.0, 130.0]


@pytest.fixture
def serve(tmp_path: Path, sections: Any, agent_file: Path) -> Iterator[Callable[..., TestClient]]:
    """Make a server on two images; its client."""
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.fromarray(sections.image(number)).save(tmp_path / "images" / f"{number}.png")
    Image.fromarray(sections.image(2)[..., 0].astype(np.uint16) * 16).save(tmp_path / "images" / "deep.tif")
    open_ones = []

    def make(**settings: Any) -> TestClient:
        given: dict[str, Any] = {
            "env_id": "SamPrompt-Synthetic-v0", "env_ids": ["SamPrompt-Synthetic-v0"], "images": tmp_path / "images",
            "out": tmp_path / "out", "agent": SavedAgent.load(agent_file, "cpu"), "sam": SAM, "kinds": ("one", "two"),
        }  # fmt: skip
        client = TestClient(create_app(WebSettings(**{**given, **settings})), base_url=HERE, headers=ME)
        open_ones.append(client.__enter__())
        return open_ones[-1]

    yield make
    for client in open_ones:
        client.__exit__(None, None, None)


def act(client: TestClient, what: str, image: str = "0.png", **more: Any) -> dict[str, Any]:
    answer = client.post("/api/annotate/act", json={"image": image, "act": what, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_annotating(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    client = serve()
    assert [one["name"] for one in client.get("/api/annotate/images").json()] == ["0.png", "1.png", "deep.tif"]
    assert client.post("/api/annotate/open", json={"image": "0.png"}).json()["objects"] == []
    begun = act(client, "begin_box", box=BOX, kind=2)
    (one,) = begun["objects"]
    assert sum(begun["masks"][one["key"]]["runs"][1::2]) > 0
    run = act(client, "agent_run")
    assert len(run["objects"][0]["clicks"]) <= 5
    clicked = act(client, "click", x=80.5, y=90.0, label=1)
    assert act(client, "undo")["objects"] == run["objects"]
    redone = act(client, "redo")
    assert redone["objects"] == clicked["objects"]
    mask = client.get("/api/annotate/mask", params={"image": "0.png", "object": 1}).json()
    assert mask == redone["masks"][redone["objects"][0]["key"]]
    act(client, "accept")
    with Image.open(tmp_path / "out" / "labels" / "0.png") as labels:
        assert set(np.unique(np.asarray(labels))) == {0, 1}
    # A server that is started anew, as after a crash, goes on from there
    again = serve()
    assert again.post("/api/annotate/act", json={"image": "0.png", "act": "undo"}).status_code == 404
    opened = again.post("/api/annotate/open", json={"image": "0.png"}).json()
    assert [one["accepted"] for one in opened["objects"]] == [True]
    assert act(again, "undo")["active"] == 1
    with Image.open(tmp_path / "out" / "labels" / "0.png") as labels:
        assert not np.asarray(labels).any()


def test_people_keep_out_of_each_others_way(serve: Callable[..., TestClient]) -> None:
    client = serve()
    client.post("/api/annotate/open", json={"image": "0.png"}, headers={"X-Sam-Gym-Person": "Mar%C3%ADa"})
    refused = client.post("/api/annotate/open", json={"image": "0.png"}, headers=YOU)
    assert refused.status_code == 409
    assert refused.json()["error"].startswith("María works on 0.png")
    assert client.post("/api/annotate/act", json={"image": "0.png", "act": "undo"}, headers=YOU).status_code == 404
    assert [one["taken"] for one in client.get("/api/annotate/images", headers=YOU).json()] == ["María", None, None]
    client.post("/api/annotate/close", json={"image": "0.png"})
    assert client.post("/api/annotate/open", json={"image": "0.png"}, headers=YOU).status_code == 200


def test_many_at_once_are_not_mixed_up(serve: Callable[..., TestClient]) -> None:
    """Thirty games at once, each with a click of its own."""
    client = serve()

    def game(seed: int) -> tuple[dict[str, Any], int]:
        pose = {"env_id": "SamPrompt-Synthetic-v0", "seed": seed % 5}
        begun = client.post("/api/play/new", json=pose).json()
        cell = [cell for cell, free in enumerate(begun["free"]) if free][seed]
        move = {"game": begun["game"], "cell": cell, "label": 1}
        return client.post("/api/play/act", json=move).json(), cell

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(game, range(30)))
    for seed, (one, cell) in enumerate(found):
        alone, same = game(seed)
        assert same == cell
        assert [one[name] for name in ("object", "clicks", "iou", "mask")] == [
            alone[name] for name in ("object", "clicks", "iou", "mask")
        ]


@pytest.mark.parametrize(
    ("task", "move", "oracle"),
    [
        ("SamPrompt", {"cell": 120}, "oracle clicks"),
        ("SamProofread", {"cell": 120, "label": 0}, "oracle clicks"),
        ("SamBoxRefine", {"box": BOX}, "oracle box"),
        ("SamPrefer", {"candidate": 2}, "oracle choice"),
        ("SamPromptSemantic", {"cell": 120}, "oracle clicks"),
    ],
)
def test_playing(serve: Callable[..., TestClient], task: str, move: dict[str, Any], oracle: str) -> None:
    client, pose = serve(), {"env_id": f"{task}-Synthetic-v0", "seed": 3}
    game = client.post("/api/play/new", json=pose).json()
    assert game["truth"] is None
    assert client.post("/api/play/others", json={"game": game["game"]}).status_code == 400  # it would tell too much
    first = client.post("/api/play/act", json={"game": game["game"], **move}).json()
    assert first["prompts"] == 1
    last = first
    while not last["ended"]:
        more = move if task in ("SamPrefer",) else {"stop": True}
        last = client.post("/api/play/act", json={"game": game["game"], **more}).json()
    assert sum(last["truth"]["runs"][1::2]) > 0
    others = client.post("/api/play/others", json={"game": game["game"]}).json()["others"]
    assert list(others)[-1] == oracle
    assert ("agent" in others) == (task == "SamPrompt")
    assert client.post("/api/play/act", json={"game": game["game"], **move}).status_code == 400
    assert client.get("/api/play/pixels", params={"game": "none"}).status_code == 404


def test_watching(serve: Callable[..., TestClient]) -> None:
    client, env_id = serve(), "SamPrompt-Synthetic-v0"
    assert client.get("/api/watch/who", params={"env_id": env_id}).json()[0] == "agent"
    films = [
        client.post("/api/watch/film", json={"env_id": env_id, "who": who, "seed": 4}).json()
        for who in ("agent", "oracle clicks")
    ]
    steps = films[0]["steps"]
    for step in steps[:-1]:
        chances = [*step["positive"], *step["negative"], step["stop"]]
        assert sum(chances) == pytest.approx(1, abs=0.01)
        assert 0 <= step["judged"] <= 1
        assert step["value"] is not None
    assert steps[-1]["ended"]
    assert films[1]["steps"][0]["positive"] is None
    assert films[1]["steps"][0]["iou"] == steps[0]["iou"]
    assert films[0]["truth"] == films[1]["truth"]


def test_rating(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    """What is chosen is what the tuning of the decoder reads; the truth is never told."""
    client = serve()
    rating = client.post("/api/rate/new", json={"env_id": "SamPrefer-Synthetic-v0", "seed": 1}).json()
    assert len(rating["offers"]) == 4
    assert not {"iou", "truth", "curve"} & rating.keys()
    for choice in (2, None, 0):
        rating |= client.post("/api/rate/choose", json={"rating": rating["rating"], "choice": choice}).json()
    assert rating["ended"]
    assert [one.choice for one in read_choices(tmp_path / "out" / "choices.csv")] == [2, None, 0]
    assert client.post("/api/rate/choose", json={"rating": rating["rating"], "choice": 0}).status_code == 400


def test_others_are_refused(serve: Callable[..., TestClient]) -> None:
    client = serve()
    where = {"params": {"image": "0.png"}}
    assert client.get("/api/annotate/pixels", **where).status_code == 200
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ):
        assert client.get("/api/annotate/pixels", headers=headers, **where).status_code == 403
        answer = client.post("/api/annotate/open", json={"image": "0.png"}, headers=headers)
        assert answer.status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421  # DNS rebinding
    assert client.get("/", headers={"Host": "["}).status_code == 421
    assert client.get("/", headers={"Origin": HERE}).status_code == 200
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    large = client.post("/api/annotate/open", content=b"x" * 100_000, headers={"Content-Type": "application/json"})
    assert large.status_code == 413
    endless = client.post("/api/annotate/open", content=iter([b"x"] * 10))
    assert endless.status_code == 411
    for image in ("../secret.png", "/etc/passwd", "..\\x.png", "out/labels/0.png"):
        assert client.get("/api/annotate/pixels", params={"image": image}).status_code == 400
        assert client.post("/api/annotate/open", json={"image": image}).status_code == 400
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 404
    for body in ({"image": "0.png", "act": "click", "x": "nan", "y": 1}, {"act": "undo"}):
        assert client.post("/api/annotate/act", json=body).status_code == 422
    client.post("/api/annotate/open", json={"image": "0.png"})
    for wrong in ({"act": "dance"}, {"act": "click", "x": 5, "y": 5}, {"act": "begin_box"}, {"act": "undo"}):
        answer = client.post("/api/annotate/act", json={"image": "0.png", **wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]


def test_a_network_needs_a_token(serve: Callable[..., TestClient]) -> None:
    with pytest.raises(ValueError, match="give --token"):
        serve(host="0.0.0.0")
    client = serve(host="0.0.0.0", token="word")
    assert client.get("/").status_code == 200  # the page itself holds nothing
    for headers in ({}, {"X-Sam-Gym-Token": "other"}, {"X-Sam-Gym-Token": ""}):
        assert client.get("/api/config", headers=headers).status_code == 401
    assert client.get("/api/config", headers={"X-Sam-Gym-Token": "word"}).status_code == 200


def test_images_of_sixteen_bits_are_shown_at_a_contrast(serve: Callable[..., TestClient]) -> None:
    client = serve()

    def shown(low: float, high: float) -> np.ndarray:
        answer = client.get("/api/annotate/pixels", params={"image": "deep.tif", "low": low, "high": high})
        with Image.open(BytesIO(answer.content)) as image:
            return np.asarray(image)

    soft, hard = shown(0, 100), shown(20, 80)
    assert soft.shape == (256, 256, 3)
    assert (hard == 255).mean() > 0.15 > (soft == 255).mean()
    assert client.get("/api/annotate/pixels", params={"image": "deep.tif", "low": 50, "high": 50}).status_code == 400


def test_it_tells_what_it_does(serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits for SAM, the page can ask for how long; the others wait in a queue."""
    from sam_gym.sam import SamBackend

    encode = SamBackend.encode

    def slow(self: SamBackend, images: Any) -> Any:
        time.sleep(0.4)
        return encode(self, images)

    client = serve()
    client.post("/api/annotate/open", json={"image": "1.png"})
    monkeypatch.setattr(SamBackend, "encode", slow)
    with ThreadPoolExecutor(2) as pool:
        opening = [
            pool.submit(client.post, "/api/annotate/open", json={"image": name}) for name in ("0.png", "deep.tif")
        ]
        seen = []
        while not all(one.done() for one in opening):
            seen.append(client.get("/api/status").json())
            time.sleep(0.05)
    assert any(one["doing"] == "encode" and one["seconds"] > 0.1 and one["waiting"] == 2 for one in seen)
    assert client.get("/api/status").json() == {"doing": None, "seconds": 0.0, "took": 0.0, "waiting": 0}
