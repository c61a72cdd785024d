"""Builds the plain network of a given size."""

import keras

from keras_neumeta.graph.channel_graph import is_graph


def resize(graph, sizes, name=None):
    """Builds an untrained network with the given channels per group.

    Args:
        graph: `ChannelGraph` of the target.
        sizes: Channels per group, as from `graph.sizes(ratio)`.
        name: Name of the new model. Default: that of the target.

    Returns:
        A Sequential or functional `keras.Model`, its layers named as in the
        target and its variables in the same order.
    """

    clones = {}

    def clone_layer(layer):
        # A layer may be shared between the model and those nested in it.
        if id(layer) not in clones:
            arguments = {
                argument: _resized(entries, sizes)
                for argument, entries in graph.resizes.get(
                    id(layer), {}
                ).items()
            }
            clones[id(layer)] = (
                _clone_nested(layer, arguments, clone_layer)
                if is_graph(layer)
                else _clone_layer(layer, arguments)
            )
        return clones[id(layer)]

    model = keras.models.clone_model(graph.model, clone_function=clone_layer)
    if name is not None:
        model.name = name
    return model


def _clone_layer(layer, arguments):
    clone = type(layer).from_config({**layer.get_config(), **arguments})
    if isinstance(layer, keras.layers.Layer):  # not an operation
        clone.trainable = layer.trainable
    return clone


def _clone_nested(model, shapes, clone_layer):
    """A nested model, whose inputs may have other numbers of channels."""
    inputs = [
        keras.Input(
            batch_shape=shapes.get(index, x.shape), dtype=x.dtype, name=x.name
        )
        for index, x in enumerate(model.inputs)
    ]
    if isinstance(model, keras.Sequential):
        return keras.Sequential(
            [*inputs, *map(clone_layer, model.layers)],
            name=model.name,
            trainable=model.trainable,
        )
    return keras.models.clone_model(
        model,
        input_tensors=keras.tree.pack_sequence_as(model.input, inputs),
        clone_function=clone_layer,
    )


def assign(model, values):
    """Gives a model its values.

    Args:
        model: Built `keras.Model`.
        values: Arrays in the order of `model.variables`.
    """
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    finalize(model)


def finalize(model):
    """Makes layers derive what they derive from their variables."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()


def _resized(entries, sizes):
    if isinstance(entries, list):
        return tuple(
            entry if isinstance(entry, int | None) else len(entry.keep(sizes))
            for entry in entries
        )
    return len(entries.keep(sizes))
