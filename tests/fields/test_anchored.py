"""`AnchoredField`: control points."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import AnchoredField, WeightField, trace

from ..graph.equivalence import crop


@pytest.fixture(scope="module")
def graph():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(6, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(4, 3, padding="same", name="branch")(x)
    x = layers.Concatenate()([x, y])
    x = layers.Dense(5, name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    return trace(model)


def values(graph):
    return [
        ops.convert_to_numpy(v)
        for v, layout in zip(graph.model.variables, graph.layouts, strict=True)
        if layout.role == "weight"
    ]


def attached(graph, **arguments):
    field = AnchoredField(**arguments)
    field.attach(graph, values(graph))
    return field


def arrays(tensors):
    return [ops.convert_to_numpy(x) for x in tensors]


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("stretch", [0.0, 1.0])
def test_full_size_is_the_target(graph, interpolation, stretch):
    field = attached(graph, interpolation=interpolation, stretch=stretch)
    static = arrays(field.generate(graph.full_sizes))
    tensor = ops.convert_to_tensor(graph.full_sizes, "int32")
    dynamic = arrays(field.generate(tensor))
    for a, b, c in zip(values(graph), static, dynamic, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=1e-5)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("stretch", [0.0, 0.5, 1.0])
def test_tensor_sizes_equal_static_sizes(graph, interpolation, stretch, noisy):
    field = attached(graph, interpolation=interpolation, stretch=stretch)
    random = np.random.default_rng(2)
    offsets = None
    if noisy:
        offsets = [
            ops.convert_to_tensor(random.uniform(-0.5, 0.5, n), "float32")
            for n in graph.full_sizes
        ]
    for _ in range(2):
        sizes = tuple(
            int(random.integers(1, g.num_channels + 1))
            if g.morphable
            else g.num_channels
            for g in graph.groups
        )
        static = arrays(field.generate(sizes, offsets))
        tensor = ops.convert_to_tensor(sizes, "int32")
        dynamic = arrays(field.generate(tensor, offsets))
        for a, b, layout in zip(static, dynamic, field.layouts, strict=True):
            assert a.shape == layout.shape_at(sizes)
            assert b.shape == layout.shape
            np.testing.assert_allclose(
                a, crop(layout, b, sizes), rtol=1e-4, atol=1e-4
            )
            rest = b.copy()
            index = tuple(
                layout.axes[n].keep(sizes)
                if n in layout.axes
                else np.arange(size)
                for n, size in enumerate(layout.shape)
            )
            rest[np.ix_(*index)] = 0
            assert (rest == 0).all()


def test_half_size_by_hand():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4), layers.Dense(1)]
    )
    kernel = np.array([[0.0, 2.0, 4.0, 8.0], [1.0, 1.0, 0.0, 2.0]])
    bias = np.array([1.0, 3.0, 5.0, 5.0])
    last = np.array([[1.0], [3.0], [2.0], [2.0]])
    model.set_weights([kernel, bias, last, np.array([7.0])])
    graph = trace(model)

    def half(**arguments):
        field = AnchoredField(**arguments)
        field.attach(graph, values(graph))
        return arrays(field.generate((2, 1)))

    weights = half()
    np.testing.assert_allclose(weights[0], kernel[:, :2], atol=1e-6)
    np.testing.assert_allclose(weights[1], bias[:2], atol=1e-6)
    # Sums over half as many channels count twice.
    np.testing.assert_allclose(weights[2], 2 * last[:2], atol=1e-6)
    np.testing.assert_allclose(weights[3], [7], atol=1e-6)

    weights = half(stretch=1.0)
    np.testing.assert_allclose(weights[0], [[1, 6], [1, 1]], atol=1e-5)
    np.testing.assert_allclose(weights[1], [2, 5], atol=1e-5)
    np.testing.assert_allclose(weights[2], [[4], [4]], atol=1e-5)
    np.testing.assert_allclose(weights[3], [7], atol=1e-5)

    weights = half(scale=0.0)
    np.testing.assert_allclose(weights[2], last[:2], atol=1e-6)


def test_noise_moves_values_no_further_than_neighbours(graph):
    field = attached(graph)
    sizes = graph.sizes(0.5)
    random = np.random.default_rng(0)
    offsets = [
        ops.convert_to_tensor(random.uniform(-0.5, 0.5, n), "float32")
        for n in graph.full_sizes
    ]
    still = arrays(field.generate(sizes))
    moved = arrays(field.generate(sizes, offsets))
    scale = max(n / m for n, m in zip(graph.full_sizes, sizes, strict=True))
    changed = 0
    for a, b, points in zip(still, moved, values(graph), strict=True):
        # Values stay between the points, but for the scale of sums.
        limit = scale * np.abs(points).max()
        assert np.abs(b).max() <= limit + 1e-5
        changed += int((a != b).any())
    assert changed == len(still) - 1  # all but the bias of the head


def test_second_attach_raises(graph):
    field = attached(graph)
    with pytest.raises(ValueError, match="already attached to model"):
        field.attach(graph, values(graph))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interpolation": "sinc"}, "`interpolation` must be one of"),
        ({"stretch": 1.5}, "`stretch` must be in"),
        ({"stretch": float("nan")}, "`stretch` must be in"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnchoredField(**arguments)


def test_weight_field_must_generate(graph):
    with pytest.raises(NotImplementedError, match="must implement"):
        WeightField().generate((1,))


def test_only_trainable_variables_of_the_target_train():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(4, trainable=False),
            layers.Dense(1),
        ]
    )
    field = attached(trace(model))
    assert [v.trainable for v in field.control_points] == [
        False,
        False,
        True,
        True,
    ]
