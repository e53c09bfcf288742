"""The server of codream-secure: the Grid is all that differs from `server_plain`."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from codream_secure.flower.secure_grid import SecureGrid
from digits_fedavg.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average models for some rounds."""
    clients = context.run_config["clients"]
    strategy = FedAvg(min_available_nodes=clients)
    result = strategy.start(
        grid=SecureGrid(grid, context, clients=clients, evaluate_metrics=("eval_loss", "eval_acc")),
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=context.run_config["rounds"],
    )
    rounds = {number: dict(m) for number, m in result.evaluate_metrics_clientapp.items()}
    Path(context.run_config["out"]).write_text(json.dumps(rounds), encoding="utf-8")
