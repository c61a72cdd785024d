"""Networks smaller than those trained."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import (
    AnchoredField,
    Discrete,
    ImplicitField,
    Independent,
    IntegralField,
    ManifoldHyperModel,
    Sandwich,
    SlimmableField,
    Switches,
    Uniform,
    input_moments,
    trace,
)
from keras_neumeta.graph.sizes import is_one_ratio
from keras_neumeta.input_moments import InputMoments, count_moments
from keras_neumeta.reduction import (
    kept_channels,
    reduce_channels,
    replacement,
    source_of,
)

from .graph.equivalence import assert_same


def outputs(model, x):
    return model.predict(x, verbose=0)


def residual_network():
    """Channels that are added, normalized, flattened and concatenated."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(inputs)
    y = layers.Conv2D(12, 3, padding="same", use_bias=False, name="inner")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="norm")(y))
    y = layers.Conv2D(8, 1, name="outer")(y)
    x = layers.Add()([x, y])
    y = layers.Conv2D(4, 1, activation="relu", name="branch")(x)
    x = layers.Concatenate()([x, y])
    x = layers.BatchNormalization(name="last_norm")(x)
    x = layers.Dense(8, activation="relu", name="dense")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, use_bias=False, name="head")(x))


def with_copies(model):
    """Gives every second channel of each group the weights of the first."""
    random = np.random.default_rng(0)
    graph = trace(model)
    for variable, layout in zip(model.variables, graph.layouts, strict=True):
        value = random.uniform(0.5, 1.0, variable.shape)
        if layout.role == "weight":
            value = random.normal(size=variable.shape) / 3
        for number, axis in layout.axes.items():
            if number in layout.summed:
                continue
            first = [
                np.flatnonzero(
                    (axis.groups == group)
                    & (axis.blocks == block)
                    & (axis.channels == channel - channel % 2)
                )[0]
                for group, block, channel in zip(
                    axis.groups, axis.blocks, axis.channels, strict=True
                )
            ]
            value = np.take(value, first, axis=number)
        variable.assign(value.astype("float32"))
    return model


def trained_at_rest(model, **arguments):
    """A hypermodel that has seen data and learned nothing."""
    arguments = {
        "sampler": Sandwich(0.5, num_fixed=2, num_random=0),
        "field": AnchoredField(),
        "smooth": False,
        **arguments,
    }
    hyper = ManifoldHyperModel(model, **arguments)
    hyper.compile(keras.optimizers.SGD(0.0), "mse")
    random = np.random.default_rng(1)
    x = random.normal(size=(256, 6, 6, 2)).astype("float32")
    y = random.normal(size=(256, 3)).astype("float32")
    hyper.fit(x, y, batch_size=64, epochs=25, verbose=0)
    return hyper, x


def test_channels_that_repeat_others_go_without_a_trace():
    """Residual streams, batch norm, flattened and concatenated channels."""
    hyper, x = trained_at_rest(with_copies(residual_network()))
    half, quarter = hyper.morph(0.5), hyper.morph(0.25)
    assert quarter.count_params() < 0.5 * half.count_params()
    # Up to the ridge.
    assert_same(outputs(half, x), outputs(quarter, x), tolerance=5e-3)
    # In between, from the full size.
    full, between = hyper.morph(1.0), hyper.morph(0.75)
    assert between.count_params() < 0.8 * full.count_params()
    assert_same(outputs(full, x), outputs(between, x), tolerance=5e-3)


def test_survives_saving(tmp_path):
    hyper, x = trained_at_rest(residual_network())
    hyper.save(tmp_path / "hyper.keras")
    again = keras.saving.load_model(tmp_path / "hyper.keras")
    one, other = hyper.morph(0.25), again.morph(0.25)
    np.testing.assert_array_equal(outputs(one, x), outputs(other, x))


@pytest.mark.parametrize(
    "sampler, trained, others",
    [
        (Sandwich(0.5, num_fixed=2, bands=1), (1.0, 0.75, 0.5), (0.25,)),
        (
            Sandwich(0.25, num_fixed=3, bands=1, max_random=0.5),
            (1.0, 0.625, 0.5, 0.25),
            (0.75, 0.125),
        ),
    ],
)
def test_trained_sizes_are_the_fields_own(sampler, trained, others):
    """Fixed and random ones; all others are reduced."""
    hyper, _ = trained_at_rest(residual_network(), sampler=sampler)
    untrained = ManifoldHyperModel(
        hyper.graph.model, AnchoredField(), smooth=False
    )
    for ratio in (*trained, *others):
        same = [
            np.array_equal(*map(ops.convert_to_numpy, pair))
            for pair in zip(
                hyper.morph(ratio).trainable_variables,
                untrained.morph(ratio).trainable_variables,
                strict=True,
            )
        ]
        assert all(same) == (ratio in trained)


