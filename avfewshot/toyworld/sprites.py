"""What the toy world looks like: objects, backdrops and a camera."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from avfewshot.toyworld.vocabulary import COLOURS

Rgb = tuple[int, ...]  # red, green, blue


@cache
def _strokes() -> dict[str, list[list[str]]]:
    """The strokes of each object, as ``objects.txt`` has them."""
    table: dict[str, list[list[str]]] = {}
    for line in Path(__file__).with_name("objects.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            table[next(reversed(table))].append(line.split())
        elif not line.startswith("#"):
            table[line] = []
    return table


def _draw(stroke: list[str], pen: ImageDraw.ImageDraw, size: int, paints: dict[str, Rgb]) -> None:
    """Draw a stroke on a square picture of `size` pixels with the object's own paints."""
    kind, *words = stroke
    points = [float(word) * size for word in words if "=" not in word]
    given = dict(word.split("=") for word in words if "=" in word)
    named = given.get("fill", "dark" if kind in ("line", "arc") else "body")
    fill = paints[named] if named in paints else tuple(map(int, named.split(",")))
    dark, width = paints["dark"], max(1, round(size * 0.045))
    if kind == "box":
        pen.rectangle(points, fill=fill, outline=dark, width=width)
    elif kind == "rounded":
        pen.rounded_rectangle(points, float(given["radius"]) * size, fill=fill, outline=dark, width=width)
    elif kind == "oval":
        pen.ellipse(points, fill=fill, outline=dark, width=width)
    elif kind == "shape":
        pen.polygon(points, fill=fill, outline=dark)
    elif kind == "line":
        pen.line(points, fill=fill, width=round(width * float(given.get("times", 1))), joint="curve")
    else:
        pen.arc(points, float(given["start"]), float(given["end"]), fill=fill, width=2 * width)


def draw_object(name: str, colour: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw an object, facing right: an RGBA picture of ``size x size`` pixels, transparent around it.

    The shade of its colour varies a little with `rng`.
    """
    shade = rng.normal(0, 12, 3)
    body = tuple(int(np.clip(value + change, 0, 255)) for value, change in zip(COLOURS[colour], shade, strict=True))
    darkness = rng.uniform(0.08, 0.25)
    dark, light = (int(value * darkness) for value in body), (min(255, value + 60) for value in body)
    image = Image.new("RGBA", (2 * size, 2 * size), (0, 0, 0, 0))  # drawn large and reduced: smooth edges
    pen, paints = ImageDraw.Draw(image), {"body": body, "dark": tuple(dark), "light": tuple(light)}
    for stroke in _strokes()[name]:
        _draw(stroke, pen, 2 * size, paints)
    return image.resize((size, size), Image.Resampling.BOX)


def draw_backdrop(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Paint a blurry backdrop of muted colours, sometimes striped: float32 ``[height, width, 3]`` in 0..255."""
    base = rng.uniform(60, 195) + rng.normal(0, 22, 3)
    patches = np.clip(base + rng.normal(0, 26, (rng.integers(2, 6), rng.integers(2, 7), 3)), 0, 255)
    small = Image.fromarray(patches.astype(np.uint8))
    method = Image.Resampling.BICUBIC if rng.random() < 0.8 else Image.Resampling.NEAREST
    picture = np.asarray(small.resize((width, height), method), dtype=np.float32)
    if rng.random() < 0.12:
        angle, frequency = rng.uniform(0, math.pi), rng.uniform(0.04, 0.25)
        y, x = np.mgrid[:height, :width]
        wave = np.sign(np.sin(frequency * (x * math.cos(angle) + y * math.sin(angle))))
        picture = picture + rng.uniform(4, 14) * wave[..., None].astype(np.float32)
    return np.clip(picture, 0, 255)


class Camera:
    """Noise, blur, exposure and now and then a bar before the lens: constant for a clip, the noise anew each frame."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._contrast = rng.uniform(0.65, 1.15)
        self._brightness = rng.uniform(-20, 20)
        self._noise = rng.uniform(1, 10)
        self._blur = rng.uniform(0.4, 1.4) if rng.random() < 0.2 else 0.0
        self._bar: tuple[bool, float, float, Rgb] | None = None
        if rng.random() < 0.12:
            colour = tuple(rng.integers(0, 255, 3).tolist())
            self._bar = (rng.random() < 0.5, rng.uniform(0, 1), rng.uniform(0.04, 0.12), colour)

    def take(self, scene: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Photograph a scene: uint8 ``[height, width, 3]``."""
        if self._bar:
            upright, at, thickness, colour = self._bar
            side = min(scene.size)
            left, top = (scene.width - side) / 2, (scene.height - side) / 2
            start = at * side + (left if upright else top)
            corners = (start, 0, start + thickness * side, scene.height)
            if not upright:
                corners = (0, start, scene.width, start + thickness * side)
            ImageDraw.Draw(scene).rectangle(corners, fill=colour)
        if self._blur:
            scene = scene.filter(ImageFilter.GaussianBlur(self._blur))
        picture = np.asarray(scene, dtype=np.float32)
        picture = (picture - 128) * self._contrast + 128 + self._brightness
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * self._noise
        return np.clip(picture, 0, 255).astype(np.uint8)
