"""`export`: a file for another runtime, from every backend."""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from typing import NamedTuple

import keras

from keras_neumeta.graph.channel_graph import check_model
from keras_neumeta.graph.functional import function_of
from keras_neumeta.hypermodel import ManifoldHyperModel


class _Format(NamedTuple):
    """What `keras.Model.export` asks of a format.

    Args:
        ending: Of the file; a folder has none.
        backends: Those that write it; the first one serves all others.
        options: Names beside `input_signature`, where Keras takes any.
    """

    ending: str
    backends: tuple[str, ...]
    options: tuple[str, ...] | None = None


# Keras also writes ONNX by JAX, OpenVINO and LiteRT by PyTorch: with packages
# of their own, or for one size of batches or images, or without the names of
# the inputs.
_FORMATS = {
    "tf_saved_model": _Format(
        "", ("tensorflow", "jax"), ("is_static", "jax2tf_kwargs")
    ),
    "onnx": _Format(".onnx", ("tensorflow", "torch"), ("opset_version",)),
    "openvino": _Format(".xml", ("tensorflow",), ()),
    "litert": _Format(".tflite", ("tensorflow",)),
    "torch": _Format(".pt2", ("torch",)),
}
_CHILD = "import sys; from keras_neumeta.export import _main; _main(sys.argv)"


def export(model, path, format=None, *, backend=None, verbose=False, **options):
    """Exports a plain network to a format of `keras.Model.export`.

    By `model.export`, and from every backend: for what the running one cannot
    write, or not so, a Python process of its own runs under one that can, from
    a temporary `.keras` file that it loads in safe mode, on the CPU. Batches
    of any size can be given to the result, and images of any size where the
    model's inputs leave it open.

    The files appear at `path` when they are complete. Until then, and where
    the export fails, what was there stays.

    | format | ending | `export` has it written by |
    |---|---|---|
    | `"tf_saved_model"` | none: a folder | TensorFlow, JAX |
    | `"onnx"` | `.onnx` | TensorFlow, PyTorch |
    | `"openvino"` | `.xml`, with a `.bin` beside it | TensorFlow |
    | `"litert"` | `.tflite` | TensorFlow |
    | `"torch"` | `.pt2` | PyTorch |

    Args:
        model: A Sequential or functional `keras.Model`, as `morph` gives it.
        path: Where to, in a folder that exists.
        format: One of the table. Default: by the ending of `path`.
        backend: `"tensorflow"`, `"jax"` or `"torch"`: the one that shall
            write. Default: the running one if it can, else the first of the
            table.
        verbose: Whether to say where the result is.
        **options: For `model.export`, such as `input_signature`,
            `opset_version` (ONNX) or `optimizations` (LiteRT). For another
            process they are pickled.

    Recurrent layers reach OpenVINO only if made with `unroll=True`, and LiteRT
    if so or with a batch of one size (`input_signature`): otherwise a file for
    LiteRT needs an interpreter with TensorFlow's operations (a warning says
    so).

    A SavedModel from JAX runs on the kind of device that wrote it, CPU or
    GPU; with `backend="tensorflow"` it runs on both.

    Layers and functions of one's own, registered with
    `keras.saving.register_keras_serializable`, reach the other process by
    import of the module that defines them: not from a notebook or script.

    Raises:
        TypeError, ValueError: If an argument cannot be used; the message
            says why.
        FileExistsError, FileNotFoundError: If `path` cannot be written to.
        ImportError: If the format needs a package that is not installed.
        RuntimeError: If the other process fails; with its error.

    Example:

    ```python
    small = hyper.morph(ratio=0.25)
    keras_neumeta.export(small, "small")
    ```
    """
    if isinstance(model, ManifoldHyperModel):
        raise TypeError(
            "Argument `model` must be a network of one size. Received the "
            f"hypermodel '{model.name}', which has them all. Morph it first: "
            "`export(hyper.morph(ratio=0.5), path)`."
        )
    check_model(model)
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            "Argument `path` must be a string or a path. Received: "
            f"path={path!r}"
        )
    # Absolute: a folder that is the current one is moved away and back.
    path = pathlib.Path(os.path.abspath(path))
    format = _checked_format(format, path)
    backend = _checked_backend(backend, format, model)
    _check_options(options, format)
    _check_loops(model, format)
    _check_path(path, format)
    # Beside the result, so that moving it there is one step.
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}-", dir=path.parent
    ) as folder:
        folder = pathlib.Path(folder)
        made = folder / "made"
        made.mkdir()
        if backend == keras.backend.backend():
            _export(model, made / path.name, format, options)
        else:
            _export_by(backend, model, made / path.name, format, options)
        if format == "litert":
            _warn_of_tensorflow(made / path.name)
        for new in sorted(made.iterdir()):
            _move(new, path.parent / new.name, folder / "old")
    if verbose:
        print(f"Saved '{path}'.")


