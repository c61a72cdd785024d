"""One tiny network per layer rule."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta
from keras_neumeta import trace
from keras_neumeta.graph import resize
from keras_neumeta.graph.rules import registry as rules

from .equivalence import OUTPUT, check_half, groups, sequential


def test_chain():
    model = sequential(
        (8,),
        layers.Dense(6, name="one"),
        layers.Dense(4, name="two"),
        layers.Dense(2, name="three"),
    )
    assert groups(model) == {
        "one": (6, None),
        "two": (4, None),
        "three": (2, OUTPUT),
    }
    graph, small = check_half(model)
    assert graph.full_sizes == (6, 4, 2)
    assert graph.sizes(0.5) == (3, 2, 2)
    assert graph.groups[0].layers == ("one", "two")
    assert [layer.units for layer in small.layers] == [3, 2, 2]


def test_sizes_round_and_keep_one_channel():
    graph = trace(
        sequential((3,), layers.Dense(10), layers.Dense(33), layers.Dense(2))
    )
    assert graph.sizes(0.25) == (2, 8, 2)
    assert graph.sizes(0.01) == (1, 1, 2)
    assert graph.sizes(0.5, divisor=8) == (8, 16, 2)
    assert graph.sizes(0.3, divisor=4) == (4, 8, 2)
    assert graph.sizes(0.01, divisor=8) == (8, 8, 2)
    # The full size stays, whatever the divisor.
    assert graph.sizes(1.0, divisor=8) == graph.full_sizes
    assert graph.sizes(1.0) == graph.full_sizes


def test_residual_ties_channels():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="inner")(x)
    y = layers.Conv2D(8, 3, padding="same", name="outer")(y)
    x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    assert groups(model) == {
        "stem": (8, None),
        "inner": (4, None),
        "head": (2, OUTPUT),
    }
    graph, small = check_half(model)
    assert graph.groups[0].makers == ("stem", "outer")
    assert small.get_layer("outer").filters == 4


def test_residual_on_the_input_is_frozen():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="tied")(inputs)
    x = layers.Add(name="sum")([x, inputs])
    model = keras.Model(inputs, layers.Dense(2)(x))
    channels, reason = groups(model)["tied"]
    assert channels == 4
    assert "'sum' combines them with channels that never change" in reason


@pytest.mark.parametrize(
    "merge",
    ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"],
)
def test_merges_tie_channels(merge):
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="left")(inputs)
    y = layers.Dense(4, name="right")(inputs)
    x = getattr(layers, merge)()([x, y])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    assert groups(model) == {"left": (4, None), "head": (2, OUTPUT)}
    check_half(model)


def test_concatenate_keeps_groups_apart():
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, 3, name="left")(inputs)
    y = layers.Conv2D(6, 3, name="right")(inputs)
    z = layers.Concatenate()([x, y, x])
    z = layers.BatchNormalization(name="norm")(z)
    z = layers.Flatten()(z)
    model = keras.Model(inputs, layers.Dense(2, name="head")(z))
    assert groups(model) == {
        "left": (4, None),
        "right": (6, None),
        "head": (2, OUTPUT),
    }
    graph, small = check_half(model)
    assert small.get_layer("norm").gamma.shape == (2 + 3 + 2,)
    axis = next(
        layout.axes[0] for layout in graph.layouts if "gamma" in layout.path
    )
    assert [(p.group, p.blocks, p.num_channels) for p in axis.pieces] == [
        (0, 2, 4),
        (1, 1, 6),
    ]
    assert axis.keep((1, 2, 2)).tolist() == [0, 4, 5, 10]


def test_concatenate_with_the_input():
    inputs = keras.Input((3,))
    x = layers.Concatenate()([inputs, layers.Dense(4, name="made")(inputs)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    result = groups(model)
    assert result["made"] == (4, None)
    assert result["concatenate"] == (3, "made of fixed channels")
    _, small = check_half(model)
    assert small.get_layer("head").kernel.shape == (5, 2)


def test_concatenate_along_positions_ties_channels():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 3, padding="same", name="left")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="right")(inputs)
    x = layers.Concatenate(axis=1)([x, y])
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    assert groups(model) == {"left": (4, None), "head": (2, OUTPUT)}
    check_half(model)


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise(multiplier):
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(4, 3, name="conv"),
        layers.DepthwiseConv2D(3, depth_multiplier=multiplier, name="depth"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    _, small = check_half(model)
    assert small.get_layer("depth").bias.shape == (2 * multiplier,)
    assert small.get_layer("head").kernel.shape == (1, 1, 2 * multiplier, 2)


def test_depthwise_1d_and_separable_1d():
    model = sequential(
        (8, 2),
        layers.Conv1D(4, 3, name="conv"),
        layers.DepthwiseConv1D(3),
        layers.SeparableConv1D(6, 3, name="separable"),
        layers.Conv1D(2, 1, name="head"),
    )
    assert groups(model) == {
        "conv": (4, None),
        "separable": (6, None),
        "head": (2, OUTPUT),
    }
    check_half(model)


def test_separable():
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(4, 3, name="conv"),
        layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable"),
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {
        "conv": (4, None),
        "separable": (6, None),
        "head": (2, OUTPUT),
    }
    _, small = check_half(model)
    assert small.get_layer("separable").pointwise_kernel.shape == (1, 1, 4, 3)


def test_grouped_conv_keeps_equally_many_per_block():
    model = sequential(
        (4, 4, 2),
        layers.Conv2D(8, 1, name="conv"),
        layers.Conv2D(12, 3, groups=2, padding="same", name="grouped"),
        layers.Conv2D(2, 1, name="head"),
    )
    # Channels of a group are what each block keeps.
    assert groups(model) == {
        "conv": (4, None),
        "grouped": (6, None),
        "head": (2, OUTPUT),
    }
    graph, small = check_half(model)
    assert small.get_layer("conv").filters == 4
    assert small.get_layer("grouped").filters == 6
    assert small.get_layer("grouped").kernel.shape == (3, 3, 2, 6)
    conv = graph.layouts[0].axes[3]
    assert conv.keep((1, 6, 2)).tolist() == [0, 4]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_grouped_conv_of_each_channel(multiplier):
    """As many groups as channels: a depthwise convolution."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    filters = 4 * multiplier
    x = layers.Conv2D(filters, 3, groups=4, name="each")(x)
    # Group by group: the first filters belong to the first channels.
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    graph, small = check_half(model)
    assert small.get_layer("each").groups == 2
    assert small.get_layer("each").filters == 2 * multiplier
    axis = next(x for x in graph.layouts if x.path == "head/kernel").axes[2]
    assert axis.keep((2, 2)).tolist() == list(range(2 * multiplier))


