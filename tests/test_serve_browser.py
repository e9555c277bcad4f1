"""`avfs serve` and reports in a real browser: drop, label, correct, relearn, reload, nothing lost; keyboard; axe."""

import base64
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from media_factory import tone, write_media

from avfewshot.cli.app import run as avfs
from avfewshot.inference.loading import load
from avfewshot.labels import LabelSet
from avfewshot.media.discover import find_media

CHROMIUM = "/usr/bin/chromium"
pytest.importorskip("fastapi", reason='pip install "avfewshot[app]"')
pytest.importorskip("uvicorn", reason='pip install "avfewshot[app]"')
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
axe_sync = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
pytestmark = [
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM} (apt-get install chromium)"),
    pytest.mark.slow,
    pytest.mark.timeout(240),
]


class Server:
    """`avfs serve` in a process of its own."""

    def __init__(self, folder, *options):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "avfewshot", "serve", str(folder), "--backbone", "tiny", "--device", "cpu"]
        command += ["--port", "0", "--runs", str(folder / "runs"), *options]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Here:
    """The same in a thread of this process, which has PyTorch loaded already."""

    def __init__(self, folder, labels=None):
        from avfewshot.app.server import create_app, listen, run
        from avfewshot.app.workspace import Workspace

        classifier, listening = load("tiny", device="cpu"), listen("127.0.0.1", 0)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        self.folder, self.address = folder, f"http://{address}"
        self.work = Workspace(classifier, folder, find_media([folder]), labels, runs=folder / "runs")
        app = create_app(self.work, hosts={address})
        self.thread = threading.Thread(target=run, args=(app, self.work, listening), daemon=True)
        self.thread.start()

    def end(self):
        self.work.worker.closing.set()
        self.thread.join(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # A browser that hangs is killed, and whatever waits for it fails.
    bounded = tmp_path_factory.mktemp("chromium") / "chromium"
    bounded.write_text(f'#!/bin/sh\nexec timeout --foreground -s KILL 900 {CHROMIUM} "$@"\n')
    bounded.chmod(0o755)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=bounded, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "clips"
    folder.mkdir()
    for kind, frequency, size in (("low", 300, (64, 96)), ("high", 2500, (96, 64))):
        for number in range(3):
            sound = tone(4, frequency=frequency + 20 * number)
            write_media(folder / f"{kind}-{number}.mp4", seconds=4, audio=sound, size=size)
    (folder.parent / "dropped.mp4").write_bytes((folder / "low-2.mp4").read_bytes())
    return folder


@pytest.fixture(autouse=True)
def pages_are_closed(browser):
    """Videos of pages that nobody looks at any more would take the processor from the next test."""
    yield
    for context in browser.contexts:
        context.close()


def open_page(browser, address, *, width=1280):
    """A page and the errors of its console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page, errors = context.new_page(), []
    page.set_default_timeout(60_000)  # a busy machine
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    return page, errors


def serious(page, *rules):
    """What axe-core finds that is serious or worse; by some of its rules, if any are named."""
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = axe_sync.Axe().run(page, options=options).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def serious_in_both_schemes(page):
    """The same, with what dark colours change."""
    page.emulate_media(color_scheme="light")
    found = serious(page)
    page.emulate_media(color_scheme="dark")
    return found + serious(page, "color-contrast")


def drop(page, path):
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {type: "video/mp4"}));
            return transfer;
        }""",
        [content, path.name],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def settled(page):
    """The table when news have come to an end."""
    text = None
    while text != (text := page.locator("table.clips tbody").inner_text()):
        page.wait_for_timeout(1000)
    return text


def test_drop_label_correct_relearn_reload_nothing_lost(browser, folder):
    server, again = Server(folder), None
    try:
        page, errors = open_page(browser, server.address)
        page.get_by_text("No labels yet").wait_for()
        page.get_by_role("button", name="Labels …").click()
        page.get_by_label(re.compile("One a line")).fill("hum\nwhistle: a high whistle")
        page.get_by_role("button", name="Apply").click()
        page.locator("#facts", has_text="2 labels").wait_for()

        drop(page, folder.parent / "dropped.mp4")
        page.get_by_role("heading", name="dropped/dropped.mp4").wait_for()
        page.locator(".track.both .run").first.wait_for()
        assert page.locator(".track-name").all_text_contents() == ["Both", "Sight", "Sound"]
        page.wait_for_function("() => document.querySelector('video')?.readyState >= 2")

        # The timeline seeks the video, and the video moves the timeline.
        box = page.locator(".track.both").bounding_box()
        page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 5)
        page.wait_for_function("() => document.querySelector('video').currentTime == 2")
        assert page.locator("#from").input_value() == "2"
        page.evaluate("document.querySelector('video').currentTime = 3.2")
        page.wait_for_function("() => Number(document.querySelector('.seek').value) > 3.1")
        page.wait_for_function("() => parseFloat(document.querySelector('.playhead').style.left) > 75")

        # The second that was picked, then the clip.
        page.locator("#label").fill("whistle")
        page.get_by_role("button", name="Set", exact=True).click()
        page.locator(".track.mine").wait_for()
        page.locator("#from").fill("")
        page.locator("#to").fill("")
        page.locator("#label").fill("hum")
        page.locator("#label").press("Enter")
        page.locator(".verdict", has_text="by you").wait_for()

        # A class from a handful of clips.
        for name in ("high-0.mp4", "high-1.mp4"):
            page.get_by_label(f"Select {name}").check()
        page.locator("#bulk-label").fill("screech")
        page.locator("#bulk-label").press("Enter")
        page.locator("#facts", has_text="3 labels").wait_for()
        for name in ("low-0.mp4", "low-1.mp4"):
            page.get_by_label(f"Select {name}").check()
        page.locator("#bulk-label").fill("hum")
        page.locator("#bulk-label").press("Enter")
        page.locator("#facts", has_text="5 corrected").wait_for()
        page.get_by_role("button", name="Relearn").click()
        page.locator("#learnt", has_text=re.compile(r"Learnt from 5 clips in \d+\.\d\d s; leave-one-out")).wait_for()
        page.locator("tr", has_text="high-2.mp4").get_by_text("screech").wait_for()
        page.get_by_role("button", name="What to label next").click()
        page.locator("#status", has_text="These would teach it most").wait_for()

        # Undo, and again.
        page.get_by_label("Search").first.fill("")
        page.get_by_role("button", name="high-2.mp4").click()
        page.locator("#label").fill("hum")
        page.locator("#label").press("Enter")
        page.locator("tr", has_text="high-2.mp4").get_by_text("by you").wait_for()
        page.get_by_role("button", name="Undo").click()
        page.locator("#status", has_text="taken back").wait_for()
        page.locator("tr", has_text="high-2.mp4").get_by_text("by you").wait_for(state="detached")

        page.get_by_role("button", name="Save as a run").click()
        page.get_by_role("button", name="Save", exact=True).click()
        page.locator("#status", has_text="avfs zeroshot --adapter").wait_for()
        assert list((folder / "runs" / "serve").glob("*-clips/scorer/scorer.json"))

        before = settled(page)
        page.reload()
        page.locator("table.clips tbody tr", has_text="by you").first.wait_for()
        page.wait_for_function("() => document.querySelectorAll('table.clips tbody tr').length == 7")
        assert settled(page) == before

        server.kill()  # in the middle of everything
        assert errors == []
        again = Here(folder)
        page, errors = open_page(browser, again.address)
        page.locator("#learnt", has_text="Learnt from 5 clips").wait_for()
        row = page.locator("tr", has_text="dropped/dropped.mp4")
        row.get_by_text("hum").wait_for()
        row.get_by_text("1 s by you").wait_for()
        assert page.locator("#facts").inner_text().startswith("7 clips, 3 labels, 5 corrected")
        assert errors == []
    finally:
        server.kill()
        if again is not None:
            again.end()


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    clips = tmp_path_factory.mktemp("served") / "clips"
    clips.mkdir()
    for path in folder.glob("*-?.mp4"):
        os.link(path, clips / path.name)
    (clips / "bad.mp4").write_bytes(b"nothing")
    server = Here(clips, LabelSet.from_texts(["hum: a low hum", "whistle"]))
    yield server
    server.end()


