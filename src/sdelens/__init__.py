"""Stochastic optimizers through the lens of stochastic differential equations.

Run an optimizer and its SDEs side by side over thousands of paths and see how well each tracks:

    import sdelens as sl

    problem = sl.Quadratic(curvature=[0.5, 1.0, 2.0, 5.0], start=1.0)
    result = sl.compare(problem, sl.GaussianNoise(1.0), sl.AdamW(lr=1e-2, weight_decay=0.1), steps=1000)
    print(result)
    result.plot("adamw.png")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
