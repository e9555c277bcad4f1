"""What the toy world looks like: twenty objects, backdrops and a camera."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from avfewshot.toyworld.vocabulary import COLOURS

Rgb = tuple[int, ...]  # red, green, blue


class _Pen:
    """Draws in a unit square; `body` is the paint, `dark` the outline, `light` the trim. A method for each object."""

    def __init__(self, size: int, body: Rgb, darkness: float) -> None:
        self.size = size
        self.image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)
        self.body = body
        self.dark: Rgb = tuple(int(value * darkness) for value in body)
        self.light: Rgb = tuple(min(255, value + 60) for value in body)
        self.width = max(1, round(size * 0.045))

    def _scaled(self, values: tuple[float, ...]) -> list[float]:
        return [value * self.size for value in values]

    def box(self, *corners: float, fill: Rgb | None = None) -> None:
        self._draw.rectangle(self._scaled(corners), fill=fill or self.body, outline=self.dark, width=self.width)

    def rounded(self, *corners: float, radius: float, fill: Rgb | None = None) -> None:
        self._draw.rounded_rectangle(
            self._scaled(corners), radius * self.size, fill=fill or self.body, outline=self.dark, width=self.width
        )

    def oval(self, *corners: float, fill: Rgb | None = None) -> None:
        self._draw.ellipse(self._scaled(corners), fill=fill or self.body, outline=self.dark, width=self.width)

    def shape(self, *points: float, fill: Rgb | None = None) -> None:
        self._draw.polygon(self._scaled(points), fill=fill or self.body, outline=self.dark)

    def line(self, *points: float, fill: Rgb | None = None, times: float = 1) -> None:
        self._draw.line(self._scaled(points), fill=fill or self.dark, width=round(self.width * times), joint="curve")

    def arc(self, *corners: float, start: float, end: float) -> None:
        self._draw.arc(self._scaled(corners), start, end, fill=self.dark, width=2 * self.width)

    def car(self) -> None:
        self.shape(0.18, 0.5, 0.32, 0.24, 0.66, 0.24, 0.84, 0.5, fill=(205, 230, 245))
        self.box(0.03, 0.47, 0.97, 0.72)
        for x in (0.14, 0.62):
            self.oval(x, 0.6, x + 0.24, 0.84, fill=self.dark)

    def truck(self) -> None:
        self.box(0.02, 0.14, 0.62, 0.7)
        self.box(0.62, 0.38, 0.97, 0.7, fill=self.light)
        self.box(0.72, 0.43, 0.92, 0.55, fill=(205, 230, 245))
        for x in (0.08, 0.36, 0.7):
            self.oval(x, 0.62, x + 0.21, 0.84, fill=self.dark)

    def train(self) -> None:
        self.box(0.05, 0.38, 0.68, 0.68)
        self.box(0.6, 0.12, 0.95, 0.68)
        self.box(0.68, 0.2, 0.87, 0.38, fill=(205, 230, 245))
        self.box(0.12, 0.1, 0.26, 0.4, fill=self.dark)
        self.shape(0.0, 0.84, 0.1, 0.66, 0.12, 0.84, fill=self.dark)
        for x in (0.1, 0.32, 0.54, 0.76):
            self.oval(x, 0.66, x + 0.18, 0.86, fill=self.dark)

    def boat(self) -> None:
        self.shape(0.03, 0.62, 0.97, 0.62, 0.8, 0.88, 0.2, 0.88)
        self.line(0.5, 0.62, 0.5, 0.05, times=1.6)
        self.shape(0.54, 0.08, 0.88, 0.56, 0.54, 0.56, fill=self.light)
        self.shape(0.46, 0.16, 0.18, 0.56, 0.46, 0.56, fill=(245, 245, 240))

    def bell(self) -> None:
        self.oval(0.4, 0.72, 0.6, 0.94, fill=self.dark)
        self.shape(0.5, 0.08, 0.68, 0.2, 0.74, 0.58, 0.92, 0.78, 0.08, 0.78, 0.26, 0.58, 0.32, 0.2)
        self.oval(0.43, 0.02, 0.57, 0.16, fill=self.light)

    def phone(self) -> None:
        self.rounded(0.26, 0.03, 0.74, 0.97, radius=0.09)
        self.box(0.33, 0.13, 0.67, 0.76, fill=(200, 230, 245))
        self.oval(0.44, 0.8, 0.56, 0.92, fill=self.dark)

    def clock(self) -> None:
        self.oval(0.05, 0.05, 0.95, 0.95)
        self.oval(0.17, 0.17, 0.83, 0.83, fill=(250, 250, 245))
        self.line(0.5, 0.5, 0.5, 0.24, times=2)
        self.line(0.5, 0.5, 0.7, 0.6, times=2)

    def bird(self) -> None:
        self.line(0.42, 0.74, 0.42, 0.95, times=1.4)
        self.line(0.54, 0.74, 0.54, 0.95, times=1.4)
        self.shape(0.26, 0.5, 0.0, 0.34, 0.04, 0.64)
        self.oval(0.18, 0.34, 0.74, 0.78)
        self.shape(0.32, 0.54, 0.6, 0.5, 0.38, 0.1, fill=self.light)
        self.oval(0.58, 0.18, 0.86, 0.46)
        self.shape(0.83, 0.28, 1.0, 0.35, 0.83, 0.41, fill=(240, 170, 30))

    def dog(self) -> None:
        self.line(0.2, 0.46, 0.04, 0.22, fill=self.body, times=3)
        for x in (0.19, 0.32, 0.5, 0.61):
            self.box(x, 0.62, x + 0.1, 0.94)
        self.box(0.17, 0.42, 0.72, 0.66)
        self.box(0.6, 0.2, 0.88, 0.5)
        self.box(0.84, 0.34, 1.0, 0.5, fill=self.dark)
        self.shape(0.6, 0.18, 0.52, 0.5, 0.7, 0.3, fill=self.dark)

    def cat(self) -> None:
        self.shape(0.16, 0.45, 0.16, 0.03, 0.48, 0.26)
        self.shape(0.84, 0.45, 0.84, 0.03, 0.52, 0.26)
        self.oval(0.12, 0.22, 0.88, 0.92)
        for x in (0.27, 0.59):
            self.oval(x, 0.42, x + 0.14, 0.58, fill=(120, 220, 90))
        for y in (0.66, 0.76):
            self.line(0.04, y, 0.4, 0.7)
            self.line(0.96, y, 0.6, 0.7)

    def kettle(self) -> None:
        self.arc(0.2, 0.04, 0.7, 0.6, start=180, end=360)
        self.shape(0.72, 0.62, 1.0, 0.3, 1.0, 0.42, 0.8, 0.84)
        self.shape(0.24, 0.34, 0.66, 0.34, 0.84, 0.92, 0.08, 0.92)
        self.oval(0.38, 0.24, 0.52, 0.38, fill=self.dark)

    def robot(self) -> None:
        self.line(0.5, 0.1, 0.5, 0.0, times=1.4)
        self.box(0.25, 0.07, 0.75, 0.38)
        self.box(0.2, 0.41, 0.8, 0.8)
        for x in (0.04, 0.84):
            self.box(x, 0.43, x + 0.12, 0.74)
        for x in (0.28, 0.58):
            self.box(x, 0.8, x + 0.14, 0.98)
        for x in (0.33, 0.55):
            self.box(x, 0.14, x + 0.12, 0.26, fill=(250, 250, 120))

    def drum(self) -> None:
        self.box(0.1, 0.38, 0.9, 0.86)
        self.oval(0.1, 0.24, 0.9, 0.52, fill=(245, 240, 225))
        self.line(0.1, 0.5, 0.3, 0.84, 0.5, 0.54, 0.7, 0.84, 0.9, 0.5, fill=(245, 240, 225), times=1.4)
        self.line(0.34, 0.34, 0.05, 0.04, fill=(120, 80, 40), times=2)
        self.line(0.66, 0.34, 0.95, 0.04, fill=(120, 80, 40), times=2)

    def guitar(self) -> None:
        self.line(0.42, 0.56, 0.92, 0.06, fill=(110, 70, 40), times=3)
        self.box(0.85, 0.0, 1.0, 0.15, fill=self.dark)
        self.oval(0.02, 0.48, 0.52, 0.98)
        self.oval(0.26, 0.4, 0.6, 0.74)
        self.oval(0.26, 0.6, 0.42, 0.76, fill=self.dark)

    def bee(self) -> None:
        self.oval(0.24, 0.06, 0.52, 0.44, fill=(225, 235, 250))
        self.oval(0.48, 0.06, 0.76, 0.44, fill=(225, 235, 250))
        self.shape(0.14, 0.48, 0.0, 0.55, 0.14, 0.62, fill=self.dark)
        self.oval(0.1, 0.34, 0.92, 0.78)
        for x, inset in ((0.28, 0.04), (0.46, 0.01), (0.64, 0.04)):
            self.box(x, 0.36 + inset, x + 0.09, 0.76 - inset, fill=(25, 20, 20))

    def frog(self) -> None:
        self.oval(0.05, 0.35, 0.95, 0.92)
        for x in (0.14, 0.56):
            self.oval(x, 0.1, x + 0.3, 0.42)
            self.oval(x + 0.09, 0.17, x + 0.21, 0.31, fill=(250, 250, 245))
        self.arc(0.24, 0.36, 0.76, 0.78, start=10, end=170)

    def fire(self) -> None:
        self.shape(
            0.5, 0.0, 0.66, 0.32, 0.84, 0.18, 0.92, 0.62, 0.7, 0.86, 0.3, 0.86, 0.08, 0.62, 0.22, 0.3, 0.36, 0.46
        )
        self.shape(0.5, 0.4, 0.66, 0.66, 0.56, 0.84, 0.42, 0.84, 0.34, 0.64, fill=self.light)
        self.box(0.06, 0.84, 0.94, 0.97, fill=(95, 60, 35))

    def cloud(self) -> None:
        for x in (0.18, 0.38, 0.58, 0.78):
            self.line(x + 0.04, 0.6, x - 0.06, 0.96, fill=(70, 130, 240), times=2)
        self.oval(0.02, 0.24, 0.45, 0.64)
        self.oval(0.55, 0.24, 0.98, 0.64)
        self.oval(0.26, 0.06, 0.74, 0.62)

    def person(self) -> None:
        self.line(0.36, 0.36, 0.1, 0.58, fill=self.body, times=3)
        self.line(0.64, 0.36, 0.9, 0.58, fill=self.body, times=3)
        self.box(0.35, 0.62, 0.48, 0.98, fill=self.dark)
        self.box(0.52, 0.62, 0.65, 0.98, fill=self.dark)
        self.box(0.32, 0.3, 0.68, 0.66)
        self.oval(0.36, 0.02, 0.64, 0.3, fill=(235, 190, 150))

    def snake(self) -> None:
        path = [
            value for step in np.linspace(0, 1, 24) for value in (0.06 + 0.76 * step, 0.52 + 0.3 * math.sin(step * 9))
        ]
        self.line(*path, times=4.6)
        self.line(*path, fill=self.body, times=3.2)
        self.oval(0.74, 0.5, 0.98, 0.72)
        self.oval(0.84, 0.55, 0.9, 0.61, fill=self.dark)


def draw_object(name: str, colour: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw an object, facing right: an RGBA picture of ``size x size`` pixels, transparent around it.

    The shade of its colour varies a little with `rng`.
    """
    shade = rng.normal(0, 12, 3)
    body = tuple(int(np.clip(value + change, 0, 255)) for value, change in zip(COLOURS[colour], shade, strict=True))
    pen = _Pen(2 * size, body, rng.uniform(0.08, 0.25))  # drawn large and reduced: smooth edges
    getattr(pen, name)()
    return pen.image.resize((size, size), Image.Resampling.BOX)


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