@pytest.mark.parametrize("width", [390, 1280, 1600])
def test_nothing_overflows_and_axe_finds_nothing_serious(browser, server, width):
    page, errors = open_page(browser, server.address, width=width)
    page.locator("table.clips .open").first.wait_for()
    page.get_by_role("button", name="high-0.mp4").click()
    page.locator(".track.both .run").first.wait_for()
    page.get_by_label(re.compile("^Select low-0")).check()
    for view in ("table", "grid"):
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert serious_in_both_schemes(page) == [], view
        page.get_by_role("button", name="Grid").click()
    ticks = page.locator(".ticks span").evaluate_all(
        "all => all.map((e) => [e.getBoundingClientRect().left, e.getBoundingClientRect().right])"
    )
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(ticks))
    page.get_by_role("button", name="Labels …").click()
    assert serious_in_both_schemes(page) == []
    assert errors == []


def test_by_keyboard_only(browser, server):
    page, errors = open_page(browser, server.address)
    page.locator("table.clips .open").first.wait_for()
    page.keyboard.press("/")
    page.keyboard.type("low-1")
    page.locator(".count", has_text="1 of").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.get_by_role("heading", name="low-1.mp4").wait_for()
    page.locator(".track.both .run").first.wait_for()
    page.wait_for_function("() => document.querySelector('video')?.readyState >= 2")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('video').currentTime == 2")
    page.keyboard.press("s")
    assert page.evaluate("document.activeElement.id") == "label"
    assert [page.locator(f"#{name}").input_value() for name in ("from", "to")] == ["2", "3"]
    page.keyboard.type("whistle")
    page.keyboard.press("Enter")
    page.locator("tr", has_text="low-1.mp4").get_by_text("1 s by you").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    page.locator("tr", has_text="low-1.mp4").get_by_text("1 s by you").wait_for(state="detached")
    page.keyboard.press("c")
    assert page.locator("#from").input_value() == ""
    # Every control can be reached by Tab, and shows that it has the focus.
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)")
        )
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        inside = page.evaluate("document.activeElement.matches('#files, video, body')")
        assert outlined != "none" or inside, reached
    assert {"files", "edit-labels", "learn", "undo", "suggest", "save", "search", "filter", "sort", "label"} <= reached
    assert errors == []


