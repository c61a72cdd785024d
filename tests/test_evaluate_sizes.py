"""The metrics of chosen sizes in the logs of training."""

import csv

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def hypermodel(**kwargs):
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="relu", name="wide")(inputs)
    x = layers.BatchNormalization()(x)
    y = layers.Dense(8, activation="relu", name="block")(x)
    x = layers.Dropout(0.1, seed=0)(layers.Add()([x, y]))
    model = keras.Model(inputs, layers.Dense(3)(x))
    sampler = nm.Sandwich(num_fixed=2, num_random=0)
    hyper = nm.ManifoldHyperModel(model, sampler=sampler, seed=0, **kwargs)
    hyper.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"])
    return hyper


def data():
    x = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1).astype("int32")


class Builds(keras.callbacks.Callback):
    """Counts the networks that `morph` builds, and keeps the small ones."""

    def __init__(self, evaluate, monkeypatch):
        super().__init__()
        self.evaluate, self.count, self.logs = evaluate, 0, []
        resize = nm.morphing.resize

        def counted(*args, **kwargs):
            self.count += 1
            return resize(*args, **kwargs)

        monkeypatch.setattr(nm.morphing, "resize", counted)

    def on_epoch_end(self, epoch, logs=None):
        small = self.model.morph(0.25)
        self.count -= 1
        small.compile(loss=LOSS, metrics=["accuracy"])
        results = small.evaluate(*data(), verbose=0, return_dict=True)
        self.logs.append((results, dict(logs)))
        self.models = dict(self.evaluate.models)


def test_other_callbacks_see_the_sizes(tmp_path, monkeypatch):
    hyper = hypermodel()
    monitor = {"monitor": "val_loss@0.25", "mode": "min"}
    evaluate = nm.EvaluateSizes(*data(), ratios=[1.0, 0.25])
    seen = Builds(evaluate, monkeypatch)
    history = hyper.fit(
        *data(),
        batch_size=16,
        epochs=6,
        validation_data=data(),
        verbose=0,
        callbacks=[
            # Uphill from the third epoch on.
            keras.callbacks.LearningRateScheduler(
                lambda epoch: 0.1 if epoch < 2 else -0.1
            ),
            evaluate,
            seen,
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras", save_best_only=True, **monitor
            ),
            keras.callbacks.EarlyStopping(
                patience=2, restore_best_weights=True, **monitor
            ),
        ],
    ).history
    values = history["val_loss@0.25"]
    best = int(np.argmin(values))
    # It stopped two epochs after the best one.
    assert len(values) == best + 3 < 6
    # As evaluated by itself, and at full size by Keras.
    for (results, logs), value in zip(seen.logs, values, strict=True):
        assert logs["val_loss@0.25"] == value
        assert logs["val_loss@0.25"] == pytest.approx(results["loss"])
        assert logs["val_accuracy@0.25"] == pytest.approx(results["accuracy"])
        assert logs["val_loss@1"] == pytest.approx(logs["val_loss"], rel=1e-4)
    # Two networks, however many epochs.
    assert seen.count == 2
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss@0.25"]) for row in rows] == values
    # The weights and statistics of the best epoch came back.
    checkpoint = keras.saving.load_model(tmp_path / "best.keras")
    for v, w in zip(hyper.weights, checkpoint.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(v), ops.convert_to_numpy(w), v.path
        )


def test_tensorboard_shows_the_sizes(tmp_path):
    # Keras writes with TensorFlow on every backend.
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)
    history = (
        hypermodel()
        .fit(
            *data(),
            epochs=2,
            validation_data=data(),
            verbose=0,
            callbacks=[nm.EvaluateSizes(*data(), ratios=[0.25]), board],
        )
        .history
    )
    events = event_accumulator.EventAccumulator(str(tmp_path / "validation"))
    events.Reload()
    for name in ("loss", "accuracy", "loss@0.25", "accuracy@0.25"):
        values = [
            float(tensor_util.make_ndarray(event.tensor_proto))
            for event in events.Tensors(f"epoch_{name}")
        ]
        assert values == pytest.approx(history[f"val_{name}"]), name


def test_named_sizes_every_other_epoch():
    hyper = hypermodel(min_depth=0)
    evaluate = nm.EvaluateSizes(
        *data(),
        ratios={"flat": {"ratio": 0.5, "depth": 0}, "tiny": {"macs": 0.3}},
        freq=2,
        divisor=2,
    )
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (set(logs), [m.count_params() for m in evaluate.models.values()])
        )
    )
    hyper.fit(*data(), epochs=2, verbose=0, callbacks=[evaluate, look])
    names = {
        f"val_{metric}@{name}"
        for metric in ("loss", "accuracy")
        for name in ("flat", "tiny")
    }
    assert not names & seen[0][0] and names <= seen[1][0]
    expected = [
        hyper.morph(0.5, depth=0, divisor=2),
        hyper.morph(macs=0.3, divisor=2),
    ]
    assert seen[1][1] == [model.count_params() for model in expected]


class Endless(keras.utils.PyDataset):
    """The same batch for ever."""

    def __init__(self):
        super().__init__()

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return data()


def test_endless_and_weighted_data(tmp_path):
    """And a size with a name that can stand in that of a file."""
    hyper = hypermodel()
    half = {"half": {"ratio": 0.5}}
    weight = np.linspace(0.0, 1.0, 48)
    path = str(tmp_path / "{val_loss@half:.3f}.weights.h5")
    logs = [
        hyper.fit(
            *data(),
            verbose=0,
            callbacks=[
                evaluate,
                keras.callbacks.ModelCheckpoint(path, save_weights_only=True),
            ],
        ).history["val_loss@half"][0]
        for evaluate in (
            nm.EvaluateSizes(Endless(), ratios=half, steps=2),
            nm.EvaluateSizes(*data(), ratios=half, sample_weight=weight),
        )
    ]
    small = hyper.morph(0.5)
    small.compile(loss=LOSS)
    expected = small.evaluate(*data(), sample_weight=weight, verbose=0)
    assert logs[1] == pytest.approx(expected)
    names = {f"{value:.3f}.weights.h5" for value in logs}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_endless_dataset_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(data()).batch(8)
    nm.EvaluateSizes(dataset)
    with pytest.raises(ValueError, match="`steps` must be a number"):
        nm.EvaluateSizes(dataset.repeat())


def test_morph_into_a_network():
    hyper = hypermodel()
    small = hyper.morph(0.5)
    hyper.train_on_batch(*data())
    expected = hyper.morph(0.5)
    assert hyper.morph(0.5, into=small) is small
    for v, w in zip(small.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(v), ops.convert_to_numpy(w)
        )
    before = small.get_weights()
    with pytest.raises(ValueError, match="`into`: .* not of the size"):
        hyper.morph(0.25, into=small)
    for value, other in zip(small.get_weights(), before):
        np.testing.assert_array_equal(value, other)
    with pytest.raises(TypeError, match="`into` must be a `keras.Model`"):
        hyper.morph(0.5, into=[small])
    with pytest.raises(ValueError, match="`name` does not go with `into`"):
        hyper.morph(0.5, into=small, name="other")
    with pytest.raises(ValueError, match="calibration_data"):
        hyper.morph(0.5, into=small, calibration_data=[])
    for value, other in zip(small.get_weights(), before):
        np.testing.assert_array_equal(value, other)
    with pytest.raises(ValueError, match="`into` takes one network"):
        hyper.morph([0.5, 0.25], into=small)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="`freq` must be a number of epochs"):
        nm.EvaluateSizes(*data(), freq=0)
    with pytest.raises(ValueError, match="`ratios` must not be empty"):
        nm.EvaluateSizes(*data(), ratios=[])
    with pytest.raises(ValueError, match="each width once"):
        nm.EvaluateSizes(*data(), ratios=[1 / 3, 0.33333333])
    for ratios, message in (
        (0.5, "must be a list of kept widths"),
        ("half", "must be a list of kept widths"),
        (["half"], "`ratio`.*must be a number"),
        ({"small": 0.5}, "dict of arguments of `morph`"),
        ({"small": {"ratio": [0.5]}}, "one size for each name"),
        ({"small": {"ratio": 0.5, "divsor": 8}}, r"'small'.*\['divsor'\]"),
    ):
        with pytest.raises(TypeError, match=message):
            nm.EvaluateSizes(*data(), ratios=ratios)
    with pytest.raises(TypeError, match=r"'divisor'.*Received: \['divsor'\]"):
        nm.EvaluateSizes(*data(), divsor=8)
    for size in ({}, {"ratio": 0.5, "params": 100}):
        with pytest.raises(ValueError, match="Size 'small' needs one of"):
            nm.EvaluateSizes(*data(), ratios={"small": size}, divisor=8)
    for ratios in ([1.5], {"large": {"ratio": 1.5}}):
        with pytest.raises(ValueError, match=r"`ratio` .* in \(0, 1\]: "):
            nm.EvaluateSizes(*data(), ratios=ratios)
        nm.EvaluateSizes(*data(), ratios=ratios, extrapolate=True)
    with pytest.raises(TypeError, match="generator, which can be read once"):
        nm.EvaluateSizes(batch for batch in [data()])
    with pytest.raises(ValueError, match="`steps` must be a number"):
        nm.EvaluateSizes(Endless())
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("sgd", LOSS)
    with pytest.raises(TypeError, match="`ManifoldHyperModel`.*Received"):
        model.fit(*data(), verbose=0, callbacks=[nm.EvaluateSizes(*data())])
