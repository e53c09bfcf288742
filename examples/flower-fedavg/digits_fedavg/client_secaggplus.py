"""The client of Flower's SecAgg+: the mod speaks Flower's older interface, NumPyClient."""

import torch
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

from digits_fedavg.task import Net, load_data
from digits_fedavg.task import test as test_fn
from digits_fedavg.task import train as train_fn


class DigitsClient(NumPyClient):
    """Trains and evaluates on local data."""

    def __init__(self, context: Context) -> None:
        self._config = context.run_config
        self._train, self._test = load_data(
            context.node_config["client"], context.run_config["clients"]
        )

    def fit(self, parameters: list, config: dict) -> tuple[list, int, dict]:  # noqa: ARG002 - Flower's
        """Train; what is returned beside the parameters travels in the clear."""
        net = _net(parameters)
        train_fn(net, self._train, self._config["epochs"], self._config["learning-rate"])
        arrays = [tensor.numpy() for tensor in net.state_dict().values()]
        return arrays, len(self._train.dataset), {}

    def evaluate(self, parameters: list, config: dict) -> tuple[float, int, dict]:  # noqa: ARG002 - Flower's
        """Evaluate; the server gets each client's figures in the clear."""
        loss, accuracy = test_fn(_net(parameters), self._test)
        return loss, len(self._test.dataset), {"eval_acc": accuracy}


def _net(parameters: list) -> Net:
    net = Net()
    names = net.state_dict()
    net.load_state_dict(
        {name: torch.tensor(array) for name, array in zip(names, parameters, strict=True)}
    )
    return net


def client_fn(context: Context) -> Client:
    """Return the client of a node."""
    return DigitsClient(context).to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
