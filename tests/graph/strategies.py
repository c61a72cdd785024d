"""Random networks out of the layers that have rules.

`draw_network` draws a functional model of a few small layers: branches,
residuals, concatenations of different groups, shared and nested layers, with
random weights everywhere.
"""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

ACTIVATIONS = ("relu", "tanh", "sigmoid", "linear")
# Random initial values of each shape cost JAX a compilation, and `randomize`
# replaces them.
ZERO = {"kernel_initializer": "zeros"}
CHANNELS = st.sampled_from([4, 6])
STEPS = (
    "plain residual projection branches depthwise grouped separable "
    "transposed positions prelu excite shared nested"
).split()


def randomize(model, seed):
    """Gives every variable of a model random values, statistics too."""
    random = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if variable.path.endswith("moving_variance"):
            value = random.uniform(0.5, 2.0, shape)
        elif not str(variable.dtype).startswith("float"):
            continue
        elif len(shape) > 1 and "kernel" in variable.name:
            value = random.normal(size=shape) * 1.5 / np.prod(shape[:-1]) ** 0.5
        elif variable.path.endswith("gamma"):
            value = random.uniform(0.5, 1.5, shape)
        else:
            value = random.normal(size=shape) * 0.3
        variable.assign(value.astype("float32"))


def batch(model, size=2, seed=0):
    """Random inputs for a model, structured as its own."""
    random = np.random.default_rng(seed)
    return keras.tree.map_structure(
        lambda x: random.normal(size=(size, *x.shape[1:])).astype("float32"),
        model.inputs if len(model.inputs) > 1 else model.inputs[0],
    )


