"""Seconds of training steps, side by side."""

import statistics
import time


def seconds_of(function, repeats, clock=time.perf_counter):
    """Mean seconds of one call."""
    start = clock()
    for _ in range(repeats):
        function()
    return (clock() - start) / repeats


def alternate(first, second, blocks=5, repeats=3, clock=time.perf_counter):
    """Times two functions in turns.

    A machine whose speed drifts slows both alike.

    Args:
        clock: `time.process_time` for functions of one thread that shall not
            count what else the machine does.

    Returns:
        Median seconds of each, and the median of the blocks' ratios.
    """
    pairs = [
        (
            seconds_of(first, repeats, clock),
            seconds_of(second, repeats, clock),
        )
        for _ in range(blocks)
    ]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )
