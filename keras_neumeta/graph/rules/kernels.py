"""Layers with kernels: dense, convolution, embedding."""

import math

import keras
import numpy as np

from keras_neumeta.graph.rules.registry import (
    apply_activation,
    block_channels,
    channel_axis,
    freeze_positions,
    has_plain_weights,
    layer_classes,
    num_positions,
    other_axes,
    register_rule,
)


def _kernel(call, layer, labels, summed, positions, along=()):
    if not has_plain_weights(layer):
        for value in labels.values():
            call.freeze(
                value,
                f"layer '{layer.name}' has LoRA or quantized weights",
            )
        return
    call.weight(layer.kernel, labels, summed, positions, along)


def _repeats(x, axes):
    """Positions along some axes, and the labels of those with channels."""
    sizes = [x.shape[n] or 1 for n in axes if x.channels(n) is None]
    labels = [x.channels(n) for n in axes if x.channels(n) is not None]
    return math.prod(sizes), labels


@register_rule(keras.layers.Dense)
def dense(call):
    (x,) = call.inputs[:1]
    layer = call.layer
    units = call.new_channels(layer.units)
    _kernel(
        call,
        layer,
        {0: x.channels(-1), 1: units},
        (0,),
        *_repeats(x, range(1, len(x.shape) - 1)),
    )
    call.weight(layer.bias, {0: units})
    call.resize("units", units)
    apply_activation(call, units)
    return call.output({**other_axes(x, -1), -1: units})


@register_rule(keras.layers.EinsumDense)
def einsum_dense(call):
    x = call.inputs[0]
    layer = call.layer
    inputs, rest = layer.equation.replace(" ", "").split(",")
    kernel, outputs = rest.split("->")
    if inputs.endswith("...") or "..." in inputs[1:]:
        call.freeze_inputs(f"layer '{layer.name}' elides trailing axes")
        return call.output()
    elided = len(x.shape) - len(inputs.replace("...", ""))
    passed = {
        axis: labels for axis, labels in x.labels.items() if axis < elided
    }
    inputs = inputs.replace("...", "")
    outputs = outputs.replace("...", "")
    labels = {
        letter: x.channels(elided + place)
        for place, letter in enumerate(inputs)
    }
    shape = call.output_shapes[0]
    for place, letter in enumerate(outputs):
        if letter not in inputs:
            labels[letter] = call.new_channels(
                shape[len(shape) - len(outputs) + place]
            )
    summed = [
        place
        for place, letter in enumerate(kernel)
        if letter in inputs and letter not in outputs
    ]
    # The batch axis is among the free ones, with an unknown size.
    free = [
        elided + place
        for place, letter in enumerate(inputs)
        if letter not in kernel
    ]
    _kernel(
        call,
        layer,
        {place: labels[letter] for place, letter in enumerate(kernel)},
        tuple(summed),
        *_repeats(x, [*range(1, elided), *free]),
    )
    if layer.bias is not None:
        letters = outputs[len(outputs) - len(layer.bias.shape) :]
        call.weight(
            layer.bias,
            {
                axis: labels[letter]
                for axis, letter in enumerate(letters)
                if letter in layer.bias_axes
            },
        )
    first = len(shape) - len(outputs)
    carried = {
        **passed,
        **{first + n: labels[letter] for n, letter in enumerate(outputs)},
    }
    # The given shape has no elided axes.
    given = list(layer.partial_output_shape)
    start = len(shape) - len(given)
    call.resize(
        "output_shape",
        [
            size
            if size is None or carried.get(start + n) is None
            else carried[start + n]
            for n, size in enumerate(given)
        ],
    )
    for letter in outputs:
        apply_activation(call, labels[letter])
    return call.output(carried)


@register_rule(keras.layers.Embedding)
def embedding(call):
    x = call.inputs[0]
    layer = call.layer
    channels = call.new_channels(layer.output_dim)
    if not has_plain_weights(layer):
        call.freeze(
            channels, f"layer '{layer.name}' has LoRA or quantized weights"
        )
    else:
        call.weight(layer.embeddings, {1: channels}, table=True)
    call.resize("output_dim", channels)
    return call.output({**x.labels, -1: channels})


@register_rule(
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
def conv(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = channel_axis(layer, rank)
    freeze_positions(call, x, axis)
    inputs = x.channels(axis)
    if layer.groups > 1 and layer.groups == x.shape[axis]:
        return _grouped_depthwise(call, x, axis)
    filters = call.new_channels(layer.filters)
    block_channels(call, filters, layer.groups)
    if inputs is not None:
        inputs = block_channels(call, inputs, layer.groups)
    _kernel(
        call,
        layer,
        {rank - 2: inputs, rank - 1: filters},
        (rank - 2,),
        num_positions(call.output_shapes[0], axis),
    )
    call.weight(layer.bias, {0: filters})
    call.resize("filters", filters)
    apply_activation(call, filters)
    return call.output({axis: filters})


def _grouped_depthwise(call, x, axis):
    """A convolution with one group per input channel."""
    layer = call.layer
    inputs = x.channels(axis)
    if inputs is None:
        inputs = call.fixed_channels(x.shape[axis])
    outputs = np.repeat(inputs, layer.filters // layer.groups)
    _kernel(
        call,
        layer,
        {len(x.shape) - 1: outputs},
        (),
        num_positions(call.output_shapes[0], axis),
    )
    call.weight(layer.bias, {0: outputs})
    call.resize("groups", inputs)
    call.resize("filters", outputs)
    apply_activation(call, outputs)
    return call.output({axis: outputs})


@register_rule(
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
def conv_transpose(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = channel_axis(layer, rank)
    freeze_positions(call, x, axis)
    filters = call.new_channels(layer.filters)
    call.weight(
        layer.kernel,
        {rank - 2: filters, rank - 1: x.channels(axis)},
        (rank - 1,),
        num_positions(x.shape, axis),
    )
    call.weight(layer.bias, {0: filters})
    call.resize("filters", filters)
    apply_activation(call, filters)
    return call.output({axis: filters})


def _depthwise_labels(labels, multiplier):
    return None if labels is None else np.repeat(labels, multiplier)


@register_rule(*layer_classes("DepthwiseConv1D", "DepthwiseConv2D"))
def depthwise_conv(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = channel_axis(layer, rank)
    freeze_positions(call, x, axis)
    inputs = x.channels(axis)
    outputs = _depthwise_labels(inputs, layer.depth_multiplier)
    positions = num_positions(call.output_shapes[0], axis)
    call.weight(layer.kernel, {rank - 2: inputs}, positions=positions)
    call.weight(layer.bias, {0: outputs})
    apply_activation(call, outputs)
    return call.output({axis: outputs})


@register_rule(*layer_classes("SeparableConv1D", "SeparableConv2D"))
def separable_conv(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = channel_axis(layer, rank)
    freeze_positions(call, x, axis)
    inputs = x.channels(axis)
    hidden = _depthwise_labels(inputs, layer.depth_multiplier)
    filters = call.new_channels(layer.filters)
    positions = num_positions(call.output_shapes[0], axis)
    call.weight(layer.depthwise_kernel, {rank - 2: inputs}, positions=positions)
    call.weight(
        layer.pointwise_kernel,
        {rank - 2: hidden, rank - 1: filters},
        (rank - 2,),
        positions,
    )
    call.weight(layer.bias, {0: filters})
    call.resize("filters", filters)
    apply_activation(call, filters)
    return call.output({axis: filters})
