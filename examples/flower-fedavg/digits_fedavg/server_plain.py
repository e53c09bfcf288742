"""The server of Flower's FedAvg: everything in the clear."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_fedavg.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average models for some rounds."""
    clients = context.run_config["clients"]
    strategy = FedAvg(min_available_nodes=clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=context.run_config["rounds"],
    )
    rounds = {number: dict(m) for number, m in result.evaluate_metrics_clientapp.items()}
    Path(context.run_config["out"]).write_text(json.dumps(rounds), encoding="utf-8")