@pytest.mark.parametrize(
    "sampler, sources",
    [
        (Sandwich(0.25), (1.0, 0.25)),
        (Sandwich(0.25, num_fixed=2), (0.25,)),
        (Sandwich(0.25, max_random=1.0), (0.25,)),
        (Sandwich(0.25, max_random=0.5), (1.0, 0.75, 0.25)),
        (Sandwich(0.25, max_random=0.6), (1.0, 0.75, 0.25)),
        (Sandwich(0.25, max_random=0.75), (1.0, 0.25)),
        (Sandwich(0.25, num_random=0), (1.0, 0.75, 0.5, 0.25)),
        (Switches((1.0, 0.5)), (1.0, 0.5)),
        (Uniform(0.25), ()),
        (Discrete([0.25, 1.0]), ()),
        (Independent(0.25), (0.25,)),
    ],
)
def test_sources(sampler, sources):
    assert sampler.sources == sources


def sequence_network(*middle):
    inputs = keras.Input((6, 4))
    x = layers.Conv1D(8, 5, padding="same", name="first")(inputs)
    for layer in middle:
        x = layer(x)
    x = layers.Conv1D(8, 5, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@pytest.mark.parametrize(
    "make, is_linear",
    [
        (residual_network, True),
        (lambda: sequence_network(layers.ReLU()), True),
        (lambda: sequence_network(layers.DepthwiseConv1D(3)), True),
        (lambda: sequence_network(layers.LayerNormalization()), False),
        (lambda: sequence_network(layers.Softmax()), False),
        (lambda: sequence_network(layers.SeparableConv1D(8, 3)), False),
        (lambda: sequence_network(layers.GRU(8, return_sequences=True)), False),
        (lambda: sequence_network(sequence()), False),
    ],
)
def test_all_sizes_are_drawn_where_channels_have_no_stand_in(make, is_linear):
    model = make()
    assert trace(model).is_linear == is_linear
    hyper = ManifoldHyperModel(model)
    top = 0.75 if is_linear else 1.0
    assert hyper.sampler.random_range == (0.25, top)
    assert len(hyper.moments) == (4 if is_linear else 1)
    again = ManifoldHyperModel.from_config(hyper.get_config())
    assert again.sampler.random_range == hyper.sampler.random_range


def sequence():
    """A model that will be nested."""
    layer = layers.Conv1D(8, 1, name="inside")
    return keras.Sequential([keras.Input((6, 8)), layer])


def test_channels_that_stay_need_no_stand_in():
    model = sequence_network(layers.GRU(8, return_sequences=True))
    graph = trace(model, layers=["second"])
    assert graph.is_linear and graph.morphable_groups


@pytest.mark.parametrize(
    "field, noise, top",
    [
        (AnchoredField, 0.0, 0.75),
        (AnchoredField, 1.0, 1.0),
        (SlimmableField, 0.0, 0.75),
        (functools.partial(AnchoredField, stretch=0.5), 0.0, 1.0),
        (IntegralField, 0.0, 1.0),
        (ImplicitField, 0.0, 1.0),
    ],
)
def test_all_sizes_are_drawn_for_what_is_smooth_over_them(field, noise, top):
    hyper = ManifoldHyperModel(
        residual_network(), field(), noise=noise, imitate=False
    )
    assert hyper.sampler.random_range == (0.25, top)
    assert len(hyper.moments) == (4 if top < 1.0 else 1)


def test_all_sizes_are_drawn_where_moments_need_much_room():
    def wide(units):
        dense = [layers.Dense(n, activation="relu") for n in units]
        return keras.Sequential([keras.Input((4,)), *dense, layers.Dense(2)])

    for units in ((16, 64), (64, 16), (4, 64, 4)):
        hyper = ManifoldHyperModel(wide(units))
        assert hyper.sampler.random_range == (0.25, 1.0)
        assert len(hyper.moments) == 1
    model = wide((16, 64))
    assert trace(model).is_linear
    assert count_moments(trace(model)) == 16 + 16**2 + 64 + 64**2


def test_additive_attention_sums_over_channels():
    inputs = keras.Input((6, 4))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.AdditiveAttention()([x, x])
    x = layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x))
    assert not trace(keras.Model(inputs, x)).is_linear


