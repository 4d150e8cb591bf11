"""The outcome of a simulation or comparison: one dataset, its table of errors, its figure, its file."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdelens.core.files import as_path, atomic_path
from sdelens.core.limits import CONFIDENCE
from sdelens.results import added, joined, latex, tables
from sdelens.results.comparison import Comparison
from sdelens.results.dataset_files import write_dataset
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.results.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdelens.results.figures import Sheet

__all__ = ["Result"]


class Result(RecordedRun, Plotted):
    """What a run measured.

    ``dataset`` is an `xarray.Dataset` with dimensions ``model``, ``step`` (0 is the start; coordinate ``time`` = kη),
    ``group``, ``quantile`` and, where the problem has at most 64 parameters, ``coordinate``:

    - ``loss_mean, loss_std, loss_sem`` (model, step): over the paths that are still finite;
    - ``loss_group_mean, loss_group_m2, group_paths`` (model, group, step): mean, sum of squared deviations and number
      of finite paths; path i is in group i mod G;
    - ``loss_quantile`` (model, quantile, step): accurate to 1.6 % of loss − infimum, where that is 2⁻³² to 2³²;
    - ``grad_norm_mean`` (model, step): mean of ‖∇f‖;
    - ``x_mean, x_var`` (model, step, coordinate);
    - ``n_paths`` (model, step): paths that are still finite; the others are excluded from the averages;
    - ``path_x`` (model, path, step, parameter): with ``keep_paths``; parameters in the order of `jax.tree.leaves`; what
      else ``keep`` names is stored likewise, as ``path_m`` or ``path_loss``;
    - ``observable_mean, observable_std, observable_group_mean, observable_group_m2``: with ``observables``, like those
      of the loss, with a dimension ``observable``; `of` makes a result of one observable;
    - ``law_loss, law_observable, law_x`` (model, moment, every_path, …): with ``times`` or ``marginals``, the values of
      every path at these steps; NaN from where it diverged;
    - ``hit_step`` (model, hit, every_path): with ``hits``, the first step at which each condition held, NaN if it never
      did until the step ``watched_until`` (model, every_path);
    - ``loss_bound`` (bound, step): bounds added by `with_bound`.

    A prediction (`sdelens.theory.predict`), a forecast (`sdelens.forecast`) or a curve added by `with_curve` has no
    paths, and NaN where it has no value; the quantiles of a forecast are the limits of its band.

    Its attributes hold what is needed to repeat the run, as JSON: ``problem, noise, optimizer, run, models, versions,
    device``, and ``rerunnable``, which is 0 if a function of the user cannot be written down.
    """

    def merge(self, other: "Result") -> "Result":
        """Join the models of both results, those of `other` last; for example a prediction and the runs it predicts.

        Raises:
            ValueError: if they share a model's name, or differ in problem, noise, optimizer, start, steps or paths.
        """
        if not isinstance(other, Result):
            raise TypeError(f"other: got {type(other).__name__}; give a Result.")
        return Result(joined.merged(self.dataset, other.dataset))

    def rename(self, names: Mapping[str, str]) -> "Result":
        """The result with other labels of its models, as {old: new}; the others keep theirs.

        Raises:
            ValueError: if there is no such model, or two models would have one label.
        """
        return Result(joined.renamed(self.dataset, names))

    def select(self, models: Sequence[str]) -> "Result":
        """The result with only these models, in this order.

        Raises:
            ValueError: if there is no such model, or one is named twice.
        """
        return Result(joined.selected(self.dataset, models))

    def pool(self, *others: "Result") -> "Result":
        r"""Join equal runs with other seeds to one result with the paths of all.

        Group g of the result consists of the groups g of all runs. Their counts add up, and means and squared
        deviations are joined as those of the chunks of one run are (Chan, Golub and LeVeque 1983), so that nothing but
        rounding distinguishes the statistics from those of one run of all paths. Errors, limits and floors follow from
        them. The quantiles of the loss do not follow from those of the parts, and are left out, which `notes` says;
        figures show the standard deviation in their place. Kept paths and the coordinates of every path are joined.

        Args:
            others: results of the same problem, noise, optimizer, models, steps and records. Numbers of paths may
                differ as long as the number of groups is the same.

        Raises:
            ValueError: if the runs differ in anything else, which the message names, or share a seed.
        """
        for other in others:
            if not isinstance(other, Result):
                raise TypeError(f"others: got {type(other).__name__}; give results of runs with other seeds.")
        return Result(joined.pooled([self.dataset, *(other.dataset for other in others)]))

    def with_curve(self, label: str, losses: Any, steps: Any) -> "Result":
        """Add your own loss curve, for example a logged one, as a further model.

        It is interpolated to the recorded steps and is NaN outside the range of the logged ones, which `errors` leaves
        out. Its noise is not known, so errors and limits count this noise as part of the difference.

        Args:
            label: name of the curve.
            losses: shape (n,), n ≥ 2.
            steps: optimizer steps at which they were logged, increasing, shape (n,).

        Raises:
            ValueError, TypeError: if the shapes differ, steps do not increase or none lies within the run, a loss is
                not finite, or the label is taken.
        """
        return self.merge(Result(added.logged_curve(self.dataset, label, losses, steps)))

    def with_bound(self, label: str, losses: Any) -> "Result":
        """Add a bound of the loss at the recorded steps, shape (steps,), to the figure; infinite where there is none.

        Raises:
            ValueError: if the shape differs, an entry is NaN or below the infimum, or the label is taken.
        """
        return Result(added.with_bound(self.dataset, label, losses))

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        reference: str | None = None,
        *,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
        title: str | None = None,
        style: str | None = None,
        columns: int | None = None,
    ) -> "Figure":
        """Mean-loss curves with bands, and their relative difference from `reference` below; saved if `path` is given.

        Args:
            path: file to save it to, in the format of its suffix.
            reference: label of the model that others are compared with; by default as in `errors`.
            ax: axes to draw into instead of a new figure: one for the curves alone, or two.
            figsize: width and height of a new figure in inches.
            title: title instead of the figure's own; ``""`` for none.
            style: ``"screen"`` or ``"paper"``, as for `style`; by default the one in use.
            columns: number of columns of a paper that the figure covers, 1 or 2.

        Returns:
            The figure.

        Raises:
            ValueError: if matplotlib does not write files with the suffix of `path`, the number of axes does not fit,
                or a name is not known.
        """
        from sdelens.results.figures import drawn

        draw = functools.partial(self._draw, reference=reference)
        return drawn(draw, path, ax=ax, figsize=figsize, title=title, style=style, columns=columns)

    def _draw(self, sheet: "Sheet", reference: str | None = None) -> None:
        from sdelens.results.plotting import plot_losses

        compared = self.compares if reference is None else len(self.models) > 1
        shown = self._reference(reference) if compared else self.models[0]
        kinds = {label: model["model"] for label, model in self.settings.items()}
        compare = Comparison(self.dataset, shown)
        errors = {label: compare.stated_error(label) for label in self.models if label != shown} if compared else {}
        plot_losses(sheet, self.dataset, shown, kinds, compare.height, errors)

    def export(
        self, path: str | os.PathLike[str], reference: str | None = None, confidence: float = CONFIDENCE
    ) -> None:
        """Write the table of `errors` as ``.csv`` or ``.tex`` (a LaTeX tabular with booktabs rules).

        Raises:
            ValueError: if the suffix is neither of these.
        """
        suffix = as_path(path).suffix.lower()
        if suffix == ".csv":
            text = self.errors(reference, confidence).to_csv()
        elif suffix == ".tex":
            text = latex.tables([Table(*tables.latex_table(self, reference, confidence))], None, None)
        else:
            raise ValueError(f"path: got {str(path)!r}; end it in .csv or .tex.")
        with atomic_path(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def explore(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        coordinates: Sequence[int] | None = None,
        show: bool = True,
    ) -> Path:
        """Open the explorer, a page in the browser, with the settings of this run.

        The page computes the run again in the browser, at once after every change of a setting: particles of the
        optimizer and of its SDEs, the closure, the stationary law and the bound.

        Args:
            path: file for the page; by default one in the user's cache folder.
            coordinates: one or two coordinates to show, if the problem has more; they must not be coupled to others.
            show: whether to open the page.

        Returns:
            The page's file.

        Raises:
            ValueError: if the explorer cannot show the run. It shows quadratic losses of one or two coordinates,
                normal, Laplace and Student t noise with independent coordinates, and SGD, Momentum, SignSGD, Signum,
                Lion, RMSpropW and AdamW with constant learning rates. A random start is replaced by its mean.
        """
        from sdelens.explorer import open_page, settings_of

        info, start = self.info, None
        if "x_mean" in self.dataset:
            start = self.dataset.x_mean.isel(model=0, step=0).values
        described = info["problem"], info["noise"], info["optimizer"]
        return open_page(settings_of(*described, info["run"]["steps"], coordinates, start), path, show=show)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset as NetCDF (HDF5), atomically.

        Raises:
            OSError: if it cannot be written, or `path` is a folder.
        """
        write_dataset(self.dataset, path)

    def _parts(self) -> Parts:
        """The table of errors, or of final losses where there is nothing to compare, and further tables."""
        return [self.title(), Table(*self.table()).without_empty(), *self.notes(), *self.details()]

    def _tables(self) -> list[Table]:
        return [Table(*tables.latex_table(self))]

    def title(self) -> str:
        """One line that says what was run."""
        return tables.title(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text."""
        return tables.table(self)

    def details(self) -> list[Table]:
        """Further tables: observables, the laws of coordinates at the last step, and hitting times."""
        return tables.details(self)

    def notes(self) -> list[str]:
        """What the table's columns mean, the devices used, and how to use more."""
        return tables.notes(self)
