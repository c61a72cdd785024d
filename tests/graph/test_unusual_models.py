"""Models that a rule of thumb would get wrong."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm

from .equivalence import assert_same, outputs
from .strategies import batch, randomize


def group(model, name):
    groups = {group.name: group for group in nm.trace(model).groups}
    return groups[name]


def check(model, ratio=0.5):
    """Smoothing keeps the function; a smaller network comes out."""
    randomize(model, 0)
    x = batch(model)
    assert_same(outputs(model, x), outputs(nm.smooth(model), x))
    return nm.cut(model, ratio)


class Standardized(layers.Conv2D):
    """Changes what a convolution computes by Keras' own hook."""

    def convolution_op(self, inputs, kernel):
        mean = ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel - mean)


def test_subclass_with_another_computation_has_no_rule():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="before")(inputs)
    x = Standardized(4, 3, name="own")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert "'own' (Standardized) has no rule" in group(model, "before").frozen


class Doubled(keras.Model):
    """A functional model that computes more than its graph."""

    def __init__(self, **kwargs):
        inputs = keras.Input((6,))
        hidden = layers.Dense(8, name="inner")(inputs)
        super().__init__(inputs, layers.Dense(2)(hidden), **kwargs)

    def call(self, x, training=None, mask=None):
        return 2.0 * super().call(x, training=training)

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def test_functional_model_with_its_own_call():
    with pytest.raises(ValueError, match="has a `call` of its own"):
        nm.trace(Doubled())
    inputs = keras.Input((5,))
    x = layers.Dense(6, name="before")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(Doubled(name="own")(x)))
    assert "'own' (Doubled) has no rule" in group(model, "before").frozen


def test_nested_model_of_a_list_called_with_a_dict():
    b, a = keras.Input((6,), name="b"), keras.Input((6,), name="a")
    x = layers.Concatenate()([layers.Dense(7)(b), layers.Dense(5)(a)])
    nested = keras.Model([b, a], layers.Dense(4)(x))
    inputs = keras.Input((6,))
    x = nested(
        {
            "a": layers.Dense(6, name="to_a")(inputs),
            "b": layers.Dense(6, name="to_b")(inputs),
        }
    )
    model = keras.Model(inputs, layers.Dense(2)(x))
    small = check(model)
    assert small.get_layer("to_a").units == small.get_layer("to_b").units == 3
    assert group(model, "to_a").layers != group(model, "to_b").layers


@pytest.mark.tensorflow
@pytest.mark.torch  # On JAX, Keras' clip takes no lists.
def test_values_per_channel_in_lists_freeze():
    inputs = keras.Input((6,))
    x = layers.Dense(4, name="hidden")(inputs)
    x = ops.clip(x, [0.0, 0.1, 0.2, 0.3], [1.0] * 4)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert "a fixed value per channel" in group(model, "hidden").frozen
    check(model)


def test_squeeze_of_what_becomes_one_channel():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = ops.squeeze(layers.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert check(model, 0.25).get_layer("conv").filters == 1


def test_layer_by_itself_and_in_a_wrapper():
    dense = layers.Dense(5, name="both")
    a, b = keras.Input((4,)), keras.Input((3, 4))
    x = layers.Flatten()(layers.TimeDistributed(dense)(b))
    x = layers.Concatenate()([dense(a), x])
    model = keras.Model([a, b], layers.Dense(2)(x))
    with pytest.raises(ValueError, match="a layer of its own"):
        nm.trace(model)


def test_names_with_the_signs_of_patterns():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, name="a[1]"),
            layers.Dense(8, name="b*"),
            layers.Dense(10, name="b2"),
            layers.Dense(2),
        ]
    )
    graph = nm.trace(model)
    assert graph.sizes({"a[1]": 0.5, "b*": 0.25}) == (3, 2, 10, 2)
    for chosen in ("a[1]", ["a[1]"], model.layers[0]):
        names = [g.name for g in nm.trace(model, chosen).morphable_groups]
        assert names == ["a[1]"]


class Uncopied(layers.Layer):
    def __init__(self, size):
        super().__init__(name="uncopied")
        self.size = size

    def get_config(self):
        return {"name": self.name}

    def call(self, x):
        return x * self.size


def test_layer_that_cannot_be_copied():
    model = keras.Sequential(
        [keras.Input((4,)), Uncopied(2), layers.Dense(6), layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="'uncopied' .*cannot be copied"):
        nm.ManifoldHyperModel(model)


def test_divisor_counts_filters_not_groups_of_them():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(32, 3, name="conv")(inputs)
    x = layers.GroupNormalization(4)(x)
    x = layers.Dense(6, name="narrow")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    graph = nm.trace(model)
    assert group(model, "conv").repeats == 4
    assert "8 x 4" in str(graph)
    small = nm.cut(model, nm.largest_channels(model, 0.6, divisor=8))
    assert small.get_layer("conv").filters == 16
    assert small.get_layer("narrow").units == 4


def test_what_the_hypermodel_ignores_is_said():
    def build(kind=keras.Model, **arguments):
        inputs = keras.Input((4,))
        x = layers.Dense(6, name="hidden", **arguments)(inputs)
        return kind(inputs, layers.Dense(2)(x))

    with pytest.warns(UserWarning, match=r"constraints of \['hidden'\]"):
        nm.ManifoldHyperModel(build(kernel_constraint="non_neg"))

    class Own(keras.Model):
        def train_step(self, *args):
            raise NotImplementedError

    with pytest.warns(UserWarning, match="`Own` has a training step"):
        nm.ManifoldHyperModel(build(Own))


def test_all_sizes_of_a_step_see_the_same_random_numbers():
    inputs = keras.Input((4,))
    x = layers.GaussianNoise(1.0, seed=3)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x)))
    # Two ratios that are the full size: teacher and student are the same.
    sampler = nm.Sandwich(0.99, num_fixed=2, num_random=0)
    hyper = nm.ManifoldHyperModel(
        model, sampler=sampler, distillation_loss="mse"
    )
    hyper.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.ones((8, 4), "float32")
    y = np.zeros((8, 2), "float32")
    first, second = (
        hyper.fit(x, y, verbose=0).history["task_loss"][0] for _ in range(2)
    )
    logs = hyper.train_on_batch(x, y, return_dict=True)
    assert float(logs["distillation_loss"]) < 1e-10
    assert first != second  # Yet every step draws anew.


def test_activation_with_weights():
    """Keras makes its weights only when the layer runs."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation=layers.PReLU(), name="hidden"),
            layers.Dense(2),
        ],
        name="example",
    )
    message = r"'hidden' of 'example' has an activation with weights \(PReLU\)"
    with pytest.raises(ValueError, match=message):
        nm.trace(model)
    model(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=message):
        nm.trace(model)


def test_activation_that_is_a_layer_without_weights():
    leaky = layers.Dense(4, activation=layers.LeakyReLU(0.3), name="hidden")
    model = keras.Sequential([keras.Input((3,)), leaky, layers.Dense(2)])
    assert nm.trace(model).full_sizes == (4, 2)
