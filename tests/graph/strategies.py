"""Random networks out of the layers that have rules.

`draw_network` draws a functional model of a few small layers: branches,
residuals, concatenations of different groups, shared and nested layers,
operations, attention and recurrence, with random weights everywhere.
"""

import keras
import numpy as np
from hypothesis import note
from hypothesis import strategies as st
from keras import layers, ops

ACTIVATIONS = ("relu", "tanh", "sigmoid", "linear")
# Random initial values of each shape cost JAX a compilation, and `randomize`
# replaces them.
ZERO = {"kernel_initializer": "zeros"}
RECURRENT = {**ZERO, "recurrent_initializer": "zeros"}
CHANNELS = st.sampled_from([4, 6])
LENGTH, WORDS = 5, 7

# Steps that take and give a feature map.
FEATURE_MAP = (
    "plain residual projection branches depthwise grouped separable "
    "transposed positions prelu excite shared nested "
    "layer_norm rms_norm group_norm unit_norm softmax layer_scale "
    "channel_groups gate glu parts sliced padded shuffled reduced guarded "
    "quotient arithmetic stacked shared_norm cross_covariance moved "
    "pooled_by_operations repeated resized_image nested_operations"
).split()
# TensorFlow has no `channels_first` convolution on CPUs.
if keras.backend.backend() != "tensorflow":
    FEATURE_MAP.append("channels_first")

