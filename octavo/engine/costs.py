"""What steps cost by their tokens, learnt while they run: a line through durations, the latest counting most."""

from __future__ import annotations

MEMORY = 1 / 512
"""Weight of the latest step in the sums."""
LEAST_STEPS = 32
EVERY = 32
"""Steps between two looks at whether what was told still holds."""
CHANGE = 1.25
"""What was told is told anew when it is off by that factor."""
MOST = 4096


class StepCosts:
    """How many tokens cost what a step costs without any: where the line meets zero, left of the axis."""

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0
        self._num_steps = 0
        self._told: int | None = None

    def note(self, num_tokens: int, took_s: float) -> None:
        """A step was carried out."""
        keep = 1 - MEMORY
        self._weight = keep * self._weight + 1
        self._tokens = keep * self._tokens + num_tokens
        self._seconds = keep * self._seconds + took_s
        self._squares = keep * self._squares + num_tokens * num_tokens
        self._products = keep * self._products + num_tokens * took_s
        self._num_steps += 1

    def news(self) -> int | None:
        """The number, where it is not what was said last; None where there is nothing to say."""
        if self._num_steps < LEAST_STEPS or self._num_steps % EVERY:
            return None
        found = self._fixed_tokens()
        if found is None:
            return None
        told = self._told
        if told is not None and told <= CHANGE * found and found <= CHANGE * told:
            return None
        self._told = found
        return found

    def _fixed_tokens(self) -> int | None:
        """None where all steps were of one size, or larger ones took no longer."""
        mean_tokens, mean_s = self._tokens / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean_tokens * mean_tokens
        covariance = self._products / self._weight - mean_tokens * mean_s
        if variance < 1.0 or covariance <= 0:
            return None
        slope_s = covariance / variance
        return min(max(round(mean_s / slope_s - mean_tokens), 1), MOST)