class Builder:
    """Grows a network, one drawn step after the other."""

    def __init__(self, draw):
        self.draw = draw

    def activation(self):
        return self.draw(st.sampled_from(ACTIVATIONS))

    def bias(self):
        return self.draw(st.booleans())

    def conv(self, x, filters=None, kernel_size=None, **kwargs):
        return layers.Conv2D(
            self.draw(CHANNELS) if filters is None else filters,
            kernel_size or self.draw(st.sampled_from([1, 3])),
            padding="same",
            use_bias=self.bias(),
            **ZERO,
            **kwargs,
        )(x)

    def norm(self, x):
        return layers.BatchNormalization(
            scale=self.draw(st.booleans()), center=self.draw(st.booleans())
        )(x)

    # Steps that take and give a feature map

    def plain(self, x):
        x = self.conv(x)
        if self.draw(st.booleans()):
            x = self.norm(x)
        return layers.Activation(self.activation())(x)

    def residual(self, x):
        y = self.conv(x, activation=self.activation())
        y = self.norm(self.conv(y, filters=x.shape[-1]))
        return layers.ReLU()(layers.Add()([x, y]))

    def projection(self, x):
        filters = self.draw(CHANNELS)
        y = self.norm(self.conv(x, filters, strides=2))
        x = self.conv(x, filters, kernel_size=1, strides=2)
        merge = self.draw(
            st.sampled_from(
                [layers.Add, layers.Subtract, layers.Average, layers.Maximum]
            )
        )
        return merge()([x, y])

    def branches(self, x):
        parts = [self.conv(x, activation=self.activation()) for _ in range(2)]
        if self.draw(st.booleans()):
            parts.append(x)
        x = layers.Concatenate()(parts)
        return self.norm(x) if self.draw(st.booleans()) else x

    def depthwise(self, x):
        x = layers.DepthwiseConv2D(
            3,
            padding="same",
            depth_multiplier=self.draw(st.sampled_from([1, 2])),
            use_bias=self.bias(),
            depthwise_initializer="zeros",
        )(x)
        return self.norm(x)

    def grouped(self, x):
        x = self.conv(x, filters=4)
        return self.conv(x, kernel_size=3, groups=2)

    def separable(self, x):
        return layers.SeparableConv2D(
            self.draw(CHANNELS),
            3,
            padding="same",
            depth_multiplier=self.draw(st.sampled_from([1, 2])),
            use_bias=self.bias(),
            depthwise_initializer="zeros",
            pointwise_initializer="zeros",
        )(x)

    def transposed(self, x):
        x = layers.Conv2DTranspose(
            self.draw(CHANNELS), 2, strides=2, use_bias=self.bias(), **ZERO
        )(layers.MaxPooling2D(2, padding="same")(x))
        return self.norm(x)

    def positions(self, x):
        kind = self.draw(st.sampled_from(["pool", "upsample", "pad"]))
        if kind == "pool":
            return layers.AveragePooling2D(2, padding="same")(x)
        if kind == "upsample":
            x = layers.MaxPooling2D(2, padding="same")(x)
            return layers.UpSampling2D(2)(x)
        return layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))

    def prelu(self, x):
        return layers.PReLU(shared_axes=[1, 2])(self.conv(x))

    def excite(self, x):
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Dense(3, activation="relu", **ZERO)(y)
        y = layers.Dense(x.shape[-1], activation="sigmoid", **ZERO)(y)
        return layers.Multiply()([x, y])

    def shared(self, x):
        x = self.conv(x, filters=4)
        layer = layers.Conv2D(4, 3, padding="same", **ZERO)
        return layer(layer(x))

    def nested(self, x):
        if self.draw(st.booleans()):
            inner = keras.Sequential(
                [
                    keras.Input(x.shape[1:]),
                    layers.Conv2D(
                        self.draw(CHANNELS), 3, padding="same", **ZERO
                    ),
                    layers.BatchNormalization(),
                    layers.ReLU(),
                ]
            )
        else:
            inputs = keras.Input(x.shape[1:])
            inner = keras.Model(inputs, self.residual(self.plain(inputs)))
        return inner(x)

    def feature_map(self, x):
        return getattr(self, self.draw(st.sampled_from(STEPS)))(x)

    # From a feature map to a vector, and on

    def vector(self, x):
        kind = self.draw(
            st.sampled_from(["flatten", "average", "max", "reshape"])
        )
        if kind == "flatten":
            return layers.Flatten()(x)
        if kind == "reshape":
            return layers.Reshape((-1,))(x)
        if kind == "max":
            return layers.GlobalMaxPooling2D()(x)
        return layers.GlobalAveragePooling2D()(x)

    def dense(self, x):
        kind = self.draw(st.sampled_from(["plain", "norm", "wide"]))
        if kind == "wide":
            y = layers.Dense(self.draw(CHANNELS), activation="tanh", **ZERO)(x)
            return layers.Concatenate()([x, y])
        x = layers.Dense(
            self.draw(CHANNELS),
            use_bias=self.bias(),
            activation=None if kind == "norm" else self.activation(),
            **ZERO,
        )(x)
        return self.norm(x) if kind == "norm" else x


def draw_network(draw):
    """Draws a functional model with random weights.

    Args:
        draw: `data.draw` of a test with `st.data()`. A composite strategy
            cannot build Keras models: they draw on Python's `random`.
    """
    builder = Builder(draw)
    inputs = [keras.Input((6, 6, draw(st.sampled_from([1, 3]))))]
    x = builder.plain(inputs[0])
    if draw(st.booleans()):
        inputs.append(keras.Input((6, 6, 2)))
        x = layers.Concatenate()([x, builder.plain(inputs[1])])
    for _ in range(draw(st.integers(1, 3))):
        x = builder.feature_map(x)
    outputs = []
    if draw(st.booleans()):
        outputs.append(layers.Conv2D(2, 1, **ZERO)(x))
    x = builder.vector(x)
    for _ in range(draw(st.integers(0, 2))):
        x = builder.dense(x)
    outputs.append(layers.Dense(3, **ZERO)(x))
    model = keras.Model(
        inputs if len(inputs) > 1 else inputs[0],
        outputs if len(outputs) > 1 else outputs[0],
    )
    randomize(model, draw(st.integers(0, 1000)))
    return model


def draw_sizes(draw, graph):
    """Draws channels for each group of a graph, not of one ratio."""
    return tuple(
        draw(st.integers(1, group.num_channels))
        if group.morphable
        else group.num_channels
        for group in graph.groups
    )