# Steps that take and give a sequence.
SEQUENCE = (
    "conv_1d separable_1d transposed_1d recurrent stacked_cells bidirectional "
    "with_states time_distributed einsum_dense multi_head grouped_query "
    "attend additive dot matmul sequence_norm masking "
    "sequence_softmax residual_dense"
).split()
# Those of them that take a mask.
MASKABLE = (
    "recurrent bidirectional time_distributed multi_head attend residual_dense"
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


def batch(model, size=17, seed=0):
    """Random inputs for a model, structured as its own.

    The size is that of no axis: on TensorFlow, Keras takes what has one entry
    per example for a bias where another axis is as long as the batch.
    """
    random = np.random.default_rng(seed)

    def values(x):
        shape = (size, *x.shape[1:])
        if str(x.dtype).startswith("int"):
            return random.integers(0, WORDS, shape).astype(x.dtype)
        return random.normal(size=shape).astype("float32")

    return keras.tree.map_structure(
        values, model.inputs if len(model.inputs) > 1 else model.inputs[0]
    )


class Builder:
    """Grows a network, one drawn step after the other."""

    def __init__(self, draw):
        self.draw = draw
        self.steps = []

    def step(self, names, x):
        name = self.draw(st.sampled_from(names))
        self.steps.append(name)
        return getattr(self, name)(x)

    def one_of(self, *values):
        return self.draw(st.sampled_from(values))

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
        merge = self.one_of(
            layers.Add, layers.Subtract, layers.Average, layers.Maximum
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
            depth_multiplier=self.one_of(1, 2),
            use_bias=self.bias(),
            depthwise_initializer="zeros",
        )(x)
        return self.norm(x)

    def grouped(self, x):
        x = self.conv(x, filters=4)
        return self.conv(x, kernel_size=3, groups=2)

    def channel_groups(self, x):
        """A convolution with as many groups as channels."""
        filters = self.one_of(1, 2) * x.shape[-1]
        return self.conv(
            x, filters, 3, groups=x.shape[-1], activation=self.activation()
        )

    def separable(self, x):
        return layers.SeparableConv2D(
            self.draw(CHANNELS),
            3,
            padding="same",
            depth_multiplier=self.one_of(1, 2),
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
        kind = self.one_of("pool", "upsample", "pad")
        if kind == "pool":
            return layers.AveragePooling2D(2, padding="same")(x)
        if kind == "upsample":
            x = layers.MaxPooling2D(2, padding="same")(x)
            return layers.UpSampling2D(2)(x)
        return layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))

    def channels_first(self, x):
        first = {"data_format": "channels_first"}
        x = layers.Permute((3, 1, 2))(x)
        x = self.conv(x, **first)
        if self.draw(st.booleans()):
            x = layers.BatchNormalization(axis=1)(x)
        if self.draw(st.booleans()):
            x = layers.GroupNormalization(groups=2, axis=1)(x)
        if self.draw(st.booleans()):
            x = layers.MaxPooling2D(2, padding="same", **first)(x)
        if self.draw(st.booleans()):
            x = layers.DepthwiseConv2D(
                3, padding="same", depthwise_initializer="zeros", **first
            )(x)
        return layers.Permute((2, 3, 1))(x)

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

    def nested_operations(self, x):
        """A nested model with layers that mix channels, called twice."""
        inputs = keras.Input((*x.shape[1:3], 4))
        kind = self.one_of("norm", "mean", "softmax", "gate")
        if kind == "norm":
            y = layers.LayerNormalization()(inputs)
        elif kind == "mean":
            y = inputs - ops.mean(inputs, axis=-1, keepdims=True)
        elif kind == "softmax":
            y = layers.Softmax()(inputs)
        else:
            first, second = ops.split(inputs, 2, axis=-1)
            y = first * ops.sigmoid(second)
        inner = keras.Model(inputs, y)
        x, y = inner(self.conv(x, 4)), inner(self.conv(x, 4))
        return layers.Concatenate()([x, y])

    def feature_map(self, x):
        return self.step(FEATURE_MAP, x)

    # Normalization over channels

    def layer_norm(self, x):
        return layers.LayerNormalization(
            axis=self.one_of(-1, [1, 2, 3], [2, 3]),
            center=self.draw(st.booleans()),
            scale=self.draw(st.booleans()),
        )(self.conv(x, activation=self.activation()))

    def rms_norm(self, x):
        axis = self.one_of(-1, [-2, -1])
        x = self.conv(x, activation=self.activation())
        return layers.RMSNormalization(axis=axis)(x)

    def group_norm(self, x):
        x = self.conv(x, filters=4, activation=self.activation())
        return layers.GroupNormalization(
            groups=self.one_of(1, 2, 4, -1),
            center=self.draw(st.booleans()),
            scale=self.draw(st.booleans()),
        )(x)

    def unit_norm(self, x):
        # Two layers, so that the vectors are never close to zero.
        x = self.norm(self.conv(x, activation="tanh"))
        return layers.UnitNormalization(axis=-1)(ops.exp(x))

    def softmax(self, x):
        x = self.conv(x)
        kind = self.one_of("layer", "activation", "operation", "log", "axes")
        if kind == "layer":
            return layers.Softmax()(x)
        if kind == "axes":
            return layers.Softmax(axis=[1, 3])(x)
        if kind == "activation":
            return layers.Activation("softmax")(x)
        if kind == "log":
            return ops.log_softmax(x, axis=-1)
        return ops.softmax(x, axis=-1)

    def shared_norm(self, x):
        """A layer that mixes channels, shared by two inputs."""
        first, second = self.conv(x, 4), self.conv(x, 4, activation="tanh")
        layer = self.one_of(
            layers.LayerNormalization,
            layers.Softmax,
            lambda: layers.GroupNormalization(2),
            lambda: layers.Reshape((-1, 4)),
        )()
        pair = [layer(first), layer(second)]
        if isinstance(layer, layers.Reshape):
            shape = first.shape[1:]
            pair = [ops.reshape(y, (-1, *shape)) for y in pair]
        return self.one_of(layers.Add, layers.Concatenate)()(pair)

    def layer_scale(self, x):
        # Keras keeps these to itself; ConvNeXt is made of them.
        from keras.src.applications.convnext import (
            LayerScale,
            StochasticDepth,
        )

        y = self.conv(x, x.shape[-1])
        y = LayerScale(0.5, x.shape[-1])(y)
        return layers.Add()([x, StochasticDepth(0.0)(y)])

    # Operations

    def gate(self, x):
        x = self.conv(x)
        first, second = ops.split(x, 2, axis=-1)
        return first * ops.sigmoid(second)

    def glu(self, x):
        return ops.glu(self.conv(x), axis=-1)

    def parts(self, x):
        first, second, third = ops.split(self.conv(x, 6), [1, 4], axis=-1)
        second = ops.tanh(second)
        if self.draw(st.booleans()):
            return ops.concatenate([third, second, first, second], axis=-1)
        return ops.concatenate([first, self.conv(second, 4), third], axis=-1)

    def sliced(self, x):
        x = self.conv(x, 6)
        kind = self.one_of("first", "last", "middle", "both", "positions")
        if kind == "first":
            return x[..., :4]
        if kind == "last":
            return x[..., -2:]
        if kind == "middle":
            return x[:, :, :, 1:5]
        if kind == "positions":
            return x[:, :1]
        # The shuffle unit of ShuffleNet: one half goes around.
        left, right = x[..., :3], x[..., 3:]
        return layers.Concatenate()([self.conv(left), right])

    def padded(self, x):
        """The shortcut without weights of small residual networks."""
        x = self.conv(x, 4)
        y = self.norm(self.conv(x, 8, strides=2))
        x = x[:, ::2, ::2]
        before = self.one_of(0, 2, 4)
        widths = [(0, 0), (0, 0), (0, 0), (before, 4 - before)]
        return ops.relu(ops.pad(x, widths) + y)

    def shuffled(self, x):
        x = self.conv(x, 4)
        shape = x.shape[1:]
        by_layers = self.draw(st.booleans())
        if by_layers:
            x = layers.Reshape((*shape[:2], 2, 2))(x)
            x = layers.Permute((1, 2, 4, 3))(x)
            x = layers.Reshape(shape)(x)
        else:
            x = ops.reshape(x, (-1, *shape[:2], 2, 2))
            x = ops.transpose(x, (0, 1, 2, 4, 3))
            x = ops.reshape(x, (-1, *shape))
        return self.conv(x, kernel_size=3, groups=2)

    def reduced(self, x):
        """A gate out of reductions over the channels."""
        kinds = [
            self.one_of(ops.mean, ops.max, ops.sum, ops.min, ops.logsumexp)
            for _ in range(2)
        ]
        y = [kind(x, axis=-1, keepdims=True) for kind in kinds]
        if self.draw(st.booleans()):
            y.append(ops.expand_dims(ops.mean(x, axis=-1), -1))
        y = self.conv(layers.Concatenate()(y), 1, activation="sigmoid")
        if self.draw(st.booleans()):  # pooling by an operation
            z = ops.mean(x, axis=(1, 2))
            x = x + ops.reshape(z, (-1, 1, 1, x.shape[-1]))
        return x * y

    def away_from_zero(self, x):
        """Channels that are zero if absent, and never close to it else."""
        x = ops.exp(ops.tanh(self.norm(self.conv(x))))
        return layers.DepthwiseConv2D(
            1, use_bias=False, depthwise_initializer="zeros"
        )(x)

    def guarded(self, x):
        """Functions that are not finite where absent channels are zero."""
        x = ops.absolute(self.away_from_zero(x))
        return self.one_of(ops.log, ops.sqrt, ops.rsqrt, ops.log2)(x)

    def quotient(self, x):
        y = self.away_from_zero(x)
        x = self.conv(x, y.shape[-1])
        if self.draw(st.booleans()):
            return ops.divide(x, y)
        return ops.tanh(1.0 / y) * x

    def arithmetic(self, x):
        y = self.conv(x, x.shape[-1])
        kind = self.one_of("numbers", "where", "maximum", "constant", "power")
        if kind == "numbers":
            return 2.0 * x - 1.0 + ops.gelu(y) * 0.5
        if kind == "where":
            return ops.where(ops.greater(y, 0.0), x, y * 0.5)
        if kind == "maximum":
            return ops.maximum(ops.minimum(x, 1.0), y) - ops.square(x)
        if kind == "constant":
            scale = np.full((x.shape[1], 1), 0.5, "float32")
            return ops.exp(ops.tanh(y)) * ops.convert_to_tensor(scale)
        return ops.power(ops.sigmoid(y), 2.0) + x

    def stacked(self, x):
        y = self.conv(x, x.shape[-1])
        axis = self.one_of(1, -1, -2)
        x = ops.stack([x, y, x], axis=axis)
        return self.one_of(ops.mean, ops.max, ops.sum)(x, axis=axis)

    def cross_covariance(self, x):
        """Attention between channels."""
        x = self.conv(x)
        height, width, channels = x.shape[1:]
        y = ops.reshape(x, (-1, height * width, channels))
        z = layers.Conv1D(self.draw(CHANNELS), 1, **ZERO)(y)
        scores = ops.einsum("bic,bid->bcd", z, y) / (height * width)
        scores = ops.softmax(scores, axis=1)
        z = ops.einsum("bcd,bic->bid", scores, z)
        return ops.reshape(z, (-1, height, width, channels))

    def moved(self, x):
        kind = self.one_of("swap", "move", "permute", "squeeze", "flip")
        if kind == "swap":
            x = ops.tanh(ops.swapaxes(x, 1, 3))
            return ops.swapaxes(x, -1, 1)
        if kind == "move":
            x = ops.relu(ops.moveaxis(x, -1, 1))
            return ops.moveaxis(x, 1, -1)
        if kind == "permute":
            x = layers.Permute((3, 2, 1))(x)
            return layers.Permute((3, 2, 1))(layers.Softmax(axis=1)(x))
        if kind == "squeeze":
            return ops.squeeze(ops.expand_dims(x, 2), 2)
        return ops.flip(ops.roll(x, 1, axis=1), axis=2)

    def pooled_by_operations(self, x):
        kind = self.one_of("max", "average")
        pool = ops.max_pool if kind == "max" else ops.average_pool
        return pool(x, 2, 1, padding="same")

    def resized_image(self, x):
        if self.draw(st.booleans()):
            return layers.Resizing(3, 3)(x)
        return ops.image.resize(x, (3, 3))

    def repeated(self, x):
        x = self.conv(x, 4)
        kind = self.one_of("repeat", "tile", "broadcast")
        if kind == "repeat":
            return ops.repeat(x, 2, axis=-1)
        if kind == "tile":
            return ops.tile(x, (1, 1, 1, 2))
        y = ops.max(x, axis=(0, 1, 2), keepdims=True)
        return ops.add(x, ops.broadcast_to(y, (1, *x.shape[1:])))

    # Sequences

    def sequence(self, x):
        """From a feature map to a sequence of its positions."""
        if x.shape[1] * x.shape[2] > 9:
            x = layers.MaxPooling2D(2, padding="same")(x)
        shape = (x.shape[1] * x.shape[2], x.shape[3])
        kind = self.one_of("reshape", "operation", "rows")
        if kind == "reshape":
            return layers.Reshape(shape)(x)
        if kind == "operation":
            return ops.reshape(x, (-1, *shape))
        # Rows as positions, columns beside the channels.
        return layers.Reshape((x.shape[1], -1))(x)

    def words(self):
        inputs = keras.Input((LENGTH,), dtype="int32")
        mask = self.draw(st.booleans())
        x = layers.Embedding(
            WORDS,
            self.draw(CHANNELS),
            embeddings_initializer="zeros",
            mask_zero=mask,
        )(inputs)
        if mask:
            # The addition passes no mask on: not every layer takes one.
            x = self.step(MASKABLE, x) + 0.0
        if self.draw(st.booleans()):  # learned places
            places = layers.Embedding(
                LENGTH, x.shape[-1], embeddings_initializer="zeros"
            )
            x = x + places(ops.arange(LENGTH))
        return inputs, x

    def conv_1d(self, x):
        return layers.Conv1D(
            self.draw(CHANNELS),
            3,
            padding=self.one_of("same", "causal"),
            activation=self.activation(),
            **ZERO,
        )(x)

    def separable_1d(self, x):
        if self.draw(st.booleans()):
            return layers.DepthwiseConv1D(
                3,
                padding="same",
                depth_multiplier=2,
                depthwise_initializer="zeros",
            )(x)
        return layers.SeparableConv1D(
            self.draw(CHANNELS),
            3,
            padding="same",
            depthwise_initializer="zeros",
            pointwise_initializer="zeros",
        )(x)

    def transposed_1d(self, x):
        x = layers.Conv1DTranspose(self.draw(CHANNELS), 2, 2, **ZERO)(x)
        return layers.AveragePooling1D(2)(x)

    def cell(self):
        return self.one_of(
            layers.SimpleRNNCell, layers.GRUCell, layers.LSTMCell
        )(self.draw(CHANNELS), **RECURRENT)

    def rnn(self, x, **kwargs):
        kind = self.one_of(layers.SimpleRNN, layers.GRU, layers.LSTM)
        options = dict(RECURRENT, use_bias=self.bias(), **kwargs)
        if kind is layers.GRU:
            options["reset_after"] = self.draw(st.booleans())
        return kind(self.draw(CHANNELS), **options)

    def recurrent(self, x):
        return self.rnn(
            x,
            return_sequences=True,
            activation=self.one_of("tanh", "sigmoid"),
        )(x)

    def stacked_cells(self, x):
        cells = [self.cell() for _ in range(self.one_of(1, 2))]
        cell = cells if len(cells) > 1 else cells[0]
        return layers.RNN(cell, return_sequences=True)(x)

    def bidirectional(self, x):
        mode = self.one_of("concat", "sum", "mul", "ave", None)
        layer = self.rnn(x, return_sequences=True)
        x = layers.Bidirectional(layer, merge_mode=mode)(x)
        return layers.Concatenate()(x) if mode is None else x

    def with_states(self, x):
        """A decoder that starts from the states of an encoder."""
        kind = self.one_of(layers.GRU, layers.LSTM)
        options = dict(RECURRENT, return_sequences=True)
        y, *states = kind(4, return_state=True, **options)(x)
        return kind(4, **options)(y, initial_state=states)

    def time_distributed(self, x):
        inner = self.one_of(
            lambda: layers.Dense(4, activation="relu", **ZERO),
            lambda: layers.BatchNormalization(),
            lambda: layers.LayerNormalization(),
        )()
        return layers.TimeDistributed(inner)(x)

    def einsum_dense(self, x):
        kind = self.one_of("plain", "heads", "positions", "ellipsis")
        length = x.shape[1]
        if kind == "plain":
            return layers.EinsumDense(
                "abc,cd->abd", (length, 6), bias_axes="d", **ZERO
            )(x)
        if kind == "ellipsis":
            return layers.EinsumDense(
                "...c,cd->...d", 4, activation="tanh", **ZERO
            )(x)
        if kind == "positions":
            return layers.EinsumDense(
                "abc,bd->adc", (3, x.shape[-1]), bias_axes="dc", **ZERO
            )(x)
        # On TensorFlow, Keras takes a bias of shape (2, 1) for one of the two
        # positions, if there are two.
        x = layers.EinsumDense(
            "abc,cde->abde",
            (length, 2, 4),
            bias_axes="de" if length > 2 else "e",
            **ZERO,
        )(x)
        return layers.EinsumDense(
            "abde,def->abf", (length, 4), bias_axes="f", **ZERO
        )(x)

    def multi_head(self, x):
        # On JAX Keras takes no values of another width than the keys.
        widths = (2,) if keras.backend.backend() == "jax" else (2, 3)
        options = dict(key_dim=2, value_dim=self.one_of(*widths), **ZERO)
        if self.draw(st.booleans()):
            options["output_shape"] = 4
        layer = layers.MultiHeadAttention(self.one_of(2, 4), **options)
        if self.draw(st.booleans()):
            y = layers.Dense(6, **ZERO)(x)
            return layer(x, y, y)
        y = layer(x, x, use_causal_mask=self.draw(st.booleans()))
        return layers.Add()([x, y]) if y.shape == x.shape else y

    def grouped_query(self, x):
        return layers.GroupQueryAttention(
            2, num_query_heads=4, num_key_value_heads=2, **ZERO
        )(x, x)

    def attend(self, x):
        query = layers.Dense(4, **ZERO)(x)
        value = layers.Dense(6, **ZERO)(x)
        if self.draw(st.booleans()):
            key = layers.Dense(4, **ZERO)(x)
            mode = self.one_of("dot", "concat")
            return layers.Attention(score_mode=mode)([query, value, key])
        value = layers.Dense(4, **ZERO)(x)
        scale = self.draw(st.booleans())
        return layers.Attention(use_scale=scale)([query, value])

    def additive(self, x):
        query = layers.Dense(4, **ZERO)(x)
        key = layers.Dense(4, **ZERO)(x)
        value = layers.Dense(6, **ZERO)(x)
        scale = self.draw(st.booleans())
        layer = layers.AdditiveAttention(use_scale=scale)
        if self.draw(st.booleans()):
            return layer([query, key])
        return layer([query, value, key])

    def dot(self, x):
        first = layers.Dense(4, activation="sigmoid", **ZERO)(x)
        second = layers.Dense(4, activation="sigmoid", **ZERO)(x)
        normalize = self.draw(st.booleans())
        scores = layers.Dot(axes=(2, 2), normalize=normalize)([first, second])
        return layers.Dot(axes=(2, 1))([layers.Softmax()(scores), x])

    def matmul(self, x):
        first = layers.Dense(4, activation="sigmoid", **ZERO)(x)
        second = layers.Dense(4, activation="sigmoid", **ZERO)(x)
        scores = ops.matmul(first, ops.transpose(second, (0, 2, 1)))
        return ops.matmul(ops.softmax(scores / 2.0), x)

    def sequence_norm(self, x):
        return self.one_of(
            layers.LayerNormalization,
            layers.BatchNormalization,
            layers.RMSNormalization,
        )()(x)

    def masking(self, x):
        x = x * layers.Dense(1, activation="relu", **ZERO)(x)
        x = layers.Masking()(x)  # of steps where the gate is closed
        return self.step(MASKABLE, x) + 0.0

    def sequence_softmax(self, x):
        y = layers.Dense(x.shape[-1], activation="tanh", **ZERO)(x)
        return x * layers.Softmax(axis=self.one_of(1, 2))(y)

    def residual_dense(self, x):
        y = layers.LayerNormalization()(x)
        y = layers.Dense(6, activation="gelu", **ZERO)(y)
        return x + layers.Dense(x.shape[-1], **ZERO)(y)

    # To a vector, and on

    def vector_of_sequence(self, x):
        kind = self.one_of("average", "max", "rnn", "last", "flatten")
        if kind == "average":
            return layers.GlobalAveragePooling1D()(x)
        if kind == "max":
            return layers.GlobalMaxPooling1D()(x)
        if kind == "rnn":
            return self.rnn(x)(x)
        if kind == "last":
            return x[:, -1]
        return layers.Flatten()(x)

    def vector(self, x):
        kind = self.one_of("flatten", "average", "max", "reshape", "operation")
        if kind == "flatten":
            return layers.Flatten()(x)
        if kind == "reshape":
            return layers.Reshape((-1,))(x)
        if kind == "max":
            return layers.GlobalMaxPooling2D()(x)
        if kind == "operation":
            return ops.max(x, axis=[1, 2])
        return layers.GlobalAveragePooling2D()(x)

    def dense(self, x):
        kind = self.one_of(
            "plain", "norm", "wide", "repeat", "channels", "product"
        )
        self.steps.append(kind)
        if kind == "wide":
            y = layers.Dense(self.draw(CHANNELS), activation="tanh", **ZERO)(x)
            return layers.Concatenate()([x, y])
        x = layers.Dense(
            self.draw(CHANNELS),
            use_bias=self.bias(),
            activation=None if kind == "norm" else self.activation(),
            **ZERO,
        )(x)
        if kind == "repeat":
            return layers.Flatten()(self.conv_1d(layers.RepeatVector(3)(x)))
        if kind == "channels":
            y = layers.LayerNormalization()(x)
            return layers.Softmax()(y) if self.bias() else y
        if kind == "product":
            y = layers.Dense(x.shape[-1], **ZERO)(x)
            z = layers.Dot(axes=1)([x, y])
            return layers.Concatenate()([x, z, ops.sum(x * y, axis=1)[:, None]])
        return self.norm(x) if kind == "norm" else x


