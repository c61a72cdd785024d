"""Where a measurement comes from: what each result file says of itself."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys


def provenance(*packages):
    """Command, date, machine and versions, as a dict for the result file.

    Args:
        packages: Names of packages whose versions matter beside Keras, its
            backend, NumPy and this library.
    """
    import keras

    import keras_neumeta as nm

    backend = keras.backend.backend()
    names = ["keras", backend, "numpy", *packages]
    # Where a folder lies is of no interest elsewhere.
    words = [
        pathlib.Path(word).name if word.startswith("/") else word
        for word in sys.argv[1:]
    ]
    return {
        "command": " ".join(
            ["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *words]
        ),
        "date": datetime.date.today().isoformat(),
        "backend": backend,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(),
            "keras_neumeta": nm.__version__,
            **{name: _version(name) for name in names},
        },
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