def _checked_format(format, path):
    endings = {each.ending: name for name, each in _FORMATS.items()}
    if format is None:
        if path.suffix not in endings:
            raise ValueError(
                "Argument `path` must have an ending that says the format, "
                f"one of {list(endings)}, or `format` must be given. "
                f"Received: path={str(path)!r}"
            )
        return endings[path.suffix]
    if not isinstance(format, str) or format not in _FORMATS:
        raise ValueError(
            f"Argument `format` must be one of {list(_FORMATS)}. "
            f"Received: format={format!r}"
        )
    ending = _FORMATS[format].ending
    if ending and path.suffix != ending:
        raise ValueError(
            f"Argument `path` must end with {ending!r} for format {format!r}. "
            f"Received: path={str(path)!r}"
        )
    return format


def _checked_backend(backend, format, model):
    backends = _FORMATS[format].backends
    running = keras.backend.backend()
    if backend is None:
        backend = running if running in backends else backends[0]
        # PyTorch traces with images of one pixel, where others are not said.
        if (backend, format) == ("torch", "onnx") and any(
            None in x.shape[1:] for x in model.inputs
        ):
            backend = backends[0]
    if backend not in backends:
        raise ValueError(
            f"Argument `backend` must be one of {list(backends)} for format "
            f"{format!r}, or None. Received: backend={backend!r}"
        )
    if importlib.util.find_spec(backend) is None:
        raise ImportError(
            f"Format {format!r} is written by {backend}, which is not "
            f"installed: `pip install {backend}`. The running backend is "
            f"{running}."
        )
    return backend


def _check_options(options, format):
    known = _FORMATS[format].options
    if known is None:
        return
    known = ["input_signature", *known]
    unknown = sorted(options.keys() - {*known})
    if unknown:
        raise ValueError(
            f"Options of format {format!r} must be among {known}. "
            f"Received: {unknown}"
        )


