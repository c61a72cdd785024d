"""Layers around another layer."""

import keras

from keras_neumeta.graph.rules.registry import find_rule, register_rule
from keras_neumeta.graph.tracer import TracedTensor


@register_rule(keras.layers.TimeDistributed)
def time_distributed(call):
    x = call.inputs[0]
    layer = call.layer.layer
    rule = find_rule(layer)
    if rule is None:
        call.freeze_inputs(
            f"layer '{layer.name}' ({type(layer).__name__}) has no rule"
        )
        return call.output()
    call.freeze(
        x.channels(1), f"layer '{call.layer.name}' treats them as positions"
    )
    shape = (x.shape[0], *x.shape[2:])
    inner = TracedTensor(
        shape,
        {axis - 1: labels for axis, labels in x.labels.items() if axis > 1},
    )
    whole = call.output_shapes[0]
    output = rule(
        call.inner(
            layer,
            "layer.config.",
            inner,
            (whole[0], *whole[2:]),
            repeats=x.shape[1] or 1,
        )
    )
    (output,) = keras.tree.flatten(output)
    return call.output(
        {axis + 1: value for axis, value in output.labels.items()}
    )
