"""Figures that scripts save and notebooks show, without a display."""

import io


def new_figure(caller, figsize):
    """An empty `matplotlib` figure.

    Args:
        caller: What draws, for the error.
        figsize: Width and height in inches.

    Raises:
        ImportError: If there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib: `pip install keras_neumeta[plot]`."
        ) from error

    class ShownFigure(Figure):
        # Notebooks show figures of `pyplot` only, which would keep them all.
        def _repr_png_(self):
            stream = io.BytesIO()
            self.savefig(stream, format="png")
            return stream.getvalue()

    return ShownFigure(figsize=figsize, layout="constrained")
