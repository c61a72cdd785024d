"""Batch-norm folding."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.graph import call_once, finalize
from keras_neumeta.graph.channel_graph import check_model, is_graph
from keras_neumeta.graph.functional import (
    function_of,
    normalized_layers,
    readers_of,
)

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_FOLDABLE = (
    keras.layers.Dense,
    *_CONVOLUTIONS,
    *_TRANSPOSED,
    *_DEPTHWISE,
    *_SEPARABLE,
)


def fold_batch_norm(model):
    """Folds each batch normalization into the linear layer before it.

    A batch normalization is folded if it is the only use of the output of a
    Dense or convolution layer without activation (both called once); others
    stay as they are. The folded network computes what the original computes
    in inference mode.

    Args:
        model: Built Sequential or functional `keras.Model`, nested models
            included; not changed.

    Returns:
        A new model of the same kind, without the folded layers.

    Example:

    ```python
    folded = keras_neumeta.fold_batch_norm(model)
    ```
    """
    check_model(model)
    folded = _fold(model)
    call_once(folded)
    return folded


def _fold(model):
    folds = _find_folds(function_of(model))
    folded_norms = {id(norm) for norm in folds.values()}
    clones = []

    def clone_layer(layer):
        if is_graph(layer):
            return _fold(layer)
        config = layer.get_config()
        if id(layer) in folds:
            config["use_bias"] = True
        if id(layer) in folded_norms:
            return _Folded(name=layer.name)
        clone = type(layer).from_config(config)
        if isinstance(layer, keras.layers.Layer):  # not an operation
            clone.trainable = layer.trainable
            clones.append((layer, clone))
        return clone

    if isinstance(model, keras.Sequential):
        layers = [clone_layer(layer) for layer in model.layers]
        result = keras.Sequential(
            [
                keras.Input(
                    batch_shape=model.inputs[0].shape,
                    dtype=model.inputs[0].dtype,
                    name=model.inputs[0].name,
                ),
                *(x for x in layers if not isinstance(x, _Folded)),
            ],
            name=model.name,
        )
    else:
        result = keras.models.clone_model(
            model,
            clone_function=clone_layer,
            call_function=lambda layer, *args, **kwargs: (
                args[0]
                if isinstance(layer, _Folded)
                else layer(*args, **kwargs)
            ),
        )
    for layer, clone in clones:
        if id(layer) in folds:
            clone.set_weights(_folded_weights(layer, folds[id(layer)]))
        else:
            clone.set_weights(layer.get_weights())
    finalize(result)
    return result


class _Folded(keras.layers.Layer):
    """Stands for a folded layer while the graph is rebuilt."""


def _find_folds(function):
    """Dict from `id(linear layer)` to the normalization to fold into it."""
    readers = readers_of(function)
    folds = {}
    for call, following in normalized_layers(function):
        layer, x = call.operation, following.input_tensors[0]
        if type(layer) in _FOLDABLE and len(readers[id(x)]) == 1:
            folds[id(layer)] = following.operation
    return folds


def _folded_weights(layer, norm):
    def array(variable, default):
        if variable is None:
            return np.float64(default)
        return ops.convert_to_numpy(variable).astype("float64")

    mean = array(norm.moving_mean, 0.0)
    deviation = np.sqrt(array(norm.moving_variance, 1.0) + norm.epsilon)
    gain = array(norm.gamma, 1.0) / deviation
    bias = (array(layer.bias, 0.0) - mean) * gain + array(norm.beta, 0.0)
    if type(layer) in _SEPARABLE:
        kernels = [
            array(layer.depthwise_kernel, 0.0),
            array(layer.pointwise_kernel, 0.0) * gain,
        ]
    elif type(layer) in _TRANSPOSED:
        kernels = [array(layer.kernel, 0.0) * gain[:, None]]
    elif type(layer) in _DEPTHWISE:
        kernel = array(layer.kernel, 0.0)
        kernels = [kernel * gain.reshape(kernel.shape[-2:])]
    else:
        kernels = [array(layer.kernel, 0.0) * gain]
    return [value.astype("float32") for value in (*kernels, bias)]
