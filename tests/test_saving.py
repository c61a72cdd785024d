"""Saving and loading: the hypermodel, and morphed networks without it."""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta
from keras_neumeta import ManifoldHyperModel

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def target():
    inputs = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(8, 3, padding="same", name="inner")(x)
    x = layers.Add(name="sum")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    x = layers.Dropout(0.2, seed=1, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="target")


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 6, 6, 1)).astype("float32")
    return x, (x.mean((1, 2, 3)) > 0).astype("int32")


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    hyper = ManifoldHyperModel(
        target(),
        noise=0.5,
        ratio_power=0.5,
        reconstruction=0.1,
        weight_norm=1e-4,
        seed=3,
    )
    hyper.compile("adam", LOSS, metrics=["accuracy"])
    hyper.fit(*data(), batch_size=16, epochs=2, verbose=0)
    return hyper


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "hyper.keras"
    trained.save(path)
    return path


def run_python(code, *arguments, backend=None):
    """Runs Python code in a new process, by default on the same backend."""
    backend = backend or keras.backend.backend()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr


def rewritten(file, path, config=None, leave_out="nothing", weights=None):
    """A copy of a saved model.

    Args:
        config: A function that changes the config in place.
        leave_out: Name of a file that the copy lacks.
        weights: Path of other weights.
    """
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json" and config is not None:
                changed = json.loads(content)
                config(changed["config"])
                content = json.dumps(changed)
            if weights is not None and name == weights.name:
                content = weights.read_bytes()
            if name != leave_out:
                new.writestr(name, content)
    return path


def assert_same_morphs(first, second):
    x, _ = data()
    for ratio in (1.0, 0.6, 0.25):
        a, b = first.morph(ratio), second.morph(ratio)
        for v, w in zip(a.variables, b.variables, strict=True):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(v), ops.convert_to_numpy(w)
            )
        np.testing.assert_allclose(
            ops.convert_to_numpy(a(x)), ops.convert_to_numpy(b(x)), atol=1e-6
        )


def test_loaded_hypermodel_is_the_same(trained, file):
    loaded = keras.models.load_model(file)
    assert isinstance(loaded, ManifoldHyperModel)
    # Keras does not save the state of seeds; that of the target's layers is
    # kept in weights.
    for v, w in zip(trained.weights, loaded.weights, strict=True):
        assert v.shape == w.shape
        np.testing.assert_array_equal(
            ops.convert_to_numpy(v), ops.convert_to_numpy(w)
        )
    assert_same_morphs(trained, loaded)
    x, y = data()
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(
        trained.evaluate(x, y, verbose=0), rel=1e-5
    )


def test_loaded_hypermodel_keeps_arguments_and_optimizer(trained, file):
    loaded = keras.models.load_model(file)
    for name in (
        "noise",
        "reconstruction",
        "weight_norm",
        "distillation",
        "ratio_power",
    ):
        assert getattr(loaded, name) == getattr(trained, name)
    assert int(loaded.optimizer.iterations) == 4
    for v, w in zip(
        trained.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(v), ops.convert_to_numpy(w)
        )
    before = ops.convert_to_numpy(loaded.field.control_points[0]).copy()
    loaded.fit(*data(), batch_size=16, verbose=0)
    assert int(loaded.optimizer.iterations) == 6
    after = ops.convert_to_numpy(loaded.field.control_points[0])
    assert (before != after).any()


def test_file_holds_no_network_beside_the_field(trained, tmp_path):
    h5py = pytest.importorskip("h5py")
    trained.save_weights(tmp_path / "hyper.weights.h5")
    with h5py.File(tmp_path / "hyper.weights.h5") as weights:
        assert "field" in weights and "target" not in weights


# What the backend that is named saves, the one beside it loads; the files of
# `test_old_files.py` are loaded by all.
NEXT = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}


def test_hypermodel_loads_on_another_backend(trained, file, tmp_path):
    x, _ = data()
    np.save(tmp_path / "x.npy", x)
    expected = ops.convert_to_numpy(trained.morph(0.5)(x))
    np.save(tmp_path / "expected.npy", expected)
    run_python(
        """
import sys
import keras, keras_neumeta, numpy as np
file, folder = sys.argv[1:]
hyper = keras.models.load_model(file)
outputs = hyper.morph(ratio=0.5)(np.load(folder + "/x.npy"))
outputs = keras.ops.convert_to_numpy(outputs)
expected = np.load(folder + "/expected.npy")
np.testing.assert_allclose(outputs, expected, atol=1e-5)
""",
        file,
        tmp_path,
        backend=NEXT[keras.backend.backend()],
    )


