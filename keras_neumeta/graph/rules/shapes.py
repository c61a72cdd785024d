"""Layers and operations that move, merge and split axes."""

import keras
import numpy as np

from keras_neumeta.graph.rules.registry import register_named, register_rule
from keras_neumeta.graph.tracer import TracedTensor

# Reshaping


def reshaped_labels(call, x, shape):
    """Labels of the axes of `x` after a reshape (C order).

    Axes are matched from the last one on, in segments of equal product.
    Within a segment, channels stay on the one axis along which they vary; if
    they vary along several (channels split into heads), they are tied along
    all but the last.

    Args:
        call: `LayerCall`.
        x: `TracedTensor`.
        shape: The new shape, batch axis included.

    Returns:
        Dict from new axis to labels.
    """
    result = {}
    done = set()
    for first, last, new_first, new_last in _segments(x.shape, shape):
        labelled = [
            axis for axis in range(first, last) if x.channels(axis) is not None
        ]
        done.update(labelled)
        if not labelled:
            continue
        for axis in labelled[:-1]:
            call.freeze(
                x.channels(axis),
                f"layer '{call.layer.name}' merges them with other channels",
            )
        axis = labelled[-1]
        labels = x.channels(axis)
        expanded = labels.reshape(
            [-1 if n == axis else 1 for n in range(first, last)]
        )
        labels = np.broadcast_to(expanded, x.shape[first:last])
        labels = labels.reshape(shape[new_first:new_last])
        varying = [
            n
            for n in range(labels.ndim)
            if (labels != labels.take([0], n)).any()
        ]
        if not varying:  # a single channel, which no axis can lose
            call.freeze(
                labels.reshape(-1)[:1],
                f"layer '{call.layer.name}' reshapes a single channel",
            )
            continue
        place = varying[-1]
        rows = np.moveaxis(labels, place, -1).reshape(-1, labels.shape[place])
        for row in np.unique(rows[1:], axis=0):
            call.tie(rows[0], row)
        result[new_first + place] = rows[0]
    # What remains has sizes that are not known: equal axes pass through.
    for axis in set(x.labels) - done:
        if x.shape[: axis + 1] == shape[: axis + 1]:
            result[axis] = x.channels(axis)
        else:
            call.freeze(
                x.channels(axis),
                f"layer '{call.layer.name}' merges them with an axis of "
                "unknown size",
            )
    return result


def _segments(old, new):
    """Runs of axes with equal products: `(first, last)` in both shapes."""
    i, j = len(old), len(new)
    segments = []
    while i and j and old[i - 1] is not None and new[j - 1] is not None:
        last, new_last = i, j
        i, j = i - 1, j - 1
        size, new_size = old[i], new[j]
        while size != new_size:
            if size < new_size:
                i -= 1
                if i < 0 or old[i] is None:
                    return segments
                size *= old[i]
            else:
                j -= 1
                if j < 0 or new[j] is None:
                    return segments
                new_size *= new[j]
        segments.append((i, last, j, new_last))
    return segments


def counted(shape, labels):
    """Entries of a shape argument: labels where there are any."""
    return [
        labels.get(axis, -1 if size is None else size)
        for axis, size in enumerate(shape)
    ]


@register_rule(keras.layers.Reshape)
def reshape(call):
    (x,) = call.inputs
    shape = call.output_shapes[0]
    labels = reshaped_labels(call, x, shape)
    call.resize("target_shape", counted(shape, labels)[1:])
    return call.output(labels)


@register_named("Reshape")
def reshape_operation(call):
    x = call.inputs[0]
    shape = call.output_shapes[0]
    labels = reshaped_labels(call, x, shape)
    if labels:
        call.resize("newshape", counted(shape, labels))
    return call.output(labels)


@register_named("Ravel")
def ravel(call):
    call.freeze_inputs(f"layer '{call.layer.name}' merges them with the batch")
    return call.output()


