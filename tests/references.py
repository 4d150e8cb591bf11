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


def momentum(x, gradients, lr, decay, b1, nesterov=False, m=0.0):
    for g in gradients:
        m = b1 * m + (1 - b1) * g
        x = x - lr * (b1 * m + (1 - b1) * g if nesterov else m) - decay * x
        yield x


def signum(x, gradients, lr, decay, b1, m=0.0):
    for g in gradients:
        m = b1 * m + (1 - b1) * g
        x = x - lr * np.sign(m) - decay * x
        yield x


def lion(x, gradients, lr, decay, b1, b2, m=0.0):
    for g in gradients:
        x = x - lr * np.sign(b1 * m + (1 - b1) * g) - decay * x
        m = b2 * m + (1 - b2) * g
        yield x


def adagrad(x, gradients, lr, decay, v, eps):
    for g in gradients:
        v = v + g**2
        x = x - lr * g / np.sqrt(v + eps) - decay * x
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


def fluctuation(g, sigma, dw, v, lr, b2, dt):
    """√η times the noise of g² under normal noise, smaller near v = 0 for dt < lr."""
    square, expected, delta = (sigma * dw) ** 2, g**2 + sigma**2, 10 * (1 - b2)
    noise = np.sqrt(lr) * (2 * g * sigma * dw + (square - sigma**2 * dt) / np.sqrt(dt))
    return noise if dt == lr else noise * np.sqrt((1 + delta) * v / (v + delta * expected))


def moved(v, change, noise, exact):
    """V after a step: at least positive where it is not moved by g² itself."""
    mean = v + change
    if exact:
        return mean + noise
    with np.errstate(divide="ignore"):
        return np.where(noise < -mean / 2, -(mean**2) / (4 * noise), mean + noise)


def full_noise_rmspropw_sde(x, v, gradient, sigma, normals, lr, theta, b2, eps, *, substeps, curvature=None):
    """RMSpropW's SDE with the noise of V, under normal noise; of second order if the Hessian's diagonal is given."""
    rho, dt = (1 - b2) / lr, lr / substeps
    back = 0 if curvature is None else (lr - dt) / 2
    curvature = 0 * x if curvature is None else curvature
    p = lambda v: 1 / (np.sqrt(v) + eps)  # noqa: E731
    slope = lambda v: -1 / (2 * np.sqrt(v) * (np.sqrt(v) + eps) ** 2)  # noqa: E731
    for k in range(normals.shape[0]):
        for j in range(substeps):
            g, dw = gradient(x), np.sqrt(dt) * normals[k, j]

            def noises(v, ahead, g=g, dw=dw):
                """Of x and v, with what decays within the step."""
                nv = rho * fluctuation(g, sigma, dw, v, lr, b2, dt)
                nx = -np.sqrt(lr) * p(v) * sigma * dw - ahead * slope(v) * g * nv * (back > 0)
                bx = -(p(v) * curvature + theta) * nx - slope(v) * g * nv
                bv = rho * (2 * g * curvature * nx - nv)
                return nx - back * bx, nv - back * bv

            before = gradient(x + back * (g * p(v) + theta * x))
            change = rho * (before**2 + sigma**2 - v + back * rho * (g**2 + sigma**2 - v)) * dt
            v = moved(v, change, noises(v, lr)[1], substeps == 1)
            shifted = x + back * (g * p(v) + theta * x)
            ahead = v + back * rho * (g**2 + sigma**2 - v)
            direction = gradient(shifted) * p(ahead if back else v)
            if back:
                direction = direction + 2 * (lr - dt) * rho * slope(v) * g * sigma**2
            x = x - (direction + theta * shifted) * dt + noises(v, lr - dt)[0]
    return x, None, v


def full_noise_adamw_sde(x, gradient, sigma, normals, lr, theta, b1, b2, eps, *, integrator, substeps, curvature=None):
    """AdamW's SDE with the noise of both accumulators, under normal noise; of second order if given a curvature."""
    rho1, rho2, dt = (1 - b1) / lr, (1 - b2) / lr, lr / substeps
    m, v = np.zeros_like(x), np.zeros_like(x)
    back = 0 if curvature is None else (lr - dt) / 2
    curvature = 0 * x if curvature is None else curvature
    second = back > 0
    for k in range(normals.shape[0]):
        c, e = 1 - b1 ** (k + 1), 1 - b2 ** (k + 1)

        def p(v, c=c, e=e):
            """q(m, v)/m, 0 at v = 0, where m is 0 too."""
            return np.where(v > 0, 1 / c / (np.sqrt(np.maximum(v, 1e-300) / e) + eps), 0)

        def slope(v, c=c, e=e):
            root = np.sqrt(np.maximum(v, 1e-300) / e)
            return np.where(v > 0, -1 / c / (2 * e * root * (root + eps) ** 2), 0)

        for j in range(substeps):
            g, dw = gradient(x), np.sqrt(dt) * normals[k, j]

            def noises(m, v, ahead_m, ahead_v, g=g, dw=dw, p=p, slope=slope):
                nm = np.sqrt(lr) * rho1 * sigma * dw
                nv = rho2 * fluctuation(g, sigma, dw, v, lr, b2, dt)
                nx = -p(v) * ahead_m * nm - slope(v) * m * ahead_v * nv * second
                bx = -theta * nx - p(v) * nm - slope(v) * m * nv
                bm, bv = rho1 * (curvature * nx - nm), rho2 * (2 * g * curvature * nx - nv)
                return nx - back * bx, nm - back * bm, nv - back * bv

            def before(m, v, x=x, p=p):
                return x + back * (p(v) * m + theta * x)

            square = g**2 + sigma**2
            change = rho2 * (gradient(before(m, v)) ** 2 + sigma**2 - v + back * rho2 * (square - v)) * dt
            v = moved(v, change, noises(m, v, lr, lr)[2], substeps == 1)
            old = m
            m = m + rho1 * (gradient(before(m, v)) - m + back * rho1 * (g - m)) * dt + noises(m, v, lr, lr - dt)[1]
            at, rest = (old, lr) if integrator == "euler" else (m, lr - dt)
            ahead_v = v + (back * rho2 * (square - v) if second else 0)
            step = p(ahead_v) * (at + (rest - back) * rho1 * (g - at)) + theta * before(at, v)
            x = x - step * dt + noises(at, v, rest, lr - dt)[0]
    return x, m, v