def test_mixing_of_channels_that_stay_is_linear():
    model = sequence_network(layers.LayerNormalization())
    assert trace(model, layers=["second"]).is_linear


def test_sizes_near_a_trained_one_are_read_from_the_field():
    """Others follow from the next larger fixed one."""
    hyper, _ = trained_at_rest(residual_network(), sampler=Sandwich())
    fixed = [hyper.graph.sizes(ratio) for ratio in (1.0, 0.75, 0.5, 0.25)]
    assert [each.sizes for each in hyper.moments] == fixed
    names = [group.name for group in hyper.graph.morphable_groups]
    for name in names:
        near = dict.fromkeys(names, 0.25) | {name: 0.35}
        assert source_of(hyper, hyper.graph.sizes(near))[0] is None
        far = dict.fromkeys(names, 0.5) | {name: 0.25}
        found, start = source_of(hyper, hyper.graph.sizes(far))
        assert found is hyper.moments[2] and start == fixed[2]
        far = {name: 0.5}
        assert source_of(hyper, hyper.graph.sizes(far))[1] == fixed[0]


class FixedAndUniform(Uniform):
    """Some sizes in each step, and another at random."""

    def __init__(self, fixed=(1.0,), *arguments):
        self.fixed, self.num_sizes = fixed, len(fixed) + 1
        super().__init__(*arguments)

    @property
    def static_ratios(self):
        return self.fixed

    def sample(self):
        largest, *others = self.fixed
        return [largest, *super().sample(), *others]


@pytest.mark.parametrize(
    "sampler, measured, trained",
    [
        (((1.0,), 0.25, 1.0), 0, (0.75, 0.3)),
        (((1.0,), 0.25, 0.5), 1, (0.5, 0.4, 0.3)),
        (((1.0, 0.5), 0.25, 0.75), 2, (0.7, 0.6, 0.4, 0.3)),
    ],
)
def test_a_smallest_fixed_size_above_random_ones_hides_none(
    sampler, measured, trained
):
    hyper, _ = trained_at_rest(
        residual_network(), sampler=FixedAndUniform(*sampler)
    )
    assert len(hyper.moments) == measured
    for ratio in trained:
        sizes = hyper.graph.sizes(ratio)
        assert source_of(hyper, sizes) == (None, sizes)
    for ratio in (0.8, 0.1) if measured else ():
        found, _ = source_of(hyper, hyper.graph.sizes(ratio))
        assert found is not None


@pytest.mark.parametrize(
    "fixed, sources", [((1.0,), ()), ((0.2, 1.0), (0.2,)), ((0.5, 0.6), ())]
)
def test_sources_of_a_sampler_of_ones_own(fixed, sources):
    """In any order; random ratios from 0.2 on know all above that."""

    class Own(Uniform):
        static_ratios = fixed

    assert Own(0.2).sources == sources


def test_a_ratio_per_group():
    """Groups above the smallest size keep theirs, the others are reduced."""
    hyper, x = trained_at_rest(
        residual_network(), sampler=Sandwich(0.5, num_fixed=2, bands=1)
    )
    model = hyper.morph({"inner": 0.25, "dense": 0.75})
    kernels = {v.path: tuple(v.shape) for v in model.trainable_variables}
    assert kernels["inner/kernel"] == (3, 3, 8, 3)
    assert kernels["dense/kernel"][-1] == 6
    sizes = hyper.graph.sizes({"inner": 0.25, "dense": 0.75})
    found, start = source_of(hyper, sizes)
    assert found is hyper.moments[0] and start == hyper.graph.full_sizes
    # The head, which sums over those of "dense" that stay, makes up for others.
    read = ops.convert_to_numpy(hyper.field.generate(sizes)[-1])
    kernel = ops.convert_to_numpy(model.get_layer("head").kernel)
    assert np.abs(kernel - read).max() > 1e-3
    assert np.isfinite(outputs(model, x)).all()