@register_rule(keras.layers.Flatten)
def flatten(call):
    (x,) = call.inputs
    if x.labels and call.layer.data_format == "channels_first":
        # Keras moves the channels to the end before it flattens.
        x = transposed(x, (0, *range(2, len(x.shape)), 1))
    if len(x.shape) == 1:
        return call.output()
    return call.output(reshaped_labels(call, x, call.output_shapes[0]))


# Axes


def transposed(x, order):
    """`x` with its axes in a new order."""
    return TracedTensor(
        tuple(x.shape[axis] for axis in order),
        {
            order.index(axis): labels
            for axis, labels in x.labels.items()
            if axis in order
        },
    )


@register_rule(keras.layers.Permute)
def permute(call):
    (x,) = call.inputs
    return call.output(transposed(x, (0, *call.layer.dims)).labels)


def _order(layer, rank):
    """The order of axes that a transposing operation makes."""
    axes = list(range(rank))
    kind = type(layer).__name__
    if kind == "Transpose":
        return (
            axes[::-1]
            if layer.axes is None
            else [axis % rank for axis in layer.axes]
        )
    if kind == "Swapaxes":
        first, second = layer.axis1 % rank, layer.axis2 % rank
        axes[first], axes[second] = axes[second], axes[first]
        return axes
    source, destination = layer.source, layer.destination
    source = [source] if isinstance(source, int) else source
    destination = [destination] if isinstance(destination, int) else destination
    source = [axis % rank for axis in source]
    order = [axis for axis in axes if axis not in source]
    for place, axis in sorted(
        zip((axis % rank for axis in destination), source)
    ):
        order.insert(place, axis)
    return order


@register_named("Transpose", "Swapaxes", "Moveaxis")
def transpose(call):
    x = call.inputs[0]
    return call.output(transposed(x, _order(call.layer, len(x.shape))).labels)


@register_named("ExpandDims")
def expand_dims(call):
    x = call.inputs[0]
    rank = len(call.output_shapes[0])
    axes = call.layer.axis
    axes = [axes] if isinstance(axes, int) else axes
    new = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in new]
    return call.output({kept[n]: value for n, value in x.labels.items()})


@register_named("Squeeze")
def squeeze(call):
    x = call.inputs[0]
    rank = len(x.shape)
    axes = call.layer.axis
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
        # Else an axis that shrinks to one channel would go too.
        call.resize("axis", tuple(axes))
    axes = [axes] if isinstance(axes, int) else axes
    gone = {axis % rank for axis in axes}
    for axis in gone:
        call.freeze(
            x.channels(axis), f"layer '{call.layer.name}' squeezes them away"
        )
    kept = [axis for axis in range(rank) if axis not in gone]
    return call.output(
        {kept.index(n): value for n, value in x.labels.items() if n in kept}
    )


@register_named("BroadcastTo")
def broadcast_to(call):
    x = call.inputs[0]
    shape = call.output_shapes[0]
    shift = len(shape) - len(x.shape)
    labels = {}
    for axis, value in x.labels.items():
        if shape[axis + shift] == len(value):
            labels[axis + shift] = value
        else:
            call.freeze(value, f"layer '{call.layer.name}' repeats them")
    if labels:
        call.resize("shape", counted(shape, labels))
    return call.output(labels)


@register_named("Flip", "Roll")
def reorder(call):
    x = call.inputs[0]
    axes = call.layer.axis
    axes = range(len(x.shape)) if axes is None else axes
    for axis in [axes] if isinstance(axes, int) else axes:
        call.freeze(
            x.channels(axis), f"layer '{call.layer.name}' reorders them"
        )
    return call.output(x.labels)


