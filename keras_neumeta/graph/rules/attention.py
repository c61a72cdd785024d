"""Multi-head attention: heads and embedding width."""

import keras
import numpy as np

from keras_neumeta.graph.rules.registry import (
    freeze_positions,
    has_plain_weights,
    layer_classes,
    num_positions,
    register_rule,
)


def _inputs(call):
    query, value, key = call.bind("query", "value", "key")
    key = value if key is None else key
    for x in (query, value, key):
        freeze_positions(call, x, -1)
    return query, value, key


def _projection(call, dense, x, heads):
    """A projection `(channels, heads, dim)` of an input."""
    axes = {0: x.channels(-1), 1: heads}
    call.weight(dense.kernel, axes, (0,), num_positions(x.shape))
    call.weight(dense.bias, {0: heads})


def _outputs(call, dense, query, heads, labels):
    """A projection `(heads, dim, channels)`, and the attention scores."""
    axes = {0: heads, 2: labels}
    call.weight(dense.kernel, axes, (0, 1), num_positions(query.shape))
    call.weight(dense.bias, {0: labels})
    outputs = [call.output({-1: labels})]
    if len(call.output_shapes) > 1:
        outputs.append(call.output({1: heads}, index=1))
    return outputs


def _plain(call, layer, dense):
    """Whether the kernels are plain ones; freezes the channels if not."""
    if not has_plain_weights(dense):
        call.freeze_inputs(
            f"layer '{layer.name}' has LoRA or quantized weights"
        )
        return False
    return True


@register_rule(keras.layers.MultiHeadAttention)
def multi_head_attention(call):
    layer = call.layer
    query, value, key = _inputs(call)
    if not _plain(call, layer, layer.query_dense):
        return call.output()
    heads = call.new_channels(layer.num_heads)
    _projection(call, layer.query_dense, query, heads)
    _projection(call, layer.key_dense, key, heads)
    _projection(call, layer.value_dense, value, heads)
    gate = getattr(layer, "_gate_dense", None)
    if gate is not None:
        _projection(call, gate, query, heads)
    call.resize("num_heads", heads)
    labels = None
    if len(layer.output_dense.kernel.shape) == 3:
        labels = call.new_channels(call.output_shapes[0][-1])
        call.resize("output_shape", [labels])
    return _outputs(call, layer.output_dense, query, heads, labels)


@register_rule(*layer_classes("GroupQueryAttention", "GroupedQueryAttention"))
def grouped_query_attention(call):
    layer = call.layer
    query, value, key = _inputs(call)
    dense = layer._query_dense
    if not _plain(call, layer, dense):
        return call.output()
    # Keras wants both equally wide.
    call.tie(query.channels(-1), value.channels(-1))
    shared = call.new_channels(layer.num_key_value_heads)
    heads = np.repeat(shared, layer.num_query_heads // len(shared))
    _projection(call, dense, query, heads)
    _projection(call, layer._key_dense, key, shared)
    _projection(call, layer._value_dense, value, shared)
    call.resize("num_query_heads", heads)
    call.resize("num_key_value_heads", shared)
    # The width of the output is that of the query.
    labels = query.channels(-1)
    return _outputs(call, layer._output_dense, query, heads, labels)
