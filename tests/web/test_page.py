"""The page in a browser: by mouse and by keys alone, with a console that stays empty."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from sam_gym.sam.choices import read_choices
from sam_gym.sb3.saved import SavedAgent
from sam_gym.web.app import WebSettings, create_app

SAM = {"checkpoint": "tiny_random", "device": "cpu", "precision": "exact"}
PATIENCE = 60_000
"""Milliseconds that a page may take on a busy machine; nothing waits for longer than it has to."""


@pytest.fixture
def served(tmp_path: Path, sections: Any, agent_file: Path) -> Iterator[tuple[str, Path]]:
    """A server on two images; its address, and where it writes."""
    folder = tmp_path
    (folder / "images").mkdir()
    for number in range(2):
        Image.fromarray(sections.image(number)).save(folder / "images" / f"{number}.png")
    ids = ["SamPrompt-Synthetic-v0", "SamBoxRefine-Synthetic-v0", "SamPrefer-Synthetic-v0"]
    agent = SavedAgent.load(agent_file, "cpu")
    app = create_app(WebSettings(ids[0], ids, folder / "images", folder / "out", ("cell", "other"), agent, SAM))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", folder / "out"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(served: tuple[str, Path], browser: str) -> Iterator[Page]:
    """The page, opened; whatever goes wrong in it fails the test."""
    wrong: list[str] = []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = chromium.new_context(viewport={"width": 1000, "height": 700}, color_scheme="dark")
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda one: wrong.append(one.url) if not one.url.startswith((served[0], "data:", "blob:")) else None,
        )
        page.goto(served[0])
        yield page
        assert wrong == []
        chromium.close()


def settled(page: Page) -> None:
    """What was asked for has been done."""
    expect(page.locator("#annotate")).to_have_attribute("data-busy", "0")


def test_two_objects_by_mouse(page: Page, served: tuple[str, Path]) -> None:
    """A box and a click, corrected, undone, accepted; after a reload all is there, and can be undone still."""
    expect(page.locator("#annotate")).to_have_attribute("data-open", "0.png")
    canvas, objects = page.locator("#annotate canvas"), page.locator("#objects li")
    bounds = canvas.bounding_box()
    assert bounds is not None
    x, y = bounds["x"] + bounds["width"] / 2, bounds["y"] + bounds["height"] / 2 - 31  # the middle of the image
    page.mouse.move(x - 100, y - 100)
    page.mouse.down()
    page.mouse.move(x + 60, y + 60, steps=5)
    page.mouse.up()
    expect(objects).to_have_count(1)
    settled(page)
    stored = served[1] / "sessions" / "0.png.json"
    proposed = json.loads(stored.read_text())["objects"][0]
    page.mouse.click(x, y)
    page.mouse.click(x + 20, y + 10, button="right")
    expect(page.locator("#task")).to_contain_text(f"{len(proposed['clicks']) + 2} click")
    clicks = json.loads(stored.read_text())["objects"][0]["clicks"]
    assert [(one["label"], one["by"]) for one in clicks[-2:]] == [(1, "person"), (0, "person")]
    assert abs(clicks[-2]["x"] - 128) < 1
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#task")).to_contain_text(f"{len(proposed['clicks']) + 1} click")
    page.get_by_role("button", name="Include").click()  # where one moves the image by dragging
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=6)
    page.mouse.up()
    page.mouse.click(x + 30, y)
    expect(page.locator("#task")).to_contain_text(f"{len(proposed['clicks']) + 2} click")
    clicks = json.loads(stored.read_text())["objects"][0]["clicks"]
    assert abs(clicks[-1]["x"] - 128) < 1
    page.get_by_role("button", name="Accept").click()
    expect(objects.first).to_contain_text("accepted")
    page.mouse.click(x + 150, y + 150)
    expect(objects).to_have_count(2)
    settled(page)
    page.reload()
    expect(objects).to_have_count(2)
    expect(objects.first).to_contain_text("accepted")
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    expect(objects).to_have_count(1)


def test_keys_alone(page: Page, served: tuple[str, Path]) -> None:
    """Each tab without a mouse: an object is drawn, corrected, accepted; a game is played; a film is gone through."""
    expect(page.locator("#annotate")).to_have_attribute("data-open", "0.png")
    page.keyboard.press("n")
    expect(page.locator("#annotate")).to_have_attribute("data-open", "1.png")
    for key in ("ArrowLeft", "b", *["Shift+ArrowRight"] * 3, *["Shift+ArrowDown"] * 3, "b"):
        page.keyboard.press(key)
    objects = page.locator("#objects li")
    expect(objects).to_have_count(1)
    settled(page)
    page.keyboard.press("2")
    expect(objects.first).to_contain_text("other")
    page.keyboard.press("Space")
    page.keyboard.press("x")
    expect(page.locator("#task")).to_contain_text("click")
    for _ in range(2):
        page.keyboard.press("z")
    page.keyboard.press("Enter")
    expect(objects.first).to_contain_text("accepted")
    assert (served[1] / "labels" / "1.png").is_file()

    page.locator("#tab-annotate").focus()
    page.keyboard.press("ArrowRight")
    play = page.locator("#play")
    expect(play).to_have_attribute("data-game", re.compile("."))
    page.keyboard.press("Tab")
    for key in ("ArrowUp", "ArrowLeft", "Space"):
        page.locator("#play canvas").first.press(key)
    expect(play).to_have_attribute("data-prompts", "1")
    page.locator("#play canvas").first.press("Enter")
    expect(play.locator(".others tr.mine")).to_have_count(1)
    expect(play.locator(".others tr")).to_have_count(4)  # with box only, agent and oracle

    page.locator("#tab-play").focus()
    page.keyboard.press("ArrowRight")
    watch = page.locator("#watch")
    expect(watch.locator(".at")).to_contain_text("before the first prompt")
    expect(watch.locator(".stopping")).to_contain_text("would stop")
    watch.locator("canvas").press("End")
    expect(watch.locator(".stopping")).to_contain_text("has ended")
    watch.locator("canvas").press("Home")
    expect(watch.locator(".at")).to_contain_text("before the first prompt")

    page.locator("#tab-watch").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#rate .left")).to_have_text("3")
    page.locator("#rate .four button").first.focus()
    for count, key in enumerate(("3", "0"), start=1):
        page.keyboard.press(key)
        expect(page.locator("#rate .rated")).to_have_text(str(count))
    assert [one.choice for one in read_choices(served[1] / "choices.csv")] == [2, None]


def test_a_phone_is_wide_enough(page: Page) -> None:
    """Nothing sticks out at a phone's width, in any tab, dark or light; what is tapped is large enough."""
    page.set_viewport_size({"width": 375, "height": 740})
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for tab in ("annotate", "play", "watch", "rate"):
            page.locator(f"#tab-{tab}").click()
            page.locator(f"#{tab} aside").wait_for()
            assert page.locator("html").evaluate("one => one.scrollWidth <= innerWidth"), (tab, scheme)
            for one in page.locator(f"#{tab} aside button:visible").all():
                bounds = one.bounding_box()
                assert bounds is not None
                assert bounds["x"] >= 0, (tab, one)
                assert bounds["x"] + bounds["width"] <= 375, (tab, one)
                assert bounds["height"] >= 32, (tab, one)
