"""Flower's ServerApp: a `Coordinator` whose messages a Grid carries.

The run configuration holds options of `codream-secure simulate`, by their names with dashes, and:

- ``roster``: file of public keys, in the malicious model.
- ``reply-timeout``: seconds to wait for the sites' answers to each set of messages.
- ``start-timeout``: seconds to wait for all sites at the start.
- ``out``: folder for results, and for the state from which a crashed run resumes.
- ``resume`` (false): resume the run in ``out``, with the same settings.
- ``evaluate``: whether to ask, once a round, for the sum of the accuracies of the sites' own
  models; default: true without DP, false under DP.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from codream_secure.config.settings import Config
from codream_secure.data.datasets import load_dataset
from codream_secure.errors import UserError
from codream_secure.flower.carrier import Carrier
from codream_secure.flower.node_config import SERVER_OPTIONS, read_roster
from codream_secure.sites.coordinator import Coordinator, Round
from codream_secure.sites.journal import Journal
from codream_secure.storage.files import npz, replace

log = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run CoDream over the connected sites; an error in the settings ends the app with code 2."""
    try:
        run(grid, context.run_config)
    except UserError as error:
        log.error("%s", error)
        raise SystemExit(2) from None


def run(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """Run CoDream over sites; rewrite dreams.npz and summary.json after each round.

    Raises:
        UserError: an unknown setting, too few sites, or a folder that is in use.
    """
    folder = Path(str(run_config.get("out") or "codream-run"))
    resumes = run_config.get("resume") in (True, "true")
    journal = Journal.resume(folder) if resumes else Journal.create(folder)
    try:
        _run(grid, run_config, folder, journal)
    finally:
        journal.close()


def _run(grid: Grid, run_config: Mapping[str, Any], folder: Path, journal: Journal) -> None:
    given = {
        k.replace("-", "_"): v for k, v in run_config.items() if k not in SERVER_OPTIONS and v != ""
    }
    config = Config.from_options(given)
    data = load_dataset(config.data.dataset, Path(config.data.data_dir))
    share = config.data.samples_per_client or len(data.y_train) // config.data.clients
    wanted = run_config.get("roster")
    evaluate = run_config.get("evaluate", "")
    carrier = Carrier(grid, float(run_config.get("reply-timeout", 600)))
    coordinator = Coordinator(
        config,
        spec=data.spec,
        scaling=data.scaling,
        share=share,
        carry=carrier,
        identities=read_roster(Path(str(wanted))) if wanted else (),
        test=(data.x_test, data.y_test),
        evaluates=None if evaluate == "" else evaluate in (True, "true"),
        journal=journal,
        tell=lambda line: log.warning("%s", line),
    )
    carrier.traffic, carrier.door = coordinator.sites.traffic, coordinator.door
    if coordinator.finished:
        log.info("going on after round %d", coordinator.finished[-1].number)
        _write(folder, coordinator)
    log.info("waiting for %d sites to connect", config.data.clients)
    carrier.wait_for(config.data.clients, float(run_config.get("start-timeout", 120)))
    log.info("%d sites are connected; the run begins", len(carrier.sites()))
    for one in coordinator.rounds():
        log.info("%s", _line(one))
        _write(folder, coordinator)


def _line(one: Round) -> str:
    server = "-" if one.server is None else f"{one.server:.3f}"
    sites = "-" if one.sites is None else f"{one.sites[0]:.3f} (mean of {one.sites[1]})"
    return (
        f"round {one.number}: {len(one.dreams)} labelled batches, server {server}, sites {sites}, "
        f"{one.learned} sites learned, dreams {one.digest[:16]}"
    )


def _write(folder: Path, coordinator: Coordinator) -> None:
    ledger, traffic = coordinator.ledger, coordinator.sites.traffic
    summary = {
        "config": coordinator.config.options(),
        "rounds": [
            {
                "round": r.number,
                "dreams": r.digest,
                "server": r.server,
                "learned": r.learned,
                "sites": None
                if r.sites is None
                else {"accuracy": round(r.sites[0], 4), "count": r.sites[1]},
            }
            for r in coordinator.finished
        ],
        "aggregation_steps": coordinator.aggregator.steps,
        "aborted_steps": coordinator.aggregator.aborted_steps,
        "bytes_by_phase": ledger.by_phase(),
        "bytes_per_client": {"up": ledger.per_client("up"), "down": ledger.per_client("down")},
        "flower": asdict(traffic),
        "refused": {str(site): why for site, why in coordinator.sites.refused.items()},
    }
    replace(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    for dream in coordinator.finished[-1].dreams[-1:]:
        arrays = {"pixels": dream.pixels, "targets": dream.targets.numpy()}
        replace(folder / "dreams.npz", npz(arrays))
