"""Running what stands in `cells.py`: each run once, and kept where a folder is given.

The methods that the paper compares with run after Co-Dream on the same data and seed, each for
as many of a client's forward and backward passes as Co-Dream took.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.shared.gates import progress
from codream_secure import __version__
from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.plan import cost_of
from codream_secure.compare.results import headline
from codream_secure.config.methods import parse_method
from codream_secure.config.settings import Config
from codream_secure.federation.simulation import Simulation


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one run left; accuracies are test accuracies after the reported round, 0..1.

    Attributes:
        options: of the run, seed included.
        made_with: versions and, of a file of data, its digest: what else decides the result.
        seconds, cpu_seconds: of wall time, and of CPU time, which other load disturbs least.
        error: why there is no result; "" if there is one.
        models: of the clients.
        reported_round: chosen by the clients' validation accuracy, see `Observer.reported`.
        clients, independent: one accuracy a client.
        server: None without a server's student.
        server_history: the student's accuracy after every round, for pictures alone.
        others: accuracy of the methods to compare with, after their own reported round.
        failures: why one of them has none.
        bytes_up, bytes_down: of one client in the whole run.
    """

    options: dict[str, str | int | float | bool]
    made_with: dict[str, str]
    seconds: float
    cpu_seconds: float
    error: str = ""
    models: list[str] = []
    reported_round: int = 0
    clients: list[float] = []
    independent: list[float] = []
    server: float | None = None
    server_history: list[float | None] = []
    others: dict[str, float] = {}
    failures: dict[str, str] = {}
    bytes_up: int = 0
    bytes_down: int = 0


def command(options: Mapping[str, object]) -> str:
    """Return the command line that makes a run with these options."""
    return _command(["simulate"], options)


def comparison(options: Mapping[str, object], methods: Sequence[str]) -> str:
    """Return the command line that compares a run with other methods at equal computation."""
    own = str(options.get("method", "codream"))
    words = ["compare", "--methods", ",".join([own, *methods]), "--trials", "1"]
    words += ["--seeds", str(options["seed"])]
    given = {name: v for name, v in options.items() if name not in ("method", "seed")}
    return _command(words, given)


def _command(words: Sequence[str], options: Mapping[str, object]) -> str:
    words = ["codream-secure", *words]
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


class Runner:
    """Runs federations, no one twice.

    Args:
        folder: results are kept here and taken from here; None: nothing outlives this object.
            A result is used again under the same options, versions and data file. It does not
            notice that the code has changed within a version.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, Run] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, options: Mapping[str, object], methods: Sequence[str] = ()) -> Run:
        """Return the result of a run, from memory, from the folder, or by running it.

        ``methods`` are run after it, for `Run.others`.

        What goes wrong in a run is its ``error``, and is neither kept nor stops the others.
        """
        made_with = _made_with(options)
        key = _digest(options, methods, made_with)
        if key not in self._known:
            self._known[key] = self._kept(key) or self._fresh(key, options, methods, made_with)
        return self._known[key]

    def _kept(self, key: str) -> Run | None:
        path = self._folder / f"{key}.json" if self._folder else None
        if path is None or not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Run)
        except msgspec.DecodeError as error:
            progress(f"{path} is not used: {error}")
            return None

    def _fresh(
        self,
        key: str,
        options: Mapping[str, object],
        methods: Sequence[str],
        made_with: dict[str, str],
    ) -> Run:
        progress(command(options))
        begin, cpu = time.monotonic(), time.process_time()
        try:
            found = _simulate(options, methods)
        except Exception as error:  # noqa: BLE001 - one run must not take the others with it
            found = {"error": f"{type(error).__name__}: {error}"}
            progress(f"failed: {found['error']}")
        spent = {
            "seconds": round(time.monotonic() - begin, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        fields = {"options": dict(options), "made_with": made_with, **spent, **found}
        run = msgspec.convert(fields, Run)
        if self._folder and not run.error and not run.failures:
            path = self._folder / f"{key}.json"
            part = path.with_suffix(".part")
            part.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))
            part.replace(path)
        return run


def _simulate(options: Mapping[str, object], methods: Sequence[str]) -> dict[str, object]:
    simulation = Simulation(Config.from_options(options))
    history = list(simulation.rounds())
    reported = simulation.observer.reported()
    if reported is None:
        raise RuntimeError("no round was finished")
    others, failures = {}, {}
    for name in methods:
        progress(f"  {name}, as many iterations")
        try:
            others[name] = _other(name, simulation)
        except Exception as error:  # noqa: BLE001 - one method must not take the others with it
            failures[name] = f"{type(error).__name__}: {error}"
    return {
        "others": others,
        "failures": failures,
        "models": list(simulation.federation.model_names),
        "reported_round": reported.round,
        "clients": list(reported.clients),
        "independent": list(reported.independent),
        "server": reported.server,
        "server_history": [m.server for m in history],
        "bytes_up": simulation.ledger.per_client("up"),
        "bytes_down": simulation.ledger.per_client("down"),
    }


def _other(name: str, simulation: Simulation) -> float:
    """Return the accuracy of a method that computes as much as ``simulation`` did."""
    method = parse_method(name)
    run = BaselineRun(simulation.config, method, BaselineSettings())
    budget = cost_of("iterations", {"iterations": simulation.iterations}, method)
    for _ in budget.limited(run):
        pass
    reported = run.observer.reported()
    if reported is None:
        raise RuntimeError("no round was finished")
    return headline(reported, method)


def _made_with(options: Mapping[str, object]) -> dict[str, str]:
    made_with = {"codream-secure": __version__, "torch": version("torch")}
    path = Path(str(options.get("dataset", "")))
    if path.suffix == ".npz" and path.is_file():
        made_with["data"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made_with


def _digest(
    options: Mapping[str, object], methods: Sequence[str], made_with: Mapping[str, str]
) -> str:
    text = json.dumps([dict(options), list(methods), dict(made_with)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
