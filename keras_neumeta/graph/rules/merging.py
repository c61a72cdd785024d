"""Layers and operations of several inputs."""

import keras
import numpy as np

from keras_neumeta.graph.masking import fill
from keras_neumeta.graph.rules.registry import (
    freeze_positions,
    register_named,
    register_rule,
)
from keras_neumeta.graph.tracer import TracedTensor


def broadcast(call, operands, first_axis=0):
    """Labels of an elementwise combination: equal positions are tied.

    Args:
        call: `LayerCall`.
        operands: `TracedTensor`s, arrays and numbers.
        first_axis: Axes before this one are not aligned (Keras' merging
            layers keep the batch axis apart).

    Returns:
        Dict from axis of the output to labels.
    """
    shape = call.output_shapes[0]
    result = {}
    for axis in range(first_axis, len(shape)):
        carriers = []
        for x in operands:
            sizes = tuple(np.shape(x)) if not hasattr(x, "shape") else x.shape
            own = axis - (len(shape) - len(sizes))
            if own < first_axis or (sizes[own] == 1 and shape[axis] != 1):
                continue
            carriers.append(
                x.channels(own) if isinstance(x, TracedTensor) else None
            )
        for labels in carriers[1:]:
            call.tie(carriers[0], labels)
        if carriers and all(labels is not None for labels in carriers):
            result[axis] = carriers[0]
    return result


@register_rule(
    keras.layers.Add,
    keras.layers.Subtract,
    keras.layers.Multiply,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
)
@register_named("CustomScaleLayer")  # of InceptionResNetV2
def merge(call):
    return call.output(broadcast(call, call.inputs, first_axis=1))


def join(call, tensors, axis):
    """Labels of a concatenation."""
    first = tensors[0]
    result = {}
    for other in range(1, len(first.shape)):
        labels = [x.channels(other) for x in tensors]
        if other != axis:
            for value in labels[1:]:
                call.tie(labels[0], value)
            if all(value is not None for value in labels):
                result[other] = labels[0]
        elif any(value is not None for value in labels):
            result[axis] = np.concatenate(
                [
                    call.fixed_channels(x.shape[axis])
                    if value is None
                    else value
                    for x, value in zip(tensors, labels)
                ]
            )
    return result


@register_rule(keras.layers.Concatenate)
@register_named("Concatenate")
def concatenate(call):
    axis = call.layer.axis % len(call.output_shapes[0])
    tensors = [
        x
        if isinstance(x, TracedTensor)
        else TracedTensor(tuple(np.shape(x)), {})
        for x in keras.tree.flatten(call.args)
    ]
    return call.output(join(call, tensors, axis))


@register_named("Stack")
def stack(call):
    axis = call.layer.axis % len(call.output_shapes[0])
    tensors = call.inputs
    labels = {}
    for own in tensors[0].labels.keys() | {
        n for x in tensors for n in x.labels
    }:
        values = [x.channels(own) for x in tensors]
        if len(tensors) < len(keras.tree.flatten(call.args)):
            values.append(None)  # a constant among them
        for value in values[1:]:
            call.tie(values[0], value)
        if all(value is not None for value in values):
            labels[own + (own >= axis)] = values[0]
    return call.output(labels)


# Products that sum over an axis of both inputs


def contract(call, first, second, places):
    """Ties the axes that two inputs are summed over.

    Args:
        call: `LayerCall`.
        first, second: `TracedTensor`s or constants.
        places: List of `(axis of the first, axis of the second)`.
    """
    both = []
    for axis, other in places:
        labels = _channels(first, axis), _channels(second, other)
        call.tie(*labels)
        if labels[0] is not None and labels[1] is not None:
            both.append((labels[0], axis % len(first.shape)))
    # Zeros in one factor are enough.
    leaves = keras.tree.flatten(call.args)
    place = next((n for n, x in enumerate(leaves) if x is first), 0)
    call.masked(
        [labels for labels, _ in both],
        fill(0.0, [([place], axis) for _, axis in both]),
    )


