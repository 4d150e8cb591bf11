"""Animation of an ensemble on a loss of two coordinates."""

import os
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from sdelens.core.names import optimizer_label
from sdelens.results.figures import style
from sdelens.studies._draw import add_ellipse

__all__ = ["animate_cloud"]


def animate_cloud(
    path: str | os.PathLike[str], problem: Any, result: Any, law: Any = None, frames_per_second: int = 12
) -> None:
    """Write a GIF of kept paths on the contours of a loss of two coordinates.

    Args:
        path: path of the GIF.
        problem: a problem with d = 2.
        result: a result with ``Record(keep_paths=...)``; its first model is shown.
        law: a result of `sdelens.theory.stationary`, whose 90 % ellipse is drawn, and said to be where paths rest.
        frames_per_second: frame rate of the animation, which has one frame per record.

    Raises:
        ValueError: if the problem does not have two coordinates.
    """
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    if problem.dim != 2:
        raise ValueError(f"problem: has {problem.dim} coordinates; give a problem with 2, which a landscape needs.")
    data = result.dataset.isel(model=0)
    points = data.path_x.transpose("step", "path", "parameter").values
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    pad = 0.1 * (high - low) + 1e-9
    grid = [np.linspace(a, b, 121) for a, b in zip(low - pad, high + pad, strict=True)]
    mesh = np.stack([g.ravel() for g in np.meshgrid(*grid)])
    loss = np.asarray(eqx.filter_jit(lambda p, x: p.loss(x))(problem, jnp.asarray(mesh, problem.start.dtype))).reshape(
        121, 121
    )
    levels = np.quantile(loss, np.linspace(0, 1, 12) ** 2)
    name, own = optimizer_label(result.info["optimizer"]), "" if law is None else " in the predicted ellipse"
    with style(figure_figsize=(4.6, 3.9)):
        figure, axis = plt.subplots()
        axis.set_aspect("equal")
        axis.contour(*grid, loss, levels=np.unique(levels), colors="0.75", linewidths=0.8)
        if law is not None:
            look: dict[str, Any] = {"color": "#B0408A", "linewidth": 2.2, "zorder": 4}
            add_ellipse(axis, law.mean, law.covariance, label="90 % of the stationary law, predicted", **look)
        (dots,) = axis.plot(*points[0].T, ".", color="0.25", markersize=2.5, label=f"{points.shape[1]} paths")
        axis.plot([], [], color="0.75", linewidth=0.8, label="contours of the loss")
        figure.legend(loc="outside lower left", ncols=3, fontsize=7.5, handlelength=1.2, columnspacing=1.2)
        title = axis.set_title("", loc="left")
        axis.set(xlabel="$x_1$", ylabel="$x_2$", xlim=grid[0][[0, -1]], ylim=grid[1][[0, -1]])

        def show(frame: int) -> tuple[Any, ...]:
            dots.set_data(*points[frame].T)
            title.set_text(f"{name} comes to rest{own}: t = {float(data.time[frame]):.1f}")
            return dots, title

        film = FuncAnimation(figure, show, frames=len(points))
        film.save(os.fspath(path), writer=PillowWriter(fps=frames_per_second), dpi=100)
        plt.close(figure)
