"""Layers that act on each channel alone."""

import keras
import numpy as np

from keras_neumeta.graph.rules.registry import (
    ELEMENTWISE_LAYERS,
    apply_activation,
    axes_of,
    mix_filled,
    register_named,
    register_rule,
)


@register_rule(keras.layers.BatchNormalization)
def batch_normalization(call):
    x = call.inputs[0]
    layer = call.layer
    labels = {0: x.channels(layer.axis)}
    call.weight(layer.gamma, labels)
    call.weight(layer.beta, labels)
    call.statistic(layer.moving_mean, labels, momentum=layer.momentum)
    call.statistic(
        layer.moving_variance, labels, minimum=0.0, momentum=layer.momentum
    )
    return call.output(x.labels)


@register_rule(keras.layers.PReLU)
def prelu(call):
    (x,) = call.inputs
    labels = {
        axis - 1: value
        for axis, value in x.labels.items()
        if call.layer.alpha.shape[axis - 1] == len(value)
    }
    call.weight(call.layer.alpha, labels)
    return call.output(x.labels)


@register_rule(*ELEMENTWISE_LAYERS)
@register_named("StochasticDepth")  # of ConvNeXt
def elementwise(call):
    x = call.inputs[0]
    noise_shape = getattr(call.layer, "noise_shape", None) or ()
    for axis, size in enumerate(noise_shape):
        if size not in (None, 1):
            call.freeze(
                x.channels(axis),
                f"layer '{call.layer.name}' has a fixed `noise_shape`",
            )
    return call.output(x.labels)


@register_rule(keras.layers.Activation)
def activation(call):
    x = call.inputs[0]
    if call.layer.activation is keras.activations.softmax:
        return softmax(call, axis=-1)
    for labels in x.labels.values():
        apply_activation(call, labels)
    return elementwise(call)


@register_rule(keras.layers.Rescaling)
def rescaling(call):
    (x,) = call.inputs
    for value in (call.layer.scale, call.layer.offset):
        if np.ndim(value) > 0:
            call.freeze_inputs(
                f"layer '{call.layer.name}' has a fixed value per channel"
            )
    return call.output(x.labels)


@register_named("LayerScale")  # of ConvNeXt
def layer_scale(call):
    (x,) = call.inputs
    call.weight(call.layer.gamma, {0: x.channels(-1)})
    if x.channels(-1) is not None:
        call.resize("projection_dim", x.channels(-1))
    return call.output(x.labels)


@register_rule(keras.layers.Softmax)
def softmax(call, axis=None):
    x = call.inputs[0]
    axis = call.layer.axis if axis is None else axis
    mix_filled(call, x, axes_of(axis, len(x.shape)), "lowest")
    return call.output(x.labels)


@register_rule(keras.layers.Masking)
def masking(call):
    x = call.inputs[0]
    mix_filled(call, x, [len(x.shape) - 1], call.layer.mask_value)
    return call.output(x.labels)
