"""Flower's ServerApp: a `Coordinator` whose messages travel through a Grid.

The run configuration holds options of `codream-secure simulate`, by their names with dashes, and:

- ``roster``: file of public keys, in the malicious model.
- ``reply-timeout``: seconds to wait for sites' answers, each time.
- ``start-timeout``: seconds to wait for enough sites at the start.
- ``out``: folder for results.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from codream_secure.config import Config
from codream_secure.data.datasets import load_dataset
from codream_secure.errors import UserError
from codream_secure.flower.carrier import Carrier
from codream_secure.flower.coordinator import Coordinator, Round
from codream_secure.flower.node import read_roster

OWN = {"roster", "reply-timeout", "start-timeout", "out"}

log = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run over the sites that are connected."""
    try:
        run(grid, context.run_config)
    except UserError as error:
        log.error("%s", error)
        raise SystemExit(2) from None


def run(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """Run, and write dreams.npz and summary.json as they grow.

    Raises:
        UserError: a setting that there is not, or too few sites.
    """
    given = {k.replace("-", "_"): v for k, v in run_config.items() if k not in OWN and v != ""}
    config = Config.from_options(given)
    data = load_dataset(config.data.dataset, Path(config.data.data_dir))
    share = config.data.samples_per_client or len(data.y_train) // config.data.clients
    wanted = run_config.get("roster")
    carrier = Carrier(grid, float(run_config.get("reply-timeout", 600)))
    carrier.wait_for(config.data.clients, float(run_config.get("start-timeout", 120)))
    coordinator = Coordinator(
        config,
        spec=data.spec,
        scaling=data.scaling,
        share=share,
        carry=carrier,
        identities=read_roster(Path(str(wanted))) if wanted else (),
        test=(data.x_test, data.y_test),
        tell=lambda line: log.warning("%s", line),
    )
    folder = Path(str(run_config.get("out") or "codream-run"))
    folder.mkdir(parents=True, exist_ok=True)
    rounds: list[Round] = []
    for one in coordinator.run():
        rounds.append(one)
        accuracy = "-" if one.server is None else f"{one.server:.3f}"
        log.info(
            "round %d: %d labelled batches, server %s, %d sites learned, dreams %s",
            one.number,
            len(one.dreams),
            accuracy,
            one.learned,
            one.digest[:16],
        )
        _write(folder, coordinator, rounds)


def _write(folder: Path, coordinator: Coordinator, rounds: list[Round]) -> None:
    ledger, traffic = coordinator.ledger, coordinator.sites.traffic
    summary = {
        "config": coordinator.config.options(),
        "rounds": [
            {"round": r.number, "dreams": r.digest, "server": r.server, "learned": r.learned}
            for r in rounds
        ],
        "aggregation_steps": coordinator.aggregator.steps,
        "aborted_steps": coordinator.aggregator.aborted_steps,
        "bytes_by_phase": ledger.by_phase(),
        "bytes_per_client": {"up": ledger.per_client("up"), "down": ledger.per_client("down")},
        "flower": asdict(traffic),
        "refused": {str(site): why for site, why in coordinator.sites.refused.items()},
    }
    path = folder / "summary.json"
    path.with_suffix(".part").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".part").replace(path)
    last = [dream for one in rounds for dream in one.dreams][-1:]
    for dream in last:
        np.savez(folder / "dreams.npz", pixels=dream.pixels, targets=dream.targets.numpy())