def momentum_sde(x, gradient, sigma, normals, lr, theta, b1, *, nesterov, integrator, substeps):
    rho, dt, m = (1 - b1) / lr, lr / substeps, np.zeros_like(x)
    for k in range(normals.shape[0]):
        for j in range(substeps):
            g, noise = gradient(x), np.sqrt(lr * dt) * sigma * normals[k, j]
            old = m
            m = m + rho * (g - m) * dt + rho * noise
            step = old + lr * rho * (g - old) if integrator == "euler" else m + (lr - dt) * rho * (g - m)
            if nesterov:
                step = b1 * step + (1 - b1) * g
            x = x - (step + theta * x) * dt - (1 - b1) * nesterov * noise
    return x, m, None


def signum_sde(x, gradient, sigma, normals, lr, theta, b, memory, *, substeps):
    """Signum's (memory = b) or Lion's; `normals` holds those of the gradient, then of the rest of its sign."""
    rho, dt, d, m = (1 - memory) / lr, lr / substeps, len(x), np.zeros_like(x)
    erf = np.vectorize(math.erf)
    for k in range(normals.shape[0]):
        for j in range(substeps):
            g, noise = gradient(x), math.sqrt(dt * lr) * normals[k, j]
            s = (g + b / (1 - b) * m) / sigma
            e, slope = erf(s / math.sqrt(2)), 2 * np.exp(-(s**2) / 2) / math.sqrt(2 * math.pi)
            x = x - (e + theta * x) * dt - slope * noise[:d] - np.sqrt(np.maximum(1 - e**2 - slope**2, 0)) * noise[d:]
            m = m + rho * (g - m) * dt + rho * sigma * noise[:d]
    return x, m, None


def adagrad_sde(x, v, gradient, sigma, normals, lr, theta, eps, *, substeps):
    dt = lr / substeps
    for k in range(normals.shape[0]):
        for j in range(substeps):
            g = gradient(x)
            v = v + (g**2 + sigma**2) / lr * dt
            x = x - (g * dt + math.sqrt(lr * dt) * sigma * normals[k, j]) / np.sqrt(v + eps) - theta * x * dt
    return x, None, v


def sgd_sde(x, gradient, sigma, normals, lr, theta, *, substeps, curvature=None):
    """Of second order if the Hessian's diagonal is given."""
    dt = lr / substeps
    for k in range(normals.shape[0]):
        for j in range(substeps):
            total = gradient(x) + theta * x
            noise = math.sqrt(lr) * sigma * math.sqrt(dt) * normals[k, j]
            if curvature is not None:
                total, noise = (a + 0.5 * (lr - dt) * (curvature + theta) * a for a in (total, noise))
            x = x - total * dt - noise
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
    """Mean and variance of AdamW's x per coordinate under normal noise: (x, m, v) linearised at its mean.

    With b1 = 0, `corrected` False and v0 the second moment it is RMSpropW.
    """
    means, spreads = [], []
    for lam, sd, x0, at_start in zip(curvature, sigma, start, np.broadcast_to(v0, len(start)), strict=True):
        mean, cov, v = np.array([x0, 0.0]), np.zeros((3, 3)), at_start
        lean = own = 0.0
        for k in range(steps):
            u, variance = lam * mean[0], lam**2 * cov[0, 0]
            total = variance + sd**2
            v_row = np.array([(1 - b2) * 2 * u * lam, 0.0, b2])
            # Noise of g² = 2uZ + q: q has variance 2 total² + 4u² sd² − (2u sd)² beyond what is linear in Z.
            fresh_v, rest_v = (1 - b2) * 2 * u * sd, (1 - b2) * math.sqrt(2) * total
            v, vv = b2 * v + (1 - b2) * (u**2 + total), v_row @ cov @ v_row + fresh_v**2 + rest_v**2
            lean = b1 * b2 * lean + (1 - b1) * (1 - b2) * total
            own = b1 * b2 * own + (1 - b1) * (1 - b2) * 2 * total**2
            first, second = (1 - b1 ** (k + 1), 1 - b2 ** (k + 1)) if corrected else (1, 1)
            pull, spread = _fluctuation(v, vv, lean / first, own / first, total)
            p = lr / (first * (math.sqrt(v / second) + eps)) * pull
            follows = p * (b1 * mean[1] + (1 - b1) * u) / (2 * v)
            m_row = np.array([(1 - b1) * lam, b1, 0.0])
            x_row = np.array([1 - lr * theta, 0.0, 0.0]) - p * m_row + follows * v_row
            root = sd * math.sqrt(spread) / pull
            along = np.array([-p * (1 - b1) * root + follows * fresh_v, (1 - b1) * root, fresh_v])
            across = np.array([follows, 0.0, 1.0]) * rest_v
            move = np.stack([x_row, m_row, v_row])
            mean = np.array([(1 - lr * theta) * mean[0] - p * (m_row[:2] @ mean), m_row[:2] @ mean])
            cov = move @ cov @ move.T + np.outer(along, along) + np.outer(across, across)
        means.append(mean[0])
        spreads.append(cov[0, 0])
    return np.array(means), np.array(spreads)


