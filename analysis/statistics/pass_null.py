"""Idle runs in forward passes of an expert that every token selects independently, at one rate p.

A pass of m counted tokens leaves the expert idle with probability (1-p)^m, so that passes of many
tokens hardly ever do. Over W passes the tokens add up: (1-p)^D, D the tokens of those passes. With
p = k/N this is fair routing.

Notation as in `statistics.idle_null`, with passes for tokens.
Shape suffixes: S passes of a stream (`total_S` and `chance_SN` have 0 before the first), N rates,
D different numbers of tokens, X tabulated rates, or a block of passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

_ALMOST_SURE, _NEVER_TWO = 10.0, 0.001
"""Of so many runs expected or more there is one; of so few or less there are never two."""
_EXACT, _BLOCKS = 2_048, 32
"""Passes, and windows that they make, up to which chances are exact."""
_CELLS, _KEPT = 1 << 21, 16
"""Of a table that is made at once; windows whose numbers of tokens are kept."""
_DENSE = 16
"""Values are counted in a table of all numbers between, unless these are so many times as many."""
_RATE_STEP, _MOST_HAZARD = 0.15, 3.0
"""Of ln(-ln(1-p)), between tabulated rates, and the largest of them."""
_NEVER = 1e-15
"""Longer runs are looked for at rates that give the last length a larger chance than this."""
_EVERY, _LENGTH_STEP = 32, 1.2
"""Expected longest runs are summed at all lengths up to `_EVERY`, then in steps."""


class PassNull:
    """What chance gives in streams of passes.

    Args:
        streams: Counted tokens of each pass, stream by stream; each at least 1.
    """

    def __init__(self, streams: Sequence[np.ndarray]) -> None:
        self._total = [np.concatenate([[0], np.cumsum(tokens_S)]) for tokens_S in streams]
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def passes(self) -> int:
        """Of all streams."""
        return sum(len(total_S) - 1 for total_S in self._total)

    @property
    def streams(self) -> int:
        """Their number."""
        return len(self._total)

    @property
    def longest_stream(self) -> int:
        """Passes of the longest stream: no run is longer."""
        return max((len(total_S) - 1 for total_S in self._total), default=0)

    def window_tokens(self, window: int) -> float:
        """Return the mean number of counted tokens in W consecutive passes; NaN where none are."""
        tokens_D, number_D = self._windows(window)
        return float(tokens_D @ number_D / number_D.sum()) if len(number_D) else np.nan

    def expected_sliding(self, p_N: np.ndarray, window: int) -> np.ndarray:
        """Return how many stretches of just W passes are idle: the sum of (1-p)^D. Exact."""
        tokens_D, number_D = self._windows(window)
        expected_N = np.zeros(len(p_N))
        for some in _slices(len(p_N), len(tokens_D)):
            expected_N[some] = _idle(p_N[some, None], tokens_D) @ number_D
        return expected_N

    def expected_runs(self, p_N: np.ndarray, window: int) -> np.ndarray:
        """Return the expected number of idle runs of W passes or more: float64 [N].

        Exact: a run has one stretch of W more than it has of W + 1.
        """
        longer_N = self.expected_sliding(p_N, window + 1)
        return np.asarray(np.maximum(self.expected_sliding(p_N, window) - longer_N, 0))

    def expected_idle_share(self, p_N: np.ndarray, window: int) -> np.ndarray:
        """Return the expected share of all passes in idle runs of W or more; NaN without passes.

        Exact: a run of W or more has W - 1 passes more than it holds stretches of W.
        """
        inside_N = self.expected_sliding(p_N, window)
        inside_N += (window - 1) * self.expected_runs(p_N, window)
        return np.asarray(inside_N / (self.passes or np.nan))

    def p_longest_at_least(self, p_N: np.ndarray, window: int) -> np.ndarray:
        """Return the chance of any idle run of W passes or more: float64 [N].

        By recursion over the passes, exactly: the first such run ends with pass i if there was none
        up to pass i - W - 1, pass i - W uses the expert and those after it do not. Where that is
        long, beyond 2,048 passes that are 32 windows or more, 1 - (1 - x) exp(-E): x is the chance
        that a stream begins with such a run, and E are the other ones expected. The chance is never
        below that, and above it by 0.03 at most in passes of similar size. Of ten runs expected or
        more one is taken for certain, to 5e-5; of less than 0.001 none is taken for two, to 5e-7.
        """
        expected_N = self.expected_runs(p_N, window)
        chance_N = np.clip(expected_N, 0, 1)
        some_N = (expected_N > _NEVER_TWO) & (expected_N < _ALMOST_SURE)
        if some_N.any():
            if self.passes <= max(_EXACT, _BLOCKS * window):
                chance_N[some_N] = self._exact_chance(p_N[some_N], window)
            else:
                chance_N[some_N] = self._chance_of_many(p_N[some_N], expected_N[some_N], window)
        return np.asarray(chance_N)

    def _exact_chance(self, p_N: np.ndarray, window: int) -> np.ndarray:
        none_N = np.ones(len(p_N))
        for total_S in self._total:
            for some in _slices(len(p_N), len(total_S)):
                none_N[some] *= 1 - _chance_in_stream(p_N[some], total_S, window)
        return 1 - none_N

    def _chance_of_many(self, p_N: np.ndarray, expected_N: np.ndarray, window: int) -> np.ndarray:
        none_N, others_N = np.ones(len(p_N)), expected_N.copy()
        for total_S in self._total:
            if len(total_S) > window:
                begins_N = _idle(p_N, total_S[window])
                none_N *= 1 - begins_N
                others_N -= begins_N
        return np.asarray(1 - none_N * np.exp(-np.maximum(others_N, 0)))

    def p_longest(self, p_N: np.ndarray, longest_N: np.ndarray) -> np.ndarray:
        """Return each expert's chance of a run as long as its own: 1 for one of no pass."""
        chance_N = np.ones(len(p_N))
        for window in np.unique(longest_N[longest_N > 0]).tolist():
            chosen_N = longest_N == window
            chance_N[chosen_N] = self.p_longest_at_least(p_N[chosen_N], window)
        return np.where(np.isnan(p_N), np.nan, chance_N)

    def expected_longest(self, p_N: np.ndarray) -> np.ndarray:
        """Return the mean longest run of any stream, in passes: float64 [N], in [0, S].

        The sum over W of the chance of a run of W or more, read between tabulated rates and
        lengths: within 1 % or 0.001 pass, whichever is more, where chances are exact.
        """
        with np.errstate(divide="ignore"):
            hazard_N = -np.log1p(-p_N)
            known_N = np.exp(np.interp(np.log(hazard_N), *self._tabulated))
        some_N = np.where(p_N < 1, known_N, 0.0)
        return np.where(p_N > 0, some_N, np.where(p_N == 0, float(self.longest_stream), np.nan))

    @cached_property
    def _tabulated(self) -> tuple[np.ndarray, np.ndarray]:
        """Logs of -ln(1-p) for rates p, and of the mean longest runs at them."""
        tokens = max((int(total_S[-1]) for total_S in self._total), default=1)
        log_X = np.arange(-np.log(100 * tokens), _MOST_HAZARD, _RATE_STEP)
        p_X = -np.expm1(-np.exp(log_X))
        mean_X, before_X, below = np.zeros(len(p_X)), np.ones(len(p_X)), 0
        for window in _lengths(self.longest_stream):
            chance_X, some_X = np.zeros(len(p_X)), before_X > _NEVER
            chance_X[some_X] = self.p_longest_at_least(p_X[some_X], window)
            # Lengths between the last one and this one lie on a line.
            width = window - below
            mean_X += width * chance_X + (before_X - chance_X) * (width - 1) / 2
            below, before_X = window, chance_X
        return log_X, np.log(np.maximum(mean_X, 1e-300))

    def _windows(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Different numbers of tokens in W consecutive passes, and how often each occurs."""
        if window not in self._found:
            if len(self._found) >= _KEPT:
                self._found.clear()
            tokens = [total_S[window:] - total_S[:-window] for total_S in self._total]
            self._found[window] = _different(np.concatenate([np.empty(0, np.int64), *tokens]))
        return self._found[window]


def _different(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different values of whole numbers, and how often each occurs."""
    least, most = int(values.min(initial=1 << 62)), int(values.max(initial=0))
    if most - least > _DENSE * len(values):
        found = np.unique(values, return_counts=True)
        return found[0], found[1]
    number = np.bincount(values - least)
    above = np.flatnonzero(number)
    return above + least, number[above]


def _slices(rates: int, each: int) -> list[slice]:
    """Cut rates so that a table with so many cells for each stays small."""
    step = max(_CELLS // max(each, 1), 1)
    return [slice(start, start + step) for start in range(0, rates, step)]


def _idle(p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(1-p)^tokens, exact for small p."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log1p(-p) * tokens))


def _chance_in_stream(p_N: np.ndarray, total_S: np.ndarray, window: int) -> np.ndarray:
    """Return the chance that one stream has an idle run of W passes or more, exactly.

    Args:
        p_N: Rates.
        total_S: Tokens before each pass, and of all.
        window: W, at least 1.
    """
    passes = len(total_S) - 1
    if passes < window:
        return np.zeros(len(p_N))
    # Row i: the chance of such a run in the first i passes.
    chance_SN = np.zeros((passes + 1, len(p_N)))
    chance_SN[window] = _idle(p_N, total_S[window])
    # W + 1 passes at a time: what ends in them depends on nothing later than the ones before.
    for start in range(window + 1, passes + 1, window + 1):
        stop = min(start + window + 1, passes + 1)
        idle_X = total_S[start:stop] - total_S[start - window : stop - window]
        longer_X = total_S[start:stop] - total_S[start - window - 1 : stop - window - 1]
        ends_XN = _idle(p_N, idle_X[:, None]) - _idle(p_N, longer_X[:, None])
        ends_XN *= 1 - chance_SN[start - window - 1 : stop - window - 1]
        chance_SN[start:stop] = chance_SN[start - 1] + np.cumsum(ends_XN, axis=0)
    return np.asarray(np.clip(chance_SN[-1], 0, 1))


def _lengths(most: int) -> list[int]:
    """All lengths at first, then ever larger steps, and the longest."""
    found = list(range(1, min(most, _EVERY) + 1))
    while found and found[-1] < most:
        found.append(min(max(int(found[-1] * _LENGTH_STEP), found[-1] + 1), most))
    return found
