"""Export of morphed networks, read back by the runtime of each format."""

import importlib
import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm
from keras_neumeta import ManifoldHyperModel

# The package gives this name to the function.
module = sys.modules["keras_neumeta.export"]
BACKEND = keras.backend.backend()
# Ending, and what has to be installed beside the backend that writes it.
FORMATS = {
    "tf_saved_model": ("", ["tensorflow"]),
    "onnx": (".onnx", ["tf2onnx", "onnxruntime"]),
    "openvino": (".xml", ["openvino"]),
    "litert": (".tflite", ["ai_edge_litert"]),
    "torch": (".pt2", ["torch"]),
}
# A format that another process has to write.
FAR = "torch" if BACKEND == "tensorflow" else "litert"
FAR_PATH = f"small{FORMATS[FAR][0]}"
# What a user's module may hold.
OWN = """
import keras

@keras.saving.register_keras_serializable(package="own")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], initializer="ones")

    def call(self, x):
        return x * self.scale

@keras.saving.register_keras_serializable(package="own")
def bent(x):
    return keras.ops.maximum(x, 0.1 * x)
"""


@pytest.fixture
def small():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    return ManifoldHyperModel(model).morph(ratio=0.5)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A module of the user's own, which other processes can import."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_layers.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("own_layers")


@pytest.fixture
def network(own):
    """Images of any size and a vector; two outputs; layers of one's own."""
    image = keras.Input((None, None, 1), name="image")
    code = keras.Input((4,), name="code")
    x = layers.Conv2D(8, 3, padding="same", activation=own.bent)(image)
    x = layers.BatchNormalization()(x)
    y = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.MaxPooling2D(2)(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    z = own.Scale()(layers.Dense(6, activation="tanh")(code))
    x = layers.Dense(8, activation="relu")(layers.Concatenate()([x, z]))
    model = keras.Model(
        [image, code],
        [layers.Dense(3, name="kind")(x), layers.Dense(2, name="place")(x)],
    )
    return ManifoldHyperModel(model).morph(ratio=0.5)


@pytest.fixture
def same_process(monkeypatch):
    """The other process' part, run in this one."""

    def run(command, **options):
        try:
            module._main(["", command[-1]])
        except SystemExit as end:
            return types.SimpleNamespace(returncode=end.code, stderr="")
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)


def images(batch=2):
    random = np.random.default_rng(0)
    return random.normal(size=(batch, 6, 6, 1)).astype("float32")


def pairs(batch, height, width):
    random = np.random.default_rng(0)
    return {
        "image": random.normal(size=(batch, height, width, 1)).astype("f4"),
        "code": random.normal(size=(batch, 4)).astype("f4"),
    }


