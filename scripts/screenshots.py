"""Pictures of the page of `avfs serve`, in both schemes at two widths, by Debian's Chromium.

    python scripts/screenshots.py toy/samples labels.txt shots/ [--docs]

Four clips are labelled as `tiny` names them. With --docs also docs/serve.webp and docs/serve-phone.webp are made again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {390: 844, 1280: 960}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("shots", type=Path)
    parser.add_argument("--open", default="cat-meowing-then-bell-ringing.mp4", help="the clip to show")
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    asked.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        clips = shutil.copytree(asked.clips, Path(folder) / "clips")
        command = [sys.executable, "-m", "avfewshot", "serve", str(clips), "--labels", str(asked.labels)]
        command += ["--backbone", "tiny", "--device", "cpu", "--port", "0", "--runs", str(Path(folder) / "runs")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            options = ["--no-sandbox", "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
            try:
                for width, height in SIZES.items():
                    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
                    page.set_default_timeout(120_000)
                    page.goto(address)
                    take(page, width, asked)
                    page.close()
            finally:
                browser.close()
                server.terminate()
    if asked.docs:
        for name, shot in (("serve", "1280-light-top"), ("serve-phone", "390-dark-clip")):
            picture = Image.open(asked.shots / f"{shot}.png")
            picture.thumbnail((1100, 960))
            picture.save(DOCS / f"{name}.webp", quality=64, method=6)


def take(page: Page, width: int, asked: argparse.Namespace) -> None:
    for name in ("boat-honking", "dog-barking", "dog-howling", "train-honking"):
        page.get_by_role("button", name=f"{name}.mp4").click()
        page.locator("#detail h2", has_text=f"{name}.mp4").wait_for()
        page.locator("#label").fill(name.replace("-", " "))
        page.locator("#label").press("Enter")
        page.locator("tr", has_text=f"{name}.mp4").get_by_text("by you").wait_for()
    page.get_by_role("button", name=asked.open).click()
    page.locator("#detail h2", has_text=asked.open).wait_for()
    page.locator(".track.both .run").first.wait_for()
    page.wait_for_function("() => document.querySelector('video')?.readyState >= 2")
    page.evaluate("document.querySelector('video').currentTime = 2.5")
    page.wait_for_function("() => !document.querySelector('video').seeking")
    page.wait_for_timeout(1500)  # Chromium's wheel over the picture fades

    def shoot(name: str, *, whole: bool = False) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=asked.shots / f"{width}-{scheme}-{name}.png", full_page=whole)

    shoot("top")
    page.locator("#open").evaluate("(open) => open.scrollIntoView()")
    shoot("clip")
    shoot("whole", whole=True)
    page.get_by_role("button", name="Grid").click()
    page.wait_for_function("() => [...document.querySelectorAll('#list img')].every((one) => one.complete)")
    shoot("grid", whole=True)
    page.get_by_role("button", name="Labels …").click()
    shoot("labels")


if __name__ == "__main__":
    main()
