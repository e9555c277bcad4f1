"""`avfs export`: a classifier as ONNX graphs."""

from __future__ import annotations

from typing import Any

from avfewshot.cli.destinations import check_folder
from avfewshot.cli.loading import chosen
from avfewshot.cli.options import asked_labels, backbone_faults, with_options
from avfewshot.cli.runs import session
from avfewshot.cli.terminal import say
from avfewshot.config import ExportConfig, resolve
from avfewshot.errors import UsageError, collect, raise_faults


@with_options("export", without=("device", "frame_backend"))
def export(**flags: Any) -> None:
    r"""Write a classifier as ONNX graphs: towers from pixels and from the waveform on, adapters, what was learnt,
    fusion.

    RUN is a run folder or an adapter, such as `avfs zeroshot --adapter` takes; without it a zero-shot classifier of the
    labels is written. ONNX Runtime then answers as `avfs zeroshot` does, without torch: every graph is compared, to
    1e-4, before it is put in its place. examples/onnx_classify.py reads the folder. Needs `pip install
    'avfewshot\[onnx]'`.

    [bold]Examples[/bold]

      avfs export runs/folder/RUN --onnx kitchen/
      avfs export --backbone tiny --labels labels.txt --onnx tiny/
      python examples/onnx_classify.py kitchen/ clips/*.mp4
    """  # noqa: D205
    settings = resolve("export", flags)
    config: ExportConfig = settings.config
    faults, model = [*settings.faults, *backbone_faults(settings)], config.model
    labels = collect(faults, lambda: asked_labels(settings))
    if config.onnx is None:
        faults.append(UsageError("Where to?", hint="avfs export RUN --onnx DIR"))
    else:
        faults += check_folder(config.onnx, "--onnx")
    if not (config.label or config.labels or model.adapter):
        faults.append(UsageError("Which labels?", hint="Name a run, or add `--labels labels.txt`."))
    raise_faults(faults)
    assert config.onnx is not None
    with session() as (display, _):
        from avfewshot.inference.export_onnx import export_onnx
        from avfewshot.inference.loading import load

        display.say(f"loading {chosen(settings, 'backbone') or model.adapter}")
        classifier = load(
            chosen(settings, "backbone"), device="cpu", precision="fp32", weights=model.weights, seed=model.seed,
            clip_weights=model.clip_weights, clap_weights=model.clap_weights, roberta=model.roberta,
            templates=chosen(settings, "templates"), adapter=model.adapter,
        )  # fmt: skip
        if classifier.audio_context == "clip":
            message = f"{model.adapter}: was fitted with --audio-context clip; graphs hear single seconds."
            raise UsageError(message, hint="Fit it again with --audio-context second.")
        names = labels or classifier.own_labels
        if names is None:
            raise UsageError(f"{model.adapter}: names no labels.", hint="Add `--labels labels.txt`.")
        manifest = export_onnx(classifier, names, config.onnx)
    for graph in manifest["graphs"].values():
        size = (config.onnx / graph["file"]).stat().st_size / 1e6
        say(f"{graph['file']}: {size:,.1f} MB, differs from torch by {graph['largest_difference']:.0e}")
    say(f"written: {config.onnx}")
