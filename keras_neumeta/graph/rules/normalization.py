"""Layers that normalize across channels."""

import functools

import keras

from keras_neumeta.graph.masking import (
    group_normalize_present,
    normalize_present,
)
from keras_neumeta.graph.rules.registry import (
    axes_of,
    block_channels,
    layer_classes,
    mix,
    mix_filled,
    register_rule,
)


@register_rule(keras.layers.LayerNormalization)
def layer_normalization(call):
    (x,) = call.inputs
    layer = call.layer
    if getattr(layer, "rms_scaling", False):
        call.freeze_inputs(
            f"layer '{layer.name}' uses the deprecated `rms_scaling`"
        )
        return call.output(x.labels)
    axes = axes_of(layer.axis, len(x.shape))
    labels = {place: x.channels(axis) for place, axis in enumerate(axes)}
    call.weight(layer.gamma, labels)
    call.weight(layer.beta, labels)
    mix(call, x, axes, normalize_present)
    return call.output(x.labels)


@register_rule(*layer_classes("RMSNormalization"))
def rms_normalization(call):
    (x,) = call.inputs
    axes = axes_of(call.layer.axis, len(x.shape))
    call.weight(
        call.layer.scale,
        {place: x.channels(axis) for place, axis in enumerate(axes)},
    )
    mix(
        call,
        x,
        axes,
        functools.partial(normalize_present, root_mean_square=True),
    )
    return call.output(x.labels)


@register_rule(keras.layers.UnitNormalization)
def unit_normalization(call):
    (x,) = call.inputs
    mix_filled(call, x, axes_of(call.layer.axis, len(x.shape)), 0.0)
    return call.output(x.labels)


@register_rule(keras.layers.GroupNormalization)
def group_normalization(call):
    (x,) = call.inputs
    layer = call.layer
    axis = layer.axis % len(x.shape)
    labels = x.channels(axis)
    for other, value in x.labels.items():
        if other != axis:
            call.freeze(
                value, f"layer '{layer.name}' normalizes over positions"
            )
    call.weight(layer.gamma, {0: labels})
    call.weight(layer.beta, {0: labels})
    if labels is None:
        return call.output()
    if layer.groups == len(labels):  # each channel alone
        call.resize("groups", labels)
        return call.output({axis: labels})
    call.masked(
        [block_channels(call, labels, layer.groups)], group_normalize_present
    )
    return call.output({axis: labels})
