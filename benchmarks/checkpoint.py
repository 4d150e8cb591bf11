"""Diagnosis of an Adam checkpoint of a billion parameters in bfloat16, sharded over files: time and peak memory.

The checkpoint (4 GB) is made in a temporary folder and removed. Memory is that of a process of its own, pages of mapped
files included, above what it has after a checkpoint of one small tensor (Linux only); it must stay below 2 GiB beyond
the largest tensor.

    python benchmarks/checkpoint.py --json checkpoint.json
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

WIDTH, LAYERS, VOCABULARY = 2048, 17, 50_304
SHARDS = 4
BETAS, STEPS, SNR = (0.9, 0.95), 1000, 0.2
ALLOWED = 2 * 2**30
MEASURE = """
import json, pathlib, re, sys, time
from sdelens.diagnosis import diagnose
# Not ru_maxrss: a process begins with that of the one that started it.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
small, large = sys.argv[1:]
str(diagnose(small))
before, begin = peak(), time.perf_counter()
found = diagnose(large)
text = str(found)
print(json.dumps({"seconds": time.perf_counter() - begin, "before": before, "peak": peak(), "snr": found.snr,
                  "limit": found.limit, "size": found.total.size, "text": text}))
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Parameters of a language model, a billion in all."""
    layer = {
        "attention.qkv": (3 * WIDTH, WIDTH),
        "attention.out": (WIDTH, WIDTH),
        "mlp.up": (4 * WIDTH, WIDTH),
        "mlp.down": (WIDTH, 4 * WIDTH),
        "norm": (WIDTH,),
    }
    found = {"embedding": (VOCABULARY, WIDTH)}
    found |= {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    return found | {"head": (VOCABULARY, WIDTH)}


def make(folder: Path) -> tuple[int, int, int]:
    """Write the shards: parameters, bytes, and bytes of the moments of the largest tensor."""
    torch.manual_seed(0)
    wanted = shapes()
    groups = [{"lr": 3e-4, "betas": BETAS, "params": list(wanted)}]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the numbers to this file")
    out = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name:
        folder, small = Path(name) / "shards", Path(name) / "small.pt"
        folder.mkdir()
        total, written, largest = make(folder)
        state = {"w": {n: torch.ones(2**21) for n in ("exp_avg", "exp_avg_sq")} | {"step": torch.tensor(9.0)}}
        torch.save({"state": state, "param_groups": [{"betas": BETAS, "params": ["w"]}]}, small)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(small), str(folder)], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    above = found["peak"] - found["before"]
    beyond = above - largest
    mib = {name: round(value / 2**20) for name, value in (("above", above), ("largest", largest), ("beyond", beyond))}
    print(found.pop("text"))
    print(
        f"\n{total / 1e9:.3f} billion parameters, {written / 1e9:.2f} GB in {SHARDS} files: {found['seconds']:.1f} s; "
        f"peak {mib['above']} MiB above the start, {mib['beyond']} MiB beyond the moments of the largest tensor "
        f"({mib['largest']} MiB); allowed {ALLOWED // 2**20} MiB."
    )
    if out:
        where = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        where |= {p: version(p) for p in ("sdelens", "numpy", "torch")}
        numbers = {"parameters": total, "bytes": written, "largest": largest, "beyond": beyond, **found}
        Path(out).write_text(json.dumps({"environment": where, **numbers}, indent=2))
    if beyond > ALLOWED:
        sys.exit("Too much memory.")


if __name__ == "__main__":
    main()
