"""Diagnosis of an Adam checkpoint of a billion parameters in bfloat16, sharded over files: time and peak memory.

The checkpoint (4 GB) is made in a temporary folder and removed. Memory is that of a process of its own, pages of mapped
files included, above what it has after a checkpoint of one small tensor; it must stay below 2 GiB beyond the largest
tensor. Runs only when named: `python -m benchmarks checkpoint`.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Table, Target, number
from benchmarks.timing import ALL, Ratio, Workers

__all__ = ["TITLE", "diagnosed", "measure", "tables", "targets"]

TITLE = "Diagnosis of a large checkpoint"
WIDTH, LAYERS, VOCABULARY = 2048, 17, 50_304
SHARDS = 4
BETAS, STEPS, SNR = (0.9, 0.95), 1000, 0.2
GROUP = dict(lr=3e-4, betas=BETAS, eps=1e-8, weight_decay=0.0, amsgrad=False)
"""The parameter group of an Adam optimizer."""
_GIB = 2**30


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the files, diagnose them in a fresh process, remove them."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder, small = Path(name) / "shards", Path(name) / "small.pt"
        folder.mkdir()
        say("writing")
        total, written, largest = make(folder, 1 if quick else LAYERS)
        state = {"w": {n: torch.ones(2**21) for n in ("exp_avg", "exp_avg_sq")} | {"step": torch.tensor(9.0)}}
        torch.save({"state": state, "param_groups": [{**GROUP, "params": ["w"]}]}, small)
        say("reading")
        found = workers.fresh(ALL, "benchmarks.checkpoint:diagnosed", small=str(small), large=str(folder))
    return found | {"parameters": total, "written": written, "largest": largest}


def diagnosed(small: str, large: str) -> dict[str, float]:
    """Seconds of the diagnosis in this process, its peak memory, and that before it."""
    from benchmarks.environment import resident_peak
    from sdelens.diagnosis import diagnose

    str(diagnose(small))
    before, begin = resident_peak(), time.perf_counter()
    str(diagnose(large))
    return {"seconds": time.perf_counter() - begin, "before": before, "peak": resident_peak()}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Parameters of a language model, a billion in all with 17 layers."""
    layer = {
        "attention.qkv": (3 * WIDTH, WIDTH),
        "attention.out": (WIDTH, WIDTH),
        "mlp.up": (4 * WIDTH, WIDTH),
        "mlp.down": (WIDTH, 4 * WIDTH),
        "norm": (WIDTH,),
    }
    found = {"embedding": (VOCABULARY, WIDTH)}
    found |= {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    return found | {"head": (VOCABULARY, WIDTH)}


def make(folder: Path, layers: int) -> tuple[int, int, int]:
    """Write the shards: parameters, bytes, and bytes of the moments of the largest tensor."""
    import torch

    torch.manual_seed(0)
    wanted = shapes(layers)
    groups = [{**GROUP, "params": list(wanted)}]
    c = (1 - BETAS[0]) / (1 + BETAS[0])
    largest = total = 0
    pool = torch.randn(2**24)  # drawn once: time is that of reading
    names = list(wanted)
    for shard in range(SHARDS):
        state = {}
        for name in names[shard::SHARDS]:
            size = torch.Size(wanted[name]).numel()
            noise = pool.repeat(-(-size // pool.numel()))[:size].reshape(wanted[name])
            mean, square = SNR + c**0.5 * noise, torch.full(wanted[name], 1 + SNR**2)
            state[name] = {
                "step": torch.tensor(float(STEPS)),
                "exp_avg": mean.to(torch.bfloat16),
                "exp_avg_sq": torch.maximum(square, mean**2 / 1.2).to(torch.bfloat16),
            }
            total += size
            largest = max(largest, 4 * size)
        torch.save({"state": state, "param_groups": groups}, folder / f"optimizer-{shard}.pt")
    return total, sum(p.stat().st_size for p in folder.iterdir()), largest


def tables(found: dict[str, Any]) -> list[Table]:
    """One row."""
    above = found["peak"] - found["before"]
    cells = [f"{found['parameters'] / 1e9:.3f}", f"{found['written'] / 1e9:.2f}", number(found["seconds"])]
    mib = [f"{b / 2**20:.0f}" for b in (above, found["largest"], above - found["largest"])]
    head = ["parameters, 10⁹", "files, GB", "s", "peak above the start, MiB", "largest tensor, MiB", "beyond it, MiB"]
    return [Table(TITLE, head, [[*cells, *mib]])]


def targets(found: dict[str, Any]) -> list[Target]:
    """The memory that is allowed."""
    beyond = (found["peak"] - found["before"] - found["largest"]) / _GIB
    return [Target("peak memory beyond the largest tensor, GiB", "≤", 2.0, Ratio(beyond, beyond, beyond))]
