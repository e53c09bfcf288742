"""A small untrained model with all that it takes to keep it."""

import numpy as np

from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.models.build import build_model
from codream_secure.models.trained import Description, TrainedModel, Training

SPEC = InputSpec(3, 8, 6, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
TRAINING = Training(
    method="codream",
    dataset="photos",
    clients=3,
    round=2,
    test_accuracy=0.5,
    epsilon=None,
    delta=None,
    unit=None,
)


def kept_model(
    spec=SPEC, *, architecture="linear", width=None, norm="batch", training=TRAINING, module=None
):
    channels = (0.5, 0.4, 0.3)[: spec.channels], (0.2, 0.3, 0.4)[: spec.channels]
    told = Description(
        format=1,
        written_by="0",
        architecture=architecture,
        width=width,
        norm=norm,
        spec=spec,
        scaling=Scaling(*channels),
        class_names=("a", "b", "c", "d"),
        training=training,
    )
    module = module or build_model(architecture, spec, width=width, norm=norm, seed=3)
    return TrainedModel(module.eval(), told)
