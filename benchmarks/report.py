"""How large a report of many clips is, and how long a browser takes to open it.

    python benchmarks/report.py --clips 10000

Clips are made up: ten seconds of ten labels each, with the scores that `avfs zeroshot` gives. Needs Playwright
(`pip install playwright`) and Chromium for the times; without, only sizes are printed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from avfewshot.inference.results import ClipResult, RunInfo, SegmentResult
from avfewshot.reports.html import HtmlWriter
from avfewshot.reports.writers import Summary

LABELS = [f"label number {index}" for index in range(28)]


def made_up(number: int) -> ClipResult:
    """A clip with random scores."""
    chance = random.Random(number)

    def scores() -> list[float]:
        raw = [chance.random() ** 8 for _ in LABELS]
        return [value / sum(raw) for value in raw]

    segments = []
    for second in range(10):
        fused = scores()
        best = max(range(len(LABELS)), key=fused.__getitem__)
        shares = {"visual": 0.5, "audio": 0.5}
        segments.append(
            SegmentResult(second, second + 1.0, LABELS[best], fused[best], shares, fused, scores(), scores())
        )
    fused, visual, audio = (dict(zip(LABELS, scores(), strict=True)) for _ in range(3))
    label = max(fused, key=fused.__getitem__)
    path = f"clips/day {number % 30}/a clip with a name of usual length {number:05d}.mp4"
    return ClipResult(path, 10.0, label, fused[label], fused, visual, audio, shares, segments, [])


def main() -> None:
    """Write a page and open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        writer = HtmlWriter(
            path, RunInfo("tiny", None, LABELS, LABELS, "cpu", "fp32", "weighted", "event"), topk=5,
            total=options.clips, command="made up", settings=[], pictures=lambda *_: [],
        )  # fmt: skip
        for number in range(options.clips):
            writer.add(made_up(number))
        writer.end(Summary(options.clips, 0, options.clips, 1.0))
        print(f"{options.clips:,} clips: {path.stat().st_size / 1e6:.2f} MB")
        if not Path(options.chromium).exists():
            print(f"{options.chromium} is not there: no times.")
            return
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector("table.clips tbody tr, .grid li")
            took = page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
            print(f"opened in {took:.2f} s, {page.evaluate('document.querySelectorAll(`*`).length')} nodes")
            steps = (("search", "input", "09999"), ("search", "input", ""), ("sort", "change", "margin"))
            for field, event, value in steps:
                script = """([field, event, value]) => {
                    const node = document.getElementById(field), begun = performance.now();
                    node.value = value;
                    node.dispatchEvent(new Event(event));
                    return performance.now() - begun;
                }"""
                print(f"{field} {value or 'nothing'}: {page.evaluate(script, [field, event, value]):.0f} ms")
            browser.close()


if __name__ == "__main__":
    main()
