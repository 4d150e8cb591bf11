"""The shell's `rescale`: a checkpoint of PyTorch rewritten for another batch size."""

from pathlib import Path
from typing import Annotated

import typer

from sdelens.core import names
from sdelens.shell.session import named

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
    rule: Annotated[
        str | None,
        typer.Option(
            help=f"Default: the one that keeps the optimizer's SDE. One of {', '.join(names.SCALING_RULES)}, which "
            "'sdelens info rules' explains."
        ),
    ] = None,
    momentum: Annotated[
        str | None,
        typer.Option(
            help=f"How the decays β are scaled. One of {', '.join(names.MOMENTA)}, which 'sdelens info momenta' "
            "explains."
        ),
    ] = None,
    snr: Annotated[
        float | None, typer.Option(help="The measured signal-to-noise ratio, for rules that use it.")
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(help="'coupled', 'independent' or 'l2': how weight decay acts, if not as in this optimizer."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the old run.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Warm-up steps of the old run.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Norm to which gradients are clipped.")] = None,
    batch_size: Annotated[
        float | None, typer.Option(help="Batch size of the old run, the unit of decay times.")
    ] = None,
    accumulators: Annotated[
        str, typer.Option(help="'scale': convert second moments and step counts at once; 'keep': leave them.")
    ] = "scale",
) -> None:
    """Rewrite a checkpoint of PyTorch so that the run continues at another batch size, and print the new arguments."""
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
