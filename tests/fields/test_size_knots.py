"""Linear interpolation over the kept width of each array."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import trace
from keras_neumeta.fields.size_knots import SizeKnots

RATIOS = (0.25, 0.5, 1.0)


@pytest.fixture
def knots():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(8, name="first"),
            layers.Dense(16, name="second"),
            layers.Dense(2, name="classes"),
        ]
    )
    graph = trace(model)
    wanted = ("first/bias", "second/kernel", "classes/bias")
    return SizeKnots(
        graph, [x for x in graph.layouts if x.path.endswith(wanted)], RATIOS
    )


def weights(knots, sizes):
    return ops.convert_to_numpy(knots.weights(sizes))


@pytest.mark.parametrize("number, ratio", list(enumerate(RATIOS)))
def test_at_a_ratio_only_it_counts(knots, number, ratio):
    sizes = (int(8 * ratio), int(16 * ratio), 2)
    expected = np.tile(np.eye(3)[number], (3, 1))
    np.testing.assert_allclose(weights(knots, sizes), expected, atol=1e-6)


def test_between_ratios(knots):
    # Kept: 6 of 8; 6 of 8 and 4 of 16; both groups for the fixed channels.
    expected = [[0, 0.5, 0.5], [0, 1, 0], [0, 1, 0]]
    np.testing.assert_allclose(weights(knots, (6, 4, 2)), expected, atol=1e-6)


def test_beyond_the_ratios_the_ends_go_on(knots):
    first, last = np.eye(3)[[0, 2]]
    np.testing.assert_allclose(weights(knots, (1, 1, 2)), [first] * 3)
    np.testing.assert_allclose(weights(knots, (16, 32, 2)), [last] * 3)


def test_sizes_of_a_compiled_step(knots):
    for sizes in [(6, 4, 2), (1, 16, 2), (3, 7, 2)]:
        tensor = ops.convert_to_tensor(np.array(sizes, "int32"))
        dynamic = weights(knots, tensor)
        np.testing.assert_allclose(dynamic, weights(knots, sizes), atol=1e-6)
        np.testing.assert_allclose(dynamic.sum(axis=1), 1.0, rtol=1e-6)


def test_moves(knots):
    """Of one size by 1; at a fixed ratio all up to the next one go along."""
    for sizes in [(6, 4, 2), (4, 8, 2), (3, 7, 2)]:
        tensor = ops.convert_to_tensor(np.array(sizes, "int32"))
        read = weights(knots, sizes)
        for given, fixed in [(sizes, ()), (sizes, (0.25, 1.0)), (tensor, (1,))]:
            moves = ops.convert_to_numpy(knots.moves(given, fixed))
            np.testing.assert_allclose((moves * read).sum(axis=1), 1, rtol=1e-5)
            if not len(fixed) or given is tensor:
                assert ((moves > 0) == (read > 0)).all()
    moves = ops.convert_to_numpy(knots.moves((8, 16, 2), (0.25, 1.0)))
    np.testing.assert_allclose(moves, [[0, 1 / 3, 1]] * 3, atol=1e-6)
    # Above the largest fixed ratio as well as there.
    moves = ops.convert_to_numpy(knots.moves((4, 8, 2), (0.5,)))
    np.testing.assert_allclose(moves, [[1, 1, 1]] * 3, atol=1e-6)