def test_a_ratio_per_group_follows_from_the_next_larger_size():
    """Without a trace, where channels repeat others."""
    sampler = Sandwich(0.5, num_fixed=2, bands=1)
    model = with_copies(residual_network())
    hyper, x = trained_at_rest(model, sampler=sampler)
    full = outputs(hyper.morph(1.0), x)
    for ratio in ({"inner": 0.5}, {"stem": 0.75, "inner": 0.5, "dense": 0.75}):
        assert_same(full, outputs(hyper.morph(ratio), x), tolerance=5e-3)


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ((16, 10, 6), True),
        ((8, 5, 6), True),
        ((1, 1, 6), True),
        ((9, 5, 6), True),  # 0.54
        ((9, 6, 6), True),  # 0.56
        ((16, 9, 6), False),
        ((8, 7, 6), False),
        ((1, 3, 6), False),
        ((6, 4, 6), True),  # 0.375, halves round to even
    ],
)
def test_sizes_of_one_ratio(sizes, expected):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(16, name="one"),
            layers.Dense(10, name="two"),
            layers.Dense(6, name="head"),
        ]
    )
    assert is_one_ratio(trace(model), sizes) == expected


def test_groups_above_all_that_was_trained_keep_theirs():
    sampler = Sandwich(0.5, 0.75, num_fixed=2, bands=1)
    hyper, _ = trained_at_rest(residual_network(), sampler=sampler)
    moments = hyper.moments[-1]
    sizes = list(hyper.graph.full_sizes)
    sizes[1] = 2
    found, start = source_of(hyper, sizes)
    assert found is moments and start[1] == moments.sizes[1] > 2
    assert start[0] == sizes[0]


@pytest.fixture
def nothing_shrinks(monkeypatch):
    """Few samples are taken at their word."""
    monkeypatch.setattr(input_moments, "_shrunk", lambda products, _: products)


def test_moments_are_those_of_the_inputs(nothing_shrinks):
    """Means per place, products of channels over all places."""
    graph = trace(residual_network())
    moments = InputMoments()
    moments.attach(graph, graph.full_sizes)
    assert moments.of("inner") is None
    assert moments.layers == ["inner", "outer", "branch", "dense", "head"]
    assert not moments.measured
    random = np.random.default_rng(0)
    shapes = {
        "inner": (5, 4, 4, 8),
        "outer": (5, 4, 4, 12),
        "branch": (5, 4, 4, 8),
        "dense": (5, 192),
        "head": (5, 8),
    }
    inputs = {k: random.normal(1.0, 1.0, shape) for k, shape in shapes.items()}
    moments.update(
        {k: ops.convert_to_tensor(v, "float32") for k, v in inputs.items()}
    )
    assert moments.measured
    by_name = {group.name: group.index for group in graph.groups}
    flat = inputs["dense"].reshape(5 * 16, 12)
    for layer, group, x in (
        ("inner", "stem", inputs["inner"].reshape(-1, 8)),
        ("dense", "stem", flat[:, :8]),
        ("dense", "branch", flat[:, 8:]),
    ):
        mean, found = moments.of(layer)
        np.testing.assert_allclose(
            mean, inputs[layer].reshape(-1, len(mean)).mean(axis=0), atol=1e-5
        )
        raw, centred = found[by_name[group]]
        np.testing.assert_allclose(raw, x.T @ x / len(x), rtol=1e-4)
        if layer == "inner":
            expected = np.cov(x.T, bias=True)
        else:  # Every place has its own mean.
            x = x.reshape(5, 16, -1)
            x = (x - x.mean(axis=0)).reshape(80, -1)
            expected = x.T @ x / len(x)
        np.testing.assert_allclose(centred, expected, atol=1e-4)


def test_the_channel_that_goes_costs_least():
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 6)) @ random.normal(size=(6, 6))
    products, rows = x.T @ x / 50, random.normal(size=(6, 4))

    def lost(channel):
        stay = np.arange(6) != channel
        made = x[:, stay] @ (replacement(products, stay).T @ rows)
        best = x[:, stay] @ np.linalg.lstsq(x[:, stay], x @ rows, rcond=None)[0]
        np.testing.assert_allclose(made, best, atol=1e-6)
        return np.sum((x @ rows - made) ** 2)

    kept = kept_channels([(products, rows @ rows.T)], 6, 5)
    assert set(range(6)) - set(kept) == {min(range(6), key=lost)}
    # The weights of the one that stays take over what the others did.
    assert len(kept_channels([(products, rows @ rows.T)], 6, 2)) == 2
    np.testing.assert_array_equal(kept_channels([], 6, 2), [0, 1])


