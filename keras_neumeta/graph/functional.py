"""Reads the functional graph inside a model: its calls, and what follows what.

Keras offers no public way to the nodes of a graph.
"""

import keras

from keras_neumeta.graph.rules.registry import channel_axis


def function_of(model):
    """The functional graph inside a model."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model


def single_calls(function):
    """Dict from the id of each operation that is called once to its node.

    Calls inside of nested models are not looked at.
    """
    calls: dict = {}
    for node in nodes_of(function):
        calls.setdefault(id(node.operation), []).append(node)
    return {key: nodes[0] for key, nodes in calls.items() if len(nodes) == 1}


def own_calls(function):
    """Those of `single_calls` that no nested model calls too."""
    calls = single_calls(function)
    for node in nodes_of(function):
        if isinstance(node.operation, keras.Model):
            for layer in node.operation._flatten_layers(include_self=False):
                calls.pop(id(layer), None)
    return calls


def readers_of(function):
    """Dict from the id of each tensor to those of the nodes that read it.

    The output of the network counts as read by `None`.
    """
    readers: dict = {}
    for node in nodes_of(function):
        for x in node.input_tensors:
            readers.setdefault(id(x), []).append(id(node))
    for x in function.outputs:
        readers.setdefault(id(x), []).append(None)
    return readers


def nodes_of(function):
    """The calls of a functional graph, each behind those that it needs."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def normalized_layers(function):
    """Linear layers whose channels batch norm takes over, both called once.

    Returns:
        List of pairs of nodes: the call of the layer, that of the batch norm.
    """
    calls = own_calls(function)
    pairs = []
    for node in calls.values():
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        x = node.input_tensors[0]
        source = calls.get(id(x._keras_history.operation))
        if source is None or not _is_linear(source.operation):
            continue
        rank = len(x.shape)
        if norm.axis % rank == channel_axis(source.operation, rank):
            pairs.append((source, node))
    return pairs


def _is_linear(layer):
    """Whether a layer has an activation, which is the identity."""
    activation = getattr(layer, "activation", None)
    return activation is keras.activations.linear
