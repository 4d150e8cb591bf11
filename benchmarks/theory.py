"""Cost of predicting: 2000 steps at d = 10 and at d = 10⁶, against what a simulation of one path would cost.

Each size runs in a process of its own, so that its peak memory is its own. Times are after compilation; at d = 10⁶ the
whole call is timed, compilation included.
"""

import json
import os
import resource
import subprocess
import sys
import time

STEPS = 2000
OPTIMIZERS = ("sgd", "signsgd", "rmspropw", "adamw")


def measure(name: str, dim: int) -> dict[str, float]:
    """Seconds of the first and of a later call, and peak memory in GiB."""
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    import numpy as np

    import sdelens as sl

    made = {
        "sgd": sl.SGD(0.01),
        "signsgd": sl.SignSGD(0.01),
        "rmspropw": sl.RMSpropW(0.01, 0.99, weight_decay=0.1),
        "adamw": sl.AdamW(0.01, 0.9, 0.99, weight_decay=0.1),
    }[name]
    problem = sl.Quadratic(np.linspace(1.0, 5.0, dim, dtype=np.float32), start=np.float32(2.0))
    noise, times = sl.GaussianNoise(1.0), []
    for _ in range(2 if dim > 1000 else 6):
        begin = time.perf_counter()
        sl.theory.predict(problem, noise, made, steps=STEPS)
        times.append(time.perf_counter() - begin)
        if dim > 1000:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"first": times[0], "later": sorted(times[1:])[len(times[1:]) // 2] if times[1:] else times[0], "gib": peak}


def simulate_one() -> float:
    """Seconds of 20 000 simulated paths of AdamW at d = 10, after compilation."""
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    import numpy as np

    import sdelens as sl

    problem = sl.Quadratic(np.linspace(1.0, 5.0, 10), start=2.0)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        optimizer = sl.AdamW(0.01, 0.9, 0.99, weight_decay=0.1)
        sl.simulate(problem, sl.GaussianNoise(1.0), optimizer, "optimizer", steps=STEPS, paths=20_000)
        times.append(time.perf_counter() - begin)
    return times[-1]


def main() -> None:
    """Print the table."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    print(f"{STEPS} steps of sl.theory.predict, Gaussian noise, diagonal curvature")
    small = {}
    for dim in (10, 1_000_000):
        for name in OPTIMIZERS:
            command = [sys.executable, __file__, name, str(dim)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            small[name, dim] = found["later"]
            took = f"{1000 * found['later']:.0f} ms after compilation"
            took = took if dim == 10 else f"{found['first']:.1f} s in all"
            print(f"d = {dim:>9,}  {name:9} {took}, peak memory {found['gib']:.2f} GiB")
    seconds = simulate_one()
    ratio = seconds / small["adamw", 10]
    print(f"20 000 simulated paths of adamw, d = 10: {seconds:.1f} s, {ratio:.0f} times the prediction")


if __name__ == "__main__":
    main()