def draw_network(draw):
    """Draws a functional model with random weights.

    Args:
        draw: `data.draw` of a test with `st.data()`. A composite strategy
            cannot build Keras models: they draw on Python's `random`.
    """
    builder = Builder(draw)
    inputs, outputs = [], []
    start = draw(st.sampled_from(["image", "image", "image", "words"]))
    if start == "words":
        first, x = builder.words()
        inputs.append(first)
        for _ in range(draw(st.integers(1, 2))):
            x = builder.step(SEQUENCE, x)
        x = builder.vector_of_sequence(x)
    else:
        inputs.append(keras.Input((4, 4, draw(st.sampled_from([1, 3])))))
        x = builder.plain(inputs[0])
        if draw(st.sampled_from([True, False, False])):
            inputs.append(keras.Input((4, 4, 2)))
            x = layers.Concatenate()([x, builder.plain(inputs[1])])
        for _ in range(draw(st.integers(1, 3))):
            x = builder.feature_map(x)
        if draw(st.sampled_from([True, False, False])):
            outputs.append(layers.Conv2D(2, 1, **ZERO)(x))
        if draw(st.sampled_from([True, False, False])):
            x = builder.sequence(x)
            x = builder.step(SEQUENCE, x)
            x = builder.vector_of_sequence(x)
        else:
            x = builder.vector(x)
    for _ in range(draw(st.integers(0, 1))):
        x = builder.dense(x)
    outputs.append(layers.Dense(3, **ZERO)(x))
    model = keras.Model(
        inputs if len(inputs) > 1 else inputs[0],
        outputs if len(outputs) > 1 else outputs[0],
    )
    note(f"Steps: {start} {builder.steps}")
    randomize(model, draw(st.integers(0, 1000)))
    return model


def draw_sizes(draw, graph):
    """Draws channels for each group of a graph, and kept blocks if it has."""
    channels = [
        draw(st.integers(1, group.num_channels))
        if group.morphable
        else group.num_channels
        for group in graph.groups
    ]
    if graph.blocks:
        channels.append(draw(st.integers(0, len(graph.blocks))))
    return tuple(channels)