def _channels(x, axis):
    return x.channels(axis) if isinstance(x, TracedTensor) else None


@register_rule(keras.layers.Dot)
def dot(call):
    first, second = call.inputs
    axes = call.layer.axes
    axes = [axes, axes] if isinstance(axes, int) else axes
    a, b = axes[0] % len(first.shape), axes[1] % len(second.shape)
    contract(call, first, second, [(a, b)])
    if call.layer.normalize:
        call.freeze(
            first.channels(a),
            f"layer '{call.layer.name}' normalizes across them",
        )
    rest = [first.channels(n) for n in range(len(first.shape)) if n != a] + [
        second.channels(n) for n in range(1, len(second.shape)) if n != b
    ]
    shape = call.output_shapes[0]
    if len(rest) != len(shape):
        rest = [None] * len(shape)
    return call.output(dict(enumerate(rest)))


@register_named("Matmul")
def matmul(call):
    first, second = call.args[:2]
    shapes = [tuple(x.shape) for x in (first, second)]
    if min(map(len, shapes)) < 2 or len(shapes[0]) != len(shapes[1]):
        call.freeze_inputs(f"layer '{call.layer.name}' multiplies them")
        return call.output()
    rank = len(shapes[0])
    contract(call, first, second, [(rank - 1, rank - 2)])
    labels = {rank - 2: _channels(first, -2), rank - 1: _channels(second, -1)}
    for axis in range(rank - 2):
        own = _channels(first, axis), _channels(second, axis)
        call.tie(*own)
        if own[0] is not None and own[1] is not None:
            labels[axis] = own[0]
    return call.output(labels)


@register_named("Einsum")
def einsum(call):
    operands = call.args
    equation = call.layer.subscripts.replace(" ", "")
    terms, _, result = equation.partition("->")
    terms = terms.split(",")
    if (
        "..." in equation
        or "->" not in equation
        or any(len(set(term)) < len(term) for term in terms)
    ):
        call.freeze_inputs(f"layer '{call.layer.name}' combines them")
        return call.output()
    found: dict = {}  # letter -> [(operand, axis, labels)]
    for number, (term, x) in enumerate(zip(terms, operands, strict=True)):
        for axis, letter in enumerate(term):
            found.setdefault(letter, []).append(
                (number, axis, _channels(x, axis))
            )
    labels, places = [], []
    for letter, uses in found.items():
        for _, _, value in uses[1:]:
            call.tie(uses[0][2], value)
        if letter not in result and uses[0][2] is not None:
            labels.append(uses[0][2])
            places.append(([uses[0][0]], uses[0][1]))
    call.masked(labels, fill(0.0, places))
    return call.output(
        {
            axis: found[letter][0][2]
            if all(value is not None for _, _, value in found[letter])
            else None
            for axis, letter in enumerate(result)
        }
    )


# Attention without weights of its own for the channels


@register_rule(keras.layers.Attention, keras.layers.AdditiveAttention)
def attention(call):
    query, value = call.inputs[:2]
    given = keras.tree.flatten(call.args[0])
    key = call.inputs[2] if len(given) > 2 else value
    for x in (query, value, key):
        freeze_positions(call, x, -1)
    labels = query.channels(-1)
    call.tie(labels, key.channels(-1))
    additive = isinstance(call.layer, keras.layers.AdditiveAttention)
    if additive and call.layer.scale is not None:
        call.weight(call.layer.scale, {0: labels}, summed=(0,))
    elif labels is not None and key.channels(-1) is not None:
        both = additive or call.layer.score_mode == "concat"
        if both and key is value:
            # The values must stay as they are: only one use of the tensor
            # could be masked.
            call.freeze(labels, f"layer '{call.layer.name}' adds them up")
        else:
            indices = [0, 2] if both else [0]
            call.masked([labels], fill(0.0, [(indices, len(query.shape) - 1)]))
    outputs = [call.output({-1: value.channels(-1)})]
    outputs += [
        call.output(index=index) for index in range(1, len(call.output_shapes))
    ]
    return outputs
