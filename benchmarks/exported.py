"""Speed and size of exported networks: a quarter of the width against all.

For ONNX (onnxruntime) and LiteRT, with float weights and with weights
quantized to 8 bits (by onnxruntime in the exported file, unsigned or signed, by
LiteRT while it exports): bytes of the files, milliseconds of one image on one
thread of the CPU (its processor time), and both as ratios of the full size to
the quarter size. Runs of both alternate, so that a machine whose speed drifts
slows both alike; the ratio of the times is the median over blocks. The networks
are not trained, which neither speed nor size depends on.

    KERAS_BACKEND=tensorflow python benchmarks/exported.py
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from timing import alternate

import keras_neumeta as nm
from keras_neumeta.provenance import provenance

RATIO = 0.25


def onnx_file(model, path, weights):
    """Exports, with weights of that kind; gives the path."""
    nm.export(model, path)
    if weights == "float32":
        return path
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name(f"{weights}_{path.name}")
    kind = QuantType.QInt8 if weights == "int8" else QuantType.QUInt8
    quantize_dynamic(path, quantized, weight_type=kind)
    return quantized


def onnx_run(path, x):
    """A function without arguments that computes one batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    inputs = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, inputs)


def litert_file(model, path, weights):
    """As `onnx_file`."""
    options = {}
    if weights == "int8":
        import tensorflow as tf

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    nm.export(model, path, **options)
    return path


def litert_run(path, x):
    """As `onnx_run`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    number = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(number, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(number, x)
    return interpreter.invoke


RUNTIMES = {
    "onnxruntime": (
        ".onnx",
        onnx_file,
        onnx_run,
        ("float32", "uint8", "int8"),
    ),
    "LiteRT": (".tflite", litert_file, litert_run, ("float32", "int8")),
}
NETWORKS = {
    "LeNet": (nm.models.lenet, (28, 28, 1)),
    "ResNet20": (lambda: nm.models.cifar_resnet(20), (32, 32, 3)),
}


def measured(models, x, runtime, weights, folder, blocks, repeats):
    """One row: the full size and the quarter size in one runtime."""
    ending, write, run, _ = RUNTIMES[runtime]
    paths = [
        write(model, folder / f"{number}{ending}", weights)
        for number, model in enumerate(models)
    ]
    runs = [run(path, x) for path in paths]
    for each in runs:  # What the first run sets up is not counted.
        each()
    full, quarter, speedup = alternate(
        *runs, blocks, repeats, clock=time.process_time
    )
    sizes = [path.stat().st_size for path in paths]
    return {
        "runtime": runtime,
        "weights": weights,
        "full_bytes": sizes[0],
        "quarter_bytes": sizes[1],
        "times_smaller": sizes[0] / sizes[1],
        "full_ms": 1000 * full,
        "quarter_ms": 1000 * quarter,
        "times_faster": speedup,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=25)
    parser.add_argument("--runs", type=int, default=20, help="per block")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results/exported.json"),
    )
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    rows = []
    for name, (make, shape) in NETWORKS.items():
        hyper = nm.ManifoldHyperModel(make(), smooth=False)
        models = hyper.morph([1.0, RATIO])
        x = np.random.default_rng(0).normal(size=(1, *shape)).astype("float32")
        for runtime in RUNTIMES:
            for weights in RUNTIMES[runtime][-1]:
                with tempfile.TemporaryDirectory() as folder:
                    row = measured(
                        models,
                        x,
                        runtime,
                        weights,
                        pathlib.Path(folder),
                        options.blocks,
                        options.runs,
                    )
                row = {
                    "network": name,
                    "full_parameters": models[0].count_params(),
                    "quarter_parameters": models[1].count_params(),
                    **row,
                }
                rows.append(row)
                print(
                    f"{name:<9}{runtime:<12}{row['weights']:<8}"
                    f"{row['full_bytes']:>9,} -> {row['quarter_bytes']:>8,} "
                    f"bytes ({row['times_smaller']:.1f} times)  "
                    f"{row['full_ms']:.3f} -> {row['quarter_ms']:.3f} ms "
                    f"({row['times_faster']:.1f} times)",
                    flush=True,
                )
    result = {
        "networks": "not trained",
        "ratio": RATIO,
        "batch_size": 1,
        "threads": 1,
        "clock": "processor time",
        "rows": rows,
        "seed": 0,
        **provenance("onnxruntime", "tf2onnx", "ai-edge-litert"),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
