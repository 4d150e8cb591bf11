"""Figures of a forecast: six fitted runs, the prediction of a longer one, and the best schedule for it.

The logs are those of the tutorial on forecasts, which `examples/forecast_logs.py` makes. It takes half a minute.
"""

import argparse
from pathlib import Path

import sdelens as sl

LOGS = Path(__file__).parent / "tutorials" / "forecast_logs"
STEPS, WARMUP, LR = 6250, 100, 2e-3


def logged(path):
    """A run of AdamW from its log, whose name has the schedule and the batch size."""
    _, _, schedule, batch, *_ = path.stem.split("-")
    size = int(batch.removeprefix("b"))
    name = f"{schedule}, batch {size}"
    return sl.forecast.Run(path, sl.AdamW(LR, b1=0.9, b2=0.99), loss="eval_loss", batch_size=size, name=name)


def main():
    """Write the figures and print the fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="an existing folder")
    folder = parser.parse_args().out
    forecaster = sl.forecast.fit([logged(path) for path in sorted(LOGS.glob("fit-*.csv"))])
    print(forecaster)
    forecaster.plot(folder / "fit.png")

    planned = sl.AdamW(LR, b1=0.9, b2=0.99, schedule=sl.Warmup(WARMUP, sl.Cosine(STEPS - WARMUP, end=0.1)))
    happened = logged(LOGS / f"test-adamw-cosine-b64-lr0.002-n{STEPS}-seed0.csv")
    steps = happened.steps[happened.steps >= WARMUP]
    predicted = forecaster.predict(planned, steps=STEPS, batch_size=64, at=steps)
    predicted.with_curve("logged", happened.losses, happened.steps).plot(folder / "prediction.png")

    best = forecaster.best_schedule(STEPS, planned, batch_size=64)
    print(best)
    best.plot(folder / "schedule.png")


if __name__ == "__main__":
    main()
