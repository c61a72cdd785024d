"""
Title: Deploying a size
Description: SavedModel, ONNX, LiteRT, OpenVINO; quantisation after morphing.
"""

"""
## A plain network

What `morph` returns is a plain Keras model. Everything that ships Keras models
ships it, and nothing of this library has to be installed where it runs. This
guide takes one quarter-size network through the common formats, loads each file
with its own runtime and compares the answers.

`nm.export(model, path)` is `model.export` from every backend: what the running
one cannot write, another process writes under one that can. The file appears
when it is complete. Recurrent layers are best made with `unroll=True`:
OpenVINO refuses loops, and LiteRT needs TensorFlow's operations for them. The
formats need `pip install "keras_neumeta[export]"`; a runtime that is missing is
left out below.

`small.export(path, format=...)` writes what the running backend can, for
anything else it ends in an error, not always a clear one:

| backend | `small.export` writes |
|---|---|
| TensorFlow | SavedModel, ONNX, OpenVINO, LiteRT |
| JAX | SavedModel |
| PyTorch | ONNX (needs `onnxscript`), `.pt2` |

## Set-up
"""

import importlib.util
import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_neumeta as nm

sys.path.append("../examples")  # Run this in the folder `guides`.
from mnist_lenet import load_data

QUICK = "GUIDES_QUICK" in os.environ  # Little data: to see that all runs.
FOLDER = pathlib.Path("outputs/deploying")
FOLDER.mkdir(parents=True, exist_ok=True)

keras.utils.set_random_seed(0)
print(f"Keras {keras.version()} on {keras.backend.backend()}, seed 0")
name, (x, y), (x_test, y_test) = load_data("digits" if QUICK else "auto")
if QUICK:
    x, y, x_test, y_test = x[:128], y[:128], x_test[:64], y_test[:64]

"""
One epoch gives a network whose accuracy can be compared.
"""

hyper = nm.ManifoldHyperModel(nm.models.lenet((16, 32, 64)), seed=0)
hyper.compile(
    keras.optimizers.Adam(2e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    run_eagerly=QUICK,
)
hyper.fit(x, y, batch_size=128, verbose=2)

small = hyper.morph(ratio=0.25)
expected = small.predict(x_test, verbose=0)


def installed(package):
    return importlib.util.find_spec(package) is not None


def report(title, logits, path):
    """Compares with the Keras model, and says how large the files are."""
    files = [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    elif path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    size = sum(file.stat().st_size for file in files)
    difference = np.abs(logits - expected).max()
    accuracy = np.mean(logits.argmax(axis=-1) == y_test)
    print(
        f"{title:24} {size / 1024:6.0f} kB   accuracy {accuracy:.4f}   "
        f"largest difference {difference:.0e}"
    )


accuracy = np.mean(expected.argmax(axis=-1) == y_test)
print(f"quarter of every width, in Keras: accuracy {accuracy:.4f}")
print(f"weights in float32: {4 * small.count_params() / 1024:.0f} kB")

"""
## SavedModel and TensorFlow Serving

A SavedModel is a folder. `serve` is its function; `serving_default` the
signature that TensorFlow Serving calls, with a batch of any size.
"""

path = FOLDER / "digits" / "1"
path.parent.mkdir(exist_ok=True)
nm.export(small, path)

served = tf.saved_model.load(path)
report("SavedModel", served.serve(x_test).numpy(), path)
signature = served.signatures["serving_default"]
print("takes:", signature.structured_input_signature[1])
print("gives:", signature.structured_outputs)

"""
TensorFlow Serving looks for numbered versions in a folder, which is why the
path ends with `digits/1`. (These two commands need Docker and were not run for
this guide.)

```
docker run -p 8501:8501 -e MODEL_NAME=digits \\
    -v "$PWD/outputs/deploying/digits:/models/digits" tensorflow/serving
curl -d '{"instances": [...]}' localhost:8501/v1/models/digits:predict
```

A new size is a new version beside it: export `hyper.morph(0.5)` to `digits/2`.
Inputs and outputs are the same, so clients notice nothing.

## ONNX
"""

if installed("onnxruntime") and installed("tf2onnx"):
    import onnxruntime

    path = FOLDER / "small.onnx"
    nm.export(small, path)
    session = onnxruntime.InferenceSession(path)
    (argument,) = session.get_inputs()
    print(argument.name, argument.shape, argument.type)
    (logits,) = session.run(None, {argument.name: x_test})
    report("ONNX", logits, path)

"""
## LiteRT

For phones and small devices. The interpreter is told the size of the batch
before it allocates its memory.
"""


def run_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    (argument,) = interpreter.get_input_details()
    (result,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(argument["index"], x_test.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(argument["index"], x_test)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])


if installed("ai_edge_litert"):
    path = FOLDER / "small.tflite"
    nm.export(small, path)
    report("LiteRT", run_litert(path), path)

"""
## OpenVINO

On processors that compute in bfloat16, OpenVINO does so unless told otherwise.
"""

if installed("openvino"):
    import openvino

    path = FOLDER / "small.xml"
    nm.export(small, path)
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", precision)
    (logits,) = compiled(x_test).values()
    report("OpenVINO", logits, path)

"""
There is one more, for `torch.export.load`: `nm.export(small, "small.pt2")`,
which PyTorch writes, in another process if need be.

## Quantisation

Morph first, then quantise: a hypermodel is trained in float32, and each of its
networks is quantised like any other, without training. Smaller networks have
less to spare, so compare the accuracy at *your* size.

LiteRT stores the weights in 8 bits with `optimizations`:
"""

if installed("ai_edge_litert"):
    path = FOLDER / "small_int8.tflite"
    nm.export(small, path, optimizations=[tf.lite.Optimize.DEFAULT])
    report("LiteRT, 8-bit weights", run_litert(path), path)

"""
ONNX Runtime does it from file to file. The file is smaller then, but a network
with convolutions not faster (README). Their weights should be unsigned: with
signed ones, the default, it runs several times slower still.
"""

if installed("onnxruntime") and installed("tf2onnx"):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = FOLDER / "small_int8.onnx"
    unsigned = QuantType.QUInt8
    quantize_dynamic(FOLDER / "small.onnx", path, weight_type=unsigned)
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x_test})
    report("ONNX, 8-bit weights", logits, path)

"""
And Keras itself, in place. It quantises dense layers and embeddings, here the
last layer; convolutions stay as they are.
"""

quantised = hyper.morph(ratio=0.25)
quantised.quantize("int8", filters="classes")
path = FOLDER / "small_int8.keras"
quantised.save(path)
report("Keras int8", quantised.predict(x_test, verbose=0), path)

"""
## Is it smaller, is it faster?

The weights of this network are 12 kB in float32: the rest of each file is its
description, which does not shrink with the width.

Parameters and MACs are counted, time is measured: on the device, with its
runtime and threads, side by side with the full size, as
`benchmarks/exported.py` does (its table is in the README). A network this small
may spend its time on anything but multiplying.
"""
