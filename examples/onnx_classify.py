"""Classify clips by what `avfs export RUN --onnx DIR` wrote: pip install av onnxruntime pillow, then DIR CLIP..."""

import json
import sys
from pathlib import Path

import av
import numpy as np
from onnxruntime import InferenceSession
from PIL import Image

folder, *clips = map(Path, sys.argv[1:])
about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
size, rate, joint, step = about["image_size"], about["sample_rate"], about["window"], about["window"] or 10
graphs = {n: (InferenceSession(folder / g["file"]), g["inputs"], g["outputs"]) for n, g in about["graphs"].items()}
for clip in clips:
    with av.open(clip) as file:  # of every second the last picture before its middle, and 48,000 samples of mono sound
        seconds, mono = max(1, int(file.duration / av.time_base + 0.5)), av.AudioResampler("fltp", "mono", rate)
        frames, sound = [None] * seconds, np.zeros(seconds * rate, np.float32)
        for frame in file.decode(*file.streams.video[:1], *file.streams.audio[:1]):
            if isinstance(frame, av.VideoFrame):
                frames = [frame if old is None or frame.time <= t + 0.5 else old for t, old in enumerate(frames)]
            else:
                samples, start = [p.to_ndarray()[0] for p in mono.resample(frame)], round(frame.time * rate)
                part = np.hstack([[], *samples])[max(0, -start) : max(0, len(sound) - start)]
                sound[max(0, start) : max(0, start) + len(part)] = part
        inputs = {"waveform": sound.reshape(seconds, rate).clip(-1, 1)} if file.streams.audio else {}
    for second, image in enumerate(frame.to_image(interpolation="BILINEAR") for frame in frames if frame):
        image = image.resize([int(size * side / min(image.size)) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in image.size)
        frames[second] = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    inputs, embedded = inputs | ({} if frames[0] is None else {"frames": np.stack(frames)}), {}
    for tower, keys, outputs in map(graphs.get, ["joint"] if joint and len(inputs) == 2 else ["visual", "audio"]):
        if inputs.keys() >= set(keys):
            parts = [tower.run(None, {k: inputs[k][s : s + step] for k in keys}) for s in range(0, seconds, step)]
            embedded |= dict(zip(outputs, map(np.concatenate, zip(*parts))))
    head, *_ = graphs["classify" if len(embedded) == 2 else f"classify-{next(iter(embedded))}"]
    chances, timeline = head.run(["probabilities", "seconds"], embedded)
    scores, second = dict(zip(about["labels"], chances.tolist())), [about["seconds"][k] for k in timeline.argmax(1)]
    print(json.dumps({"path": str(clip), "label": max(scores, key=scores.get), "scores": scores, "seconds": second}))
