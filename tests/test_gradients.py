"""Gradients through generated networks against finite differences."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import (
    AnchoredField,
    Discrete,
    ManifoldHyperModel,
    Sandwich,
    Switches,
    Uniform,
)

LEARNING_RATE = 0.5


def network(units=3):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh"),
            layers.Dense(units, activation="tanh"),
            layers.Dense(1),
        ]
    )
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape) * 0.5)
    return model


def data():
    random = np.random.default_rng(1)
    return (
        random.normal(size=(8, 3)).astype("float32"),
        random.normal(size=(8, 1)).astype("float32"),
    )


def hypermodel(sampler):
    hyper = ManifoldHyperModel(
        network(),
        AnchoredField(size_knots=(0.4, 0.7)),
        sampler,
        distillation=0.0,
        ratio_power=0.0,
        smooth=False,
        seed=0,
    )
    random = np.random.default_rng(2)
    for variable in hyper.field.size_curves.trainable_variables:
        variable.assign(random.normal(size=variable.shape) * 0.3)
    hyper.compile(keras.optimizers.SGD(LEARNING_RATE), "mse")
    return hyper


def loss_of_morphs(hyper, ratios):
    """The task loss, from networks built outside of the training step."""
    x, y = data()
    losses = []
    for ratio in ratios:
        outputs = ops.convert_to_numpy(hyper.morph(ratio)(x))
        losses.append(np.square(outputs - y).mean(dtype="float64"))
    return np.sum(losses)


@pytest.mark.parametrize(
    ("make", "ratios"),
    [
        (lambda: Sandwich(0.5, 1.0, num_fixed=2, num_random=0), (1.0, 0.5)),
        # Computed by masks at full size, and within a limit.
        (lambda: Discrete([0.5]), (0.5,)),
        (lambda: Uniform(0.5, 0.5), (0.5,)),
    ],
    ids=["small", "masked", "within"],
)
def test_step_follows_finite_differences(make, ratios):
    hyper = hypermodel(make())
    variables = hyper.trainable_variables
    start = [ops.convert_to_numpy(v).copy() for v in variables]
    before = loss_of_morphs(hyper, ratios)
    logs = hyper.train_on_batch(*data(), return_dict=True)
    assert logs["loss"] == pytest.approx(before, rel=1e-4)
    gradients = [
        (value - ops.convert_to_numpy(v)) / LEARNING_RATE
        for value, v in zip(start, variables, strict=True)
    ]
    for value, v in zip(start, variables, strict=True):
        v.assign(value)
    random = np.random.default_rng(3)
    step = 1e-2
    for gradient, value, variable in zip(
        gradients, start, variables, strict=True
    ):
        # One direction per variable: all its entries at once.
        direction = random.choice([-1.0, 1.0], value.shape).astype("float32")
        variable.assign(value + step * direction)
        above = loss_of_morphs(hyper, ratios)
        variable.assign(value - step * direction)
        below = loss_of_morphs(hyper, ratios)
        variable.assign(value)
        expected = (above - below) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(
            expected, rel=0.02, abs=5e-4
        ), variable.path
    # The control points that the sizes read do have a gradient.
    points = len(hyper.field.control_points)
    assert all(np.abs(g).max() > 1e-4 for g in gradients[:points])


def moves_with_a_level(ratios, **arguments):
    """What a step at these sizes adds to a level at a half.

    And to the control points that it shares with larger sizes.
    """
    hyper = ManifoldHyperModel(
        network(units=4),  # Whose kept widths are the ratios exactly.
        AnchoredField(levels=(0.5,)),
        Switches(ratios),
        seed=0,
        **arguments,
    )
    hyper.compile(keras.optimizers.SGD(LEARNING_RATE), "mse")
    level = hyper.field.size_levels[0]
    corrections = [own for _, own in level.values()]
    shared = [hyper.field.control_points[index] for index in level]
    before = [
        [ops.convert_to_numpy(v) for v in kind]
        for kind in (corrections, shared)
    ]
    hyper.train_on_batch(*data())
    return [
        [ops.convert_to_numpy(v) - b for v, b in zip(kind, values, strict=True)]
        for kind, values in zip((corrections, shared), before, strict=True)
    ]


def test_a_level_learns_as_fast_whatever_small_sizes_count():
    moves = [
        moves_with_a_level((1.0, 0.5), ratio_power=power)[0]
        for power in (0.0, 1.0, 2.0)
    ]
    assert any(np.abs(move).max() > 1e-3 for move in moves[0])
    for other in moves[1:]:
        for move, same in zip(other, moves[0], strict=True):
            np.testing.assert_allclose(move, same, rtol=1e-4, atol=1e-6)


def test_a_level_leaves_the_shared_control_points_to_larger_sizes():
    moves = [
        moves_with_a_level(ratios, distillation=0.0)[1]
        for ratios in ((1.0, 0.75), (1.0, 0.75, 0.5))
    ]
    assert any(np.abs(move).max() > 1e-3 for move in moves[0])
    for alone, both in zip(*moves, strict=True):
        np.testing.assert_allclose(both, alone, rtol=1e-4, atol=1e-6)
