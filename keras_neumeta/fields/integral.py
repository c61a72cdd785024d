"""`IntegralField`: control points, integrated."""

from keras_neumeta.fields.anchored import AnchoredField
from keras_neumeta.serialization import register_serializable


@register_serializable
class IntegralField(AnchoredField):
    """Control points, as in Integral Neural Networks.

    A layer is an integral over a continuous channel coordinate; a network of
    `n` channels samples it at `n` evenly spaced points, and its sums are
    Riemann sums with weights `1 / n`. Trained with one random size a step
    (the `Uniform` sampler) and no distillation, it is the method of
    Solodskikh et al. (CVPR 2023).

    Args:
        interpolation: Kernel between the control points: `"cubic"` (Keys'
            cubic convolution, as published) or `"linear"`.

    Example:

    ```python
    hyper = keras_neumeta.ManifoldHyperModel(
        model,
        field=keras_neumeta.IntegralField(),
        sampler="uniform",
        distillation=0.0,
    )
    ```
    """

    _FIXED = {
        "stretch": 1.0,
        "scale": 1.0,
        "size_knots": (),
        "levels": (),
    }

    def __init__(self, interpolation="cubic", **kwargs):
        super().__init__(interpolation=interpolation, **self._FIXED, **kwargs)

    def get_config(self):
        config = super().get_config()
        for key in self._FIXED:
            del config[key]
        return config