def test_moments_of_normalized_sums_follow(nothing_shrinks):
    """Mean and variance behind a dense layer are those of what is left."""
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    x = layers.Dense(6, use_bias=False, name="sums")(x)
    x = layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    graph = trace(model)
    moments = InputMoments()
    moments.attach(graph, graph.full_sizes)
    random = np.random.default_rng(0)
    read = {
        "sums": random.normal(1.0, 1.0, (16, 8)) @ random.normal(size=(8, 8)),
        "head": random.normal(size=(16, 6)),
    }
    moments.update(
        {k: ops.convert_to_tensor(v, "float32") for k, v in read.items()}
    )
    kernel = random.normal(size=(8, 6))
    weights = [
        np.array(ops.convert_to_numpy(v)) for v in model.trainable_variables
    ]
    # The bias of a channel is its number.
    weights[1], weights[2] = np.arange(8.0), kernel
    sums = read["sums"] @ kernel
    weights, (mean, variance) = reduce_channels(
        graph,
        moments,
        (8, 6, 2),
        (5, 6, 2),
        weights,
        [sums.mean(axis=0), sums.var(axis=0)],
    )
    kept = weights[1].astype(int)
    assert len(kept) == 5 and weights[2].shape == (5, 6)
    left = read["sums"][:, kept] @ weights[2]
    assert np.abs(left - sums).max() > 0.1
    np.testing.assert_allclose(mean, left.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(variance, left.var(axis=0), rtol=1e-3)


def test_the_mean_behind_a_bias_stays():
    inputs = keras.Input((6,))
    x = layers.Dense(6, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    graph = trace(model)
    moments = InputMoments()
    moments.attach(graph, graph.full_sizes)
    random = np.random.default_rng(0)
    x = random.normal(1.0, 1.0, (16, 6))
    moments.update({"head": ops.convert_to_tensor(x, "float32")})
    kernel, bias = random.normal(size=(6, 2)), random.normal(size=2)
    # The bias of a channel is its number.
    weights = [np.zeros((6, 6)), np.arange(6.0), kernel, bias]
    weights, _ = reduce_channels(graph, moments, (6, 2), (3, 2), weights, [])
    left = x[:, weights[1].astype(int)] @ weights[2] + weights[3]
    assert np.abs(left - (x @ kernel + bias)).max() > 0.1
    np.testing.assert_allclose(
        left.mean(axis=0), (x @ kernel + bias).mean(axis=0), atol=1e-3
    )


@pytest.mark.parametrize("samples", [40, 100, 400])
def test_few_samples_do_no_harm(samples):
    """Independent channels are cut; those that repeat others take over."""
    random = np.random.default_rng(0)
    x = random.normal(size=(samples, 64))
    products = input_moments._shrunk(x.T @ x / samples, samples)
    stay = np.arange(64) < 48
    rows = random.normal(size=(64, 5))
    handed_on = replacement(products, stay)[~stay].T @ rows[~stay]
    assert np.sum(handed_on**2) < 0.25 * np.sum(rows[~stay] ** 2)
    x[:, 32:] = x[:, :32]
    products = input_moments._shrunk(x.T @ x / samples, samples)
    share = replacement(products + 1e-6 * np.eye(64), stay)
    share = np.diag(share[48:, 16:32])
    assert share.min() > 0.3 and share.max() < 1.01


@pytest.mark.parametrize("channels", [32, 128, 256])
def test_of_copies_one_each_stays(channels):
    """Many channels go several at a time, not all of the same."""
    random = np.random.default_rng(0)
    x = random.normal(size=(400, channels // 2))[:, np.arange(channels) // 2]
    readings = []
    for uses in (5, 9):
        rows = random.normal(size=(channels, uses))
        products = x.T @ x / len(x) + 1e-6 * np.eye(channels)
        readings.append((products, rows @ rows.T))
    kept = kept_channels(readings, channels, channels // 2)
    assert len(set(kept // 2)) == channels // 2


def test_constant_channels_hide_nothing():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    graph = trace(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    moments = InputMoments()
    moments.attach(graph, graph.full_sizes)
    random = np.random.default_rng(0)
    for _ in range(100):
        x = random.normal(size=(64, 8)).astype("float32")
        x[:, 1], x[:, 2:] = x[:, 0], [0.3, 7.7, 1.0, -2.3, 0.0, 100.0]
        moments.update({"head": ops.convert_to_tensor(x)})
    _, found = moments.of("head")
    for products in found[0]:
        assert np.all(np.linalg.eigvalsh(products) > -1e-5 * products.max())
    assert products[0, 1] > 0.95 * products[0, 0]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_is_not_measured(rate):
    inputs = keras.Input((6,))
    x = layers.Dense(4, activation="relu", name="first")(inputs)
    x = layers.Dropout(rate, seed=0)(layers.GaussianNoise(rate)(x))
    x = layers.Flatten()(layers.Reshape((1, 1, 4))(x))
    model = with_copies(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    hyper = ManifoldHyperModel(model, sampler=Switches((1.0,)), smooth=False)
    hyper.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    hyper.fit(x, x[:, :2], batch_size=128, epochs=10, verbose=0)
    full, half = hyper.morph(1.0), hyper.morph(0.5)
    assert_same(outputs(full, x), outputs(half, x), tolerance=5e-3)


def test_sums_that_others_read_are_not_moved():
    """A norm takes a constant, a sum that is read by others too does not."""
    inputs = keras.Input((6,))
    x = layers.Dense(6, activation="relu", name="first")(inputs)
    x = layers.Dense(4, use_bias=False, name="sums")(x)
    one = layers.BatchNormalization(name="one")(x)
    other = layers.BatchNormalization(name="other")(x)
    x = layers.Concatenate()([one, other])
    graph = trace(keras.Model(inputs, layers.Dense(2)(x)))
    assert [each.normalized for each in graph.sums] == [True, False]
    assert len(graph.normalized_sums) == 2
    x = layers.Concatenate()([one, other, graph.model.layers[2].output])
    graph = trace(keras.Model(inputs, layers.Dense(2)(x)))
    assert [each.normalized for each in graph.sums] == [False, False]
    assert len(graph.normalized_sums) == 2


def test_layers_that_a_nested_model_calls_too_are_cut():
    shared = layers.Dense(4, name="shared")
    nested = keras.Sequential([keras.Input((6,)), shared], name="nested")
    inputs = keras.Input((6,))
    x = layers.Dense(6, activation="relu", name="first")(inputs)
    x = layers.Add()([shared(x), nested(x)])
    graph = trace(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    assert [each.layer for each in graph.sums] == ["head"]


def test_sizes_that_round_to_the_same_are_trained_ones():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    sampler = Sandwich(0.9, num_random=0)  # 8, 8, 7 and 7 channels
    hyper = ManifoldHyperModel(model, AnchoredField(), sampler, smooth=False)
    hyper.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    hyper.fit(x, x[:, :2], verbose=0)
    assert [each.sizes[0] for each in hyper.moments] == [8, 7]
    assert all(each.measured for each in hyper.moments)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(hyper.morph(0.9).weights[0]),
        ops.convert_to_numpy(hyper.target.weights[0])[:, :7],
    )


def test_what_overflows_is_not_measured():
    graph = trace(residual_network())
    moments = InputMoments()
    moments.attach(graph, graph.full_sizes)
    shapes = [(2, 4, 4, 8), (2, 4, 4, 12), (2, 4, 4, 8), (2, 192), (2, 8)]
    ones = {
        layer: np.ones(shape, "float32")
        for layer, shape in zip(moments.layers, shapes, strict=True)
    }
    for factor in (1.0, np.inf, np.nan, 1e30, 1.0):
        moments.update(
            {k: ops.convert_to_tensor(v * factor) for k, v in ones.items()}
        )
    for layer in moments.layers:
        mean, found = moments.of(layer)
        np.testing.assert_allclose(mean, 1.0, rtol=1e-5)
        for raw, _ in found.values():
            np.testing.assert_allclose(np.diag(raw), 1.0, rtol=1e-5)


def test_blocks_that_were_never_there_are_left_out_of_it():
    inputs = keras.Input((6,))
    x = layers.Dense(4, name="stem")(inputs)
    for number in range(6):
        y = layers.Dense(5, activation="relu", name=f"in{number}")(x)
        x = layers.Add()([x, layers.Dense(4, name=f"out{number}")(y)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    sampler = Sandwich(0.5, num_fixed=2, bands=1, seed=0)
    hyper = ManifoldHyperModel(model, sampler=sampler, min_depth=0, seed=0)
    hyper.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    hyper.fit(x, x[:, :2], batch_size=16, verbose=0)
    *_, moments = hyper.moments
    known = [layer for layer in moments.layers if moments.of(layer)]
    assert "head" in known and len(known) < len(moments.layers)
    for depth in (6, 2):
        small = hyper.morph(0.25, depth=depth)
        assert np.isfinite(outputs(small, x)).all()


def test_noise_teaches_the_field_what_is_below():
    hyper, _ = trained_at_rest(
        residual_network(), field=AnchoredField(stretch=1.0), noise=1.0
    )
    sizes = hyper.graph.sizes(0.25)
    for one, other in zip(
        hyper.morph(0.25).trainable_variables,
        hyper.field.generate(sizes),
        strict=True,
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), rtol=1e-6
        )
