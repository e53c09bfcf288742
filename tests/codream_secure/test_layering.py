"""Who may import whom, and who may hold what."""

import ast
import gc
import subprocess
import sys
from pathlib import Path

from machines import OPTIONS

import codream_secure
import protocols
from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.config.methods import parse_method
from codream_secure.federation.observer import Measurement, Observer
from codream_secure.federation.simulation import Simulation

PACKAGE = Path(codream_secure.__file__).parent
PROTOCOLS = Path(protocols.__file__).parent

# Who may read the observer: the simulation that owns it and what shows its figures.
READERS = {
    "baselines/run.py",
    "compare/plan.py",
    "federation/members.py",
    "federation/run.py",
    "federation/simulation.py",
    "report/pictures.py",
    "runs/summary.py",
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_simulation_and_the_report_import_the_observer():
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("codream_secure.federation.observer") for name in imports(path))
    }
    assert importers == READERS


def test_no_server_side_object_can_reach_the_observer(tiny):
    simulation = Simulation(tiny())
    list(simulation.rounds())
    server_side = [
        simulation.aggregator,
        simulation.federation.student,
        simulation.server,
        *simulation.groups,
    ]
    label_counts = simulation.observer.label_counts
    run = BaselineRun(tiny(), parse_method("fedavg-secure"), BaselineSettings())
    server_side += [run.exchange, run.exchange.aggregator, run.baseline.model]
    for thing in server_side:
        for found in reachable(thing):
            assert not isinstance(found, Observer | Measurement)
            assert found is not label_counts
    assert any(isinstance(found, Observer) for found in reachable(simulation))
    assert any(found is label_counts for found in reachable(simulation))


def reachable(start):
    """Yield what an object refers to, without descending into modules, classes or code."""
    seen, todo = set(), [start]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | type(sys)):
            continue
        seen.add(id(thing))
        yield thing
        if callable(thing) and hasattr(thing, "__globals__"):
            todo.extend(cell.cell_contents for cell in thing.__closure__ or ())
        else:
            todo.extend(gc.get_referents(thing))


def test_protocols_never_import_the_learning_side_or_torch():
    for path in PROTOCOLS.rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path) if name}
        assert not roots & {"codream_secure", "torch", "opacus", "sklearn"}, path


def test_dreaming_knows_nothing_of_masks():
    """`aggregation/` is the only door between dreaming and the protocol's sessions.

    `sites/` stores a session for whoever runs a client alone, `flower/` carries messages of
    sessions between machines, and the audit of sums runs whole aggregations.
    """
    sessions = (
        "protocols.client",
        "protocols.server",
        "protocols.driver",
        "protocols.rounds",
        "protocols.primitives.keys",
    )
    for path in PACKAGE.rglob("*.py"):
        crossing = {name for name in imports(path) if name and name.startswith(sessions)}
        # Deriving keys of noise is no session.
        if crossing <= {"protocols.primitives.keys", "protocols.primitives.keys.hkdf"}:
            continue
        place = path.relative_to(PACKAGE).as_posix()
        watches_only = crossing <= {"protocols.rounds", "protocols.rounds.Tap"}
        assert (
            path.parent.name in {"aggregation", "sites", "flower", "operations"}
            or place == "audit/sums.py"
            or (place == "federation/simulation.py" and watches_only)
        ), path


def test_help_and_bad_options_do_not_wait_for_torch():
    code = (
        "import sys\n"
        "from codream_secure.cli.main import cli\n"
        "try: cli(['simulate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'opacus', 'matplotlib', 'sklearn'} & set(sys.modules), 'slow'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--dp-eps" in result.stdout


def test_a_site_answers_messages_of_the_protocol_without_torch(machines):
    """Also a site that dreams: PyTorch takes longer to import than a message to answer."""
    there = machines()
    list(there.coordinator({**OPTIONS, "rounds": 1}).rounds())
    code = (
        "import sys, pathlib\n"
        "from codream_secure.sites import dream_site, session, wire\n"
        f"folder = pathlib.Path({str(there.folder / 'site-0')!r})\n"
        "settings = session.SiteSettings(client=0, folder=folder, load=lambda: None)\n"
        "with dream_site.DreamSite(settings) as site:\n"
        "    answer = site.handle(wire.Advertise(wire.Batch(90, 2)))\n"
        "assert answer.data and not answer.refused, answer\n"
        "print({'torch', 'opacus'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_sites_load_neither_flower_nor_what_few_runs_need():
    """A site or its server runs where Flower is not installed, whoever carries the messages.

    Flower starts a process for every message, and torchvision and Opacus take 2.5 s each.
    """
    below = [p for p in PACKAGE.rglob("*.py") if "flower" not in p.relative_to(PACKAGE).parts]
    code = [p for p in below if p.relative_to(PACKAGE).parts[0] != "cli"]
    assert [p for p in code if any(n.split(".")[0] == "flwr" for n in imports(p) if n)] == []
    modules = ", ".join(
        f"codream_secure.sites.{path.stem}" for path in (PACKAGE / "sites").glob("[a-z]*.py")
    )
    slow = {"flwr", "torchvision", "opacus"}
    modules += ", codream_secure.compare.comparison"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}\nprint({slow} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "set()"
