"""Builds the plain network of a given size."""

import copy

import keras

from keras_neumeta.graph.channel_graph import is_graph
from keras_neumeta.graph.functional import function_of
from keras_neumeta.graph.layout import Axis
from keras_neumeta.graph.masking import MaskedOperation, masked_clone
from keras_neumeta.graph.tracer import map_entries


def resize(graph, sizes, name=None, masked=False):
    """Builds a network with the given channels per group.

    Its values are yet to be assigned (`assign`).

    Args:
        graph: `ChannelGraph` of the target.
        sizes: As from `graph.sizes(ratio)`.
        name: Name of the new model. Default: that of the target.
        masked: Whether layers that mix channels shall be told which channels
            are present (`keras_neumeta.graph.masking`).

    Returns:
        A Sequential or functional `keras.Model`, its layers named as in the
        target and those of left out blocks missing; `graph.places` says which
        variables it has. If `masked`, also a list of `(presence variable,
        Axis)`.
    """
    cloner = _Cloner(graph, sizes, masked)
    model = cloner.clone_model(graph.model)
    cloner.restore_initializers()
    if name is not None:
        model.name = name
    used = {id(variable) for variable in model.variables}
    presence = [pair for pair in cloner.presence if id(pair[0]) in used]
    return (model, presence) if masked else model


class _Cloner:
    """Copies layers with the arguments that count channels resized."""

    def __init__(self, graph, sizes, masked):
        self.graph = graph
        self.sizes = sizes
        self.masked = masked
        self._masked_clones = []
        self._spared = []  # (clone, its initializers)
        # A layer may be shared between the model and those nested in it.
        self._clones = {}
        self._left_out = {
            id(block.addition): block for block in graph.blocks[sizes[-1] :]
        }
        # Names, as outputs have them.
        self._outputs = {
            x._keras_history.operation.name
            for x in function_of(graph.model).outputs
        }
        self._shortcuts = {}  # id(clone of an addition) -> its shortcut
        self._arguments = {}  # id(clone) -> resized arguments of the call

    @property
    def presence(self):
        return [
            pair
            for clone, axes in self._masked_clones
            for pair in zip(clone.presence, axes, strict=True)
        ]

    def restore_initializers(self):
        for clone, initializers in self._spared:
            for key, value in initializers.items():
                setattr(clone, key, type(value).from_config(value.get_config()))

    def clone_model(self, model, inputs=None):
        # Sequential models take no call function, and need none.
        if isinstance(model, keras.Sequential):
            return keras.models.clone_model(
                model, clone_function=self.clone_layer
            )
        return keras.models.clone_model(
            model,
            input_tensors=inputs,
            clone_function=self.clone_layer,
            call_function=self._call,
        )

    def clone_layer(self, layer):
        if id(layer) not in self._clones:
            resized = map_entries(
                self._count, self.graph.resizes.get(id(layer), {})
            )
            if is_graph(layer):
                clone = self._clone_nested(layer, resized)
            else:
                clone = self._clone(layer, resized)
            self._clones[id(layer)] = clone
        return self._clones[id(layer)]

    def _count(self, entry):
        return entry.size_at(self.sizes) if isinstance(entry, Axis) else entry

    def _clone(self, layer, resized):
        config = {k: v for k, v in resized.items() if isinstance(k, str)}

        # The values are assigned later: random ones would only cost time.
        spared = {
            key: value
            for key, value in vars(layer).items()
            if key.endswith("_initializer")
            and isinstance(value, keras.Initializer)
        }
        if not spared.keys() <= layer.get_config().keys():
            spared = {}
        config.update(dict.fromkeys(spared, "zeros"))

        def make(kind):
            return _with_config(layer, kind, config)

        if id(layer) in self._left_out:
            clone = keras.layers.Identity(
                name=layer.name, dtype=layer.output.dtype
            )
            self._shortcuts[id(clone)] = self._left_out[id(layer)].shortcut
        elif self.masked and id(layer) in self.graph.masks:
            axes, compute = self.graph.masks[id(layer)]
            axes = [axis.at(self.sizes) for axis in axes]
            clone = masked_clone(make, layer, compute, list(map(len, axes)))
            self._masked_clones.append((clone, axes))
        else:
            clone = make(type(layer))
        if isinstance(layer, keras.layers.Layer):  # not an operation
            clone.trainable = layer.trainable
        self._spared.append((clone, spared))
        self._arguments[id(clone)] = {
            k: v for k, v in resized.items() if isinstance(k, int)
        }
        return clone

    def _call(self, layer, *args, **kwargs):
        resized = self._arguments.get(id(layer), {})
        args = [resized.get(n, value) for n, value in enumerate(args)]
        if id(layer) in self._shortcuts:
            x = keras.tree.flatten((args, kwargs))[self._shortcuts[id(layer)]]
            # The name and type of an output are the addition's.
            kept = layer.name in self._outputs or x.dtype != layer.dtype
            return layer(x) if kept else x
        if isinstance(layer, MaskedOperation):
            return layer.place(args, kwargs)
        return layer(*args, **kwargs)

    def _clone_nested(self, model, shapes):
        """A nested model, whose inputs may have other numbers of channels."""
        inputs = [
            keras.Input(
                batch_shape=shapes.get(index, x.shape),
                dtype=x.dtype,
                name=x.name,
            )
            for index, x in enumerate(model.inputs)
        ]
        if isinstance(model, keras.Sequential):
            return keras.Sequential(
                [*inputs, *map(self.clone_layer, model.layers)],
                name=model.name,
                trainable=model.trainable,
            )
        return self.clone_model(
            model, keras.tree.pack_sequence_as(model.input, inputs)
        )


def _with_config(layer, kind, changes):
    """A layer of a class, from another one's config with changes."""
    if type(layer) is keras.layers.Lambda:
        # Its config would have to be read in unsafe mode.
        return kind(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    config = _unbuilt(copy.deepcopy(layer.get_config()))
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = config
        for key in parents:
            part = part[int(key) if key.isdigit() else key]
        part[last] = value
    try:
        return kind.from_config(config)
    except Exception as error:
        raise ValueError(
            f"Layer '{layer.name}' ({type(layer).__name__}) cannot be copied "
            "from its config. Give it `get_config` and `from_config` that "
            "rebuild it, and register its own classes and functions with "
            "`keras.saving.register_keras_serializable`."
        ) from error


def _unbuilt(config):
    """A config whose inner layers are new and not built: shapes may change.

    Within `load_model`, Keras would return the inner layer that it has made
    for an earlier size, by its `shared_object_id`.
    """
    if isinstance(config, dict):
        return {
            key: _unbuilt(part)
            for key, part in config.items()
            if key not in ("build_config", "shared_object_id")
        }
    if isinstance(config, list):
        return [_unbuilt(part) for part in config]
    return config


def call_once(model):
    """Calls a model, symbolically, as some exports by Keras ask for."""
    model(
        keras.tree.map_structure(
            lambda x: keras.KerasTensor(
                x.shape, dtype=x.dtype, sparse=x.sparse, name=x.name
            ),
            function_of(model).input,
        )
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
