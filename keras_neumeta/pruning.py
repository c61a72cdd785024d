"""Plain channel cutting: the baseline without a manifold."""

import numpy as np
from keras import ops

from keras_neumeta.graph import assign, resize, trace
from keras_neumeta.smoothing.smooth import channel_rows


def largest_channels(model, ratio, layers=None, divisor=1):
    """The channels with the largest L1 norm in each channel group.

    The norm is taken over every weight that belongs to the channel, in all
    layers of the group.

    Args:
        model: Built Sequential or functional `keras.Model`.
        ratio: Kept width in (0, 1].
        layers: The layers whose channels may change; see `trace`.
        divisor: Round the numbers of channels to multiples of this.

    Returns:
        Dict from group name to a sorted int array of channels, for `cut`.
    """
    graph = trace(model, layers)
    sizes = graph.sizes(ratio, divisor)
    values = [ops.convert_to_numpy(v) for v in model.variables]
    keep = {}
    for group in graph.morphable_groups:
        norms = np.abs(channel_rows(graph, group, values)).sum(axis=1)
        order = np.argsort(-norms, kind="stable")
        keep[group.name] = np.sort(order[: sizes[group.index]])
    return keep


def cut(model, keep):
    """Keeps some channels of each group, everywhere at once.

    Args:
        model: Built Sequential or functional `keras.Model`; not changed.
        keep: Ratio in (0, 1], to keep the channels with the largest L1 norm,
            or a dict from group name (see `trace(model).summary()`) to the
            channels to keep. Groups that are not named keep all.

    Returns:
        A smaller plain model with the weights of the kept channels.

    Raises:
        ValueError: If a group is unknown or cannot change, or if channels
            are out of range.

    Example:

    ```python
    half = keras_neumeta.cut(model, keep=0.5)
    ```
    """
    graph = trace(model)
    if not isinstance(keep, dict):
        keep = largest_channels(model, keep)
    groups = {group.name: group for group in graph.groups}
    kept = [np.ones(group.num_channels, bool) for group in graph.groups]
    for name, channels in keep.items():
        if name not in groups or not groups[name].morphable:
            morphable = [group.name for group in graph.morphable_groups]
            raise ValueError(
                f"Argument `keep` names group '{name}', which "
                + (
                    f"cannot change: {groups[name].frozen}."
                    if name in groups
                    else f"does not exist in '{model.name}'."
                )
                + f" Morphable groups: {morphable}"
            )
        number = groups[name].num_channels
        channels = np.unique(np.asarray(channels, "int64"))
        if not len(channels) or channels[0] < 0 or channels[-1] >= number:
            raise ValueError(
                f"Argument `keep` must give at least one channel of group "
                f"'{name}', each in 0..{number - 1}. Received: "
                f"{channels.tolist()}"
            )
        kept[groups[name].index][:] = False
        kept[groups[name].index][channels] = True
    sizes = tuple(int(mask.sum()) for mask in kept)
    smaller = resize(graph, sizes)
    values = []
    for variable, layout in zip(model.variables, graph.layouts, strict=True):
        value = ops.convert_to_numpy(variable)
        for number, axis in layout.axes.items():
            value = np.take(value, axis.select(kept), axis=number)
        values.append(value)
    assign(smaller, values)
    return smaller
