"""Checks that the sizes of a network agree, for named and random ones."""

import re

import keras
import numpy as np
from keras import ops

from keras_neumeta import (
    AnchoredField,
    ManifoldHyperModel,
    cut,
    fold_batch_norm,
    smooth,
    total_variation,
    trace,
)
from keras_neumeta.graph import resize, with_inputs
from keras_neumeta.input_moments import InputMoments
from keras_neumeta.network import Network, Networks
from keras_neumeta.reduction import reduce_channels
from keras_neumeta.statistics import StatisticsField

from .strategies import batch, randomize


def compiled(function):
    """On JAX one compilation is cheaper than one per operation."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def outputs(model, x):
    return compiled(lambda x: model(x, training=False))(x)


def by_role(model, graph):
    values = {"weight": [], "statistic": [], "state": []}
    for variable, layout in zip(model.variables, graph.layouts, strict=True):
        values[layout.role].append(np.array(ops.convert_to_numpy(variable)))
    return values


def fields(model, graph, **config):
    """A weight field and a statistics field with nothing left at zero."""
    values = by_role(model, graph)
    field = AnchoredField(**config)
    field.attach(graph, values["weight"])
    random = np.random.default_rng(0)
    for level in field.size_levels:
        for _, points in level.values():
            value = ops.convert_to_numpy(points)
            points.assign(value * random.uniform(0.8, 1.2, value.shape))
    statistics = StatisticsField(stretch=field.stretch)
    statistics.attach(graph, values["statistic"], values["weight"])
    for knots in statistics.knots:
        value = ops.convert_to_numpy(knots)
        knots.assign(value * random.uniform(0.8, 1.2, value.shape))
    return field, statistics, values["state"]


def assert_same(first, second, tolerance=1e-4, rounding=0.0):
    """Equal outputs, relative to the largest value of each.

    `rounding` is allowed beside it, whatever the values.
    """
    first, second = keras.tree.flatten(first), keras.tree.flatten(second)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        assert np.isfinite(a).all()
        limit = tolerance * max(1.0, np.abs(a).max()) + rounding
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


def run(network, values, states, x, training, sizes=None):
    """Outputs and new statistics of a network with weights from outside."""

    def call(weights, x):
        outputs, statistics, _, _ = network(
            *weights, states, x, training, sizes
        )
        return outputs, statistics

    return compiled(call)(values, x)


def modes(graph):
    """Inference and training; one is enough on JAX, which compiles each,
    where no statistics tell them apart."""
    if keras.backend.backend() == "jax" and not by_layout(graph)["statistic"]:
        return (True,)
    return (False, True)


def masked_network(graph, limit=None):
    """The network that computes random sizes, of at most a limit."""
    networks = Networks(graph)
    if limit is not None:
        networks.prepare_within(limit)
    return networks.at(None, limit)


def check_masked_equals_small(model, graph, sizes, limit=None):
    """Zero weights outside, and presence, give what the small network does.

    The weights are laid out here, in NumPy, as the graph says.
    """
    masked = masked_network(graph, limit)
    small = Network(resize(graph, sizes), graph, sizes)
    outside, inside = laid_out(model, graph, sizes)
    x = keras.tree.map_structure(ops.convert_to_tensor, batch(model))
    tensor = ops.convert_to_tensor(sizes, "int32")
    statistics = by_layout(graph)["statistic"]
    for training in modes(graph):
        (big, new), (little, little_new) = (
            run(
                network,
                (values["weight"], values["statistic"]),
                values["state"],
                x,
                training,
                tensor,
            )
            for network, values in ((masked, outside), (small, inside))
        )
        assert_same(little, big)
        for layout, part, whole in zip(
            statistics, little_new, new, strict=True
        ):
            whole = crop(layout, ops.convert_to_numpy(whole), sizes)
            assert_same(part, whole)


def crop(layout, value, sizes):
    """The part of an array of full shape that `sizes` keeps."""
    for number, kept in layout.slices(sizes):
        value = np.take(value, kept, axis=number)
    return value


def laid_out(model, graph, sizes):
    """Values by role: in full shapes, zero outside of `sizes`; and cropped."""
    inside, outside = by_role(model, graph), by_role(model, graph)
    for role, layouts in by_layout(graph).items():
        for n, layout in enumerate(layouts):
            inside[role][n] = crop(layout, inside[role][n], sizes)
            for number, kept in layout.slices(sizes):
                shape = [1] * len(layout.shape)
                shape[number] = -1
                here = np.isin(np.arange(layout.shape[number]), kept)
                here = here.reshape(shape).astype("float32")
                outside[role][n] = outside[role][n] * here
    return outside, inside


def gradients(function, values):
    """Gradients of a scalar function of a list of tensors."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(jax.grad(function))(values)
    if keras.backend.backend() == "torch":
        import torch

        values = [value.detach().requires_grad_() for value in values]
        return torch.autograd.grad(
            function(values), values, allow_unused=True, materialize_grads=True
        )
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = function(values)
    return tape.gradient(
        loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def check_gradients(model, graph, sizes, limit=None):
    """Gradients of the masked network are finite and those of the small."""
    masked = masked_network(graph, limit)
    small = Network(resize(graph, sizes), graph, sizes)
    x = keras.tree.map_structure(ops.convert_to_tensor, batch(model))
    tensor = ops.convert_to_tensor(sizes, "int32")
    results = []
    for network, values in zip(
        (masked, small), laid_out(model, graph, sizes), strict=True
    ):

        def loss(weights, network=network, values=values):
            outputs, *_ = network(
                weights, values["statistic"], values["state"], x, True, tensor
            )
            return sum(
                ops.mean(ops.square(y)) for y in keras.tree.flatten(outputs)
            )

        weights = [ops.convert_to_tensor(v) for v in values["weight"]]
        results.append(gradients(loss, weights))
    results = [list(map(ops.convert_to_numpy, part)) for part in results]
    # A bias before a batch norm has no gradient but what rounding leaves of
    # the large ones around it.
    rounding = 1e-6 * max((np.abs(x).max() for x in results[1]), default=0.0)
    for layout, whole, part in zip(
        by_layout(graph)["weight"], *results, strict=True
    ):
        assert np.isfinite(whole).all(), layout.path
        whole = crop(layout, whole, sizes)
        assert_same(part, whole, tolerance=1e-3, rounding=rounding)


def by_layout(graph):
    roles = {"weight": [], "statistic": [], "state": []}
    for layout in graph.layouts:
        roles[layout.role].append(layout)
    return roles


def can_change(graph):
    """Whether there is a smaller size; hypermodels refuse other targets."""
    return graph.sizes(1e-9) != graph.full_sizes


def check_fields(model, graph, sizes, config, limit=None):
    """The same, with the weights that fields generate."""
    if not can_change(graph):
        return
    field, statistics, states = fields(model, graph, **config)
    masked = masked_network(graph, limit)
    small = Network(resize(graph, sizes), graph, sizes)
    x = keras.tree.map_structure(ops.convert_to_tensor, batch(model))
    tensor = ops.convert_to_tensor(sizes, "int32")
    whole, cropped = [
        (weights, statistics.generate(at, weights))
        for at in (tensor, sizes)
        for weights in [field.generate(at)]
    ]
    for weight, part, layout in zip(
        whole[0], cropped[0], field.layouts, strict=True
    ):
        assert tuple(weight.shape) == layout.shape
        assert tuple(part.shape) == layout.shape_at(sizes)
        assert_same(part, crop(layout, ops.convert_to_numpy(weight), sizes))
    for training in modes(graph):
        big, new = run(masked, whole, states, x, training, tensor)
        little, little_new = run(small, cropped, states, x, training)
        assert_same(little, big, tolerance=1e-3)
        for after, part, layout in zip(
            new, little_new, statistics.layouts, strict=True
        ):
            assert_same(part, crop(layout, ops.convert_to_numpy(after), sizes))


def check_morphed(model, graph, sizes):
    """The weights of a morphed network lie where the graph says.

    Without stretch a smaller size reads the leading channels, as they are.
    Variances of sums are those of fewer squared weights; all variances are
    kept as logarithms, so up to rounding. All blocks are kept.
    """
    graph, sizes = trace(model), sizes[: len(graph.groups)]
    if not can_change(graph):
        return
    variances = variances_of_sums(model, graph, sizes)
    hyper = ManifoldHyperModel(model, AnchoredField(scale=0.0), smooth=False)
    morphed = hyper.morph(sizes=sizes)
    kept = {
        group.name: range(sizes[group.index])
        for group in graph.morphable_groups
    }
    cut_model = cut(model, kept)
    for layout, whole, part, other in zip(
        graph.layouts,
        model.variables,
        morphed.variables,
        cut_model.variables,
        strict=True,
    ):
        expected = variances.get(id(layout))
        whole = crop(layout, ops.convert_to_numpy(whole), sizes)
        # Read at integer positions, up to rounding.
        np.testing.assert_allclose(
            ops.convert_to_numpy(part),
            whole if expected is None else expected,
            rtol=1e-5,
            atol=1e-6,
        )
        np.testing.assert_array_equal(ops.convert_to_numpy(other), whole)
    full = hyper.morph(1.0)
    for layout, one, other in zip(
        graph.layouts, model.variables, full.variables, strict=True
    ):
        rounded = layout.role == "statistic" and layout.minimum == 0.0
        np.testing.assert_allclose(
            ops.convert_to_numpy(one),
            ops.convert_to_numpy(other),
            rtol=1e-6 if rounded else 0.0,
            atol=1e-7 if rounded else 0.0,
        )


def variances_of_sums(model, graph, sizes):
    """Dict from the id of the layout of a variance to its value at `sizes`."""
    layouts, values = by_layout(graph), by_role(model, graph)
    found = {}
    for each in graph.normalized_sums:
        layout = layouts["weight"][each.kernel]
        kernel = values["weight"][each.kernel]
        axes = tuple(range(kernel.ndim - 1))
        full, small = (
            (weights**2).sum(axes) + each.epsilon
            for weights in (kernel, crop(layout, kernel, sizes))
        )
        layout = layouts["statistic"][each.variance]
        value = values["statistic"][each.variance] + each.epsilon
        value = crop(layout, value / full, sizes) * small - each.epsilon
        found[id(layout)] = np.maximum(value, 0.0)
    return found


def measured(graph, x):
    """`InputMoments` of one batch through the full size."""
    moments = InputMoments()
    moments.attach(graph, graph.full_sizes)
    if moments.layers:
        runner = with_inputs(graph.model, moments.layers)
        _, read = compiled(lambda x: runner(x, training=False))(x)
        moments.update(dict(zip(moments.layers, read, strict=True)))
    return moments


def check_reduced(model, graph, sizes):
    """Channels that nothing sums over go, and nothing else changes."""
    values = by_role(model, graph)
    for layout, value in zip(
        by_layout(graph)["weight"], values["weight"], strict=True
    ):
        for number in set(layout.summed) & set(layout.axes):
            axis = layout.axes[number]
            gone = axis.channels >= np.array(sizes)[axis.groups]
            value[(*[slice(None)] * number, gone)] = 0.0
    x = keras.tree.map_structure(ops.convert_to_tensor, batch(model))
    weights, statistics = reduce_channels(
        graph,
        measured(graph, x),
        graph.full_sizes,
        sizes,
        values["weight"],
        values["statistic"],
    )
    for role, results in ("weight", weights), ("statistic", statistics):
        for layout, value, result in zip(
            by_layout(graph)[role], values[role], results, strict=True
        ):
            expected = crop(layout, value, sizes)
            np.testing.assert_allclose(
                result, expected, rtol=1e-5, atol=1e-5, err_msg=layout.path
            )


def check_counts(graph, sizes):
    resized = resize(graph, sizes)
    own = trace(resized)
    assert graph.count_params(sizes) == resized.count_params()
    assert graph.count_macs(sizes) == own.count_macs()
    layouts = [graph.layouts[index] for index in graph.places(resized)]
    assert [x.shape_at(sizes) for x in layouts] == [
        tuple(v.shape) for v in resized.variables
    ]
    # Keras numbers variables without a name anew.
    assert [re.sub(r"_\d+", "", x.path) for x in layouts] == [
        re.sub(r"_\d+", "", x.path) for x in own.layouts
    ]


def check_smooth(model):
    smoothed = smooth(model)
    x = batch(model)
    assert_same(outputs(model, x), outputs(smoothed, x))
    before, after = total_variation(model), total_variation(smoothed)
    assert after <= before * (1 + 1e-6)


def check_fold(model):
    folded = fold_batch_norm(model)
    x = batch(model)
    assert_same(outputs(model, x), outputs(folded, x))


OUTPUT = "output of the model"


def sequential(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts])


def groups(model):
    """`{name: (channels, why frozen or None)}`, in order."""
    return {g.name: (g.num_channels, g.frozen) for g in trace(model).groups}


def check_half(model):
    """Builds the network of half the width and compares with the masked one.

    Returns:
        The channel graph and the small network.
    """
    randomize(model, 0)
    graph = trace(model)
    sizes = graph.sizes(0.5)
    check_masked_equals_small(model, graph, sizes)
    check_counts(graph, sizes)
    return graph, resize(graph, sizes)
