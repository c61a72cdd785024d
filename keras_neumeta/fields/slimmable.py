"""`SlimmableField`: a smaller network is the leading slice of the full one."""

from keras_neumeta.fields.anchored import AnchoredField
from keras_neumeta.serialization import register_serializable


@register_serializable
class SlimmableField(AnchoredField):
    """The leading channels of each group, as in slimmable networks.

    The field of Universally Slimmable Networks (Yu and Huang, ICCV 2019): with
    the sampler and the weights of the example, and statistics per size, it is
    their method. With `switches`, `Switches(switches)` as the sampler and both
    weights 0 it is the original of four widths (Yu et al., ICLR 2019), where
    each width has its own gamma and beta.

    Channels are ordered by importance first (L1 norm, the largest first),
    unless the hypermodel's `smooth` is off.

    Args:
        switches: Ratios, each with vectors (gamma, beta, biases) of its own.

    Example:

    ```python
    field = keras_neumeta.SlimmableField()
    hyper = keras_neumeta.ManifoldHyperModel(
        model,
        field=field,
        sampler=keras_neumeta.Sandwich(num_fixed=2, num_random=2, bands=1),
        distillation=1.0,
        ratio_power=0.0,
    )
    ```
    """

    _FIXED = {
        "interpolation": "linear",
        "stretch": 0.0,
        "scale": 0.0,
        "levels": (),
    }

    def __init__(self, switches=None, **kwargs):
        knots = sorted(float(r) for r in switches or () if r < 1.0)
        super().__init__(**self._FIXED, size_knots=knots, **kwargs)
        self.switches = None if switches is None else list(switches)

    def get_config(self):
        config = super().get_config()
        for key in (*self._FIXED, "size_knots"):
            del config[key]
        return {**config, "switches": self.switches}