def test_grouped_conv_of_each_input_channel_keeps_the_input():
    model = sequential(
        (4, 4, 3),
        layers.Conv2D(6, 3, groups=3, name="each"),
        layers.Conv2D(2, 1, name="head"),
    )
    assert "fixed channels" in groups(model)["each"][1]


@pytest.mark.jax
@pytest.mark.torch  # TensorFlow has no channels_first convolution on CPUs.
def test_channels_first():
    first = {"data_format": "channels_first"}
    model = sequential(
        (2, 6, 6),
        layers.Conv2D(4, 3, name="conv", **first),
        layers.BatchNormalization(axis=1),
        layers.GroupNormalization(2, axis=1),
        layers.DepthwiseConv2D(3, **first),
        layers.MaxPooling2D(2, **first),
        layers.Conv2DTranspose(6, 2, name="up", **first),
        layers.GlobalAveragePooling2D(**first),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {
        "conv": (2, None),
        "up": (6, None),
        "head": (2, OUTPUT),
    }
    check_half(model)


@pytest.mark.tensorflow
@pytest.mark.torch  # On JAX, StochasticDepth has no seed and cannot train.
def test_layers_that_keras_keeps_to_itself():
    """The scale and the stochastic depth of ConvNeXt."""
    from keras.src.applications.convnext import LayerScale, StochasticDepth

    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="inner")(x)
    y = StochasticDepth(0.0)(LayerScale(1e-6, 4, name="scale")(y))
    x = layers.Add()([x, y])
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    _, small = check_half(model)
    assert small.get_layer("scale").projection_dim == 2


