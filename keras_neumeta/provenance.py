"""Where a measurement comes from: what each result file says of itself."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys

import keras

from keras_neumeta.version import __version__


def provenance(*packages):
    """Command, date, machine and versions, as a dict for the result file.

    Args:
        packages: Names of packages whose versions matter beside Keras, its
            backend, NumPy and this library.
    """
    backend = keras.backend.backend()
    names = ["keras", backend, "numpy", *packages]
    return {
        "command": shlex.join(["python", *map(_shortened, sys.argv)]),
        "date": datetime.date.today().isoformat(),
        "backend": backend,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(),
            "keras_neumeta": __version__,
            **{name: _version(name) for name in names},
        },
    }


def _shortened(word):
    """Where a folder lies is of no interest elsewhere."""
    path = pathlib.Path(word)
    if not path.is_absolute():
        return word
    here = pathlib.Path.cwd()
    return str(path.relative_to(here)) if here in path.parents else path.name


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