def test_morphed_model_loads_without_the_library(trained, tmp_path):
    small = trained.morph(ratio=0.5)
    names = [layer.name for layer in target().layers]
    assert [layer.name for layer in small.layers] == names
    x, _ = data()
    small.save(tmp_path / "small.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "expected.npy", ops.convert_to_numpy(small(x)))
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        assert b"keras_neumeta" not in archive.read("config.json")
    run_python(
        """
import sys
sys.modules["keras_neumeta"] = None
import keras, numpy as np
folder = sys.argv[1]
small = keras.models.load_model(folder + "/small.keras")
assert small.get_layer("conv").filters == 4
outputs = keras.ops.convert_to_numpy(small(np.load(folder + "/x.npy")))
expected = np.load(folder + "/expected.npy")
np.testing.assert_allclose(outputs, expected, atol=1e-5)
""",
        tmp_path,
    )


@pytest.mark.parametrize("damage", ["truncated", "not a zip", "no weights"])
def test_damaged_file_raises(file, tmp_path, damage):
    broken = tmp_path / "broken.keras"
    content = file.read_bytes()
    if damage == "truncated":
        broken.write_bytes(content[: len(content) // 2])
    elif damage == "not a zip":
        broken.write_bytes(b"not a model")
    else:
        rewritten(file, broken, leave_out="model.weights.h5")
    with pytest.raises((ValueError, OSError, KeyError, zipfile.BadZipFile)):
        keras.models.load_model(broken)
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "(?s)another version.*1 to 1.*2.*Update"),
        ({"version": "new"}, "(?s)another version.*'new'"),
        ({"noise": None}, r"(?s)not complete.*Missing: \['noise'\]"),
        ({"model": None, "field": None}, r"Missing: \['field', 'model'\]"),
    ],
)
def test_config_that_cannot_be_read(file, tmp_path, change, message):
    def config(content):
        content.update(change)
        for name in [name for name, value in change.items() if value is None]:
            del content[name]

    broken = rewritten(file, tmp_path / "broken.keras", config)
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(broken)


SERIALIZED = ["model", "field", "sampler", "distillation_loss", "dtype"]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark as soon as it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "trap.py").write_text(
        f"import keras\nopen({str(mark)!r}, 'w').close()\n"
        "class Trap(keras.layers.Layer): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return mark


@pytest.mark.parametrize("place", SERIALIZED)
def test_hostile_config_runs_no_code(file, tmp_path, trap, place):
    """Objects of modules that are not Keras' and not registered."""
    command = f"touch {trap}"
    for module, kind, config in [
        ("trap", "Trap", {}),
        ("trap", "function", "Trap"),
        ("os", "function", "system"),
        ("subprocess", "Popen", {"args": command, "shell": True}),
        ("builtins", "function", "exec"),
        ("keras.utils", "function", "get_file"),
    ]:
        hostile = {"module": module, "class_name": kind, "config": config}
        broken = rewritten(
            file,
            tmp_path / "broken.keras",
            lambda content, value=hostile: content.update({place: value}),
        )
        with pytest.raises((TypeError, ValueError)):
            keras.models.load_model(broken)
        assert not trap.exists()
    importlib.import_module("trap")
    assert trap.exists()


def test_hostile_lambda_runs_no_code(file, tmp_path):
    mark = tmp_path / "mark"
    hostile = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(8, 3),
            layers.Lambda(
                lambda x, path: (open(path, "w").close(), x)[1],
                arguments={"path": str(mark)},
            ),
            layers.Conv2D(8, 3),
        ]
    )
    serialized = keras.saving.serialize_keras_object(hostile)
    mark.unlink(missing_ok=True)
    broken = rewritten(
        file,
        tmp_path / "broken.keras",
        lambda content: content.update({"model": serialized}),
    )
    with pytest.raises(ValueError, match="(?i)lambda"):
        keras.models.load_model(broken)
    assert not mark.exists()
    # The attack is one: where its file is trusted, it runs.
    with contextlib.suppress(ValueError):  # Its weights are of another model.
        keras.models.load_model(broken, safe_mode=False)
    assert mark.exists()


