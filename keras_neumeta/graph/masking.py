"""Leaving out absent channels where zero weights do not.

A network of a size that varies from step to step is computed at full size, or
at a limit that it does not exceed, with weights that are zero outside. That
is exact for sums over input channels; layers that mix channels in other ways
(a mean, a softmax, a quotient) must know which channels are present.
`masked_clone` makes such a layer: the same one, with the presence of its
channels as further variables, which the caller sets to 1 or 0.

A rule names the computation (`call.masked(labels, compute)`), a function
`compute(layer, run, present, *args, **kwargs)`: `run` is the layer's own
`call`, `present` has a float tensor `(len(labels),)` per array of labels, and
the result must be, for the channels present, what the smaller layer returns.
"""

import functools
import math

import keras
from keras import ops

from keras_neumeta.graph.layout import Axis


def masked_clone(make, layer, compute, lengths):
    """A copy of a layer that is told which channels are present.

    Args:
        make: Function of a class that makes a layer of this class from the
            config of `layer`.
        layer: Layer or operation to copy.
        compute: See above.
        lengths: Number of channels per array of labels.

    Returns:
        A layer that, once built, has an attribute `presence`, a list of
        variables.
    """
    if not isinstance(layer, keras.layers.Layer):
        return MaskedOperation(make(type(layer)), compute, lengths)
    kind = type(layer)

    @functools.wraps(kind.call)
    def call(self, *args, **kwargs):
        run = functools.partial(kind.call, self)
        present = [ops.convert_to_tensor(v) for v in self.presence]
        return compute(self, run, present, *args, **kwargs)

    # Not in `__init__`: some layers are built, and closed, at its end.
    def build(self, input_shape):
        self.presence = _presence(self, lengths)
        kind.build(self, input_shape)

    return make(
        type(f"Masked{kind.__name__}", (kind,), {"call": call, "build": build})
    )


def _presence(layer, lengths):
    return [
        layer.add_weight(
            shape=(length,),
            initializer="ones",
            trainable=False,
            dtype="float32",
            autocast=False,
            name=f"presence_{number}",
        )
        for number, length in enumerate(lengths)
    ]


class MaskedOperation(keras.layers.Layer):
    """An operation as a layer, so that it can have variables."""

    def __init__(self, operation, compute, lengths):
        super().__init__(autocast=False)
        self.operation = operation
        self.compute = compute
        self.presence = _presence(self, lengths)
        self.supports_masking = True

    def compute_mask(self, inputs, previous_mask):
        return None  # operations pass none on

    def place(self, args, kwargs):
        """Puts the operation into a graph, with these arguments.

        Layers take tensors only; the other arguments are kept here.
        """
        self.arguments = args, kwargs
        return self(
            [
                x
                for x in keras.tree.flatten((args, kwargs))
                if isinstance(x, keras.KerasTensor)
            ]
        )

    def _arguments_with(self, tensors):
        tensors = iter(tensors)
        return keras.tree.map_structure(
            lambda x: next(tensors) if isinstance(x, keras.KerasTensor) else x,
            self.arguments,
        )

    def compute_output_spec(self, tensors):
        args, kwargs = self._arguments_with(tensors)
        return self.operation.compute_output_spec(*args, **kwargs)

    def call(self, tensors):
        args, kwargs = self._arguments_with(tensors)
        present = [ops.convert_to_tensor(v) for v in self.presence]
        return self.compute(
            self.operation, self.operation, present, *args, **kwargs
        )


def along(present, rank, axis):
    """A presence as a boolean tensor that broadcasts along one axis."""
    shape = [1] * rank
    shape[axis] = -1
    return ops.reshape(present, shape) > 0.5


def fill(value, places, rescale=False):
    """Computation of a layer whose absent inputs have a neutral value.

    Args:
        value: The value: a number, or `"lowest"` or `"highest"`.
        places: For each array of labels, the inputs and axis that it lies
            on: `(indices of inputs, axis)`. Inputs are counted among the
            leaves of the positional arguments.
        rescale: Whether to multiply the result by full / present (a mean).
    """

    def compute(layer, run, present, *args, **kwargs):
        leaves = keras.tree.flatten(args)
        for part, (indices, axis) in zip(present, places, strict=True):
            for index in indices:
                x = ops.convert_to_tensor(leaves[index])
                here = along(part, len(x.shape), axis)
                leaves[index] = ops.where(here, x, _constant(value, x))
        args = keras.tree.pack_sequence_as(args, leaves)
        result = run(*args, **kwargs)
        if rescale:
            for part in present:
                share = ops.sum(part) / part.shape[0]
                result = result / ops.cast(share, result.dtype)
        return result

    return compute