def _check_loops(model, format):
    if format != "openvino":
        return
    looped = [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    if looped:
        raise ValueError(
            "Argument `model`: recurrent layers must be made with "
            "`unroll=True` for format 'openvino', which has no loops of "
            f"TensorFlow. Received: {looped}"
        )


def _warn_of_tensorflow(path):
    """Warns of operations that only TensorFlow has, if it has any."""
    # Strings stand behind their length, and end with zero.
    strings = re.findall(
        rb"(?s)(.)\0{3}(Flex[A-Z][A-Za-z0-9]*)\0", path.read_bytes()
    )
    names = {name for length, name in strings if length[0] == len(name)}
    if names:
        warnings.warn(
            "The file for LiteRT needs an interpreter with TensorFlow's "
            f"operations (Select TensorFlow ops), for "
            f"{sorted(name.decode() for name in names)}. Recurrent layers "
            "need none if made with `unroll=True`, or with a batch of one "
            "size: `input_signature=[keras.InputSpec(shape=(1, ...))]`.",
            stacklevel=3,
        )


def _check_path(path, format):
    if not path.parent.is_dir():
        raise FileNotFoundError(
            "Argument `path` must lie in a folder that exists. Create "
            f"{str(path.parent)!r} first. Received: path={str(path)!r}"
        )
    if _FORMATS[format].ending:
        files = [path]
        if format == "openvino":
            files.append(path.with_suffix(".bin"))
        for file in files:
            if file.is_dir():
                raise FileExistsError(
                    f"Argument `path` must be a file for format {format!r}. "
                    f"There is a folder '{file}'; choose another name. "
                    f"Received: path={str(path)!r}"
                )
    elif path.exists() and not (
        path.is_dir()
        and ((path / "saved_model.pb").exists() or not any(path.iterdir()))
    ):
        raise FileExistsError(
            "Argument `path` must be new, an empty folder or a SavedModel, "
            f"which is then replaced. Received: path={str(path)!r}, which is "
            "something else. Delete it, or choose another path."
        )


def _move(new, path, aside):
    """Puts a finished file or folder into its place."""
    if not path.is_dir():
        new.replace(path)
        return
    # A folder that is not empty cannot be replaced in one step.
    path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        aside.rename(path)
        raise


def _export(model, path, format, options):
    """Exports under the running backend."""
    inputs = function_of(model).input
    if format == "torch" and not {"input_signature", "dynamic_shapes"} & {
        *options
    }:
        # There is no such module under the other backends.
        from keras_neumeta.backends.torch import open_shapes

        options = options | {"dynamic_shapes": open_shapes(inputs)}
        inputs = keras.tree.map_structure(_sample, inputs)
    # Said here, as Keras wants some models to be called once otherwise.
    signature = [keras.tree.map_structure(_spec, inputs)]
    options = {"input_signature": signature, "verbose": False} | options
    with warnings.catch_warnings():
        # Tracing warns of each shape that it reads, and the converters of
        # what they use themselves.
        warnings.simplefilter("ignore")
        try:
            model.export(str(path), format=format, **options)
            if format == "openvino":
                _strip_outputs(path, len(keras.tree.flatten(model.outputs)))
        except ImportError as error:
            raise ImportError(
                f"Format {format!r} needs a package that is not installed. "
                'All are by `pip install "keras_neumeta[export]"`. '
                f"Received: {error}"
            ) from error


def _strip_outputs(path, number):
    """Removes what OpenVINO's converter takes for outputs behind the real."""
    import openvino

    # Not by its address in memory: the file is written anew.
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    model = core.read_model(path)
    extra = model.get_results()[number:]
    for result in extra:
        model.remove_result(result)
    if extra:
        openvino.serialize(model, path)


def _spec(x):
    return keras.layers.InputSpec(
        shape=tuple(x.shape), dtype=x.dtype, name=x.name
    )


def _sample(x):
    """An input with sizes to trace with, which most networks take."""
    sizes = [3, *(64 + 32 * n for n in range(len(x.shape) - 1))]
    shape = [sizes[n] if s is None else s for n, s in enumerate(x.shape)]
    return keras.KerasTensor(shape, dtype=x.dtype, name=x.name)


def _export_by(backend, model, path, format, options):
    """Exports under another backend, in a process of its own.

    Args:
        path: Where to, in a folder for this export alone.
    """
    folder = path.parent.parent
    order = (_own_modules(model), str(path), format, options)
    try:
        (folder / "order.pkl").write_bytes(pickle.dumps(order))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"Arguments {sorted(options)} must be objects that can be "
            f"pickled: format {format!r} is written by another process, "
            f"under {backend}. Define functions in a module. Received: {error}"
        ) from error
    model.save(folder / "model.keras")
    settings = {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        # The GPU may be full already, and is of no use for this.
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    done = subprocess.run(
        # Without the current folder, unless this process looks there too.
        [sys.executable, "-P", "-c", _CHILD, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    if done.returncode == 0:
        return
    reason = f"exit status {done.returncode}\n{_last_error(done.stderr)}"
    with contextlib.suppress(FileNotFoundError):
        reason = (folder / "error.txt").read_text()
    raise RuntimeError(
        f"'{model.name}' was not exported as {format!r} by {backend} (the "
        f"running backend is {keras.backend.backend()}): {reason.strip()}\n"
        "To see more, do the same by hand: save the model as a `.keras` file, "
        f"start Python with KERAS_BACKEND={backend}, load it there with "
        "`keras.saving.load_model`, and call `model.export`."
    )


def _last_error(text):
    """The last traceback, or the last lines."""
    start = text.rfind("Traceback (most recent call last)")
    return text[start:] if start >= 0 else "\n".join(text.splitlines()[-20:])


def _own_modules(model):
    """Names of the modules that define what the model has of the user's."""
    modules = set()
    config = keras.saving.serialize_keras_object(model)
    # The other process loads it without.
    config.pop("compile_config", None)
    for name in _registered_names(config):
        value = keras.saving.get_registered_object(name)
        if value is None:
            continue
        if value.__module__ == "__main__":
            raise ValueError(
                f"Argument `model`: '{value.__name__}' is defined in a script "
                "or notebook, where the process that exports cannot import it "
                "from. Move it into a module that both import."
            )
        modules.add(value.__module__)
    return sorted(modules)


def _registered_names(config):
    if isinstance(config, dict):
        if "class_name" in config:
            names = (config.get("registered_name"), config.get("config"))
            yield from (name for name in names if isinstance(name, str))
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _registered_names(value)


def _main(arguments):
    """What the other process does."""
    folder = pathlib.Path(arguments[1])
    try:
        order = pickle.loads((folder / "order.pkl").read_bytes())
        modules, path, format, options = order
        for module in modules:
            importlib.import_module(module)
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        _export(model, path, format, options)
    except Exception as error:
        text = "".join(traceback.format_exception_only(error))
        (folder / "error.txt").write_text(text)
        sys.exit(1)
