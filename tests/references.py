"""Slow, naive references written from the equations in plain NumPy, float64, one path at a time."""

import math

import numpy as np


def sgd(x, gradients, lr, decay):
    for g in gradients:
        x = x - lr * g - decay * x
        yield x


def signsgd(x, gradients, lr, decay):
    for g in gradients:
        x = x - lr * np.sign(g) - decay * x
        yield x


def rmspropw(x, gradients, lr, decay, b2, eps, v):
    for g in gradients:
        v = b2 * v + (1 - b2) * g**2
        x = x - lr * g / (np.sqrt(v) + eps) - decay * x
        yield x


def adamw(x, gradients, lr, decay, b1, b2, eps):
    m, v = np.zeros_like(x), np.zeros_like(x)
    for k, g in enumerate(gradients):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** (k + 1)), v / (1 - b2 ** (k + 1))
        x = x - lr * m_hat / (np.sqrt(v_hat) + eps) - decay * x
        yield x


def adamw_sde(
    x, gradient, sigma, normals, lr, theta, b1, b2, eps, *, integrator, substeps, exponential=False, earlier=False
):
    """AdamW's SDE on a quadratic, by `sequential` or `euler`; `normals` has shape (steps, substeps, d)."""
    rho1, rho2, dt = (1 - b1) / lr, (1 - b2) / lr, lr / substeps
    m, v = np.zeros_like(x), np.zeros_like(x)
    for k in range(normals.shape[0]):
        if exponential:
            gamma1, gamma2 = (1 - math.exp(-rho * lr * (k + 1)) for rho in (rho1, rho2))
        else:
            gamma1, gamma2 = 1 - b1 ** (k + 1), 1 - b2 ** (k + 1)
        for j in range(substeps):
            g, dw = gradient(x), math.sqrt(dt) * normals[k, j]
            square = 0 if earlier else g**2
            v = v + rho2 * (square + sigma**2 - v) * dt
            old = m
            m = m + rho1 * (g - m) * dt + math.sqrt(lr) * rho1 * sigma * dw
            if integrator == "euler":
                ahead = old if earlier else old + lr * rho1 * (g - old)
            else:
                ahead = m if earlier else m + (lr - dt) * rho1 * (g - m)
            precondition = np.sqrt(v) + eps * math.sqrt(gamma2)
            x = x - math.sqrt(gamma2) / gamma1 * ahead / precondition * dt - theta * x * dt
    return x, m, v


def rmspropw_sde(x, v, gradient, sigma, normals, lr, theta, b2, eps, *, substeps, earlier=False):
    """RMSpropW's SDE; its two integrators coincide because V has no noise."""
    rho2, dt = (1 - b2) / lr, lr / substeps
    for k in range(normals.shape[0]):
        for j in range(substeps):
            g, dw = gradient(x), math.sqrt(dt) * normals[k, j]
            v = v + rho2 * ((0 if earlier else g**2) + sigma**2 - v) * dt
            x = x - (g * dt + math.sqrt(lr) * sigma * dw) / (np.sqrt(v) + eps) - theta * x * dt
    return x, None, v


def sgd_sde(x, gradient, sigma, normals, lr, theta, *, substeps, curvature=None):
    """Of second order if the Hessian's diagonal is given."""
    dt = lr / substeps
    for k in range(normals.shape[0]):
        for j in range(substeps):
            total = gradient(x) + theta * x
            if curvature is not None:
                total = total + 0.5 * lr * (curvature + theta) * total
            x = x - total * dt - math.sqrt(lr) * sigma * math.sqrt(dt) * normals[k, j]
    return x, None, None


def signsgd_sde(x, gradient, sigma, normals, lr, theta, *, substeps):
    dt = lr / substeps
    erf = np.vectorize(math.erf)
    for k in range(normals.shape[0]):
        for j in range(substeps):
            e = erf(gradient(x) / (math.sqrt(2) * sigma))
            x = x - (e + theta * x) * dt - math.sqrt(lr) * np.sqrt(1 - e**2) * math.sqrt(dt) * normals[k, j]
    return x, None, None


def closure_signsgd(curvature, sigma, start, lr, theta, steps):
    """Mean and variance of SignSGD under normal noise, one step after another, independent coordinates."""
    x, s = np.array(start, float), np.zeros_like(curvature)
    c, erf = curvature / (math.sqrt(2) * sigma), np.vectorize(math.erf)
    for _ in range(steps):
        root = np.sqrt(1 + 2 * c**2 * s)
        e = erf(c * x / root)
        pull = s * 2 * c / math.sqrt(math.pi) * np.exp(-((c * x / root) ** 2)) / root
        keep = 1 - lr * theta
        x, s = keep * x - lr * e, keep**2 * s - 2 * lr * keep * pull + lr**2 * (1 - e**2)
    return x, s


def _fluctuation(v, vv, lean, own, total):
    """Factors of the mean of m/√v and of the variance of its noise, for normal g."""
    r = vv / v**2
    return (1 + r) ** 0.375 - lean / v * (1 + r) ** -0.3, max(1 + r - own / (v * total), 0)


def closure_adamw(curvature, sigma, start, lr, theta, b1, b2, eps, steps, *, corrected=True, v0=0.0):
    """Mean and covariance of AdamW's pair (x, m) per coordinate under normal noise, with the fluctuation of v.

    With b1 = 0, `corrected` False and v0 the second moment it is RMSpropW.
    """
    means, spreads = [], []
    for lam, sd, x0, at_start in zip(curvature, sigma, start, np.broadcast_to(v0, len(start)), strict=True):
        mean, cov, v = np.array([x0, 0.0]), np.zeros((2, 2)), at_start
        vv = lean = own = 0.0
        for k in range(steps):
            u2, total = (lam * mean[0]) ** 2, lam**2 * cov[0, 0] + sd**2
            fourth = 2 * total**2 + 4 * u2 * total
            v, vv = b2 * v + (1 - b2) * (u2 + total), b2**2 * vv + (1 - b2) ** 2 * fourth
            lean = b1 * b2 * lean + (1 - b1) * (1 - b2) * total
            own = b1 * b2 * own + (1 - b1) * (1 - b2) * fourth
            first, second = (1 - b1 ** (k + 1), 1 - b2 ** (k + 1)) if corrected else (1, 1)
            pull, spread = _fluctuation(v, vv, lean / first, own / first, total)
            p = lr / (first * (math.sqrt(v / second) + eps)) * pull
            move = np.array([[1 - lr * theta - p * (1 - b1) * lam, -p * b1], [(1 - b1) * lam, b1]])
            fresh = np.array([-p * (1 - b1), 1 - b1]) * sd * math.sqrt(spread) / pull
            mean, cov = move @ mean, move @ cov @ move.T + np.outer(fresh, fresh)
        means.append(mean[0])
        spreads.append(cov[0, 0])
    return np.array(means), np.array(spreads)


def regression_batch(rng, covariance, label_noise, solution, x, batch_size, count):
    """Mini-batch gradients of linear regression, drawn example by example: shape (count, d)."""
    features = rng.multivariate_normal(np.zeros(len(x)), covariance, size=(count, batch_size))
    labels = features @ solution + label_noise * rng.standard_normal((count, batch_size))
    residuals = features @ x - labels
    return (features * residuals[..., None]).mean(axis=1)
