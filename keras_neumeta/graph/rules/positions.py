"""Positions: pooling, padding, resampling."""

import keras

from keras_neumeta.graph.rules.registry import (
    channel_axis,
    freeze_positions,
    layer_classes,
    register_rule,
)


@register_rule(
    *layer_classes(
        *(
            f"{kind}{rank}D"
            for kind in (
                "MaxPooling",
                "AveragePooling",
                "AdaptiveAveragePooling",
                "AdaptiveMaxPooling",
                "UpSampling",
                "ZeroPadding",
                "Cropping",
            )
            for rank in (1, 2, 3)
        ),
        "Resizing",
        "CenterCrop",
    )
)
def positionwise(call):
    """For layers that move or pool positions and keep the channels."""
    (x,) = call.inputs
    axis = channel_axis(call.layer, len(x.shape))
    freeze_positions(call, x, axis)
    return call.output({axis: x.channels(axis)})


@register_rule(
    *layer_classes(
        *(
            f"Global{kind}Pooling{rank}D"
            for kind in ("Max", "Average")
            for rank in (1, 2, 3)
        )
    )
)
def global_pooling(call):
    x = call.inputs[0]
    axis = channel_axis(call.layer, len(x.shape))
    freeze_positions(call, x, axis)
    kept = axis if len(call.output_shapes[0]) == len(x.shape) else 1
    return call.output({kept: x.channels(axis)})


@register_rule(keras.layers.RepeatVector)
def repeat_vector(call):
    (x,) = call.inputs
    return call.output({2: x.channels(1)})
