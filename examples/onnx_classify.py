"""Classify clips by what `avfs export RUN --onnx DIR` wrote: pip install av onnxruntime pillow, then DIR CLIP..."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime
from PIL import Image

folder, *clips = map(Path, sys.argv[1:])
about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
size, rate, graphs, step = about["image_size"], about["sample_rate"], about["graphs"], about["window"] or 10
sessions = {name: onnxruntime.InferenceSession(folder / graph["file"]) for name, graph in graphs.items()}


def picture(frame):  # the shorter side to `size`, then the middle
    image = Image.fromarray(frame.to_ndarray(format="rgb24", interpolation="BILINEAR"))
    image = image.resize([int(size * side / min(image.size)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def read(path):  # for every second the last picture before its middle, and 48,000 samples of mono sound
    with av.open(path) as file:
        seconds = max(1, int(file.duration / av.time_base + 0.5))
        frames, sound, mono = (
            [None] * seconds,
            np.zeros(seconds * rate, np.float32),
            av.AudioResampler("fltp", "mono", rate),
        )
        for frame in file.decode(*file.streams.video[:1], *file.streams.audio[:1]):
            if isinstance(frame, av.VideoFrame):
                frames = [frame if old is None or frame.time <= t + 0.5 else old for t, old in enumerate(frames)]
            else:
                samples, start = (
                    np.hstack([p.to_ndarray()[0] for p in mono.resample(frame)] or [[]]),
                    round(frame.time * rate),
                )
                sound[max(0, start) : start + len(samples)] = samples[max(0, -start) : max(0, len(sound) - start)]
        inputs = {"frames": np.stack([picture(frame) for frame in frames])} if file.streams.video else {}
        return inputs | ({"waveform": sound.reshape(seconds, rate).clip(-1, 1)} if file.streams.audio else {})


for clip in clips:
    inputs, embedded = read(clip), {}
    together = "joint" in graphs and len(inputs) == 2  # adapters connect sight and sound, window by window
    for name in ["joint"] if together else [n for n in ("visual", "audio") if graphs[n]["inputs"][0] in inputs]:
        whole = {key: inputs[key] for key in graphs[name]["inputs"]}
        starts = range(0, len(next(iter(whole.values()))), step)
        parts = [sessions[name].run(None, {k: v[s : s + step] for k, v in whole.items()}) for s in starts]
        embedded |= dict(zip(graphs[name]["outputs"], map(np.concatenate, zip(*parts))))
    head = "classify" if len(embedded) == 2 else f"classify-{next(iter(embedded))}"
    scores = dict(zip(about["labels"], sessions[head].run(["probabilities"], embedded)[0].tolist()))
    print(json.dumps({"path": str(clip), "label": max(scores, key=scores.get), "scores": scores}))