def opened(path, format):
    """A function from `{name: array}` to the list of the outputs."""
    path = str(path)
    for name in FORMATS[format][1]:
        pytest.importorskip(name, reason=f"{format} needs {name} to run")
    if format == "tf_saved_model":
        import tensorflow as tf

        # The model must live as long as its signature.
        loaded = tf.saved_model.load(path)

        def run(inputs, loaded=loaded):
            outputs = loaded.signatures["serving_default"](
                **{name: tf.constant(x) for name, x in inputs.items()}
            )
            return [outputs[name].numpy() for name in sorted(outputs)]

    elif format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)

        def run(inputs):
            return session.run(None, inputs)

    elif format == "openvino":
        import openvino

        # Some processors would compute in bfloat16.
        compiled = openvino.Core().compile_model(
            path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

        def run(inputs):
            outputs = compiled(inputs)
            return [outputs[x] for x in compiled.outputs]

    elif format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        # The interpreter must live as long as its runner.
        interpreter = Interpreter(model_path=path, num_threads=1)

        def run(inputs, interpreter=interpreter):
            outputs = interpreter.get_signature_runner()(**inputs)
            return [outputs[name] for name in sorted(outputs)]

    else:
        import torch

        program = torch.export.load(path).module()

        def run(inputs):
            tensors = [torch.tensor(x) for x in inputs.values()]
            outputs = program(tensors if len(tensors) > 1 else tensors[0])
            return [x.detach().numpy() for x in keras.tree.flatten(outputs)]

    return run


def outputs_of(model, inputs):
    inputs = list(inputs.values())
    outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


def assert_same(run, model, inputs):
    for a, b in zip(run(inputs), outputs_of(model, inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def by_speed(format):
    """Another process takes 10 seconds: one of them is quick enough."""
    direct = BACKEND in module._FORMATS[format].backends
    # PyTorch writes ONNX, but not with images of any size.
    direct = direct and (BACKEND, format) != ("torch", "onnx")
    slow = [] if direct or format == FAR else [pytest.mark.slow]
    return pytest.param(format, marks=slow)


@pytest.mark.parametrize("format", [by_speed(name) for name in FORMATS])
def test_every_format(network, tmp_path, format):
    ending, packages = FORMATS[format]
    for name in packages:
        pytest.importorskip(name, reason=f"{format} needs {name}")
    path = tmp_path / f"small{ending}"
    nm.export(network, path)
    written = {path, path.with_suffix(".bin")} if ending == ".xml" else {path}
    assert set(tmp_path.iterdir()) == written
    run = opened(path, format)
    assert_same(run, network, pairs(2, 6, 8))
    assert_same(run, network, pairs(1, 12, 10))


@pytest.mark.torch
def test_onnx_from_pytorch(small, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="PyTorch writes ONNX with it")
    monkeypatch.delattr(subprocess, "run")
    nm.export(small, tmp_path / "small.onnx")
    run = opened(tmp_path / "small.onnx", "onnx")
    for batch in (1, 3):
        assert_same(run, small, {small.inputs[0].name: images(batch)})


@pytest.fixture
def wide():
    """Weights enough for quantized ones to make a smaller file."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(3),
        ]
    )
    return ManifoldHyperModel(model).morph(ratio=0.5)


def assert_near(outputs, expected):
    """As near as 8 bits come."""
    assert np.abs(outputs - expected).max() < 0.05 * np.abs(expected).max()
    assert not np.array_equal(outputs, expected)


# Keras warns of each layer that it leaves as it is.
@pytest.mark.filterwarnings("ignore:Layer .* does not have a .quantize.")
def test_int8_by_keras(wide, tmp_path):
    """Dense layers only: Keras has no convolutions in int8."""
    (expected,) = outputs_of(wide, {"": images()})
    wide.save(tmp_path / "float.keras")
    wide.quantize("int8")
    (outputs,) = outputs_of(wide, {"": images()})
    assert_near(outputs, expected)
    wide.save(tmp_path / "int8.keras")
    small, large = (
        (tmp_path / f"{name}.keras").stat().st_size
        for name in ("int8", "float")
    )
    assert small < large
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_allclose(
        outputs_of(loaded, {"": images()})[0], outputs, atol=1e-6
    )


@pytest.mark.tensorflow  # The file is the same from every backend.
@pytest.mark.filterwarnings("ignore:Layer .* does not have a .quantize.")
@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_int8_by_keras_exported(wide, tmp_path, format):
    """Not to LiteRT, whose converter has no product of int8 matrices."""
    wide.quantize("int8")
    path = tmp_path / f"wide{FORMATS[format][0]}"
    nm.export(wide, path)
    inputs = {wide.inputs[0].name: images()}
    assert_same(opened(path, format), wide, inputs)


@pytest.mark.tensorflow  # The file is the same from every backend.
def test_int8_by_litert(wide, tmp_path):
    tf = pytest.importorskip("tensorflow")
    paths = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    nm.export(wide, paths[0])
    nm.export(wide, paths[1], optimizations=[tf.lite.Optimize.DEFAULT])
    assert_int8_is_near_and_smaller(wide, *paths, "litert")


@pytest.mark.tensorflow  # The file is the same from every backend.
def test_int8_by_onnxruntime(wide, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    paths = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    nm.export(wide, paths[0])
    unsigned = quantization.QuantType.QUInt8
    quantization.quantize_dynamic(*paths, weight_type=unsigned)
    assert_int8_is_near_and_smaller(wide, *paths, "onnx")


def assert_int8_is_near_and_smaller(model, path, int8_path, format):
    assert int8_path.stat().st_size < 0.6 * path.stat().st_size
    inputs = {model.inputs[0].name: images()}
    (outputs,) = opened(int8_path, format)(inputs)
    assert_near(outputs, outputs_of(model, inputs)[0])


# What Keras writes with the backend alone: not nm.export's other process.
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("openvino", "litert")
]
# Keras also writes OpenVINO by PyTorch, for one size of batches, and needs
# packages of their own for what else it names.
BY_KERAS = {
    "tensorflow": ["tf_saved_model", "onnx", *SLOW],
    "jax": ["tf_saved_model"],
    "torch": ["onnx", "torch"],
}


def assert_exports_by_keras(model, format, folder):
    for name in FORMATS[format][1]:
        pytest.importorskip(name, reason=f"{format} needs {name}")
    path = folder / f"small{FORMATS[format][0]}"
    model.export(str(path), format=format, verbose=False)
    inputs = {model.inputs[0].name: images(1)}
    assert_same(opened(path, format), model, inputs)


# PyTorch's ways to ONNX warn of what they trace, each of something else.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", BY_KERAS[BACKEND])
def test_export_by_keras(small, tmp_path, format):
    assert_exports_by_keras(small, format, tmp_path)


MADE = [
    lambda model: nm.cut(model, 0.5),
    nm.smooth,
    nm.sort_channels,
    nm.fold_batch_norm,
]


@pytest.mark.filterwarnings("ignore")  # As above.
@pytest.mark.parametrize("make", MADE, ids=["cut", "smooth", "sort", "fold"])
def test_export_by_keras_of_other_results(small, tmp_path, make):
    assert_exports_by_keras(make(small), BY_KERAS[BACKEND][0], tmp_path)


def words(*layers_, **options):
    model = keras.Sequential(
        [keras.Input((5, 8), name="words"), *layers_, layers.Dense(2)]
    )
    return ManifoldHyperModel(model, **options).morph(ratio=0.5)


def attention():
    x = keras.Input((5, 8), name="words")
    y = layers.MultiHeadAttention(2, 4)(x, x)
    model = keras.Model(x, [layers.Dense(2)(y), layers.Dense(3)(y)])
    return ManifoldHyperModel(model).morph(ratio=0.5)


@pytest.mark.tensorflow  # The file is the same from every backend.
@pytest.mark.parametrize(
    "format", ["openvino", pytest.param("litert", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda: words(layers.LSTM(8, unroll=True)),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: words(
                layers.Bidirectional(
                    layers.GRU(8, unroll=True, return_sequences=True)
                )
            ),
            marks=pytest.mark.slow,
        ),
        attention,
    ],
    ids=["lstm", "gru", "attention"],
)
def test_sequences(make, tmp_path, format):
    """OpenVINO's converter finds more outputs: they are removed."""
    for name in FORMATS[format][1]:
        pytest.importorskip(name, reason=f"{format} needs {name}")
    model = make()
    path = tmp_path / f"small{FORMATS[format][0]}"
    nm.export(model, path)
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    assert_same(opened(path, format), model, {"words": x})


def test_loops_do_not_reach_openvino(tmp_path):
    model = words(layers.LSTM(8, name="memory"))
    with pytest.raises(ValueError, match=r"(?s)`unroll=True`.*\['memory'\]"):
        nm.export(model, tmp_path / "small.xml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorflow  # The file is the same from every backend.
def test_loops_in_litert(tmp_path):
    pytest.importorskip("tensorflow")
    model = words(layers.LSTM(8))
    path = tmp_path / "small.tflite"
    with pytest.warns(UserWarning, match="FlexTensorList.*`unroll=True`"):
        nm.export(model, path)
    # The warning says two remedies: `test_sequences` has the other one.
    one = keras.InputSpec(shape=(1, 5, 8), dtype="float32", name="words")
    nm.export(model, path, input_signature=[one])
    x = np.random.default_rng(0).normal(size=(1, 5, 8)).astype("float32")
    assert_same(opened(path, "litert"), model, {"words": x})


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("small.h5", {}, r"(?s)`path`.*ending.*\.onnx.*small\.h5"),
        ("small.onnx", {"format": "oonx"}, "(?s)`format`.*'onnx'.*'oonx'"),
        ("small.onnx", {"format": "litert"}, r"(?s)end with '\.tflite'"),
        ("small.onnx", {"backend": "numpy"}, "(?s)`backend`.*'numpy'"),
        ("small.pt2", {"backend": "jax"}, r"(?s)`backend`.*\['torch'\]"),
        ("small.onnx", {"opset": 17}, "(?s)'opset_version'.*'opset'"),
        ("small.xml", {"optimizations": []}, "(?s)'openvino'.*'optimizations'"),
    ],
)
def test_arguments_that_cannot_be(small, tmp_path, path, options, message):
    with pytest.raises(ValueError, match=message):
        nm.export(small, tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


def write_file(model, path, **options):
    with open(path, "w") as file:
        file.write(model.name)


def test_format_and_path_as_they_are(
    small, tmp_path, monkeypatch, same_process, capsys
):
    """A hypermodel goes by the ending too; what is said has the real path."""
    monkeypatch.setattr(keras.Model, "export", write_file)
    monkeypatch.setitem(
        module._FORMATS, "onnx", module._Format(".onnx", (BACKEND,), ())
    )
    path = tmp_path / "full.onnx"
    ManifoldHyperModel(small).export(path, verbose=True)
    assert path.read_text() == small.name
    assert capsys.readouterr().out == f"Saved '{path}'.\n"
    with pytest.raises(ValueError, match="`path` must have an ending"):
        ManifoldHyperModel(small).export(tmp_path / "full.h5")


def test_models_that_cannot_be(small, tmp_path):
    hyper = ManifoldHyperModel(small)
    with pytest.raises(TypeError, match=r"(?s)hypermodel.*hyper\.morph\(ratio"):
        nm.export(hyper, tmp_path / "small")
    with pytest.raises(TypeError, match="`model`"):
        nm.export(small.layers[0], tmp_path / "small")
    with pytest.raises(ValueError, match="(?s)`model` must be built"):
        nm.export(keras.Sequential([layers.Dense(1)]), tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be(small, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("kept")
    # OpenVINO writes a second file.
    (tmp_path / "pair.bin").mkdir()
    with pytest.raises(FileExistsError, match="`path`.*'.*pair.bin'"):
        nm.export(small, tmp_path / "pair.xml")
    (tmp_path / "pair.bin").rmdir()
    with pytest.raises(TypeError, match="`path` must be a string"):
        nm.export(small, None)
    for name in ("file", "folder", "folder.onnx"):
        with pytest.raises(FileExistsError, match=f"(?s)`path`.*{name}"):
            nm.export(small, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="(?s)`path`.*Create"):
        nm.export(small, tmp_path / "none" / "small")
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "folder" / "notes.txt").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 3


def write_part(model, path, **options):
    """An export that fails half-way."""
    os.makedirs(path)
    with open(os.path.join(path, "saved_model.pb"), "w") as file:
        file.write("half")
    raise OSError("No space left")


def test_failed_export_leaves_what_was_there(
    small, tmp_path, monkeypatch, same_process
):
    monkeypatch.setattr(keras.Model, "export", write_part)
    for path in (tmp_path / "small", tmp_path / FAR_PATH):
        with pytest.raises((OSError, RuntimeError), match="No space left"):
            nm.export(small, path)
        assert list(tmp_path.iterdir()) == []
    saved = tmp_path / "small"
    saved.mkdir()
    (saved / "saved_model.pb").write_text("good")
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        nm.export(small, saved)
    assert (saved / "saved_model.pb").read_text() == "good"
    assert list(tmp_path.iterdir()) == [saved]


def test_export_replaces_a_former_one(
    small, tmp_path, monkeypatch, same_process
):
    def write(model, path, **options):
        os.makedirs(path)
        with open(os.path.join(path, "saved_model.pb"), "w") as file:
            file.write(model.name)

    monkeypatch.setattr(keras.Model, "export", write)
    saved = tmp_path / "small"
    saved.mkdir()
    for name in ("saved_model.pb", "of the former"):
        (saved / name).write_text("old")
    with monkeypatch.context() as context:
        context.chdir(saved)
        nm.export(small, ".")
    assert (saved / "saved_model.pb").read_text() == small.name
    assert [file.name for file in saved.iterdir()] == ["saved_model.pb"]
    assert list(tmp_path.iterdir()) == [saved]


def test_error_of_the_other_process(small, tmp_path, same_process):
    """Here: that the backend, which is no other one, cannot either."""
    message = f"(?s)not exported as '{FAR}'.*Error:.*KERAS_BACKEND="
    with pytest.raises(RuntimeError, match=message):
        nm.export(small, tmp_path / FAR_PATH)
    assert list(tmp_path.iterdir()) == []


def test_other_process_that_dies(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHILD", "import os; os._exit(3)")
    with pytest.raises(RuntimeError, match="exit status 3"):
        nm.export(small, tmp_path / FAR_PATH)
    assert list(tmp_path.iterdir()) == []


def test_other_process_takes_no_module_from_here(small, tmp_path, monkeypatch):
    """And its error is whole, however long."""
    (tmp_path / "strange.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    program = "print('x' * 5000, file=sys.stderr); import strange"
    monkeypatch.setattr(module, "_CHILD", f"import sys; {program}")
    message = (
        "exit status 1\nTraceback .*\n.*No module named 'strange'\nTo see more"
    )
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        nm.export(small, tmp_path / FAR_PATH)


def test_what_the_other_process_cannot_get(
    network, own, tmp_path, monkeypatch, same_process
):
    path = tmp_path / FAR_PATH
    with pytest.raises(TypeError, match="(?s)'dataset'.*pickled.*another"):
        nm.export(network, path, dataset=lambda: None)
    lambda_ = keras.Sequential([keras.Input((3,)), layers.Lambda(ops.abs)])
    lambda_.layers[0].function = lambda x: x + 1
    with pytest.raises(RuntimeError, match="(?i)lambda"):
        nm.export(lambda_, path)
    monkeypatch.setattr(own.Scale, "__module__", "__main__")
    with pytest.raises(ValueError, match="(?s)'Scale' is defined in a script"):
        nm.export(network, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorflow  # In this process the package can be hidden.
def test_format_without_its_package(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"(?s)keras_neumeta\[export\]"):
        nm.export(small, tmp_path / "small.xml")
    assert list(tmp_path.iterdir()) == []


def test_backend_that_is_not_installed(small, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    writer = module._FORMATS[FAR].backends[0]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == writer else find(n)
    )
    with pytest.raises(ImportError, match=f"pip install {writer}"):
        nm.export(small, tmp_path / FAR_PATH)
