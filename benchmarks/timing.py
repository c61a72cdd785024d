"""Seconds of training steps, side by side."""

import statistics
import time


def seconds_of(function, repeats):
    """Mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def alternate(first, second, blocks=5, repeats=3):
    """Times two functions in turns.

    A machine whose speed drifts slows both alike.

    Returns:
        Median seconds of each, and the median of the blocks' ratios.
    """
    pairs = [
        (seconds_of(first, repeats), seconds_of(second, repeats))
        for _ in range(blocks)
    ]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )
