"""The server of Flower's SecAgg+: a workflow of Flower's older interface."""

import json
from pathlib import Path

from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp

from digits_fedavg.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average models for some rounds."""
    clients = context.run_config["clients"]
    arrays = [tensor.numpy() for tensor in Net().state_dict().values()]
    strategy = FedAvg(
        min_available_clients=clients,
        min_fit_clients=clients,
        initial_parameters=ndarrays_to_parameters(arrays),
        evaluate_metrics_aggregation_fn=_mean,
    )
    legacy = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=context.run_config["rounds"]),
        strategy=strategy,
    )
    workflow = DefaultWorkflow(
        fit_workflow=SecAggPlusWorkflow(num_shares=clients, reconstruction_threshold=clients - 1)
    )
    workflow(grid, legacy)
    found = dict(legacy.history.metrics_distributed.get("eval_acc", []))
    rounds = {number: {"eval_acc": accuracy} for number, accuracy in found.items()}
    Path(context.run_config["out"]).write_text(json.dumps(rounds), encoding="utf-8")


def _mean(metrics: list) -> dict:
    seen = sum(count for count, _ in metrics)
    return {"eval_acc": sum(count * found["eval_acc"] for count, found in metrics) / seen}
