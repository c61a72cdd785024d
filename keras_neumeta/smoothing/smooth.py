"""Smoothing: channels in the order of a shortest path.

Permuting the channels of a group, everywhere at once, leaves the network's
function as it is. The order in which neighbours differ least makes the
weights a smoother function of the channel coordinate.

Source: Neural Metamorphosis (Yang and Wang, ECCV 2024), section 3.2.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from keras import ops
from scipy.spatial.distance import cdist

from keras_neumeta.graph import assign, call_once, resize, trace
from keras_neumeta.smoothing.path import path_length, shortest_path

# From this many channels on, the search of a path shows its progress.
LARGE_GROUP = 1024


def total_variation(model):
    """Sum of absolute differences between neighbouring channels.

    Over all morphable channel groups and all weights of each group; moving
    statistics do not count.

    Args:
        model: Built Sequential or functional `keras.Model`.

    Returns:
        A float.

    Example:

    ```python
    before = keras_neumeta.total_variation(model)
    after = keras_neumeta.total_variation(keras_neumeta.smooth(model))
    assert after <= before
    ```
    """
    graph = trace(model)
    values = [ops.convert_to_numpy(v) for v in model.variables]
    return sum(
        float(np.abs(np.diff(channel_rows(graph, group, values), axis=0)).sum())
        for group in graph.morphable_groups
    )


def smooth(model, seed=0, verbose="auto", layers=None, effort=1.0):
    """Permutes each channel group along a shortest path.

    Args:
        model: Built Sequential or functional `keras.Model`; not changed.
        seed: Seed of the path search: the same model and seed give the same
            order.
        verbose: Whether to show progress; `"auto"` shows it for groups of
            1,024 channels and more.
        layers: The layers whose channels may be permuted; see `trace`.
            Default: all.
        effort: Length of the path search relative to the usual one, less for
            networks with many wide groups; 0 takes the nearest neighbour each
            time.

    Returns:
        A new model with the same function, whose `total_variation` is not
        higher.

    Example:

    ```python
    smoothed = keras_neumeta.smooth(model)
    ```
    """
    if not effort >= 0.0:
        raise ValueError(
            f"Argument `effort` must be at least 0. Received: effort={effort}"
        )
    graph = trace(model, layers)
    values = [ops.convert_to_numpy(v) for v in model.variables]
    permutations = {}
    for group in graph.morphable_groups:
        rows = channel_rows(graph, group, values)
        distances = _distances(rows)
        show = (
            group.num_channels >= LARGE_GROUP
            if verbose == "auto"
            else bool(verbose)
        )
        progress = _progress(group) if show else None
        order = shortest_path(
            distances, seed=seed, effort=effort, progress=progress
        )
        if path_length(distances, order) < path_length(distances):
            permutations[group.index] = order
    return _permuted(graph, values, permutations)


def sort_channels(model, layers=None):
    """Orders each channel group by importance: falling L1 norm.

    For fields that read the leading slice (`SlimmableField`).

    Args:
        model: Built Sequential or functional `keras.Model`; not changed.
        layers: The layers whose channels may be permuted; see `trace`.
            Default: all.

    Returns:
        A new model with the same function.

    Example:

    ```python
    ordered = keras_neumeta.sort_channels(model)
    ```
    """
    graph = trace(model, layers)
    values = [ops.convert_to_numpy(v) for v in model.variables]
    permutations = {}
    for group in graph.morphable_groups:
        norms = np.abs(channel_rows(graph, group, values)).sum(axis=1)
        permutations[group.index] = np.argsort(-norms, kind="stable")
    return _permuted(graph, values, permutations)


def _permuted(graph, values, permutations):
    """The network with its channels in a new order."""
    result = resize(graph, graph.full_sizes)
    call_once(result)
    for index, layout in enumerate(graph.layouts):
        for number, axis in layout.axes.items():
            places = axis.permute(permutations)
            values[index] = np.take(values[index], places, axis=number)
    assign(result, values)
    return result


def channel_rows(graph, group, values):
    """Every weight that belongs to each channel of a group.

    Args:
        graph: `ChannelGraph`.
        group: `ChannelGroup`.
        values: Arrays in the order of `graph.layouts`.

    Returns:
        float64 array `(num_channels, weights per channel)`.
    """
    rows = []
    for layout, value in zip(graph.layouts, values, strict=True):
        if layout.role != "weight":
            continue
        for number, axis in layout.axes.items():
            here = np.flatnonzero(axis.groups == group.index)
            if not len(here):
                continue
            order = np.lexsort((axis.blocks[here], axis.channels[here]))
            part = np.take(value, here[order], axis=number)
            part = np.moveaxis(part, number, 0)
            rows.append(part.reshape(group.num_channels, -1))
    if not rows:
        return np.zeros((group.num_channels, 1))
    return np.concatenate(rows, axis=1).astype("float64")


def _distances(rows, block=128):
    """L1 distances between all rows, the upper blocks in parallel."""
    number = len(rows)
    distances = np.empty((number, number))

    def fill(start):
        stop = min(start + block, number)
        part = cdist(rows[start:stop], rows[start:], "cityblock")
        distances[start:stop, start:] = part
        distances[start:, start:stop] = part.T

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, number, block)))
    return distances


def _progress(group):
    def show(done):
        end = "\n" if done >= 1.0 else ""
        sys.stderr.write(
            f"\rSmoothing '{group.name}' ({group.num_channels} channels): "
            f"{100 * done:3.0f} %{end}"
        )
        sys.stderr.flush()

    return show
