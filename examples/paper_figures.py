"""Two figures in the width of a column of a paper: AdamW with its SDEs, and AdamW beside SGD.

They are those of the page on figures and tables for papers, here as PNG instead of PDF. It takes some seconds.
"""

import argparse
from pathlib import Path

import sdelens as sl


def main():
    """Write the figures, and print the table in LaTeX."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="an existing folder")
    parser.add_argument("--paths", type=int, default=2000)
    arguments = parser.parse_args()
    problem, noise = sl.Quadratic([0.5, 1.0, 2.0, 5.0]), sl.GaussianNoise([1.0, 0.5, 1.0, 2.0])
    adamw, sgd = sl.AdamW(lr=0.01, b1=0.9, b2=0.99, weight_decay=0.1), sl.SGD(lr=0.01)
    sizes = dict(steps=400, paths=arguments.paths)
    first, second = (sl.compare(problem, noise, adamw, seed=seed, **sizes) for seed in (0, 1))
    result = first.pool(second)
    other = sl.compare(problem, noise, sgd, **sizes)
    result.plot(arguments.out / "adamw.png", style="paper")
    both, models = {"AdamW": result, "SGD": other}, ["optimizer", "sde"]
    sl.overlay(both, arguments.out / "both.png", models=models, style="paper")
    print(result.to_latex("AdamW against its SDEs.", "tab:adamw"))


if __name__ == "__main__":
    main()