def test_transposed_conv():
    model = sequential(
        (3, 3, 2),
        layers.Conv2D(4, 1, name="conv"),
        layers.Conv2DTranspose(6, 2, strides=2, name="up"),
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {
        "conv": (4, None),
        "up": (6, None),
        "head": (2, OUTPUT),
    }
    graph, small = check_half(model)
    assert small.get_layer("up").kernel.shape == (2, 2, 3, 2)
    assert graph.layouts[2].summed == (3,)


def test_conv_3d():
    model = sequential(
        (4, 4, 4, 1),
        layers.Conv3D(4, 3, name="conv"),
        layers.AveragePooling3D(2),
        layers.Conv3DTranspose(4, 2, name="up"),
        layers.GlobalAveragePooling3D(),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {
        "conv": (4, None),
        "up": (4, None),
        "head": (2, OUTPUT),
    }
    check_half(model)


def test_flatten_repeats_channels_per_position():
    model = sequential(
        (3, 3, 2),
        layers.Conv2D(4, 2, name="conv"),
        layers.Flatten(),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    graph, small = check_half(model)
    axis = graph.layouts[2].axes[0]
    assert [(p.blocks, p.num_channels) for p in axis.pieces] == [(4, 4)]
    assert axis.keep((2, 2)).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert small.get_layer("head").kernel.shape == (8, 2)


def channels_first(flatten_format):
    return sequential(
        (2, 3, 3),
        layers.Conv2D(4, 2, data_format="channels_first", name="conv"),
        layers.Flatten(data_format=flatten_format),
        layers.Dense(2, name="head"),
    )


@pytest.mark.parametrize("flatten_format", ["channels_first", "channels_last"])
def test_flatten_channels_first(flatten_format):
    graph = trace(channels_first(flatten_format))
    assert [g.name for g in graph.morphable_groups] == ["conv"]
    kept = graph.layouts[2].axes[0].keep((1, 2)).tolist()
    # Keras moves the channels to the end; flattened as they are, they are
    # one run each.
    expected = [0, 4, 8, 12]
    if flatten_format == "channels_last":
        expected = [0, 1, 2, 3]
    assert kept == expected


@pytest.mark.jax
@pytest.mark.torch  # TensorFlow has no channels_first convolution on CPUs.
@pytest.mark.parametrize("flatten_format", ["channels_first", "channels_last"])
def test_flatten_channels_first_permuted(flatten_format):
    model = channels_first(flatten_format)
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    x = random.normal(size=(2, 2, 3, 3)).astype("float32")
    smoothed = keras_neumeta.smooth(model)
    assert (
        ops.convert_to_numpy(model.get_layer("conv").bias)
        != ops.convert_to_numpy(smoothed.get_layer("conv").bias)
    ).any()
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(x)),
        ops.convert_to_numpy(smoothed(x)),
        atol=1e-5,
    )


def test_positions():
    model = sequential(
        (8, 8, 2),
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.UpSampling2D(2),
        layers.ZeroPadding2D(1),
        layers.Cropping2D(1),
        layers.MaxPooling2D(2),
        layers.AveragePooling2D(2),
        layers.SpatialDropout2D(0.0),
        layers.GlobalMaxPooling2D(),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    check_half(model)


def test_positions_1d():
    model = sequential(
        (8, 2),
        layers.Conv1D(4, 3, padding="same", name="conv"),
        layers.UpSampling1D(2),
        layers.ZeroPadding1D(1),
        layers.Cropping1D(1),
        layers.MaxPooling1D(2),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    check_half(model)


@pytest.mark.parametrize("keepdims", [False, True])
def test_global_pooling(keepdims):
    model = sequential(
        (4, 4, 2),
        layers.Conv2D(4, 3, name="conv"),
        layers.GlobalAveragePooling2D(keepdims=keepdims),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    check_half(model)


def test_squeeze_and_excite_broadcasts():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Dense(2, activation="relu", name="squeeze")(y)
    y = layers.Dense(4, activation="sigmoid", name="excite")(y)
    x = layers.Multiply()([x, y])
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    assert groups(model) == {
        "conv": (4, None),
        "squeeze": (2, None),
        "head": (2, OUTPUT),
    }
    check_half(model)


def test_broadcast_of_one_channel():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    mask = layers.Conv2D(1, 3, activation="sigmoid", name="mask")(inputs)
    x = layers.Multiply()([x, mask])
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    assert groups(model)["conv"] == (4, None)
    check_half(model)


def test_shared_layer_ties_its_inputs():
    inputs = keras.Input((3,))
    shared = layers.Dense(4, name="shared")
    x = layers.Dense(6, name="left")(inputs)
    y = layers.Dense(6, name="right")(inputs)
    x = layers.Concatenate()([shared(x), shared(y)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    graph, _ = check_half(model)
    assert [(set(g.makers), g.morphable) for g in graph.groups] == [
        ({"left", "right"}, True),
        ({"shared"}, True),
        ({"head"}, False),
    ]
    # Both calls count.
    assert graph.count_macs() == 2 * 3 * 6 + 2 * 6 * 4 + 8 * 2


def test_shared_layer_called_on_its_own_output():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    x = shared(layers.Dense(4, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(shared(x)))
    assert groups(model) == {"first": (4, None), "head": (2, OUTPUT)}
    check_half(model)
    # On the input, whose channels are fixed, it is frozen.
    model = keras.Model(inputs, layers.Dense(2)(shared(shared(inputs))))
    assert "shared with channels" in groups(model)["shared"][1]


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_nested_model(kind):
    parts = [layers.Conv2D(6, 3, name="inner"), layers.BatchNormalization()]
    if kind == "functional":
        hidden = keras.Input((5, 5, 4))
        nested = keras.Model(hidden, parts[1](parts[0](hidden)))
    else:
        nested = sequential((5, 5, 4), *parts)
    model = sequential(
        (5, 5, 2),
        layers.Conv2D(4, 1, name="outer"),
        nested,
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {
        "outer": (4, None),
        "inner": (6, None),
        "head": (2, OUTPUT),
    }
    _, small = check_half(model)
    assert type(small.layers[1]) is type(nested)
    assert small.layers[1].name == nested.name
    assert small.layers[1].input_shape == (None, 5, 5, 2)


def test_shared_nested_model():
    hidden = keras.Input((4,))
    nested = keras.Model(hidden, layers.ReLU()(hidden), name="nested")
    inputs = keras.Input((3,))
    x = nested(layers.Dense(4, name="left")(inputs))
    y = nested(layers.Dense(4, name="right")(inputs))
    x = layers.Concatenate()([x, y])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    # A model has one input shape, so that all calls keep equally many.
    graph, _ = check_half(model)
    assert [(set(g.makers), g.morphable) for g in graph.groups] == [
        ({"left", "right"}, True),
        ({"head"}, False),
    ]
    x = layers.Concatenate()([nested(inputs_of_four := keras.Input((4,))), y])
    model = keras.Model([inputs, inputs_of_four], layers.Dense(2)(x))
    assert "shared with channels" in groups(model)["right"][1]
    check_half(model)


def test_several_inputs_and_outputs():
    left, right = keras.Input((3,)), keras.Input((2,))
    x = layers.Dense(4, name="x")(left)
    y = layers.Dense(6, name="y")(right)
    z = layers.Concatenate()([x, y])
    model = keras.Model(
        [left, right],
        {"a": layers.Dense(2, name="a")(z), "b": y},
    )
    assert groups(model) == {
        "x": (4, None),
        "y": (6, OUTPUT),
        "a": (2, OUTPUT),
    }
    check_half(model)


@pytest.mark.parametrize("shared_axes", [None, [1, 2]])
def test_prelu(shared_axes):
    model = sequential(
        (4, 4, 2),
        layers.Conv2D(4, 3, name="conv"),
        layers.PReLU(shared_axes=shared_axes, name="prelu"),
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    _, small = check_half(model)
    rows = 1 if shared_axes else 2
    assert small.get_layer("prelu").alpha.shape == (rows, rows, 2)


class Unknown(keras.layers.Layer):
    """A layer that the library cannot know."""

    def call(self, x):
        return ops.flip(x, axis=-1)


def test_layer_without_a_rule_freezes_what_it_touches():
    model = sequential(
        (3,),
        layers.Dense(4, name="before"),
        Unknown(name="unknown"),
        layers.Dense(6, name="after"),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {
        "before": (4, "layer 'unknown' (Unknown) has no rule"),
        "after": (6, None),
        "head": (2, OUTPUT),
    }
    check_half(model)


def test_operation_without_a_rule_freezes():
    inputs = keras.Input((3,))
    x = ops.cumsum(layers.Dense(4, name="made")(inputs), axis=-1)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert "has no rule" in groups(model)["made"][1]


@pytest.fixture
def registry(monkeypatch):
    """Undoes what a test registers."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    monkeypatch.setattr(rules, "_ELEMENTWISE", set(rules._ELEMENTWISE))


def test_register_elementwise(registry):
    @keras.saving.register_keras_serializable(package="test_rules")
    def soft_clip(x):
        return ops.tanh(x / 3) * 3

    model = sequential(
        (3,),
        layers.Dense(4, activation=soft_clip, name="dense"),
        layers.Dense(2, name="head"),
    )
    reason = groups(model)["dense"][1]
    assert "activation 'soft_clip' of layer 'dense'" in reason
    keras_neumeta.register_elementwise(soft_clip)
    assert groups(model)["dense"] == (4, None)
    check_half(model)


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


class Mixing(layers.Dense):
    def call(self, x):
        return ops.flip(super().call(x), axis=-1)


class Named(layers.Dense):
    """A subclass that computes nothing else."""


def test_register_rule(registry):
    model = sequential(
        (3,),
        layers.Dense(4, name="dense"),
        Scale(name="scale"),
        layers.Dense(2, name="head"),
    )
    assert groups(model)["dense"][1] == "layer 'scale' (Scale) has no rule"

    @keras_neumeta.register_rule(Scale)
    def scale_rule(call):
        (x,) = call.inputs
        call.weight(call.layer.scale, {0: x.channels(-1)})
        return call.output({-1: x.channels(-1)})

    assert groups(model)["dense"] == (4, None)
    _, small = check_half(model)
    assert small.get_layer("scale").scale.shape == (2,)


def test_rules_reach_subclasses_that_compute_the_same():
    model = sequential(
        (3,), Named(4, name="same"), Mixing(6, name="other"), layers.Dense(2)
    )
    result = groups(model)
    assert "'other' (Mixing) has no rule" in result["same"][1]
    model = sequential((3,), Named(4, name="same"), layers.Dense(2))
    assert groups(model)["same"] == (4, None)


def test_register_rule_takes_classes():
    with pytest.raises(TypeError, match="must be classes"):
        keras_neumeta.register_rule(layers.Dense(2))


def test_wrong_rules_are_told(registry):
    def model_with(rule):
        keras_neumeta.register_rule(Scale)(rule)
        return sequential((3,), layers.Dense(4), Scale(), layers.Dense(2))

    def wrong_weight(call):
        call.weight(call.layer.scale, {0: call.new_channels(3)})
        return call.output()

    with pytest.raises(ValueError, match="labels axis 0 of .* expected 4"):
        trace(model_with(wrong_weight))

    def wrong_output(call):
        return call.output({-1: call.new_channels(3)})

    with pytest.raises(ValueError, match="labels axis 1 .* expected 4"):
        trace(model_with(wrong_output))

    def wrong_tie(call):
        call.tie(call.inputs[0].channels(-1), call.new_channels(3))
        return call.output()

    with pytest.raises(ValueError, match="ties 4 channels to 3"):
        trace(model_with(wrong_tie))


@pytest.mark.parametrize(
    "shape", [(-1,), (16,), (2, 2, 4), (4, 4), (-1, 4), (1, 4, 4)]
)
def test_reshape_of_a_feature_map(shape):
    model = sequential(
        (2, 2, 3),
        layers.Conv2D(4, 2, padding="same", name="conv"),
        layers.Reshape(shape, name="reshape"),
        layers.Dense(2, name="head"),
    )
    assert groups(model)["conv"] == (4, None)
    check_half(model)


def test_reshape_of_unknown_size():
    model = sequential(
        (None, None, 3),
        layers.Conv2D(4, 1, name="conv"),
        layers.Reshape((-1, 4)),
        layers.Dense(2, name="head"),
    )
    graph = trace(model)
    assert graph.sizes(0.5) == (2, 2)
    small = resize(graph, (2, 2))
    assert small(np.ones((1, 3, 2, 3), "float32")).shape == (1, 6, 2)


def test_reshape_of_a_vector_makes_positions():
    model = sequential(
        (3,),
        layers.Dense(12, name="dense"),
        layers.Reshape((2, 2, 3), name="reshape"),
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {"dense": (3, None), "head": (2, OUTPUT)}
    graph = trace(model)
    assert graph.layouts[0].axes[1].pieces[0].blocks == 4
    small = resize(graph, (2, 2))
    assert small.get_layer("dense").units == 8
    assert small.get_layer("reshape").target_shape == (2, 2, 2)


def test_reshape_of_channels_into_positions_and_channels():
    """Each position keeps equally many: the channels are tied."""
    model = sequential(
        (2, 2, 3),
        layers.Conv2D(4, 1, name="conv"),
        layers.Reshape((8, 2), name="reshape"),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {"conv": (2, None), "head": (2, OUTPUT)}
    _, small = check_half(model)
    assert small.get_layer("conv").filters == 2
    assert small.get_layer("reshape").target_shape == (8, 1)


def test_reshape_across_channels_keeps_what_repeats():
    """Of 6 channels at 4 positions, rows of 8: every second is alike."""
    model = sequential(
        (2, 2, 3),
        layers.Conv2D(6, 1, name="conv"),
        layers.Reshape((3, 8), name="reshape"),
        layers.Dense(2, name="head"),
    )
    assert groups(model)["conv"] == (2, None)
    _, small = check_half(model)
    assert small.get_layer("conv").filters == 3
    assert small.get_layer("reshape").target_shape == (3, 4)


def test_repeat_vector():
    model = sequential(
        (3,),
        layers.Dense(4, name="dense"),
        layers.RepeatVector(5),
        layers.Conv1D(2, 3, name="head"),
    )
    assert groups(model) == {"dense": (4, None), "head": (2, OUTPUT)}
    check_half(model)


def test_permute_moves_channels():
    # To the front, and back again.
    model = sequential(
        (3, 3, 2),
        layers.Conv2D(4, 1, name="conv"),
        layers.Permute((3, 1, 2)),
        layers.Permute((2, 3, 1)),
        layers.Conv2D(2, 1, name="head"),
    )
    assert groups(model) == {"conv": (4, None), "head": (2, OUTPUT)}
    check_half(model)
    # A layer that takes them for positions freezes them.
    model = sequential(
        (3, 3, 2),
        layers.Conv2D(4, 1, name="conv"),
        layers.Permute((3, 1, 2)),
        layers.Conv2D(2, 1, name="over"),
    )
    assert "'over' treats them as positions" in groups(model)["conv"][1]


def test_permute_then_flatten():
    model = sequential(
        (2, 2, 2),
        layers.Conv2D(4, 1, name="conv"),
        layers.Permute((3, 1, 2)),
        layers.Flatten(),
        layers.Dense(2, name="head"),
    )
    graph, _ = check_half(model)
    kept = graph.layouts[2].axes[0].keep((1, 2)).tolist()
    assert kept == [0, 1, 2, 3]


def test_flatten_of_unknown_size_freezes():
    inputs = keras.Input((None, 3))
    x = layers.Conv1D(4, 1, name="conv")(inputs)
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(6, 1, name="free")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    result = groups(model)
    assert result["conv"] == (4, None)
    assert result["free"] == (6, None)


def test_rescaling():
    model = sequential(
        (2, 2, 3),
        layers.Rescaling([1.0, 2.0, 3.0]),
        layers.Conv2D(4, 1, name="conv"),
        layers.Rescaling(2.0, offset=1.0),
        layers.Conv2D(6, 1, name="two"),
        layers.Rescaling(np.ones(6), name="each"),
        layers.Conv2D(2, 1),
    )
    result = groups(model)
    assert result["conv"] == (4, None)
    assert "'each' has a fixed value per channel" in result["two"][1]


def test_quantized_and_lora_kernels_are_frozen():
    model = sequential((3,), layers.Dense(4, name="lora"), layers.Dense(2))
    model.get_layer("lora").enable_lora(1)
    assert "LoRA or quantized" in groups(model)["lora"][1]


def test_summary():
    model = sequential(
        (3,),
        layers.Dense(8, name="free"),
        Unknown(name="norm"),
        layers.Dense(4, name="other"),
        layers.Dense(2, name="head"),
    )
    model.name = "example"
    lines = []
    trace(model).summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert len(text.splitlines()) == 1 + 1 + 3 + 1 + 1
    assert "`keras_neumeta.register_rule`" in text.splitlines()[-1]
    rows = {line.split()[0]: line for line in text.splitlines()[1:5]}
    assert set(rows) == {"group", "free", "other", "head"}
    assert rows["other"].split() == ["other", "4", "yes", "other,", "head"]
    assert "no: layer 'norm' (Unknown) has no rule" in text
    assert "no: output of the model" in text
    assert text.splitlines()[0] == "Channel graph of 'example'"
    assert text.splitlines()[-2].startswith("1 of 3 groups are morphable; ")
    # `other` and the kernel of `head`: 36 + 8 of 78 parameters.
    assert "44 of 78 parameters (56.4 %)" in text


def test_layers_choose_what_may_change():
    model = sequential(
        (3,),
        layers.Dense(4, name="stage1_a"),
        layers.Dense(4, name="stage1_b"),
        layers.Dense(4, name="stage2_a"),
        layers.Dense(2, name="head"),
    )
    graph = trace(model, layers="stage1*")
    assert graph.sizes(0.5) == (2, 2, 4, 2)
    assert graph.groups[2].frozen == "not among `layers`"
    assert graph.groups[3].frozen == OUTPUT
    chosen = [model.get_layer("stage1_a"), "stage2_a"]
    assert trace(model, layers=chosen).sizes(0.5) == (2, 4, 2, 2)
    with pytest.raises(ValueError, match="called 'none'.*'stage1_a'"):
        trace(model, layers="none")
    with pytest.raises(TypeError, match="`layers` must hold names"):
        trace(model, layers=[3])
