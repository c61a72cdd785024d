"""Weight fields: from the coordinates of a size to its weights."""

from keras_neumeta.fields.anchored import AnchoredField as AnchoredField
from keras_neumeta.fields.implicit import ImplicitField as ImplicitField
from keras_neumeta.fields.integral import IntegralField as IntegralField
from keras_neumeta.fields.slimmable import SlimmableField as SlimmableField
from keras_neumeta.fields.weight_field import WeightField as WeightField
