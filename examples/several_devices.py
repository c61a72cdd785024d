"""One network, every size of itself, trained on several devices.

Each device computes its part of every batch, for the same sizes. TensorFlow
has several devices in one process, PyTorch a process for each, JAX both.
Processes are started on this machine. Without GPUs, devices are simulated on
the CPU.

    python examples/several_devices.py --devices 2
    KERAS_BACKEND=jax python examples/several_devices.py --devices 8
    KERAS_BACKEND=torch python examples/several_devices.py --processes 2
    KERAS_BACKEND=jax python examples/several_devices.py --processes 2 --quick
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from common import whole
from mnist_lenet import load_data

import keras_neumeta as nm


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--devices", type=whole(1), default=1, help="devices of each process")
    add("--processes", type=whole(1), default=1)
    add("--dataset", choices=("auto", "mnist", "digits"), default="auto")
    add(
        "--batch-size",
        type=whole(1),
        default=128,
        help="of all devices together",
    )
    add("--epochs", type=whole(1), default=4)
    add("--quick", action="store_true", help="little data, a few steps")
    add(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("outputs/several_devices"),
        help="folder for the results (default: %(default)s)",
    )
    # For the processes that this one starts.
    add("--process", type=int, help=argparse.SUPPRESS)
    add("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    number = options.devices * options.processes
    if options.batch_size % number:
        parser.error(f"--batch-size must be a multiple of {number} devices")
    backend = keras.backend.backend()
    if backend == "torch" and options.devices > 1:
        parser.error("PyTorch takes a process per device: use --processes")
    if backend == "tensorflow" and options.processes > 1:
        parser.error(
            "Keras' fit() does not run with MultiWorkerMirroredStrategy "
            "(keras-team/keras#20585): use --devices, or another backend"
        )
    return options


def start_processes(number, arguments):
    """Starts this script once per process and waits for all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, sys.argv[0], *arguments]
            + ["--process", str(process), "--port", port]
        )
        for process in range(number)
    ]
    try:
        # One that fails would leave the others waiting for it.
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(0.2)
        # Before the others are stopped.
        failures = [status for p in processes if (status := p.poll())]
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    return abs(failures[0]) if failures else 0


def scope_of(options):
    """Sets the devices up; the hypermodel is made within what it returns.

    Before anything is computed, or the devices are fixed already.
    """
    backend = keras.backend.backend()
    address = f"localhost:{options.port}"
    number = options.devices * options.processes
    if backend == "tensorflow":
        import tensorflow as tf

        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        if kind == "CPU":
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * options.devices,
            )
        return tf.distribute.MirroredStrategy(
            [f"{kind}:{n}" for n in range(options.devices)]
        ).scope()
    if backend == "jax":
        import jax

        # Without effect where there are GPUs.
        jax.config.update("jax_num_cpu_devices", options.devices)
        if options.processes > 1:
            keras.distribution.initialize(
                address, options.processes, options.process
            )
        devices = keras.distribution.list_devices()
        if len(devices) < number:
            sys.exit(f"--devices: there are {len(devices)}, not {number}.")
        distribution = keras.distribution.DataParallel(
            devices=devices[:number],
            auto_shard_dataset=False,
        )
        return distribution.scope()
    if options.processes > 1:
        import torch

        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(options.process)
        # From here on, the hypermodels of all processes learn together.
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"tcp://{address}",
            rank=options.process,
            world_size=options.processes,
        )
    return contextlib.nullcontext()


def part_of(array, options):
    """What this process reads: its part of each batch."""
    steps = len(array) // options.batch_size
    array = array[: steps * options.batch_size]
    parts = array.reshape(steps, options.processes, -1, *array.shape[1:])
    return parts[:, options.process or 0].reshape(-1, *array.shape[1:])


def make():
    """The hypermodel, compiled."""
    hyper = nm.ManifoldHyperModel(nm.models.lenet(), seed=0)
    hyper.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return hyper


def main(arguments=None):
    options = parse_arguments(arguments)
    if options.processes > 1 and options.process is None:
        words = sys.argv[1:] if arguments is None else arguments
        sys.exit(start_processes(options.processes, words))
    scope = scope_of(options)
    keras.utils.set_random_seed(0)  # The same on all of them.
    _, (x, y), test = load_data(options.dataset)
    if options.quick:
        x, y = x[:256], y[:256]
        test = tuple(part[:256] for part in test)
        options.batch_size, options.epochs = 64, 2
    first = not options.process
    with scope:
        hyper = make()
        history = hyper.fit(
            part_of(x, options),
            part_of(y, options),
            batch_size=options.batch_size // options.processes,
            epochs=options.epochs,
            # Each shuffling its part by itself would be another order.
            shuffle=False,
            validation_data=test,
            callbacks=[nm.EvaluateSizes(*test, ratios=[0.25])],
            verbose=2 if first else 0,
        ).history
        small = hyper.morph(ratio=0.25)
    if first:
        options.output.mkdir(parents=True, exist_ok=True)
        small.save(options.output / "quarter.keras")
        path = options.output / "history.json"
        path.write_text(json.dumps(history, default=float, indent=1) + "\n")
        print(f"Quarter-size network and losses: {options.output}")
    return history


if __name__ == "__main__":
    main()
