"""Tails and quantiles of Student's t and of the normal distribution, and the sign test.

`cotjax.diagnostics` takes them from scipy. Here t is the regularised incomplete beta function by
its continued fraction, and the sign test a sum of binomial coefficients.

Source: Press et al., Numerical Recipes, 3rd ed., 6.4 (incomplete beta, modified Lentz's method).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_TINY = 1e-300


def t_tail(distance: float, freedom: float) -> float:
    """Return the probability of a t above `distance` >= 0; the normal's for infinite freedom."""
    if math.isinf(freedom):
        return 0.5 * math.erfc(distance / math.sqrt(2))
    whole = freedom + distance**2
    return 0.5 * _beta(freedom / 2, 0.5, freedom / whole, distance**2 / whole)


@lru_cache(maxsize=100_000)
def t_quantile(tail: float, freedom: float) -> float:
    """Return the value that leaves `tail` (at most a half) above it."""
    if tail >= 0.5:
        return 0.0
    start = -_NORMAL.inv_cdf(tail)
    if math.isinf(freedom):
        return start
    if freedom == 1:
        return 1 / math.tan(math.pi * tail)
    # Newton on the logarithms of both, in which a heavy tail is nearly a straight line.
    low, high, at = 0.0, math.inf, start
    for _ in range(200):
        here = t_tail(at, freedom)
        error = math.log(here / tail)
        low, high = (at, high) if error > 0 else (low, at)
        step = at * math.expm1(error / (at * _density(at, freedom) / here))
        after = at + step
        if not low < after < high:
            after = 2 * at if math.isinf(high) else (low + high) / 2
        if abs(after - at) <= 1e-14 * at:
            return after
        at = after
    return at


def sign_test(up: int, down: int) -> float:
    """Return the two-sided exact p-value of `up` against `down` under a fair coin."""
    trials, fewer = up + down, min(up, down)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**trials)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where `function` is 0 between two ends at which its signs differ (Ridders' method)."""
    at_low, at_high = function(low), function(high)
    if at_low == 0 or at_high == 0:
        return low if at_low == 0 else high
    found = math.nan
    for _ in range(200):
        middle = (low + high) / 2
        at_middle = function(middle)
        scale = math.sqrt(at_middle**2 - at_low * at_high)
        if scale == 0:
            return middle
        after = middle + (middle - low) * math.copysign(1, at_low - at_high) * at_middle / scale
        if abs(after - found) <= 1e-13 * max(abs(after), 1.0):
            return after
        found, value = after, function(after)
        if value == 0:
            return after
        # The two nearest points with different signs.
        if math.copysign(1, at_middle) != math.copysign(1, value):
            low, at_low, high, at_high = middle, at_middle, after, value
        elif math.copysign(1, at_low) != math.copysign(1, value):
            high, at_high = after, value
        else:
            low, at_low = after, value
    return found


def _density(at: float, freedom: float) -> float:
    half = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    log = half - math.log(freedom * math.pi) / 2
    return math.exp(log - (freedom + 1) / 2 * math.log1p(at**2 / freedom))


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularised incomplete beta function at x; `rest` is 1 - x, without its error."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + term * d)
            c = _away(1 + term / c)
            result *= d * c
        if abs(d * c - 1) < 1e-16:
            break
    return result


def _away(value: float) -> float:
    """Return a value, moved off 0."""
    return value if abs(value) > _TINY else _TINY