def test_two_tabs_do_not_disturb_each_other(browser, server):
    one, errors = open_page(browser, server.address)
    two, more = open_page(browser, server.address)
    for page in (one, two):
        page.locator("table.clips .open").first.wait_for()
    one.get_by_role("button", name="low-0.mp4").click()
    one.locator("#label").fill("half typ")
    one.locator("#sort").select_option("score")
    one.wait_for_function("() => document.querySelector('video')?.readyState >= 1")
    one.evaluate("document.querySelector('video').currentTime = 1.5; window.player = document.querySelector('video')")
    two.get_by_role("button", name="low-0.mp4").click()
    two.locator("#label").fill("hum")
    two.locator("#label").press("Enter")
    one.locator(".verdict", has_text="by you").wait_for()  # the news arrive ...
    assert one.locator("#label").input_value() == "half typ"  # ... and leave all else as it was
    assert one.locator("#sort").input_value() == "score"
    assert one.evaluate("window.player === document.querySelector('video') && window.player.currentTime") == 1.5
    one.get_by_role("button", name="Undo").click()
    one.locator("#status", has_text="nothing to take back").wait_for()
    two.get_by_role("button", name="Undo").click()
    one.locator(".verdict", has_text="by you").wait_for(state="detached")
    assert errors == more == []


def test_search_by_content_and_unreadable_clips(browser, server):
    page, errors = open_page(browser, server.address)
    page.locator("table.clips .open").first.wait_for()
    page.locator("#filter").select_option("failed")
    page.locator("table.clips tbody tr", has_text="bad.mp4").wait_for()
    assert page.locator("table.clips tbody tr").all_inner_texts()[0].startswith("\tbad.mp4")
    page.locator("#filter").select_option("")
    page.locator("#search").fill("dog barking")
    page.locator("#scope").select_option("sound")
    page.locator(".count", has_text="6 of 7").wait_for()
    assert errors == []


@pytest.fixture(scope="module")
def report(server):
    path = server.folder / "report.html"
    options = ["--label", "hum", "--label", "whistle", "--backbone", "tiny", "--report", str(path)]
    assert avfs(["zeroshot", *options, str(server.folder)]) == 1  # one of the clips is bad
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_in_the_browser(browser, report, width):
    page, errors = open_page(browser, report.as_uri(), width=width)
    page.locator(".grid li").first.wait_for()
    assert page.locator(".grid li").count() == 6
    page.wait_for_function("() => document.querySelector('video')?.readyState >= 1")  # by its relative path
    page.locator("#search").fill("high")
    assert page.locator(".count").inner_text() == "3 of 6 clips"
    page.locator("#sort").select_option("margin")
    page.get_by_role("button", name="Grid").click()
    page.locator("table.clips .open").nth(1).click()
    assert page.locator("#detail h2").inner_text() == page.locator("tr.current .open").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []
    assert errors == []