def closure_momentum(curvature, sigma, start, lr, theta, b1, nesterov, steps):
    """Mean and variance of x under damped momentum, independent coordinates."""
    means, variances = [], []
    for lam, sd, x0 in zip(curvature, sigma, start, strict=True):
        mean, cov = np.array([x0, 0.0]), np.zeros((2, 2))
        buffer = np.array([(1 - b1) * lam, b1])  # the new m from (x, m), without noise
        moved = b1 * buffer + (1 - b1) * np.array([lam, 0.0]) if nesterov else buffer
        fresh = (1 - b1) * np.array([-lr * (b1 + 1 if nesterov else 1), 1.0]) * sd
        move = np.array([[1 - lr * theta, 0.0] - lr * moved, buffer])
        for _ in range(steps):
            mean, cov = move @ mean, move @ cov @ move.T + np.outer(fresh, fresh)
        means.append(mean[0])
        variances.append(cov[0, 0])
    return np.array(means), np.array(variances)


def closure_signed_momentum(curvature, sigma, start, lr, theta, old, new, forget, steps):
    """Mean and variance of x ← (1 − ηθ)x − η sign(old m + new g), m ← forget m + (1 − forget)g under normal noise.

    The sign of a normal number is replaced by its regression on that number, plus what is uncorrelated with it.
    """
    means, variances = [], []
    for lam, sd, x0 in zip(curvature, sigma, start, strict=True):
        mean, cov = np.array([x0, 0.0, 0.0]), np.diag([0.0, 0.0, sd**2])  # x, m, and the noise of this step
        argument = np.array([new * lam, old, new])
        for _ in range(steps):
            total = argument @ cov @ argument
            standard = argument @ mean / math.sqrt(total)
            sign = math.erf(standard / math.sqrt(2))
            slope = math.sqrt(2 / math.pi / total) * math.exp(-(standard**2) / 2)
            buffer = np.array([(1 - forget) * lam, forget, 1 - forget])
            move = np.array([np.array([1 - lr * theta, 0, 0]) - lr * slope * argument, buffer])
            mean = np.array([(1 - lr * theta) * mean[0] - lr * sign, buffer @ mean, 0.0])
            rest = move @ cov @ move.T
            rest[0, 0] += lr**2 * (1 - sign**2 - slope**2 * total)
            cov = np.diag([0.0, 0.0, sd**2])
            cov[:2, :2] = rest
        means.append(mean[0])
        variances.append(cov[0, 0])
    return np.array(means), np.array(variances)


def regression_batch(rng, covariance, label_noise, solution, x, batch_size, count):
    """Mini-batch gradients of linear regression, drawn example by example: shape (count, d)."""
    features = rng.multivariate_normal(np.zeros(len(x)), covariance, size=(count, batch_size))
    labels = features @ solution + label_noise * rng.standard_normal((count, batch_size))
    residuals = features @ x - labels
    return (features * residuals[..., None]).mean(axis=1)


def queried(x, draws, lr, move):
    """SGD by the gradient of the same draw at another point; `draws` are functions of x, one for each step."""
    for draw in draws:
        x = x - lr * draw(move(x, draw(x)))
        yield x


def sam(x, draws, lr, rho, normalise):
    return queried(x, draws, lr, lambda x, g: x + rho * (g / np.linalg.norm(g) if normalise else g))


def extragradient(x, draws, lr, rho):
    return queried(x, draws, lr, lambda x, g: x - rho * g)


def svrg(x, draws, full, lr, every):
    for k, draw in enumerate(draws):
        if k % every == 0:
            snapshot, mean = x, full(x)
        x = x - lr * (draw(x) - draw(snapshot) + mean)
        yield x
