"""`InputMoments`: how the channels that each layer reads hang together."""

import math

import keras
import numpy as np
from keras import ops

from keras_neumeta.serialization import register_serializable
from keras_neumeta.statistics import measured_variable

MOMENTUM = 0.99
# Of each batch so many examples, or as many as have so many places.
EXAMPLES, PLACES = 16, 2048


def count_moments(graph):
    """How many numbers they are at full size."""
    return sum(
        sum(
            piece.num_channels**2
            for piece in each.layout.axes[0].pieces
            if graph.groups[piece.group].morphable
        )
        + each.layout.shape[0]
        for each in graph.sums
    )


@register_serializable
class InputMoments(keras.layers.Layer):
    """Moments of what the linear layers of one network are given.

    Moving averages over the training of the network of one size: from them
    follows what channels that are cut off did, and what the others can do in
    their place. Per layer the mean of each input channel and, for each channel
    group that changes, the mean products of all pairs of its channels, which
    all places of an image share, flattened ones too.
    """

    def __init__(self, **kwargs):
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.sizes = None
        self.sums = []
        self._axes, self._means, self._products = {}, {}, {}

    def attach(self, graph, sizes):
        """Creates the variables.

        Args:
            graph: `ChannelGraph` of the target.
            sizes: Of the network that will be measured.
        """
        self.sizes = tuple(sizes[: len(graph.groups)])
        self.sums = [
            each for each in graph.sums if each.layout.exists_at(sizes)
        ]
        for number, each in enumerate(self.sums):
            axis = graph.axes_at(each.layout, sizes)[0]
            self._axes[each.layer] = axis
            # Behind the means: a one, as averages start at zero, and how much
            # a batch tells.
            self._means[each.layer] = measured_variable(
                self, np.zeros(len(axis) + 2, "float32"), f"mean_{number}"
            )
            self._products[each.layer] = {
                piece.group: measured_variable(
                    self,
                    np.zeros((piece.num_channels,) * 2, "float32"),
                    f"products_{number}_{piece.group}",
                )
                for piece in axis.pieces
                if graph.groups[piece.group].morphable
            }
        self.built = True

    @property
    def layers(self):
        """Names of the layers whose inputs are measured."""
        return [each.layer for each in self.sums]

    @property
    def measured(self):
        """Whether there was any training; not inside of a compiled step."""
        return any(self._count(layer) > 0.0 for layer in self._means)

    def _count(self, layer):
        return float(ops.convert_to_numpy(self._means[layer])[-2])

    def update(self, inputs, depth=None):
        """Moves the averages by a batch.

        Args:
            inputs: Dict from the name of each layer to its input.
            depth: Number of blocks that are there, an integer tensor.
                Default: all.
        """
        for each in self.sums:
            x, axis = inputs[each.layer], self._axes[each.layer]
            places = [
                n for i, n in enumerate(x.shape) if i not in (0, each.axis)
            ]
            places = math.prod(places) if None not in places else PLACES
            x = x[: max(EXAMPLES, PLACES // places)]
            samples = ops.cast(ops.shape(x)[0] * _told(places), "float32")
            x = ops.stop_gradient(ops.cast(x, "float32"))
            x = ops.reshape(ops.moveaxis(x, each.axis, -1), (-1, len(axis)))
            mean = [ops.mean(x, axis=0), ops.stack([ops.ones(()), samples])]
            mean = ops.concatenate(mean)
            products = {
                group: _products(part)
                for group, part in _parts(ops, x, axis).items()
                if group in self._products[each.layer]
            }
            # What overflows in float16 changes nothing, as it does no weight.
            here = ops.all(ops.isfinite(mean))
            for value in products.values():
                here = ops.logical_and(here, ops.all(ops.isfinite(value)))
            if depth is not None and each.layout.block is not None:
                here = ops.logical_and(here, each.layout.block < depth)
            _move(self._means[each.layer], mean, here)
            for group, value in products.items():
                _move(self._products[each.layer][group], value, here)

    def of(self, layer):
        """What was measured for a layer.

        Returns:
            `None` where nothing was; else the mean of each input channel,
            float64 `(positions,)`, and a dict from each group that changes to
            the mean products of its channels, and to those of their deviations
            from their means, `(channels, channels)` each. Of few batches, the
            products of different channels are taken for less than they are.
        """
        count = self._count(layer)
        if count == 0.0:
            return None
        *mean, _, samples = ops.convert_to_numpy(self._means[layer])
        mean = np.array(mean, "float64") / count
        # As many batches as if all weighed alike, times what one tells.
        number = count * (1 + MOMENTUM) / ((2 - count) * (1 - MOMENTUM))
        number *= float(samples) / count
        moments = {}
        for group, part in _parts(np, mean[None], self._axes[layer]).items():
            products = self._products[layer].get(group)
            if products is None:
                continue
            raw = ops.convert_to_numpy(products).astype("float64") / count
            centred = raw - part.T @ part / len(part)
            # A constant channel has no deviation but by rounding.
            least = np.maximum(centred.diagonal(), 1e-6 * raw.diagonal())
            np.fill_diagonal(centred, least)
            seen = number * _told(len(part))
            moments[group] = _shrunk(raw, seen), _shrunk(centred, seen)
        return mean, moments


def _told(places):
    """Places of one image are alike: so many of them count as samples."""
    return min(places, 16)


def _parts(xp, x, axis):
    """Dict from each group on the axis of columns to its channels' columns.

    Each `(rows, channels)`, with rows for all the places that repeat them.
    """
    if axis.order is not None:
        x = xp.take(x, axis.order, axis=1)
    parts, start = {}, 0
    for piece in axis.pieces:
        stop = start + piece.blocks * piece.num_channels
        parts[piece.group] = xp.reshape(
            x[:, start:stop], (-1, piece.num_channels)
        )
        start = stop
    return parts


def _products(part):
    count = ops.cast(ops.shape(part)[0], "float32")
    return ops.matmul(ops.transpose(part), part) / count


def _shrunk(products, samples):
    """Products without what chance adds where samples are few.

    Those of different channels shrink, by as much as makes the expected error
    least (Schaefer and Strimmer, 2005).
    """
    size = np.sqrt(np.maximum(np.diag(products), 1e-30))
    squares = np.minimum(np.square(products / np.outer(size, size)), 1.0)
    np.fill_diagonal(squares, 0.0)
    chance = np.square(1.0 - squares)
    np.fill_diagonal(chance, 0.0)
    share = chance.sum() / samples / max(squares.sum(), 1e-30)
    share = 1.0 - min(share, 1.0)
    return share * products + (1.0 - share) * np.diag(np.square(size))


def _move(average, value, here):
    before = ops.convert_to_tensor(average)
    moved = MOMENTUM * before + (1.0 - MOMENTUM) * value
    average.assign(ops.where(here, moved, before))