@pytest.mark.parametrize("way", ["array", "link", "storage"])
def test_hostile_weights_read_no_other_file(trained, file, tmp_path, way):
    """HDF5 may name another file, by a link or for the numbers."""
    secret, weights = tmp_path / "secret.h5", tmp_path / "model.weights.h5"
    with zipfile.ZipFile(file) as archive:
        archive.extract(weights.name, tmp_path)
    shutil.copy(weights, secret)
    with h5py.File(weights, "r+") as content:
        name = "field/vars/0"
        value = content[name][()]
        del content[name]
        if way == "array":
            content[name] = value
        elif way == "link":
            content[name] = h5py.ExternalLink(secret, name)
        else:
            content.create_dataset(
                name,
                value.shape,
                value.dtype,
                external=[(secret, 0, value.nbytes)],
            )
    path = rewritten(file, tmp_path / "rewritten.keras", weights=weights)
    if way == "array":
        assert_same_morphs(keras.models.load_model(path), trained)
        return
    with pytest.raises(ValueError, match="could not be loaded"):
        keras.models.load_model(path)


def test_failed_save_leaves_nothing(trained, tmp_path):
    with pytest.raises((OSError, ValueError)):
        trained.save(tmp_path / "no such folder" / "hyper.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "field",
    [
        keras_neumeta.AnchoredField(interpolation="cubic", stretch=0.5),
        keras_neumeta.AnchoredField(
            scale=0.5, size_knots=(0.4,), levels=(0.3, 0.5)
        ),
        keras_neumeta.ImplicitField(
            width=8,
            depth=2,
            num_frequencies=3,
            residual_scale=0.2,
            imitation_steps=3,
            seed=1,
        ),
    ],
    ids=lambda field: type(field).__name__,
)
@pytest.mark.parametrize(
    "sampler",
    [
        keras_neumeta.Uniform(0.3, 0.9, seed=1),
        keras_neumeta.Discrete([0.25, 1.0], [0.3, 0.7], seed=1),
        keras_neumeta.Sandwich(0.3, 0.9, 3, num_random=2, bands=3, seed=1),
        keras_neumeta.Sandwich(bands=1, max_random=0.5, seed=1),
        keras_neumeta.Independent(0.3, 0.9, num_random=2, seed=1),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_config_round_trip(field, sampler):
    hyper = ManifoldHyperModel(
        target(),
        field=type(field).from_config(field.get_config()),
        sampler=type(sampler).from_config(sampler.get_config()),
    )
    again = ManifoldHyperModel.from_config(hyper.get_config())
    for name in ("field", "sampler"):
        config = getattr(hyper, name).get_config()
        assert getattr(again, name).get_config() == config
        assert type(getattr(again, name)) is type(getattr(hyper, name))
    again.set_weights(hyper.get_weights())
    small, other = (h.morph(ratio=0.5) for h in (hyper, again))
    for a, b in zip(small.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@keras.saving.register_keras_serializable(package="test_saving")
def distance(teacher, student):
    return ops.mean(ops.abs(teacher - student), axis=-1)


@pytest.mark.parametrize(
    "loss",
    [distance, keras.losses.MeanSquaredError()],
    ids=["function", "object"],
)
def test_custom_distillation_loss_round_trip(loss, tmp_path):
    hyper = ManifoldHyperModel(target(), distillation_loss=loss, layers="conv")
    hyper.save(tmp_path / "hyper.keras")
    loaded = keras.models.load_model(tmp_path / "hyper.keras")
    assert type(loaded.distillation_loss) is type(loss)
    assert loaded.graph.sizes(0.5) == hyper.graph.sizes(0.5)
    assert_same_morphs(hyper, loaded)


def test_morphed_weights_file(trained, tmp_path):
    trained.save_weights(tmp_path / "hyper.weights.h5")
    other = ManifoldHyperModel(
        target(), noise=0.5, reconstruction=0.1, weight_norm=1e-4, seed=3
    )
    other.load_weights(tmp_path / "hyper.weights.h5")
    assert_same_morphs(trained, other)


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda: layers.TimeDistributed(layers.Dense(6)),
        lambda: layers.Bidirectional(layers.GRU(6)),
        lambda: layers.RNN([layers.GRUCell(6), layers.LSTMCell(4)]),
    ],
)
def test_inner_layers_of_several_sizes_load(wrapper, tmp_path):
    """While loading, Keras shares layers whose configs have the same id."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.Dense(8),
            layers.LayerNormalization(),
            wrapper(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    hyper = ManifoldHyperModel(
        model, sampler=keras_neumeta.Switches((1.0, 0.5))
    )
    hyper.save(tmp_path / "hyper.keras")
    again = keras.saving.load_model(tmp_path / "hyper.keras")
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    for ratio in (1.0, 0.5):
        np.testing.assert_allclose(
            again.morph(ratio).predict(x, verbose=0),
            hyper.morph(ratio).predict(x, verbose=0),
            rtol=1e-6,
        )
