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
