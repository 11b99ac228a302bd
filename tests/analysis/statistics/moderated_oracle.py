"""Design effects for intervals from documents one by one, with whole matrices.

Shape suffixes: C documents, N experts.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import polygamma, psi
from scipy.stats import f, norm, t


def residual_maker(tokens_C: np.ndarray) -> np.ndarray:
    """I - n 1' / sum n, which takes c to c - p n."""
    return np.asarray(np.eye(len(tokens_C)) - tokens_C[:, None] / tokens_C.sum())


def expected_squares(tokens_C: np.ndarray, rho: float) -> tuple[float, float, float]:
    """Mean and degrees of freedom of the residuals' sum of squares, and Var(sum c)."""
    variance_C = (1 - rho) * tokens_C + rho * tokens_C**2
    maker = residual_maker(tokens_C)
    covariance = maker @ np.diag(variance_C) @ maker.T
    mean = np.trace(covariance)
    return mean, mean**2 / np.trace(covariance @ covariance), variance_C.sum()


def naive_interval_deffs(counts_CN: np.ndarray, tokens_C: np.ndarray) -> np.ndarray:
    """Of all documents together: float64 [N]."""
    counts_CN, total = counts_CN.astype(float), float(tokens_C.sum())
    tokens_C = tokens_C.astype(float)
    experts = range(counts_CN.shape[1])
    if len(tokens_C) < 2:
        return np.full(len(experts), np.nan)
    share_N = counts_CN.sum(axis=0) / total
    square_N = ((counts_CN - tokens_C[:, None] * share_N) ** 2).sum(axis=0)
    alone_N = share_N * (1 - share_N) * total
    if not square_N.any():
        return np.full(len(experts), np.nan)
    alone, alike = (expected_squares(tokens_C, rho)[0] / total for rho in (0, 1))
    rho = 0.0
    if alike > alone:
        ratio = square_N[alone_N > 0].sum() / alone_N.sum()
        rho = min(max((ratio - alone) / (alike - alone), 0), 1)
    mean, freedom, variance = expected_squares(tokens_C, rho)
    factor = variance / mean
    centre = factor * square_N[alone_N > 0].sum() / alone_N.sum()
    known = [e for e in experts if alone_N[e] > 0 and square_N[e] > 0]
    deff = {e: factor * square_N[e] / alone_N[e] for e in known}
    skewness = {e: (1 - 2 * share_N[e]) * (centre / alone_N[e]) ** 0.5 for e in known}
    own = {e: 1 / (1 / max(freedom, 1) + skewness[e] ** 2 / 4) for e in known}
    prior = 0.0
    if len(known) > 1:
        centre, prior = common(list(deff.values()), list(own.values()))
    most = sum(own.values()) * max(len(known) - 1, 1) / len(known)
    found = []
    for e in experts:
        value, degrees = centre, prior
        if e in own:
            common_e = min(prior, 2e6)
            if common_e > 0:
                expected = len(known) * f.sf(deff[e] / centre, own[e], common_e)
                degrees = common_e * expected if expected < 1 else prior
            mine = degrees
            degrees += own[e]
            if math.isfinite(degrees):
                value = (mine * centre + own[e] * deff[e]) / degrees
        quantile = t.ppf(0.975, max(min(degrees, most), 1)) / norm.ppf(0.975)
        found.append(value * quantile**2)
    return np.array(found)


def naive_length_correction(counts_CN: np.ndarray, tokens_C: np.ndarray) -> float:
    """Var(sum c) over m / (m - 1) times the expected sum of squares."""
    tokens_C = tokens_C.astype(float)
    total, documents = tokens_C.sum(), len(tokens_C)
    share_N = counts_CN.sum(axis=0) / total
    square_N = ((counts_CN - tokens_C[:, None] * share_N) ** 2).sum(axis=0)
    alone_N = share_N * (1 - share_N) * total
    alone, alike = (expected_squares(tokens_C, rho)[0] / total for rho in (0, 1))
    rho = 0.0
    if alike > alone and alone_N.any():
        rho = min(max((square_N.sum() / alone_N.sum() - alone) / (alike - alone), 0), 1)
    mean, _, variance = expected_squares(tokens_C, rho)
    return float(variance / mean * (documents - 1) / documents)


def common(deffs: list[float], freedoms: list[float]) -> tuple[float, float]:
    """The scale and degrees of freedom of Smyth's prior, experts weighted by what they tell."""
    noise = [float(polygamma(1, d / 2)) for d in freedoms]
    logs = [
        math.log(v) - psi(d / 2) + math.log(d / 2) for v, d in zip(deffs, freedoms, strict=True)
    ]
    weights = np.array([1 / one for one in noise])
    weights /= weights.sum()
    mean = float(weights @ logs)
    apart = float(weights @ (np.array(logs) - mean) ** 2) / (1 - (weights**2).sum())
    excess = apart - float(weights @ noise)
    weights = np.array([1 / (one + max(excess, 0)) for one in noise])
    mean = float(weights @ logs) / weights.sum()
    if excess <= 1e-6:
        return math.exp(mean), math.inf
    half = brentq(lambda x: polygamma(1, x) - min(excess, 1e6), 1e-4, 1e7, xtol=1e-14, rtol=1e-13)
    return math.exp(mean + psi(half) - math.log(half)), 2 * half
