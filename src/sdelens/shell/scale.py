"""The shell's `scale`: turns options into a dict of hyperparameters and prints it rescaled. Needs no JAX."""

from typing import Annotated, Any

import typer

from sdelens.core import names
from sdelens.core.declarations import OPTIMIZERS, canonical_name, scaled_names
from sdelens.shell.case_options import listing, numbers
from sdelens.shell.panels import ClipNorm, MomentumRule, OldSteps, OldWarmup, ScalingRule

__all__ = ["scale"]


def scale(
    optimizer: Annotated[str, typer.Argument(help=f"One of {', '.join(scaled_names())}.")],
    lr: Annotated[float, typer.Option(help="Learning rate at the old batch size.")],
    batch: Annotated[float, typer.Option(help="The old batch size, at which these numbers were used.")],
    to: Annotated[float, typer.Option(help="The new batch size.")],
    b1: Annotated[float | None, typer.Option(help="Decay of the first moment; default 0.9.")] = None,
    b2: Annotated[float | None, typer.Option(help="Decay of the second moment; default 0.999 for adamw.")] = None,
    momentum_decay: Annotated[
        float | None, typer.Option("--mu", help="Undamped momentum of sgd and rmsprop, as in PyTorch.")
    ] = None,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Use Nesterov momentum.")] = False,
    eps: Annotated[float | None, typer.Option(help="ε; default 1e-8, for adagrad 1e-7 inside the root.")] = None,
    initial_accumulator: Annotated[
        float | None, typer.Option(help="Initial value of the sum of squares of adagrad; default 0.1.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay θ; default 0.")] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            help="'coupled': lr multiplies θ (adamw and the other optimizers of this library); 'independent': it does "
            "not; 'l2': weight decay is part of the gradient (adam, rmsprop, sgd)."
        ),
    ] = None,
    steps: OldSteps = None,
    warmup: OldWarmup = None,
    clip_norm: ClipNorm = None,
    rule: ScalingRule = None,
    momentum: MomentumRule = None,
    snr: Annotated[
        str | None,
        typer.Option(
            help="For --rule signal-to-noise: the signal-to-noise ratio at the old batch size, measured from "
            "gradients; or, separated by commas, its estimate, lower and upper limit."
        ),
    ] = None,
    tokens: Annotated[
        float, typer.Option(help="Samples of the new run over those of the old one, if it is longer or shorter.")
    ] = 1.0,
    form: Annotated[str, typer.Option("--format", help=listing(names.CODE_FORMATS))] = "table",
) -> None:
    """Rescale an optimizer's hyperparameters from one batch size to another, and state the assumptions."""
    given: dict[str, Any] = {
        "lr": lr,
        "b1": b1,
        "b2": b2,
        "momentum": momentum_decay,
        "nesterov": nesterov,
        "eps": eps,
    }
    given |= {"initial_accumulator": initial_accumulator, "weight_decay": weight_decay, "decay": decay}
    options: dict[str, Any] = {"rule": rule, "momentum": momentum}
    options |= {"steps": steps, "warmup": warmup, "clip_norm": clip_norm, "tokens": tokens}
    if snr is not None:
        parts = numbers("snr", snr)
        options["snr"] = parts[0] if len(parts) == 1 else tuple(parts)
    typer.echo(printed(optimizer, batch, to, given, form, **options))


def printed(
    optimizer: str,
    batch: float,
    to: float,
    given: dict[str, Any],
    form: str,
    **options: Any,
) -> str:
    """The text that `sdelens scale` prints.

    Args:
        optimizer: name of the optimizer.
        batch: batch size for which the numbers hold.
        to: the new batch size.
        given: the hyperparameters by name; None if not given.
        form: one of `CODE_FORMATS`.
        **options: options of `rescale`.

    Raises:
        ValueError: if an argument is invalid, or a number is not one of the optimizer's; the message names it.
    """
    from sdelens.core import check
    from sdelens.scaling import rescale
    from sdelens.scaling.code import as_code

    name = check.choice("optimizer", optimizer.lower(), scaled_names())
    check.choice("format", form, names.CODE_FORMATS)
    ratio = check.positive("to", to) / check.positive("batch", batch)
    full = {key: value for key, value in given.items() if value is not None}
    full = {"optimizer": name, **OPTIMIZERS[canonical_name(name)].defaults, **full}
    if not full.get("nesterov"):
        full.pop("nesterov", None)
    rescaled = rescale(full, ratio, batch_size=batch, **options)
    return str(rescaled) if form == "table" else as_code(rescaled, form)