def gates(blocks, place):
    """What makes additions leave out what an absent block computes.

    Args:
        blocks: Tuple of `Block`.
        place: Place of the number of kept blocks among the sizes.

    Returns:
        Dict from the id of an addition to `([Axis], compute)`.
    """
    return {
        id(block.addition): ([Axis([place], [number])], _gate(block.shortcut))
        for number, block in enumerate(blocks)
    }


def _gate(shortcut):
    def compute(layer, run, present, *args, **kwargs):
        leaves = keras.tree.flatten(args)
        branch = leaves[1 - shortcut]
        # Not a product: nothing that is infinite comes through.
        leaves[1 - shortcut] = ops.where(
            present[0] > 0.5, branch, ops.zeros_like(branch)
        )
        return run(*keras.tree.pack_sequence_as(args, leaves), **kwargs)

    return compute


def _constant(value, x):
    dtype = keras.backend.standardize_dtype(x.dtype)
    if isinstance(value, str):
        # Far from any value, yet finite in half precision.
        far = 3e4 if dtype == "float16" else 1e9
        value = far if value == "highest" else -far
    return ops.cast(value, dtype)


def _upcast(x):
    dtype = keras.backend.result_type(x.dtype, "float32")
    return ops.cast(x, dtype)


def _shaped(value, like, axes):
    """A weight over some axes, in a shape that broadcasts to a tensor."""
    shape = [1] * len(like.shape)
    for axis, size in zip(axes, value.shape, strict=True):
        shape[axis] = size
    return ops.cast(ops.reshape(value, shape), like.dtype)


def normalize_present(labelled, root_mean_square=False):
    """Computation of a layer or RMS normalization.

    Args:
        labelled: For each array of labels, the axis that it lies on.
        root_mean_square: Whether the mean stays (`RMSNormalization`).
    """

    def compute(layer, run, present, inputs):
        rank = len(inputs.shape)
        axes = (
            layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
        )
        axes = sorted(axis % rank for axis in axes)
        x = _upcast(inputs)
        mask = ops.ones([1] * rank, x.dtype)
        count = math.prod(
            ops.shape(x)[axis] for axis in axes if axis not in labelled
        )
        count = ops.cast(count, x.dtype)
        for part, axis in zip(present, labelled, strict=True):
            mask = mask * ops.cast(along(part, rank, axis), x.dtype)
            count = count * ops.cast(ops.sum(part), x.dtype)

        def mean(values):
            total = ops.sum(values * mask, axis=axes, keepdims=True)
            return total / count

        if root_mean_square:
            gain, shift = layer.scale, None
        else:
            gain, shift = layer.gamma, layer.beta
            x = x - mean(x)
        y = x * ops.rsqrt(mean(ops.square(x)) + layer.epsilon)
        if gain is not None:
            y = y * _shaped(gain, y, axes)
        if shift is not None:
            y = y + _shaped(shift, y, axes)
        return ops.cast(y, layer.compute_dtype)

    return compute


def group_normalize_present(layer, run, present, inputs):
    """Computation of a group normalization.

    `present` holds the channels of one group; all groups keep equally many.
    """
    (part,) = present
    rank = len(inputs.shape)
    axis = layer.axis % rank
    x = ops.moveaxis(_upcast(inputs), axis, 1)
    moved = ops.shape(x)
    channels = x.shape[1]
    x = ops.reshape(x, (moved[0], layer.groups, channels // layer.groups, -1))
    mask = ops.cast(ops.reshape(part, (1, 1, -1, 1)), x.dtype)
    count = ops.sum(mask) * ops.cast(ops.shape(x)[-1], x.dtype)

    def mean(values):
        return ops.sum(values * mask, axis=(2, 3), keepdims=True) / count

    x = x - mean(x)
    y = x * ops.rsqrt(mean(ops.square(x)) + layer.epsilon)
    y = ops.moveaxis(ops.reshape(y, moved), 1, axis)
    if layer.gamma is not None:
        y = y * _shaped(layer.gamma, y, [axis])
    if layer.beta is not None:
        y = y + _shaped(layer.beta, y, [axis])
    return ops.cast(y, layer.compute_dtype)
