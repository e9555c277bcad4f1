"""The work of `avfs fewshot`: load, train each seed, write the run folder, print figures."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.cli.console import Notices, library_messages, paused_progress
from avfewshot.cli.fewshot_request import FewShotRequest, load_data
from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.lifecycle import debugging

if TYPE_CHECKING:
    from avfewshot.cli.fewshot_progress import Display
    from avfewshot.training.fewshot import FewShot
    from avfewshot.training.plan import Plan


def execute(request: FewShotRequest) -> int:
    """Train and evaluate as asked for.

    Args:
        request: Checked.

    Returns:
        The exit status: 0 done, 130 or 143 cut short.

    Raises:
        AvfsError: It cannot be done.
    """
    notices = Notices()
    with library_messages(notices, debug=debugging()), Interrupts() as interrupts:
        from avfewshot.cli.fewshot_progress import Display

        display = Display()
        try:
            with display:
                dataset = _dataset(request, display)
                run = _prepare(request, dataset, display, interrupts)
                if not request.resumed:
                    request.write()
                plan = plan_of(run, request)
                _say_plan(run, plan, display)
                _look_for_validation(run, display)
                results = [run.run(seed) for seed in run.config.seeds]
                from avfewshot.cli.fewshot_output import write_outputs

                written = write_outputs(request, run, plan, results, display)
        except KeyboardInterrupt:
            if (request.folder / "run.json").is_file():
                _say(f"Interrupted. To go on: avfs fewshot --resume {shlex.quote(str(request.folder))}")
            return interrupts.status
    from avfewshot.cli.fewshot_output import print_results

    print_results(run, results, written)
    return 0


def show_plan(request: FewShotRequest) -> None:
    """Print what a run would do and take, without reading a clip.

    Raises:
        AvfsError: It cannot be done.
    """
    from avfewshot.cli.fewshot_output import print_plan
    from avfewshot.cli.fewshot_progress import Display

    with Display() as display, Interrupts() as interrupts:
        dataset = _dataset(request, display)
        run = _prepare(request, dataset, display, interrupts)
        plan = plan_of(run, request)
    print_plan(request, run, plan)


def plan_of(run: FewShot, request: FewShotRequest) -> Plan:
    """What a run takes; supports are drawn, clips are not read."""
    import torch

    from avfewshot.data.sampler import draw_support
    from avfewshot.inference.devices import PRECISIONS
    from avfewshot.models.build import build_model
    from avfewshot.training.plan import make_plan

    config = run.config
    support = draw_support(
        run.dataset,
        config.shots,
        config.seeds[0],
        sampler=config.sampler,
        multi_label=config.multi_label,
        only_available=True,
    )
    run.backbone.to("cpu", torch.float32)
    try:
        model = build_model(run.backbone, config, device=run.device)
        return make_plan(model, run.backbone, config, len(support.samples))
    finally:
        run.backbone.to(run.device, PRECISIONS[config.precision])


def _dataset(request: FewShotRequest, display: Any) -> Any:
    display.begin("reading annotations, looking for clips", 0)
    return load_data(request)


def _prepare(request: FewShotRequest, dataset: Any, display: Any, interrupts: Interrupts) -> FewShot:
    from avfewshot.cli.run_model import load_parts, say_without_graphs
    from avfewshot.inference.devices import resolve_device, resolve_precision
    from avfewshot.prompts import load_templates
    from avfewshot.training.fewshot import FewShot

    model = request.model
    device = resolve_device(model["device"])
    config = dataclasses.replace(request.config, precision=resolve_precision(request.config.precision, device))
    say_without_graphs(config, device, display)
    config, backbone, initial = load_parts(config, model, request.adapter, request.settings, display)
    name = model["templates"] or backbone.templates
    return FewShot(
        dataset,
        config,
        backbone,
        load_templates(name),
        name,
        device,
        Path(request.folder),
        frame_backend=model["frame_backend"],
        initial=initial,
        observer=display,
        put_off=interrupts.put_off,
    )


def _say_plan(run: FewShot, plan: Plan, display: Any) -> None:
    config = run.config
    sizes = run.dataset.split_sizes
    found = {split: len(run.dataset.available(split)) for split in sizes}
    display.say(
        f"{run.dataset.description.title}: "
        + ", ".join(f"{found[split]:,} of {size:,} {split} clips have media" for split, size in sizes.items())
        + "."
    )
    trainable = next(count.trainable for count in plan.parameters if count.component == "all")
    display.say(
        f"{config.task}, {config.shots} shots: {plan.clips:,} clips, up to {plan.steps:,} steps in {config.epochs} "
        f"epochs; {trainable / 1e6:.1f} M trainable parameters, {plan.flops['all'] / 1e9:.1f} GFLOPs a clip, about "
        f"{plan.memory / 1e9:.1f} GB; {run.device}, {config.precision}."
    )


def _look_for_validation(run: FewShot, display: Display) -> None:
    display.validated = bool(run.bench.scored("val").samples)
    if not display.validated:
        from avfewshot.training.fewshot import BLIND_SHARE

        share = BLIND_SHARE if run.config.blend == "auto" else run.config.blend
        display.say(
            f"There is no validation clip to choose by: the last epoch will be taken, with {share:g} of the trained "
            "logits."
        )


def _say(message: str) -> None:
    with paused_progress():
        print(message, file=sys.stderr)  # noqa: T201
