"""The models of a run, with all that it takes to use them elsewhere."""

import torch
from torch import nn

from codream_secure._version import __version__
from codream_secure.federation.run import Run
from codream_secure.federation.run_models import norm_of
from codream_secure.models.evaluate import frozen_copy
from codream_secure.models.trained import FORMAT, Description, TrainedModel, Training

SERVER = "server"


def trained_models(run: Run) -> dict[str, TrainedModel]:
    """Return the models of the reported round: "client-0", …, and "server" if there is one."""
    modules: dict[str, nn.Module] = {f"client-{c}": m for c, m in run.client_models().items()}
    if (server := run.server_model()) is not None:
        modules[SERVER] = server
    weights = run.weights()
    found = {}
    for name, module in modules.items():
        kept = frozen_copy(module).cpu().to(memory_format=torch.contiguous_format)
        kept.load_state_dict(weights[name])
        found[name] = TrainedModel(kept, _described(run, name))
    return found


def _described(run: Run, name: str) -> Description:
    everybody, config = run.federation, run.config
    # The server's model has the first architecture, as client 0.
    client = None if name == SERVER else int(name.removeprefix("client-"))
    reported, guarantee = run.observer.reported(), run.guarantee()
    if guarantee is not None and guarantee.unit == "client" and client is not None:
        guarantee = None  # a client's own model is trained on its own data without noise
    if run.config.privacy.keep_models_home and client is not None:
        guarantee = None  # the same, and it never left its client
    accuracy = None
    if reported is not None:
        accuracy = reported.server if client is None else reported.clients[client]
    return Description(
        format=FORMAT,
        written_by=__version__,
        architecture=everybody.model_names[client or 0],
        width=config.model.width,
        norm=norm_of(config),
        spec=everybody.spec,
        scaling=everybody.scaling,
        class_names=everybody.class_names,
        training=Training(
            method=run.method_name,
            dataset=config.data.dataset,
            clients=config.data.clients,
            round=None if reported is None else reported.round,
            test_accuracy=accuracy,
            epsilon=None if guarantee is None else guarantee.epsilon,
            delta=None if guarantee is None else guarantee.delta,
            unit=None if guarantee is None else guarantee.unit,
        ),
    )
