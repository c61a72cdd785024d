"""A small implicit network that corrects weights by the size."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.serialization import register_serializable

NUM_FREQUENCIES = 4


@register_serializable
class SizeCorrection(keras.layers.Layer):
    """One number per output channel of each weight, a function of the size.

    A multilayer perceptron over (relative position of the channel, kept
    widths, a learned embedding of the weight) whose last layer starts at
    zero. It is multiplied by the mean compression, so that it vanishes at
    full size. All channels of all weights are one batch.

    Args:
        width: Units of the two hidden layers.
        embedding: Length of the learned embedding per weight.
        seed: Seed of the initial values.
    """

    def __init__(self, width=32, embedding=8, seed=None, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.width = width
        self.embedding = embedding
        self.seed = seed

    def attach(self, graph, layouts):
        """Creates the variables for the weights of these layouts."""
        self.groups = [group.index for group in graph.morphable_groups]
        self.full_sizes = np.array(graph.full_sizes, "float32")
        self.targets = []  # (layout index, axis number) of each row block
        weight, group, input_group, channel = [], [], [], []
        for index, layout in enumerate(layouts):
            outputs = [n for n in layout.axes if n not in layout.summed]
            inputs = [n for n in layout.axes if n in layout.summed]
            if not outputs or not layout.trainable:
                continue
            axis = layout.axes[outputs[-1]]
            self.targets.append((index, outputs[-1]))
            weight.append(np.full(len(axis), len(self.targets) - 1))
            group.append(axis.groups)
            channel.append(axis.channels)
            first = layout.axes[inputs[0]].groups[0] if inputs else None
            input_group.append(
                axis.groups if first is None else np.full(len(axis), first)
            )
        self.weight = np.concatenate(weight)
        self.group = np.concatenate(group)
        self.input_group = np.concatenate(input_group)
        self.channel = np.concatenate(channel).astype("float32")
        self.splits = np.cumsum([len(x) for x in weight])[:-1]
        features = 2 * NUM_FREQUENCIES + 4 + self.embedding
        initializer = keras.initializers.RandomNormal(
            stddev=0.5, seed=self.seed
        )
        self.embeddings = self.add_weight(
            shape=(len(self.targets), self.embedding),
            initializer=initializer,
            name="embeddings",
        )
        self.kernels, self.biases = [], []
        widths = [features, self.width, self.width, 1]
        for number, (fan_in, units) in enumerate(zip(widths, widths[1:])):
            kernel_initializer = (
                "zeros"
                if units == 1
                else keras.initializers.HeNormal(seed=self.seed)
            )
            self.kernels.append(
                self.add_weight(
                    shape=(fan_in, units),
                    initializer=kernel_initializer,
                    name=f"kernel_{number}",
                )
            )
            self.biases.append(
                self.add_weight(
                    shape=(units,), initializer="zeros", name=f"bias_{number}"
                )
            )
        self.built = True

    def generate(self, sizes):
        """Correction per weight.

        Args:
            sizes: Tensor `(num_groups,)` of channels per group.

        Returns:
            Dict from layout index to `(axis number, float tensor
            (full channels,))`.
        """
        sizes = ops.cast(sizes, "float32")
        kept = sizes / ops.convert_to_tensor(self.full_sizes)
        own = ops.take(sizes, self.group)
        channel = ops.convert_to_tensor(self.channel)
        position = ops.clip((channel + 0.5) / own, 0.0, 1.0)
        angles = [np.pi * (2.0**k) * position for k in range(NUM_FREQUENCIES)]
        compression = 1.0 - ops.mean(ops.take(kept, self.groups))
        features = [position]
        features += [ops.sin(x) for x in angles]
        features += [ops.cos(x) for x in angles]
        features += [
            ops.take(kept, self.group),
            ops.take(kept, self.input_group),
            ops.ones_like(position) * compression,
        ]
        x = ops.concatenate(
            [
                ops.stack(features, axis=-1),
                ops.take(self.embeddings, self.weight, axis=0),
            ],
            axis=-1,
        )
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            x = ops.silu(ops.matmul(x, kernel) + bias)
        x = ops.matmul(x, self.kernels[-1]) + self.biases[-1]
        present = ops.cast(channel < own, "float32")
        x = ops.reshape(x, (-1,)) * present * compression
        parts = ops.split(x, self.splits.tolist()) if len(self.splits) else [x]
        return {
            index: (number, part)
            for (index, number), part in zip(self.targets, parts)
        }

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "embedding": self.embedding,
            "seed": self.seed,
        }
