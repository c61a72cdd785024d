"""Builds the plain network of a given size."""

import keras


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

    def clone_layer(layer):
        config = layer.get_config()
        for argument, entries in graph.resizes.get(id(layer), {}).items():
            config[argument] = _resized(entries, sizes)
        clone = type(layer).from_config(config)
        clone.trainable = layer.trainable
        return clone

    model = keras.models.clone_model(
        graph.model, clone_function=clone_layer, recursive=True
    )
    if name is not None:
        model.name = name
    return model


def _resized(entries, sizes):
    if isinstance(entries, list):
        return tuple(
            entry if isinstance(entry, int | None) else len(entry.keep(sizes))
            for entry in entries
        )
    return len(entries.keep(sizes))
