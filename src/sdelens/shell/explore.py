"""The shell's `explore`: the page that shows optimizers, SDEs and theory live, in the browser."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sdelens.shell.case_options import SubjectOptions, numbers
from sdelens.shell.panels import OUTPUT, SIZE, WHAT
from sdelens.shell.session import named, shell

__all__ = ["explore"]

_PROBLEM = "quadratic(curvature=[1, 5], start=[2.4, 1.8])"
"""The quadratic if no numbers are given; that of other commands has five coordinates."""


def explore(
    subject: SubjectOptions,
    result: Annotated[
        Path | None,
        WHAT(help="File of a result (.nc), whose problem, noise, optimizer and steps are shown instead."),
    ] = None,
    coordinates: Annotated[
        str | None, WHAT(help="One or two coordinates to show, if the problem has more than two, as 0,4.")
    ] = None,
    steps: Annotated[int, SIZE(help="Number of optimizer steps.")] = 600,
    out: Annotated[Path | None, OUTPUT(help="File for the page. Default: one in the user's cache folder.")] = None,
    no_open: Annotated[bool, OUTPUT("--no-open", help="Only write the page; do not open it.")] = False,
) -> None:
    """Open a page in the browser that shows the run live, while sliders change its settings.

    The page needs no network and no server: one file, which can be kept and sent. It shows quadratic losses of one or
    two coordinates.
    """
    with shell(1):
        import sdelens as sl
        from sdelens.explorer import open_page, settings_of

        chosen = None if coordinates is None else [int(i) for i in numbers("coordinates", coordinates)]
        if result is not None:
            given = {"problem": subject.problem, "noise": subject.noise, "optimizer": subject.optimizer}
            defaults = SubjectOptions()
            for name, value in {**given, "lr": subject.lr}.items():
                if value != getattr(defaults, name):
                    raise ValueError(f"{name}: got {value}, but --result has its own; give one of them.")
            with named(path="result"):
                found = sl.load(result)
            if not isinstance(found, sl.Result):
                raise ValueError(f"result: {str(result)!r} holds a sweep; give the file of one run.")
            with named(path="out"):
                page = found.explore(out, coordinates=chosen, show=not no_open)
        else:
            setting = (replace(subject, problem=_PROBLEM) if subject.problem == "quadratic" else subject).build()
            described = (setting.problem.describe(), setting.noise.describe(), setting.optimizer.describe())
            with named(path="out"):
                page = open_page(settings_of(*described, steps, chosen), out, show=not no_open)
        typer.echo(f"Written to {page}")
