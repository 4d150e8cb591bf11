"""The shell's `advise`, which starts without JAX."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sdelens.core.declarations import OPTIMIZERS, scaled_names
from sdelens.shell.case_options import numbers
from sdelens.shell.session import named

__all__ = ["advise"]


def advise(
    noise: Annotated[
        str,
        typer.Argument(
            help="The noise scale in samples: a number, 'estimate,lower,upper' (nan for what is unknown), or a CSV "
            "file with columns step or samples, noise_scale and, if measured, noise_scale_lower and noise_scale_upper."
        ),
    ],
    batch_size: Annotated[
        float | None, typer.Option(help="Samples of one optimizer step of the present run; needed for learning rates.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(scaled_names())}.")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="The present learning rate; without it, factors are given.")] = None,
    b1: Annotated[float | None, typer.Option(help="Decay of the first moment.")] = None,
    b2: Annotated[float | None, typer.Option(help="Decay of the second moment.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay θ; default 0.")] = None,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes of the table, comma-separated; default: powers of two times the present one."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the present run, to predict those of others.")] = None,
    efficiency: Annotated[
        float, typer.Option(help="Least share of the samples, 1/(1 + B/noise scale), that a batch size must use.")
    ] = 0.5,
    plot: Annotated[Path | None, typer.Option(help="File of a figure to write, for example advice.png.")] = None,
    output: Annotated[str, typer.Option("--format", help="'text' or 'json'.")] = "text",
) -> None:
    """Advise on the next batch size and its learning rate, from a noise scale or a log of it."""
    import sdelens as sl
    from sdelens.core import check
    from sdelens.core.declarations import canonical_name

    check.choice("format", output, ("text", "json"))
    name = check.choice("optimizer", optimizer.lower(), scaled_names())
    given = {key: v for key, v in {"b1": b1, "b2": b2, "weight_decay": weight_decay}.items() if v is not None}
    if lr is None and given:
        raise ValueError(f"lr: not given, but {', '.join(given)} {'are' if len(given) > 1 else 'is'}; give it too.")
    full: Any = name
    if lr is not None:
        full = {"optimizer": name, **OPTIMIZERS[canonical_name(name)].defaults, "lr": lr, **given}
    found = sl.advise(
        _noise(noise),
        batch_size=batch_size,
        optimizer=full,
        batches=None if batches is None else numbers("batches", batches),
        steps=steps,
        efficiency=efficiency,
    )
    if plot is not None:
        with named(path="plot"):
            found.plot(plot)
    typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if output == "json" else str(found))


def _noise(given: str) -> Any:
    """A number, three numbers or a path."""
    try:
        parts = [float(part) for part in given.split(",")]
    except ValueError:
        if not Path(given).is_file():
            raise ValueError(
                f"noise: got {given!r}, which is neither a number, nor three numbers 'estimate,lower,upper', nor a "
                "file."
            ) from None
        return given
    return parts[0] if len(parts) == 1 else tuple(parts)
