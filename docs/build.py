"""The API reference, from the docstrings of the public names, as HTML.

    python docs/build.py    # writes build/docs/index.html

A warning ends it with an error.
"""

import argparse
import inspect
import os
import pathlib
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pdoc

import keras_neumeta

MODULES = (keras_neumeta, keras_neumeta.models)
FIRST = "ManifoldHyperModel"


def public_names(module):
    """Names of the classes and functions of a module, the main one first."""
    names = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) or inspect.isfunction(value)
    ]
    return sorted(names, key=lambda name: (name != FIRST, name.lower()))


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("build/docs")
    )
    options = parser.parse_args(arguments)
    for module in MODULES:
        # What is imported there is what is public there.
        module.__all__ = public_names(module)
    keras_neumeta.__all__.append("models")
    pdoc.render.configure(
        docformat="google",
        footer_text=f"keras_neumeta {keras_neumeta.__version__}",
        search=True,
        include_undocumented=False,
        show_source=False,
        template_directory=pathlib.Path(__file__).parent / "templates",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Modules are where the code lies; names come from the package.
        others = r"!keras_neumeta\.(?!models$)"
        pdoc.pdoc("keras_neumeta", others, output_directory=options.output)
    print(options.output / "index.html")


if __name__ == "__main__":
    main()
