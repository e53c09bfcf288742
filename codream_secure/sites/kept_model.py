"""The model that stays with a site: a folder beside its private state, for `load_model`."""

import logging
from pathlib import Path

from codream_secure._version import __version__
from codream_secure.errors import WriteError
from codream_secure.federation.members import Federation
from codream_secure.federation.run_models import norm_of
from codream_secure.models.trained import FORMAT, Description, TrainedModel, Training
from codream_secure.storage.files import replace_folder

_log = logging.getLogger(__name__)


def model_folder(state: Path) -> Path:
    """Return where a site's model goes: `model` beside `state`, else the state's name and -model.

    Args:
        state: the site's state folder.
    """
    path = state.absolute()
    return path.with_name("model" if path.name == "state" else f"{path.name}-model")


def keep_model(
    federation: Federation, site: int, state: Path, number: int, accuracy: float | None
) -> None:
    """Write a site's model; if it cannot be written, the site's log says so and the run goes on.

    Args:
        federation: the site's part of the run.
        site: its number.
        state: its state folder.
        number: of the round that the model has learned from.
        accuracy: on the site's test part, 0 to 1; None: there is none, or it may not be told.

    Guarantee:
        With one example as the unit, the weights are a function of DP-SGD and of sums that have
        the run's epsilon. With a site as the unit no epsilon is written: its own model is trained
        on its own data without noise.
    """
    config = federation.config
    budget = config.privacy if config.private_training else None
    spec = federation.spec
    names = federation.class_names
    module = federation.members[site].client.learner.frozen_copy().cpu().eval()
    told = Description(
        format=FORMAT,
        written_by=__version__,
        architecture=federation.model_names[site],
        width=config.model.width,
        norm=norm_of(config),
        spec=spec,
        scaling=federation.scaling,
        # A site may have only some of the run's classes; the others have their numbers.
        class_names=(*names, *map(str, range(len(names), spec.classes))),
        training=Training(
            method=config.dream.method,
            dataset=config.data.dataset,
            clients=config.data.clients,
            round=number,
            test_accuracy=accuracy,
            epsilon=None if budget is None else budget.dp_eps,
            delta=None if budget is None else budget.dp_delta,
            unit=None if budget is None else budget.dp_unit,
        ),
    )
    try:
        replace_folder(model_folder(state), TrainedModel(module, told).files())
    except WriteError as error:
        _log.warning("the model was not kept: %s", error)
