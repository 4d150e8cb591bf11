"""The shell's `rescale`: a checkpoint of PyTorch rewritten for another batch size."""

from pathlib import Path
from typing import Annotated

import typer

from sdelens.core import check
from sdelens.shell.panels import ClipNorm, MomentumRule, OldSteps, OldWarmup, ScalingRule
from sdelens.shell.session import check_exist, named

__all__ = ["rescale"]


def rescale(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A file with an optimizer's state dict (plain, Lightning), or a folder of the Hugging Face Trainer or "
            "of accelerate."
        ),
    ],
    ratio: Annotated[float, typer.Option(help="The new batch size divided by the old one.")],
    out: Annotated[Path, typer.Option(help="Name of the new file or folder, which must not exist.")],
    optimizer: Annotated[
        str | None, typer.Option(help="Class of the optimizer, for example AdamW, if the checkpoint does not tell.")
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(help="'step' or 'epoch': after which the scheduler is called. Default: from the step counts."),
    ] = None,
    rule: ScalingRule = None,
    momentum: MomentumRule = None,
    snr: Annotated[
        float | None, typer.Option(help="The measured signal-to-noise ratio, for rules that use it.")
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(help="'coupled', 'independent' or 'l2': how weight decay acts, if not as in this optimizer."),
    ] = None,
    steps: OldSteps = None,
    warmup: OldWarmup = None,
    clip_norm: ClipNorm = None,
    batch_size: Annotated[
        float | None, typer.Option(help="Batch size of the old run, the unit of decay times.")
    ] = None,
    accumulators: Annotated[
        str, typer.Option(help="'scale': convert second moments and step counts at once; 'keep': leave them.")
    ] = "scale",
) -> None:
    """Rewrite a checkpoint of PyTorch so that the run continues at another batch size, and print the new arguments."""
    check_exist("checkpoint", [checkpoint])
    check.positive("ratio", ratio)
    if out.exists():
        raise FileExistsError(f"out: {str(out)!r} exists already; give a name that does not exist.")
    check.reading_by_pytorch("checkpoint")
    from sdelens.torch import rescale_checkpoint

    with named(path="checkpoint", batch_ratio="ratio"):
        found = rescale_checkpoint(
            checkpoint,
            ratio,
            out,
            rule,
            optimizer=optimizer,
            interval=interval,
            steps=steps,
            warmup=warmup,
            clip_norm=clip_norm,
            momentum=momentum,
            decay=decay,
            accumulators=accumulators,
            snr=snr,
            batch_size=batch_size,
        )
    typer.echo(str(found))
