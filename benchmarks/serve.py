"""What `avfs serve` costs with many clips: scoring, relearning, lists, searches, and the page in a browser.

    python benchmarks/serve.py --clips 10000

Clips are made up: ten seconds of random embeddings around one of 28 centres in the spaces of `tiny`. Times depend on
the machine; what a first look at real clips costs is decoding and embedding, as in `avfs zeroshot`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import torch
from fastapi.testclient import TestClient

from avfewshot.app.server import create_app, listen, run
from avfewshot.app.workspace import Workspace
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.loading import load
from avfewshot.labels import LabelSet

CLASSES = 28


def main() -> None:
    """Fill a workspace and use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--labelled", type=int, default=10, help="of each class")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    classifier = load("tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    centres = [torch.randn(CLASSES, 1, width, generator=generator) for width in classifier.dims]

    def embedded(number: int) -> EmbeddedFile:
        parts = (
            torch.nn.functional.normalize(
                centre[number % CLASSES] + 0.8 * torch.randn(10, centre.shape[-1], generator=generator), dim=-1
            )
            for centre in centres
        )
        return EmbeddedFile(str(Path(folder) / f"clip {number:05d}.mp4"), 10.0, *parts, ())

    def timed(what: str, action: object) -> object:
        begun = time.perf_counter()
        result = action()  # type: ignore[operator]
        print(f"{what}: {time.perf_counter() - begun:.2f} s")
        return result

    def scored() -> None:
        while work.state()["stale"] or work.worker.model is None:
            time.sleep(0.02)

    with tempfile.TemporaryDirectory() as folder:
        files = [embedded(number) for number in range(options.clips)]
        labels = LabelSet.from_names([f"label {number}" for number in range(CLASSES)])
        work = Workspace(classifier, Path(folder), [Path(file.path) for file in files], labels)
        for entry, file in zip(work.clips.entries, files, strict=True):
            entry.file = file
        listening = listen("127.0.0.1", 0)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(work, hosts={address})
        threading.Thread(target=run, args=(app, work, listening), daemon=True).start()
        client = TestClient(app, base_url=f"http://{address}")
        timed(f"{options.clips:,} clips scored by their labels", scored)
        answer = client.get("/api/clips")
        print(f"list of all clips: {len(answer.content) / 1e6:.1f} MB")
        timed("list of all clips", lambda: client.get("/api/clips"))
        for number in range(CLASSES):
            ids = list(range(number, options.clips, CLASSES))[: options.labelled]
            client.post("/api/label", json={"ids": ids, "label": f"label {number}"})
        timed("one correction, kept on disk", lambda: client.post("/api/label", json={"ids": [0], "label": "label 0"}))
        facts = timed(f"relearn from {options.labelled * CLASSES} clips", lambda: client.post("/api/learn").json())
        print(json.dumps({key: facts["learnt"][key] for key in ("clips", "accuracy", "seconds")}))  # type: ignore[index]
        timed("all clips scored by what was learnt", scored)
        free = options.labelled * CLASSES
        client.post("/api/label", json={"ids": [free], "label": "label 0"})
        timed("relearn with one clip more", lambda: client.post("/api/learn"))
        scored()
        timed("what to label next", lambda: client.get("/api/suggest"))
        timed("search by content", lambda: client.get("/api/find", params={"q": "dog barking"}))
        if Path(options.chromium).exists():
            from playwright.sync_api import sync_playwright

            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
                page = browser.new_page()

                def shown() -> None:
                    page.goto(f"http://{address}/")
                    page.locator(".count", has_text=f"{options.clips:,} of {options.clips:,}").wait_for()

                timed("the page with all clips", shown)
                script = """([field, event, value]) => {
                    const node = document.getElementById(field), begun = performance.now();
                    node.value = value;
                    node.dispatchEvent(new Event(event));
                    return performance.now() - begun;
                }"""
                for step in (("search", "input", "09999"), ("search", "input", ""), ("sort", "change", "margin")):
                    print(f"{step[0]} {step[2] or 'nothing'}: {page.evaluate(script, list(step)):.0f} ms")
                browser.close()
        work.worker.closing.set()


if __name__ == "__main__":
    main()
