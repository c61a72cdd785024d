"""Messages of errors: the argument, what was expected, what came."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_neumeta
from keras_neumeta import AnchoredField, ManifoldHyperModel, trace
from keras_neumeta.graph.rules import registry as rules


def network():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name="hidden"), layers.Dense(2)],
        name="example",
    )


@pytest.fixture(scope="module")
def hyper():
    return ManifoldHyperModel(network())


class Subclassed(keras.Model):
    def call(self, x):
        return x


RANGE = r"`ratio` \(the kept width\) must be in \(0, 1\].*Received: ratio="
NUMBER = r"`ratio` \(the kept width\) must be a number.*Received: ratio="


@pytest.mark.parametrize(
    ("ratio", "error", "message"),
    [
        (0, ValueError, RANGE + "0.0"),
        (-0.5, ValueError, RANGE + "-0.5"),
        (1.01, ValueError, RANGE + "1.01"),
        (25, ValueError, RANGE + "25.0"),
        (float("nan"), ValueError, RANGE + "nan"),
        (float("inf"), ValueError, RANGE + "inf"),
        ("0.5", TypeError, NUMBER + "'0.5' of type str"),
        (True, TypeError, NUMBER + "True of type bool"),
        (b"0.5", TypeError, NUMBER + "b'0.5' of type bytes"),
    ],
    ids=str,
)
def test_ratio(hyper, ratio, error, message):
    with pytest.raises(error, match=message):
        hyper.morph(ratio=ratio)
    with pytest.raises(error, match=message):
        hyper.graph.sizes(ratio)


def test_numpy_numbers_are_numbers(hyper):
    for ratio in (np.float32(0.5), np.float64(0.5)):
        assert hyper.graph.sizes(ratio) == (2, 2)
    assert hyper.graph.sizes(np.int64(1)) == (4, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 0}, ValueError, "`samples` must be at least 1.*samples=0"),
        ({"samples": 2.0}, TypeError, "`samples` must be an integer.*2.0"),
        ({"samples": True}, TypeError, "`samples` must be an integer.*True"),
        ({"divisor": 0}, ValueError, "`divisor` must be at least 1.*divisor=0"),
        ({"divisor": 1.5}, TypeError, "`divisor` must be an integer.*1.5"),
        ({"divisor": True}, TypeError, "`divisor` must be an integer.*True"),
    ],
    ids=str,
)
def test_arguments_of_morph(hyper, arguments, error, message):
    with pytest.raises(error, match=message):
        hyper.morph(ratio=0.5, **arguments)


def test_calibration_without_data():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dense(2),
        ]
    )
    hyper = ManifoldHyperModel(model)
    message = "`calibration_data` must hold at least one batch.*Received none"
    with pytest.raises(ValueError, match=message):
        hyper.morph(ratio=0.5, calibration_data=[])


USERS = [
    trace,
    keras_neumeta.smooth,
    keras_neumeta.total_variation,
    keras_neumeta.fold_batch_norm,
    ManifoldHyperModel,
]


@pytest.mark.parametrize("use", USERS, ids=lambda f: f.__name__)
def test_models_that_cannot_be_traced(use):
    message = "`model` must be a Sequential or functional model.*subclassed"
    with pytest.raises(ValueError, match=message):
        use(Subclassed())
    message = "`model` must be built.*'unbuilt'.*keras.Input"
    unbuilt = keras.Sequential([layers.Dense(2)], name="unbuilt")
    with pytest.raises(ValueError, match=message):
        use(unbuilt)
    message = "`model` must be a Sequential or functional `keras.Model`.*list"
    with pytest.raises(TypeError, match=message):
        use([1, 2])


@pytest.mark.parametrize(
    "layers, error, message",
    [
        (
            5,
            TypeError,
            "`layers` must be a list of names, patterns or layers.*5",
        ),
        ([5], TypeError, "`layers` must hold names, patterns or layers.*5"),
        (["hiden"], ValueError, "no layer of 'example'.*'hiden'.*hidden"),
    ],
)
@pytest.mark.parametrize("use", [trace, ManifoldHyperModel])
def test_layers_that_may_change(use, layers, error, message):
    with pytest.raises(error, match=message):
        use(network(), layers=layers)


def test_nothing_to_morph():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, name="only")], name="example"
    )
    message = "(?s)no layer of 'example' can change.*only: output of the model"
    with pytest.raises(ValueError, match=message):
        ManifoldHyperModel(model)
    empty = keras.Sequential([keras.Input((3,)), layers.ReLU()])
    with pytest.raises(ValueError, match="no channels found"):
        ManifoldHyperModel(empty)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    model = network()
    model.get_layer("hidden").bias.assign([0.0, value, 0.0, 0.0])
    message = "variable '.*hidden/bias' of 'example' holds NaN or infinite"
    with pytest.raises(ValueError, match=message):
        ManifoldHyperModel(model)


def test_nothing_to_train():
    model = network()
    model.trainable = False
    message = "'example' has no trainable variables. Set `model.trainable"
    with pytest.raises(ValueError, match=message):
        ManifoldHyperModel(model)


def test_field_of_another_model():
    field = AnchoredField()
    ManifoldHyperModel(network(), field=field)
    message = "already attached to model 'example'.*create a new one"
    with pytest.raises(ValueError, match=message):
        ManifoldHyperModel(network(), field=field)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("field", "unknown"),
        ("field", 3),
        ("field", AnchoredField),
        ("sampler", "unknown"),
        ("sampler", 0.5),
        ("sampler", ["sandwich"]),
    ],
    ids=str,
)
def test_unknown_names(argument, value):
    known = {"field": "'anchored'", "sampler": "'sandwich'"}[argument]
    message = f"`{argument}` must be a.*or one of .*{known}.*Received: "
    with pytest.raises(ValueError, match=message):
        ManifoldHyperModel(network(), **{argument: value})


@pytest.mark.parametrize(
    "argument",
    ["distillation", "ratio_power", "reconstruction", "weight_norm", "noise"],
)
def test_numbers_of_the_loss(argument):
    limit = "1" if argument == "distillation" else "inf"
    for value in (-0.1, float("nan")):
        message = rf"`{argument}` must be in \[0, {limit}\].*{argument}={value}"
        with pytest.raises(ValueError, match=message):
            ManifoldHyperModel(network(), **{argument: value})
    for value in ("1", None, True):
        message = f"`{argument}` must be a number.*{argument}={value!r}"
        with pytest.raises(TypeError, match=message):
            ManifoldHyperModel(network(), **{argument: value})


def test_distillation_above_one():
    message = r"`distillation` must be in \[0, 1\].*distillation=1.5"
    with pytest.raises(ValueError, match=message):
        ManifoldHyperModel(network(), distillation=1.5)


def test_resize_argument_missing_in_a_rule(monkeypatch):
    """A rule that forgets `call.resize` is told of it."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))

    class Doubling(layers.Dense):
        pass

    @keras_neumeta.register_rule(Doubling)
    def rule(call):
        (x,) = call.inputs
        units = call.new_channels(call.layer.units)
        call.weight(call.layer.kernel, {0: x.channels(), 1: units}, (0,))
        call.weight(call.layer.bias, {0: units})
        return call.output({-1: units})

    model = keras.Sequential([keras.Input((3,)), Doubling(4), layers.Dense(2)])
    with pytest.raises(
        ValueError, match=r"Does a layer rule name the .*`call.resize`"
    ):
        ManifoldHyperModel(model)
