"""Training the manifold: losses, data, precisions, samplers, callbacks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta
from keras_neumeta import ManifoldHyperModel

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(**kwargs):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="tanh", name="first", **kwargs),
            layers.Dense(6, activation="relu", name="second"),
            layers.Dense(3, name="logits"),
        ]
    )


def convnet():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(8, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            # Of two units, rectified ones could both be dead from the start.
            layers.Dense(8, activation="tanh", name="dense"),
            layers.Dropout(0.1, seed=0, name="dropout"),
            layers.Dense(3, name="logits"),
        ],
        name="convnet",
    )


def vectors(number=32):
    x = np.random.default_rng(0).normal(size=(number, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1).astype("int32")


def images(number=64):
    random = np.random.default_rng(0)
    y = random.integers(0, 3, number).astype("int32")
    x = random.normal(size=(number, 6, 6, 1)) * 0.3
    x += np.eye(6)[y][:, :, None, None]
    return x.astype("float32"), y


def run(model, x):
    return ops.convert_to_numpy(model(x))


def snapshot(model):
    return [ops.convert_to_numpy(v).copy() for v in model.variables]


def assert_equal(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def differ(first, second):
    return any((a != b).any() for a, b in zip(first, second, strict=True))


def hypermodel(model=None, optimizer=None, loss=CROSSENTROPY, **kwargs):
    hyper = ManifoldHyperModel(model or mlp(), seed=0, **kwargs)
    hyper.compile(optimizer or keras.optimizers.SGD(0.1), loss)
    return hyper


@pytest.fixture(scope="module")
def fitted():
    """A fitted hypermodel, its target and what they were before."""
    keras.utils.set_random_seed(0)
    x, y = images()
    target = convnet()
    before = snapshot(target)
    hyper = ManifoldHyperModel(target, seed=0)
    hyper.compile(
        keras.optimizers.Adam(0.01), CROSSENTROPY, metrics=["accuracy"]
    )
    states = [ops.convert_to_numpy(v).copy() for v in hyper.states]
    history = hyper.fit(
        x, y, epochs=16, batch_size=16, validation_data=(x, y), verbose=0
    ).history
    return hyper, target, before, states, history


SIZES = {"first": 64, "second": 64, "logits": 3}


@pytest.mark.parametrize(
    "least, kept, levels",
    [
        (0.1, "*", [0.25]),
        (0.25, "*", [0.25]),
        (0.5, "*", []),
        # A quarter of nearly all parameters would be stored once more.
        (0.25, "second", []),
    ],
)
def test_default_field_has_a_level_where_small_sizes_need_it(
    least, kept, levels
):
    sampler = keras_neumeta.Sandwich(min_ratio=least)
    model = keras.Sequential(
        [keras.Input((4,))]
        + [layers.Dense(n, name=name) for name, n in SIZES.items()]
    )
    hyper = ManifoldHyperModel(model, sampler=sampler, layers=kept)
    assert hyper.field.levels == levels
    # Of its own: the smallest size moves, the full one stays.
    full, small = (snapshot(hyper.morph(ratio)) for ratio in (1.0, 0.25))
    for level in hyper.field.size_levels:
        for _, points in level.values():
            points.assign(points + 1.0)
    assert not differ(full, snapshot(hyper.morph(1.0)))
    assert differ(small, snapshot(hyper.morph(0.25))) == bool(levels)


# What one fit gives


def test_fit_lowers_the_losses(fitted):
    history = fitted[-1]
    for name in ("loss", "task_loss", "val_loss"):
        assert history[name][-1] < 0.9 * history[name][0]
    assert history["accuracy"][-1] > history["accuracy"][0]


def test_fit_logs_each_term_and_evaluate_none(fitted):
    hyper, *_, history = fitted
    assert set(history) == {
        "loss",
        "task_loss",
        "distillation_loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
    }
    x, y = images()
    results = hyper.evaluate(x, y, verbose=0, return_dict=True)
    assert set(results) == {"loss", "accuracy"}


def test_fit_leaves_the_given_model_alone(fitted):
    _, target, before, _, _ = fitted
    assert_equal(snapshot(target), before, rtol=0, atol=0)


def test_full_size_is_what_evaluate_and_predict_use(fitted):
    hyper = fitted[0]
    x, y = images()
    full = hyper.morph(ratio=1.0)
    full.compile(loss=CROSSENTROPY, metrics=["accuracy"])
    of_hyper = hyper.evaluate(x, y, verbose=0, return_dict=True)
    of_full = full.evaluate(x, y, verbose=0, return_dict=True)
    for name in of_full:
        assert of_hyper[name] == pytest.approx(of_full[name], rel=1e-5)
    np.testing.assert_allclose(
        hyper.predict(x, verbose=0), full.predict(x, verbose=0), atol=1e-5
    )
    np.testing.assert_allclose(run(hyper.target, x), run(full, x), atol=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_smaller_sizes_have_learned(fitted, ratio):
    hyper = fitted[0]
    small = hyper.morph(ratio=ratio)
    assert small.get_layer("conv").filters == 8 * ratio
    assert small.get_layer("dense").units == 8 * ratio
    assert small.get_layer("logits").units == 3
    x, y = images()
    small.compile(loss=CROSSENTROPY, metrics=["accuracy"])
    results = small.evaluate(x, y, verbose=0, return_dict=True)
    assert results["accuracy"] > 0.5


def test_training_moves_statistics_and_seeds(fitted):
    hyper, _, _, states, _ = fitted
    seeds = [ops.convert_to_numpy(v) for v in hyper.states]
    assert len(seeds) == 1
    assert differ(seeds, states)
    for ratio in (1.0, 0.25):
        sizes = hyper.graph.sizes(ratio)
        weights = hyper.field.generate(sizes)
        mean, variance, *_ = hyper.statistics.generate(sizes, weights)
        assert (ops.convert_to_numpy(mean) != 0).all()
        assert (ops.convert_to_numpy(variance) != 1).all()


def test_morphed_model_is_plain(fitted):
    hyper = fitted[0]
    small = hyper.morph(ratio=0.5, name="small")
    assert type(small) is keras.Sequential
    assert small.name == "small"
    assert [x.name for x in small.layers] == [
        x.name for x in hyper.graph.model.layers
    ]
    assert not small.compiled


def test_divisor_and_samples(fitted):
    hyper = fitted[0]
    small = hyper.morph(ratio=0.4, divisor=4)
    assert small.get_layer("conv").filters == 4
    plain = hyper.morph(ratio=0.4).get_weights()
    single = hyper.morph(ratio=0.4, samples=1, noise=1.0).get_weights()
    assert_equal(plain, single, rtol=0, atol=0)
    averaged = hyper.morph(ratio=0.4, samples=4, noise=1.0).get_weights()
    assert differ(plain, averaged)
    noiseless = hyper.morph(ratio=0.4, samples=4, noise=0.0).get_weights()
    assert_equal(plain, noiseless, rtol=1e-5, atol=1e-6)


def test_fit_evaluate_fit_save(fitted, tmp_path):
    hyper = fitted[0]
    x, y = images(32)
    hyper.evaluate(x, y, verbose=0)
    history = hyper.fit(x, y, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    hyper.save(tmp_path / "hyper.keras")
    hyper.predict(x, verbose=0)
    assert hyper.morph(ratio=0.5)(x).shape == (32, 3)


# Before training


@pytest.mark.parametrize("smooth", [True, False])
def test_untrained_full_size_is_the_target(smooth):
    target = convnet()
    for variable in target.variables:
        if str(variable.dtype) == "float32":
            variable.assign(variable + 0.1)
    hyper = ManifoldHyperModel(target, smooth=smooth)
    x, _ = images(8)
    full = hyper.morph(ratio=1.0)
    np.testing.assert_allclose(run(target, x), run(full, x), atol=1e-5)
    np.testing.assert_allclose(run(target, x), run(hyper, x), atol=1e-5)
    moved = differ(target.get_weights(), full.get_weights())
    assert moved == smooth


def test_reconstruction_starts_at_zero_and_grows():
    hyper = hypermodel(reconstruction=1.0)
    x, y = vectors()
    logs = [hyper.train_on_batch(x, y, return_dict=True) for _ in range(2)]
    assert logs[0]["reconstruction_loss"] == pytest.approx(0.0, abs=1e-12)
    assert logs[1]["reconstruction_loss"] > 1e-9


def test_first_loss_by_hand():
    """The loss of a step, from the outputs of the morphed networks."""
    hyper = hypermodel(
        sampler=keras_neumeta.Sandwich(0.5, num_fixed=2, num_random=0),
        distillation=0.25,
        ratio_power=2.0,
        weight_norm=0.1,
    )
    x, y = vectors()

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    networks = [hyper.morph(1.0), hyper.morph(0.5)]
    logits = [ops.convert_to_numpy(n(x)) for n in networks]
    task = [-log_softmax(z)[np.arange(len(y)), y].mean() for z in logits]
    teacher = np.exp(log_softmax(logits[0]))
    distilled = -(teacher * log_softmax(logits[1])).sum(axis=1).mean()
    norm = 0.1 * sum(
        np.sqrt((w**2).sum()) for n in networks for w in n.get_weights()
    )
    smaller = 0.75 * task[1] + 0.25 * distilled
    total = task[0] + 0.5**2 * smaller + norm
    logs = hyper.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(total, rel=1e-4)
    assert logs["task_loss"] == pytest.approx(np.mean(task), rel=1e-4)
    assert logs["distillation_loss"] == pytest.approx(distilled, rel=1e-4)
    assert logs["weight_norm_loss"] == pytest.approx(norm / 2, rel=1e-4)


def test_losses_of_the_target_are_in_the_loss():
    x, y = vectors()
    sampler = {"min_ratio": 0.5, "num_fixed": 2, "num_random": 0}

    def first_loss(model):
        hyper = hypermodel(model, sampler=keras_neumeta.Sandwich(**sampler))
        loss, _ = hyper.manifold_loss(
            ops.convert_to_tensor(x), ops.convert_to_tensor(y)
        )
        return hyper, float(ops.convert_to_numpy(loss))

    plain, reference = first_loss(mlp())
    kernels = [plain.morph(r).get_layer("first").kernel for r in (1.0, 0.5)]
    squares = [(ops.convert_to_numpy(k) ** 2).sum() for k in kernels]

    def same_weights(model):
        model.set_weights(plain.graph.model.get_weights())
        return model

    _, loss = first_loss(
        same_weights(mlp(kernel_regularizer=keras.regularizers.L2(0.1)))
    )
    extra = 0.1 * (squares[0] + 0.5 * squares[1])
    assert loss - reference == pytest.approx(extra, rel=1e-3)

    active = keras.Sequential(
        [
            keras.Input((4,)),
            layers.ActivityRegularization(l2=0.1),
            *mlp().layers,
        ]
    )
    hyper, loss = first_loss(same_weights(active))
    active(x)  # Older Keras does not divide by the number of examples.
    extra = float(ops.convert_to_numpy(active.losses[0]))
    assert loss - reference == pytest.approx(1.5 * extra, rel=1e-3)
    evaluated = hyper.evaluate(x, y, verbose=0)
    plain_loss = plain.evaluate(x, y, verbose=0)
    assert evaluated - plain_loss == pytest.approx(extra, rel=1e-3)


# Weights of examples and classes


def test_sample_weight_and_class_weight():
    x, y = vectors()
    model = mlp()
    hyper = hypermodel(model)
    before = snapshot(hyper.field)
    hyper.train_on_batch(x, y, sample_weight=np.zeros(len(x), "float32"))
    assert_equal(snapshot(hyper.field), before, rtol=0, atol=0)
    hyper.train_on_batch(x, y, class_weight={0: 0.0, 1: 0.0, 2: 0.0})
    assert_equal(snapshot(hyper.field), before, rtol=0, atol=0)
    # Examples without weight teach nothing, whatever their label.
    weights = (np.arange(len(x)) < 8).astype("float32")
    fields = []
    for labels in (y, np.where(weights > 0, y, 0).astype("int32")):
        hyper = hypermodel(model)
        hyper.train_on_batch(x, labels, sample_weight=weights)
        fields.append(snapshot(hyper.field))
    assert differ(fields[0], before)
    assert_equal(fields[0], fields[1], rtol=0, atol=1e-7)


# Inputs and outputs


def test_several_inputs_and_outputs():
    left = keras.Input((4,), name="left")
    right = keras.Input((3,), name="right")
    joined = layers.Concatenate()(
        [
            layers.Dense(6, activation="relu")(left),
            layers.Dense(4, activation="relu")(right),
        ]
    )
    model = keras.Model(
        {"left": left, "right": right},
        {
            "label": layers.Dense(3, name="label")(joined),
            "value": layers.Dense(1, name="value")(joined),
        },
    )
    losses = {"label": CROSSENTROPY, "value": "mse"}
    hyper = ManifoldHyperModel(model, seed=0)
    hyper.compile(
        keras.optimizers.Adam(0.05),
        losses,
        loss_weights={"label": 1.0, "value": 0.5},
        metrics={"label": ["accuracy"]},
    )
    x, label = vectors()
    data = {"left": x, "right": x[:, :3]}
    targets = {"label": label, "value": x[:, :1]}
    history = hyper.fit(data, targets, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert "label_accuracy" in history
    small = hyper.morph(ratio=0.5)
    outputs = small.predict(data, verbose=0)
    assert set(outputs) == {"label", "value"}
    full = hyper.morph(ratio=1.0)
    full.compile(loss=losses, loss_weights={"label": 1.0, "value": 0.5})
    of_full, of_hyper = (
        m.evaluate(data, targets, verbose=0, return_dict=True)
        for m in (full, hyper)
    )
    assert of_hyper["loss"] == pytest.approx(of_full["loss"], rel=1e-4)
    assert "label_accuracy" in of_hyper


def test_list_of_outputs():
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, activation="relu")(inputs)
    model = keras.Model(
        inputs, [layers.Dense(3)(hidden), layers.Dense(1)(hidden)]
    )
    hyper = hypermodel(model, loss=[CROSSENTROPY, "mse"])
    x, y = vectors()
    logs = hyper.train_on_batch(x, [y, x[:, :1]], return_dict=True)
    assert np.isfinite(logs["loss"])
    assert logs["distillation_loss"] > 0


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = vectors()
        return x[16 * index :][:16], y[16 * index :][:16]


def tf_data():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(vectors()).batch(16)


def data_loader():
    import torch

    x, y = vectors()
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    return torch.utils.data.DataLoader(data, batch_size=16)


@pytest.mark.parametrize("source", [tf_data, data_loader, Batches])
def test_data_sources(source):
    if source is data_loader and keras.backend.backend() != "torch":
        # PyTorch after TensorFlow may clash; its own backend suffices.
        pytest.skip("PyTorch's data loader is tried on PyTorch only")
    hyper = hypermodel(optimizer=keras.optimizers.Adam(0.05))
    history = hyper.fit(source(), epochs=2, verbose=0, shuffle=False).history
    assert history["loss"][1] < history["loss"][0]


# Ways to run a step


def one_step(smooth=True, model=None, **compile_arguments):
    keras.utils.set_random_seed(0)
    hyper = ManifoldHyperModel(model or mlp(), seed=0, smooth=smooth)
    hyper.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, **compile_arguments)
    hyper.fit(*vectors(), batch_size=16, verbose=0, shuffle=False)
    return hyper


@pytest.fixture(scope="module")
def reference_step():
    return snapshot(one_step().field)


@pytest.mark.parametrize(
    "arguments",
    [
        {"run_eagerly": True},
        pytest.param(
            {"steps_per_execution": 2},
            marks=[pytest.mark.tensorflow, pytest.mark.jax],
            # Keras has none on PyTorch.
        ),
        pytest.param(
            {"jit_compile": True},
            marks=[pytest.mark.tensorflow, pytest.mark.jax],
            # Keras compiles PyTorch by torch.compile, which needs a C++
            # compiler and minutes.
        ),
    ],
    ids=str,
)
def test_compile_arguments_change_nothing(arguments, reference_step):
    hyper = one_step(**arguments)
    assert_equal(snapshot(hyper.field), reference_step, atol=1e-5)


def test_gradient_accumulation():
    x, y = vectors()
    hyper = hypermodel(
        optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    )
    before = snapshot(hyper.field)
    hyper.train_on_batch(x[:16], y[:16])
    points = len(hyper.field.control_points)
    assert_equal(snapshot(hyper.field)[:points], before[:points])
    hyper.train_on_batch(x[16:], y[16:])
    assert differ(snapshot(hyper.field)[:points], before[:points])


def test_averages_of_the_weights(tmp_path):
    x, y = vectors()
    hyper = ManifoldHyperModel(mlp(), sampler="uniform", seed=0)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    hyper.compile(optimizer, CROSSENTROPY)
    # As any other training: again after it was evaluated, and saved.
    for _ in range(2):
        hyper.fit(x, y, batch_size=8, verbose=0)
        assert np.isfinite(hyper.evaluate(x, y, verbose=0))
    averages = [
        ops.convert_to_numpy(v)
        for v in optimizer.variables
        if "average" in v.path
    ]
    assert len(averages) == len(hyper.trainable_variables)
    for average, variable in zip(
        averages, hyper.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(average, ops.convert_to_numpy(variable))
    hyper.save(tmp_path / "hyper.keras")
    reloaded = keras.saving.load_model(tmp_path / "hyper.keras")
    expected = run(hyper.morph(0.5), x)
    np.testing.assert_allclose(run(reloaded.morph(0.5), x), expected, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        target = convnet()
    finally:
        keras.config.set_dtype_policy("float32")
    hyper = ManifoldHyperModel(target, seed=0)
    hyper.compile(keras.optimizers.SGD(0.05), CROSSENTROPY)
    scaled = isinstance(hyper.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    x, y = images()
    logs = hyper.fit(x, y, epochs=2, batch_size=32, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert logs["loss"][-1] < logs["loss"][0]
    for variable in hyper.trainable_variables:
        assert str(variable.dtype) == "float32"
        assert np.isfinite(ops.convert_to_numpy(variable)).all()
    if scaled:
        # An overflow halves the scale of the loss and changes nothing else.
        before = snapshot(hyper.field)
        hyper.train_on_batch(x * 1e6, y)
        assert_equal(snapshot(hyper.field), before, rtol=0)
        assert float(hyper.optimizer.dynamic_scale) == 2.0**14
        for value in snapshot(hyper.statistics):
            assert np.isfinite(value).all()
    small = hyper.morph(ratio=0.5)
    assert small.get_layer("conv").dtype_policy.name == policy
    assert np.isfinite(small.predict(x, verbose=0)).all()


# Samplers and losses


@pytest.mark.parametrize(
    ("sampler", "distills"),
    [
        ("uniform", False),
        (keras_neumeta.Discrete, False),
        (0, True),
        (2, True),
    ],
    ids=str,
)
def test_samplers(sampler, distills):
    if isinstance(sampler, int):
        sampler = keras_neumeta.Sandwich(num_random=sampler, seed=0)
    elif not isinstance(sampler, str):
        sampler = sampler([0.25, 0.5, 1.0], [0.5, 0.25, 0.25], seed=0)
    hyper = hypermodel(sampler=sampler)
    x, y = vectors()
    before = ops.convert_to_numpy(hyper.sampler.state).copy()
    logs = hyper.fit(x, y, batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert ("distillation_loss" in logs) == distills
    moved = (ops.convert_to_numpy(hyper.sampler.state) != before).any()
    assert moved == (hyper.sampler.num_draws > 0)


@pytest.mark.tensorflow
@pytest.mark.jax  # PyTorch runs every step in Python.
def test_step_is_traced_once():
    calls = []

    class Counting(keras_neumeta.Sandwich):
        def sample(self):
            calls.append(None)
            return super().sample()

    hyper = hypermodel(sampler=Counting(seed=0))
    x, y = vectors()
    hyper.fit(x, y, batch_size=16, verbose=0)
    assert 1 <= len(calls) <= 2
    first = len(calls)
    hyper.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert len(calls) == first


def scaled_difference(teacher, student):
    return 3.0 * ops.mean(ops.abs(teacher - student), axis=-1)


@pytest.mark.parametrize(
    "loss",
    [scaled_difference, keras.losses.MeanSquaredError()],
    ids=["function", "object"],
)
def test_custom_distillation_loss(loss):
    hyper = hypermodel(
        sampler=keras_neumeta.Sandwich(0.5, num_fixed=2, num_random=0),
        distillation_loss=loss,
    )
    x, y = vectors()
    teacher, student = (
        ops.convert_to_numpy(hyper.morph(ratio)(x)) for ratio in (1.0, 0.5)
    )
    expected = (
        3.0 * np.abs(teacher - student).mean()
        if loss is scaled_difference
        else np.square(teacher - student).mean()
    )
    logs = hyper.train_on_batch(x, y, return_dict=True)
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["kl_divergenc", None, 1.0])
def test_unknown_distillation_loss(loss):
    with pytest.raises(ValueError, match=f"`distillation_loss`.*{loss}"):
        hypermodel(distillation_loss=loss)


def test_noise_spares_the_full_size():
    hyper = hypermodel(noise=1.0)
    full = hyper.graph.full_sizes
    assert hyper.draw_offsets(full) is None
    offsets = hyper.draw_offsets(hyper.graph.sizes(0.5))
    assert [len(x) for x in offsets] == list(full)
    values = np.concatenate([ops.convert_to_numpy(x) for x in offsets])
    assert np.abs(values).max() <= 0.5
    assert np.abs(values).max() > 0.3
    x, y = vectors()
    logs = hyper.fit(x, y, batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite(logs["loss"]).all()


# Training in phases


def test_frozen_layers_keep_their_values():
    model = mlp()
    model.get_layer("second").trainable = False
    hyper = hypermodel(model)
    before = hyper.morph(1.0).get_layer("second").get_weights()
    first = hyper.morph(1.0).get_layer("first").get_weights()
    hyper.train_on_batch(*vectors())
    full = hyper.morph(1.0)
    assert_equal(full.get_layer("second").get_weights(), before, rtol=0)
    assert differ(full.get_layer("first").get_weights(), first)
    assert not full.get_layer("second").trainable


def test_two_phases_and_callbacks(tmp_path):
    # Slow enough that every epoch is better than the one before.
    hyper = hypermodel(optimizer=keras.optimizers.SGD(0.01))
    x, y = vectors()
    path = tmp_path / "best.keras"
    history = hyper.fit(
        x,
        y,
        epochs=4,
        batch_size=16,
        validation_data=(x, y),
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(
                "val_loss", patience=0, min_delta=1e9, baseline=0.0
            ),
            keras.callbacks.ModelCheckpoint(path, save_best_only=True),
        ],
    ).history
    assert len(history["loss"]) == 2
    best = keras.models.load_model(path)
    np.testing.assert_allclose(run(best, x), run(hyper, x), atol=1e-5)
    hyper.compile(keras.optimizers.Adam(0.02), CROSSENTROPY)
    before = hyper.evaluate(x, y, verbose=0)
    hyper.fit(x, y, epochs=3, batch_size=16, verbose=0)
    assert hyper.evaluate(x, y, verbose=0) < before
