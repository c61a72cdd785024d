"""Layers that normalize across channels."""

import keras

from keras_neumeta.graph.masking import (
    fill,
    group_normalize_present,
    normalize_present,
)
from keras_neumeta.graph.rules.registry import layer_classes, register_rule


def _axes(layer, rank):
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return sorted(axis % rank for axis in axes)


@register_rule(keras.layers.LayerNormalization)
def layer_normalization(call):
    (x,) = call.inputs
    layer = call.layer
    if getattr(layer, "rms_scaling", False):
        call.freeze_inputs(
            f"layer '{layer.name}' uses the deprecated `rms_scaling`"
        )
        return call.output(x.labels)
    axes = _axes(layer, len(x.shape))
    labels = {place: x.channels(axis) for place, axis in enumerate(axes)}
    call.weight(layer.gamma, labels)
    call.weight(layer.beta, labels)
    labelled = [axis for axis in axes if x.channels(axis) is not None]
    call.masked(
        [x.channels(axis) for axis in labelled], normalize_present(labelled)
    )
    return call.output(x.labels)


@register_rule(*layer_classes("RMSNormalization"))
def rms_normalization(call):
    (x,) = call.inputs
    axes = _axes(call.layer, len(x.shape))
    call.weight(
        call.layer.scale,
        {place: x.channels(axis) for place, axis in enumerate(axes)},
    )
    labelled = [axis for axis in axes if x.channels(axis) is not None]
    call.masked(
        [x.channels(axis) for axis in labelled],
        normalize_present(labelled, root_mean_square=True),
    )
    return call.output(x.labels)


@register_rule(keras.layers.UnitNormalization)
def unit_normalization(call):
    (x,) = call.inputs
    labelled = [
        axis
        for axis in _axes(call.layer, len(x.shape))
        if x.channels(axis) is not None
    ]
    call.masked(
        [x.channels(axis) for axis in labelled],
        fill(0.0, [([0], axis) for axis in labelled]),
    )
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
    blocks = labels.reshape(layer.groups, -1)
    for block in blocks[1:]:
        call.tie(blocks[0], block)
    call.masked([blocks[0]], group_normalize_present)
    return call.output({axis: labels})
