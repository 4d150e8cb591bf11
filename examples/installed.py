"""Try an installed copy of the library, without its source: what is not Python code is there, and a comparison runs.

python examples/installed.py
"""

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import sdelens as sl

source = Path(__file__).parents[1] / "src"
assert source not in Path(sl.__file__).parents, f"{sl.__file__} is not an installed copy"
for name in ("py.typed", "__init__.pyi", "results/templates/results.html", "explorer/assets/engine.js"):
    assert files("sdelens").joinpath(name).is_file(), f"the package lacks {name}"

result = sl.compare(sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SignSGD(lr=0.1), steps=20, paths=64)
print(f"sdelens {version('sdelens')}, installed in {Path(sl.__file__).parent}")
print(result)