@register_named("Repeat")
def repeat(call):
    x = call.inputs[0]
    axis, repeats = call.layer.axis, call.layer.repeats
    if axis is None or np.size(repeats) != 1:
        call.freeze_inputs(f"layer '{call.layer.name}' repeats them")
        return call.output()
    labels = dict(x.labels)
    axis = axis % len(x.shape)
    if axis in labels:
        labels[axis] = np.repeat(labels[axis], int(np.ravel(repeats)[0]))
    return call.output(labels)


@register_named("Tile")
def tile(call):
    x = call.inputs[0]
    rank = len(call.output_shapes[0])
    repeats = call.layer.repeats
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    repeats = [1] * (rank - len(repeats)) + repeats
    shift = rank - len(x.shape)
    return call.output(
        {
            axis + shift: np.tile(labels, repeats[axis + shift])
            for axis, labels in x.labels.items()
        }
    )


# Parts


@register_named("GetItem")
def get_item(call):
    x, key = call.args[0], call.args[1]
    if not x.labels:
        return call.output()
    items = list(key) if isinstance(key, tuple | list) else [key]
    if any(
        not (item is None or item is Ellipsis or isinstance(item, int | slice))
        for item in items
    ):
        call.freeze_inputs(f"layer '{call.layer.name}' picks some of them")
        return call.output()
    # `==` would compare arrays.
    used = sum(item is not None and item is not Ellipsis for item in items)
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    place = next(n for n, item in enumerate(items) if item is Ellipsis)
    items[place : place + 1] = [slice(None)] * (len(x.shape) - used)
    labels, axis, new_axis, new_key = {}, 0, 0, []
    for item in items:
        if item is None:
            new_axis += 1
        elif isinstance(item, int):
            call.freeze(
                x.channels(axis), f"layer '{call.layer.name}' picks one of them"
            )
            axis += 1
        else:
            value = x.channels(axis)
            if value is not None and item != slice(None):
                labels[new_axis], item = _slice(call, value, item)
            elif value is not None:
                labels[new_axis] = value
            axis, new_axis = axis + 1, new_axis + 1
        new_key.append(item)
    call.resize_argument(1, tuple(new_key))
    return call.output(labels)


def _slice(call, labels, item):
    """A slice of an axis with channels: its labels and the resized slice."""
    start, stop, step = item.indices(len(labels))
    if step != 1:
        call.freeze(labels, f"layer '{call.layer.name}' skips some of them")
        return labels[item], item
    return labels[start:stop], slice(labels[:start], labels[:stop])


@register_named("Split")
def split(call):
    x = call.inputs[0]
    axis = call.layer.axis % len(x.shape)
    sections = call.layer.indices_or_sections
    labels = x.channels(axis)
    others = {n: value for n, value in x.labels.items() if n != axis}
    number = len(call.output_shapes)
    if labels is None:
        return [call.output(others, index) for index in range(number)]
    if isinstance(sections, int):
        parts = labels.reshape(sections, -1)
        for part in parts[1:]:
            call.tie(parts[0], part)
    else:
        parts = np.split(labels, sections)
        call.resize("indices_or_sections", [labels[:n] for n in sections])
    return [
        call.output({**others, axis: part}, index)
        for index, part in enumerate(parts)
    ]


@register_named("Pad")
def pad(call):
    x = call.inputs[0]
    rank = len(x.shape)
    widths = [list(pair) for pair in call.layer.pad_width]
    if len(widths) == 1:
        widths = widths * rank
    constant = call.layer.mode == "constant"
    labels, entries = {}, [list(pair) for pair in widths]
    for axis, value in x.labels.items():
        before, after = widths[axis]
        if not before and not after:
            labels[axis] = value
        elif constant:
            first, last = call.new_channels(before), call.new_channels(after)
            labels[axis] = np.concatenate([first, value, last])
            entries[axis] = [first, last]
        else:
            call.freeze(value, f"layer '{call.layer.name}' repeats them")
            value = call.fixed_channels(before + len(value) + after)
    if labels:
        call.resize("pad_width", entries)
    return call.output(labels)
