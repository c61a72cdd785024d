"""Channel pruning through the channel graph: the baselines of a manifold."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.backends import gradients
from keras_neumeta.graph import assign, call_once, resize, trace
from keras_neumeta.smoothing.smooth import channel_rows

CRITERIA = ("l1", "l2", "taylor", "hessian", "random")


def channel_importance(
    model, criterion="l1", data=None, loss=None, layers=None, seed=0
):
    """Importance of each channel of each morphable channel group.

    Summed over every weight that belongs to the channel, in all layers of the
    group ("group importance"):

    - `"l1"`, `"l2"`: |w| and w^2.
    - `"taylor"`: |w g| with the gradient g of the loss over the data
      (Molchanov et al., CVPR 2019).
    - `"hessian"`: w^2 h with the mean squared gradient h of the batches, for
      the diagonal of the Hessian (optimal brain damage, LeCun et al., 1989);
      batches of one example make it the empirical Fisher information.
    - `"random"`: a random order.

    Args:
        model: Built Sequential or functional `keras.Model`.
        criterion: See above.
        data: For `"taylor"` and `"hessian"`: iterable of batches `(x, y)`.
        loss: For the same: `keras.losses.Loss`, function or name. Default:
            that the model is compiled with.
        layers: The layers whose channels may change; see `trace`.
        seed: Seed of the random order.

    Returns:
        Dict from group name to a float array `(num_channels,)`.

    Raises:
        ValueError: If `criterion` is unknown, or needs data and has none.

    Example:

    ```python
    importance = keras_neumeta.channel_importance(model, "l2")
    ```
    """
    if criterion not in CRITERIA:
        raise ValueError(
            f"Argument `criterion` must be one of {CRITERIA}. "
            f"Received: criterion={criterion!r}"
        )
    graph = trace(model, layers)
    random = np.random.default_rng(seed)
    if criterion == "random":
        return {
            group.name: random.random(group.num_channels)
            for group in graph.morphable_groups
        }
    values = [ops.convert_to_numpy(v) for v in model.variables]
    if criterion == "l2":
        values = [np.square(value) for value in values]
    elif criterion in ("taylor", "hessian"):
        moments = _gradient_moments(model, criterion, data, loss)
        place = {id(v): n for n, v in enumerate(model.trainable_variables)}
        values = [
            np.abs(value) ** (1 if criterion == "taylor" else 2)
            * moments[place[id(variable)]]
            if id(variable) in place
            else np.zeros(value.shape)
            for value, variable in zip(values, model.variables, strict=True)
        ]
    return {
        group.name: np.abs(channel_rows(graph, group, values)).sum(axis=1)
        for group in graph.morphable_groups
    }


def _gradient_moments(model, criterion, data, loss):
    """Per trainable variable: |mean gradient|, or mean squared gradient."""
    if data is None:
        raise ValueError(
            f"Argument `criterion`: {criterion!r} needs gradients. Give "
            "`data`, an iterable of batches `(x, y)`, or use 'l1' or 'l2'."
        )
    if loss is None:
        loss = getattr(model, "loss", None)
    if loss is None:
        raise ValueError(
            "Argument `loss` is needed, since the model is not compiled."
        )
    loss = keras.losses.get(loss)

    def mean_loss(y, outputs):
        return ops.mean(loss(y, outputs))

    totals, number = None, 0
    for batch in data:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        x, y = keras.tree.map_structure(ops.convert_to_tensor, (x, y))
        parts = [
            np.asarray(ops.convert_to_numpy(g), "float64")
            for g in gradients(model, mean_loss, x, y)
        ]
        if criterion == "hessian":
            parts = [np.square(part) for part in parts]
        totals = parts if totals is None else list(map(np.add, totals, parts))
        number += 1
    if not number:
        raise ValueError("Argument `data` must hold at least one batch.")
    return [np.abs(total) / number for total in totals]


def largest_channels(model, ratio, layers=None, divisor=1, importance=None):
    """The most important channels of each channel group.

    Args:
        model: Built Sequential or functional `keras.Model`.
        ratio: Kept width in (0, 1], or a dict by name; see
            `ChannelGraph.sizes`.
        layers: The layers whose channels may change; see `trace`.
        divisor: Round the numbers of channels to multiples of this.
        importance: Dict from group name to one number per channel, from
            `channel_importance`. Default: the L1 norm of every weight that
            belongs to the channel.

    Returns:
        Dict from group name to a sorted int array of channels, for `cut`.
    """
    graph = trace(model, layers)
    sizes = graph.sizes(ratio, divisor)
    if importance is None:
        importance = channel_importance(model, "l1", layers=layers)
    keep = {}
    for group in graph.morphable_groups:
        order = np.argsort(-importance[group.name], kind="stable")
        keep[group.name] = np.sort(order[: sizes[group.index]])
    return keep


def cut(model, keep, importance=None):
    """Keeps some channels of each group, everywhere at once.

    Args:
        model: Built Sequential or functional `keras.Model`; not changed.
        keep: Ratio in (0, 1], to keep the most important channels, or a
            dict from group name (see `trace(model).summary()`) to the
            channels to keep, as integers or as one boolean per channel.
            Groups that are not named keep all.
        importance: For a ratio: which channels are kept, from
            `channel_importance`, instead of those with the largest L1 norm.

    Returns:
        A smaller plain model with the weights of the kept channels.

    Raises:
        TypeError: If channels are neither integers nor booleans.
        ValueError: If a group is unknown or cannot change, or if channels
            are out of range.

    Example:

    ```python
    half = keras_neumeta.cut(model, keep=0.5)
    ```
    """
    graph = trace(model)
    if not isinstance(keep, dict):
        keep = largest_channels(model, keep, importance=importance)
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
        channels = np.asarray(channels)
        if channels.dtype == bool and channels.shape == (number,):
            channels = np.flatnonzero(channels)
        if channels.size and channels.dtype.kind not in "iu":
            raise TypeError(
                f"Argument `keep` must give the channels of group '{name}' as "
                f"integers, or as {number} booleans. Received: "
                f"{channels.tolist()}"
            )
        channels = np.unique(channels.astype("int64"))
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
    call_once(smaller)
    values = []
    for variable, layout in zip(model.variables, graph.layouts, strict=True):
        value = ops.convert_to_numpy(variable)
        for number, axis in layout.axes.items():
            value = np.take(value, axis.select(kept), axis=number)
        values.append(value)
    assign(smaller, values)
    return smaller
