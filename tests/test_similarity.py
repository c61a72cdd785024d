"""CKA of features and KL divergence of outputs."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import special

import keras_neumeta as nm
from keras_neumeta.similarity import Similarity


def data(number=32, width=6, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(number, width)) + 2).astype("float32")


def linear(kernel):
    """A network whose output is its input times a kernel."""
    kernel = np.asarray(kernel, "float32")
    dense = layers.Dense(kernel.shape[1], use_bias=False, name="dense")
    model = keras.Sequential([keras.Input((kernel.shape[0],)), dense])
    dense.set_weights([kernel])
    return model


def constant(outputs, width=6):
    """A network that gives the same outputs for every example."""
    outputs = np.asarray(outputs, "float32")
    model = linear(np.zeros((width, len(outputs))))
    bias = layers.Dense(len(outputs), name="bias")
    model.add(bias)
    bias.set_weights([np.zeros((len(outputs),) * 2), outputs])
    return model


def network(width, seed=0, name=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(width, 3, activation="relu", name="conv1"),
            layers.Conv2D(2 * width, 3, activation="relu", name="conv2"),
            layers.Flatten(name="flatten"),
            layers.Dense(3, name="logits"),
        ],
        name=name,
    )


def images(number=24):
    random = np.random.default_rng(1)
    return random.normal(size=(number, 6, 6, 1)).astype("float32")


def unbiased_hsic(x, y):
    """Song et al. (2012), equation 5, as it is written."""
    kernels = []
    for features in (x, y):
        features = np.reshape(features, (len(features), -1)).astype("float64")
        kernel = features @ features.T
        np.fill_diagonal(kernel, 0.0)
        kernels.append(kernel)
    k, l = kernels  # noqa: E741
    n, one = len(k), np.ones(len(k))
    return (
        np.trace(k @ l)
        + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        - 2.0 / (n - 2) * (one @ k @ l @ one)
    ) / (n * (n - 3))


def expected_cka(x, y, ends, weights=None):
    """CKA of the mean HSIC over batches that end at some examples."""
    starts = [0, *ends[:-1]]

    def mean(a, b):
        values = [
            unbiased_hsic(a[start:end], b[start:end])
            for start, end in zip(starts, ends)
        ]
        return np.average(values, weights=weights)

    return mean(x, y) / np.sqrt(mean(x, x) * mean(y, y))


def biased_cka(x, y):
    x, y = (v - v.mean(axis=0) for v in (x, y))
    norm = np.linalg.norm
    return norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


# CKA


def test_equals_the_formula_over_batches():
    models = {"narrow": network(2, 0), "wide": network(4, 1)}
    x = images()
    outputs = [
        ops.convert_to_numpy(
            keras.Model(model.inputs[0], model.get_layer("conv2").output)(x)
        )
        for model in models.values()
    ]
    result = nm.cka(models, x, "conv2", batch_size=8)
    assert result.labels == ["narrow", "wide"]
    expected = expected_cka(*outputs, (8, 16, 24))
    assert result.matrix[0, 1] == pytest.approx(expected, abs=1e-5)
    assert result.matrix[1, 0] == result.matrix[0, 1]
    # The estimate is no mean of ratios, nor that of one large batch.
    assert expected != pytest.approx(expected_cka(*outputs, (24,)), abs=1e-3)


def test_equals_the_formula_where_the_mean_is_large():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(6, 4))
    x = data() + 3000.0
    result = nm.cka([linear(np.eye(6)), linear(kernel)], x)
    expected = expected_cka(x - 3000.0, (x - 3000.0) @ kernel, (32,))
    assert result.matrix[0, 1] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_scale_of_the_features_does_not_matter(scale):
    kernel = np.random.default_rng(0).normal(size=(6, 4))
    models, x = [linear(np.eye(6)), linear(kernel)], data()
    expected = nm.cka(models, x).matrix
    scaled = nm.cka(models, x * np.float32(scale)).matrix
    np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_batches_count_by_their_examples_and_short_ones_not():
    kernel = np.random.default_rng(0).normal(size=(6, 4))
    models, x = [linear(np.eye(6)), linear(kernel)], data(20)
    result = nm.cka(models, x, batch_size=8)
    expected = expected_cka(x, x @ kernel, (8, 16, 20), weights=(8, 8, 4))
    assert result.matrix[0, 1] == pytest.approx(expected, abs=1e-5)
    short = nm.cka(models, iter([x[:8], x[8:16], x[16:19]]))
    expected = expected_cka(x, x @ kernel, (8, 16))
    assert short.matrix[0, 1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [8, 24])
def test_network_and_its_copy_are_alike(batch_size):
    model = network(2)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    result = nm.cka([model, copy], images(), ["conv1", "conv2"], batch_size)
    same = [[0, 0], [0, 2], [1, 1], [1, 3]]
    for first, second in same:
        assert result.matrix[first, second] == pytest.approx(1.0, abs=1e-5)
    assert abs(result.matrix[0, 1]) < 0.99


def test_rotation_scale_and_width_do_not_matter():
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    wider = np.linalg.qr(random.normal(size=(11, 6)))[0].T
    other = random.normal(size=(6, 6))
    models = {
        "plain": linear(np.eye(6)),
        "rotated": linear(rotation),
        "wider": linear(wider),
        "scaled": linear(30.0 * rotation),
        "other": linear(other),
        "other scaled": linear(0.01 * other @ rotation),
    }
    matrix = nm.cka(models, data(), batch_size=16).matrix
    np.testing.assert_allclose(matrix[:4, :4], 1.0, atol=1e-4)
    np.testing.assert_allclose(matrix[4:, 4:], 1.0, atol=1e-4)
    np.testing.assert_allclose(matrix[:4, 4:], matrix[0, 4], atol=1e-4)
    # A change of another kind does matter.
    assert matrix[0, 4] < 0.95


def test_unrelated_features_are_near_zero():
    x = data(256, 128)
    first, second = np.eye(128)[:, :64], np.eye(128)[:, 64:]
    for batch_size in (64, 256):
        result = nm.cka([linear(first), linear(second)], x, None, batch_size)
        assert abs(result.matrix[0, 1]) < 0.05
    # The usual, biased estimate takes them for related.
    assert biased_cka(x[:, :64], x[:, 64:]) > 0.15


def test_one_large_batch_comes_close_to_the_biased_estimate():
    kernel = np.random.default_rng(0).normal(size=(6, 2))
    x = data(1000)
    result = nm.cka([linear(np.eye(6)), linear(kernel)], x, batch_size=1000)
    expected = biased_cka(x, x @ kernel)
    assert 0.1 < expected < 0.9
    assert result.matrix[0, 1] == pytest.approx(expected, abs=0.02)


def test_features_that_do_not_change_have_no_cka():
    result = nm.cka([linear(np.eye(6)), constant([0.1, 3.3])], data(50))
    assert result.matrix[0, 0] == pytest.approx(1.0)
    assert np.isnan(result.matrix[0, 1]) and np.isnan(result.matrix[1, 1])


def test_layers_by_pattern_and_parts():
    models = {1.0: network(4), 0.5: network(2)}
    result = nm.cka(models, images(), ["conv*", "logits"], 8)
    assert result.labels == [
        *("1 conv1", "1 conv2", "1 logits"),
        *("0.5 conv1", "0.5 conv2", "0.5 logits"),
    ]
    part = result.select("* conv2")
    assert part.labels == ["1 conv2", "0.5 conv2"]
    np.testing.assert_array_equal(part.matrix, result.matrix[1::3, 1::3])
    single = nm.cka(models, images(), "conv2", 8)
    assert single.labels == ["1", "0.5"]
    np.testing.assert_allclose(single.matrix, part.matrix, atol=1e-5)
    assert result.select(["1 logits", "0.5*"]).labels == result.labels[2:]
    with pytest.raises(ValueError, match="`labels`: no row is called 'x'.*1 c"):
        result.select("x")


def test_morphed_and_other_networks_in_one_matrix():
    hyper = nm.ManifoldHyperModel(network(4), seed=0)
    ratios = [1.0, 0.5]
    models = dict(zip(ratios, hyper.morph(ratios)))
    models = {**models, "alone": network(2, seed=3)}
    for result in (
        nm.cka(models, images(), "conv2", 8),
        nm.kl_divergence(models, images(8), from_logits=True),
    ):
        assert result.labels == ["1", "0.5", "alone"]
        assert np.isfinite(result.matrix).all()
    # The hypermodel itself is its full size.
    both = {"hyper": hyper, "full": models[1.0]}
    assert nm.cka(both, images(8)).matrix[0, 1] == pytest.approx(1.0, abs=1e-5)


def test_graphs_of_other_models_do_not_matter():
    model = network(2)
    keras.Sequential([keras.Input((6, 6, 1)), model])
    assert nm.cka([model], images(8), "conv1").matrix[0, 0] == pytest.approx(1)


def test_several_inputs():
    inputs = {name: keras.Input((3,), name=name) for name in "ab"}
    x = layers.Concatenate(name="both")(list(inputs.values()))
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = data()
    values = {"a": x[:, :3], "b": x[:, 3:]}
    result = nm.cka({"two": model}, values, "both")
    assert result.matrix[0, 0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="`data` must hold one array per"):
        nm.cka({"two": model}, x)


@pytest.mark.parametrize("measure", ["cka", "kl"])
def test_datasets_give_what_arrays_give(measure):
    tf = pytest.importorskip("tensorflow")
    models = [network(4, 0, "a"), network(2, 1, "b")]
    x = images()

    def compare(data):
        if measure == "cka":
            return nm.cka(models, data, "conv1", batch_size=8)
        return nm.kl_divergence(models, data, from_logits=True, batch_size=8)

    arrays = compare(x)
    assert arrays.labels == ["a", "b"]
    labelled = [(x[n : n + 8], np.zeros(8)) for n in (0, 8, 16)]
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    for other in (compare(iter(labelled)), compare(dataset)):
        np.testing.assert_allclose(other.matrix, arrays.matrix, atol=1e-5)


# KL divergence


def test_divergence_equals_rel_entr():
    models = [network(2, 0), network(4, 1), network(2, 2)]
    x = images()
    logits = [ops.convert_to_numpy(m(x)).astype("float64") for m in models]
    probabilities = [special.softmax(v, axis=-1) for v in logits]
    expected = [
        [special.rel_entr(p, q).sum(axis=-1).mean() for q in probabilities]
        for p in probabilities
    ]
    result = nm.kl_divergence(models, x, from_logits=True, batch_size=8)
    np.testing.assert_allclose(result.matrix, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.diagonal(result.matrix), 0.0)
    assert result.matrix[0, 1] != pytest.approx(result.matrix[1, 0], rel=1e-3)
    softmax = [keras.Sequential([m, layers.Softmax()]) for m in models]
    result = nm.kl_divergence(softmax, x, batch_size=8)
    np.testing.assert_allclose(result.matrix, expected, rtol=1e-3, atol=1e-6)
    assert result.labels == [m.name for m in softmax]


def test_probabilities_of_zero():
    p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    result = nm.kl_divergence([constant(p), constant(q)], data(8))
    expected = special.rel_entr(p, q).sum()
    assert result.matrix[0, 1] == pytest.approx(expected, rel=1e-5)
    assert np.isposinf(result.matrix[1, 0])


def test_logits_far_apart_stay_finite():
    models = [constant([0.0, 200.0]), constant([200.0, 0.0])]
    matrix = nm.kl_divergence(models, data(8), from_logits=True).matrix
    np.testing.assert_allclose(matrix, [[0, 200], [200, 0]], rtol=1e-5)


def test_one_output_is_one_of_two_classes():
    logits = [constant([0.3]), constant([-1.2])]
    p, q = special.expit(0.3), special.expit(-1.2)
    expected = special.rel_entr([p, 1 - p], [q, 1 - q]).sum()
    result = nm.kl_divergence(logits, data(8), from_logits=True)
    assert result.matrix[0, 1] == pytest.approx(expected, rel=1e-5)
    result = nm.kl_divergence([constant([p]), constant([q])], data(8))
    assert result.matrix[0, 1] == pytest.approx(expected, rel=1e-5)


def test_pixels_count_as_examples():
    models = [
        keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(4, 3)])
        for _ in range(2)
    ]
    x = images(8)
    p, q = (special.softmax(ops.convert_to_numpy(m(x)), -1) for m in models)
    expected = special.rel_entr(p, q).sum(axis=-1).mean()
    result = nm.kl_divergence(models, x, from_logits=True)
    assert result.matrix[0, 1] == pytest.approx(expected, rel=1e-4)


def test_logits_are_not_taken_for_probabilities():
    with pytest.raises(ValueError, match="'a' are no prob.*from_logits=True"):
        nm.kl_divergence({"a": network(2)}, images())
    with pytest.raises(ValueError, match="no probabilities"):
        nm.kl_divergence([constant([1.5])], data())
    with pytest.warns(UserWarning, match="'a' look like probabilities"):
        nm.kl_divergence({"a": constant([0.3, 0.7])}, data(), from_logits=True)


# Errors


@pytest.mark.parametrize("measure", [nm.cka, nm.kl_divergence])
def test_models_that_cannot_be_compared(measure):
    model = network(2)
    with pytest.raises(TypeError, match="`models` must be a list"):
        measure(model, images())
    with pytest.raises(ValueError, match="`models` must hold at least one"):
        measure([], images())
    with pytest.raises(TypeError, match="`keras.Model`s.*'b': 3"):
        measure({"a": model, "b": 3}, images())
    with pytest.raises(ValueError, match="differ as text.*'1', '1'"):
        measure({"1": model, 1: model}, images())
    two = keras.Model(
        model.inputs[0], [model.outputs[0], model.get_layer("flatten").output]
    )
    with pytest.raises(ValueError, match="with one output. 'two' has 2"):
        measure({"two": two}, images(8))


def test_data_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"4 or more.*batches of: \[3, 1\]"):
        nm.cka([network(2)], images(4), batch_size=3)
    with pytest.raises(ValueError, match=r"`data` must hold.*of: \[\]"):
        nm.cka([network(2)], [])
    with pytest.raises(ValueError, match="`data` must hold at least one"):
        nm.kl_divergence([network(2)], [])
    for size in (0, -1, None):
        with pytest.raises(ValueError, match=f"`batch_size`.*size={size}"):
            nm.kl_divergence([linear(np.eye(6))], data(), batch_size=size)
    with pytest.raises(TypeError, match="`data` must be arrays"):
        nm.cka([network(2)], 3)


def test_layers_that_cannot_be_used():
    with pytest.raises(ValueError, match="'a' is called 'conv9', once.*conv1"):
        nm.cka({"a": network(2)}, images(), "conv9")
    with pytest.raises(ValueError, match=r"at least one layer.*layers=\[\]"):
        nm.cka({"a": network(2)}, images(), [])
    with pytest.raises(TypeError, match="`layers` must hold names"):
        nm.cka({"a": network(2)}, images(), [3])
    hyper = nm.ManifoldHyperModel(network(2))
    with pytest.raises(ValueError, match="Manifold.*: morph a hypermodel"):
        nm.cka({"a": hyper}, images(), "conv1")
    inputs = keras.Input((6,))
    shared = layers.Dense(6, name="twice")
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match="is called 'twice', once"):
        nm.cka([model], data(), "twice")


def test_outputs_of_different_shapes():
    models = {"a": linear(np.eye(6)), "b": linear(np.eye(6)[:, :3])}
    with pytest.raises(ValueError, match=r"one shape.*'b': \(32, 3\)"):
        nm.kl_divergence(models, data(), from_logits=True)


# What becomes of the result


@pytest.fixture
def result():
    matrix = [[0.0, 0.25, np.inf], [0.5, 0.0, 2.0], [1.0, 0.75, 0.0]]
    return Similarity("KL divergence", ["1", "0.5", "a"], matrix)


def test_prints_saves_and_sums_up(result, tmp_path):
    lines = str(result).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["KL", "divergence", "1", "0.5", "a"]
    assert lines[3].split() == ["0.5", "0.5000", "0.0000", "2.0000"]
    result.save(tmp_path / "kl.json", seed=0)
    text = (tmp_path / "kl.json").read_text()
    saved = json.loads(text, parse_constant=pytest.fail)  # Of no JSON.
    assert saved.pop("seed") == 0
    again = Similarity(**saved)
    assert str(again) == str(result)
    unknown = Similarity("CKA", ["a"], [[np.nan]])
    unknown.save(tmp_path / "cka.json")
    saved = json.loads(
        (tmp_path / "cka.json").read_text(), parse_constant=pytest.fail
    )
    assert np.isnan(Similarity(**saved).matrix).all()
    with pytest.raises(ValueError, match="JSON"):
        result.save(tmp_path / "kl.json", loss=np.nan)
    assert (tmp_path / "kl.json").read_text() == text
    assert result.select(["1", "0.5"]).mean() == pytest.approx(0.375)
    assert np.isnan(result.select("a").mean())


def test_plots(result, tmp_path):
    figure = result.plot(tmp_path / "kl.png")
    assert (tmp_path / "kl.png").stat().st_size > 1000
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:6] == ["0.000", "0.250", "inf", "0.500", "0.000", "2.000"]
    # Row 0, column 1: x to the right, y downwards.
    assert axes.texts[1].get_position() == (1, 0)
    assert [t.get_text() for t in axes.get_yticklabels()] == result.labels
    # Infinite values have no place in the range of the colours.
    assert axes.images[0].get_clim() == (0.0, 2.0)


def test_panels_share_their_colours(result, tmp_path):
    small = result.select(["1", "0.5"])
    figure = nm.plot_similarities(
        {"first": small, "second": result}, tmp_path / "both.png"
    )
    assert (tmp_path / "both.png").stat().st_size > 1000
    limits = [axes.images[0].get_clim() for axes in figure.axes[:2]]
    assert limits == [(0.0, 2.0), (0.0, 2.0)]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["first", "second"]
    given = nm.plot_similarities({"": small}, limits=(0.0, 9.0))
    assert given.axes[0].images[0].get_clim() == (0.0, 9.0)
    cka = Similarity("CKA", ["a", "b"], [[1.0, -0.01], [-0.01, 1.0]])
    assert cka.plot().axes[0].images[0].get_clim() == (0.0, 1.0)
    with pytest.raises(ValueError, match="of one measure.*CKA.*KL"):
        nm.plot_similarities({"a": cka, "b": result})
    with pytest.raises(ValueError, match="of one measure"):
        nm.plot_similarities({})


def test_plots_on_given_axes(result, tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert result.plot(axes=second, limits=(0.0, 4.0)) is figure
    assert not first.images and second.images[0].get_clim() == (0.0, 4.0)
    result.plot(tmp_path / "axes.png", axes=first)
    assert (tmp_path / "axes.png").exists() and len(first.texts) == 9
