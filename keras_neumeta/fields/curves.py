"""Values of the network's vectors as curves over the size."""

import keras
from keras import ops

from keras_neumeta.fields.interpolation import (
    group_matrices,
    reading,
    result_axes,
    transform_axis,
)
from keras_neumeta.fields.size_knots import SizeKnots


class SizeCurves(keras.layers.Layer):
    """What is added to biases, gamma and beta at each size.

    Every vector of the target has one further array of its shape for each of
    a few ratios (and numbers of blocks), zero at the start, with values linear
    in between and nothing added at full size. The cheap, continuous relative
    of the private batch normalization of each switch in Slimmable Networks
    (Yu et al., ICLR 2019).

    Args:
        knots: Ratios in (0, 1), rising; may be none.
        interpolation, stretch: As for `AnchoredField`.
    """

    def __init__(self, knots, interpolation, stretch, **kwargs):
        super().__init__(**kwargs)
        self.ratios = [*knots, 1.0]
        self.interpolation = interpolation
        self.stretch = stretch

    def attach(self, graph, layouts):
        """Creates the variables for the vectors among these layouts."""
        self.graph = graph
        self.layouts = layouts
        self.members = [
            index
            for index, layout in enumerate(layouts)
            if len(layout.shape) == 1 and layout.axes and layout.trainable
        ]
        self.knots = SizeKnots(
            graph, [layouts[index] for index in self.members], self.ratios
        )
        self.values = []
        for index in self.members:
            layout = layouts[index]
            self.values.append(
                self.add_weight(
                    shape=(len(self.knots) - 1, *layout.shape),
                    initializer="zeros",
                    name=layout.path.replace("/", "_"),
                )
            )
        self.built = True

    def generate(self, sizes):
        """What is added at one size; see `WeightField.generate`.

        Returns:
            Dict from layout index to tensor.
        """
        hats = self.knots.weights(sizes)
        matrices = group_matrices(
            self.graph,
            sizes,
            lambda number, group: reading(
                number,
                group.num_channels,
                None,
                self.interpolation,
                self.stretch,
            ),
        )
        result = {}
        for row, index in enumerate(self.members):
            layout = self.layouts[index]
            value = ops.tensordot(
                hats[row, :-1], ops.convert_to_tensor(self.values[row]), axes=1
            )
            axes = result_axes(self.graph, layout, sizes)
            result[index] = transform_axis(
                value, 0, layout.axes[0], matrices, axes[0]
            )
        return result
