"""The paper's tables: what they would run, how they print, and what they do with failures."""

import dataclasses
import functools
import json
import shlex
import statistics
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.paper import tables as paper_tables
from benchmarks.paper.artefacts import ARTEFACTS, artefact
from benchmarks.paper.pages import Page, draw, markdown
from benchmarks.paper.printed import printed_table
from benchmarks.paper.rows import Line, comparison, masked, run_line
from benchmarks.paper.scales import QUICK, SEEDS
from benchmarks.shared import federations
from benchmarks.shared.federations import dream
from benchmarks.shared.grid import Cell, Grid
from codream_secure.cli.compare import compare as compare_command
from codream_secure.cli.simulate import simulate as simulate_command
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.names import DATASET_NAMES
from codream_secure.data.partition import partition
from codream_secure.models.names import MODEL_NAMES
from codream_secure.runs.commands import command_line

TRAINING_EXAMPLES = {"digits": 1397, "mnist": 60_000, "svhn": 73_257, "cifar10": 50_000}
MINIMAL = {
    "samples_per_client": 6,
    "models": "linear",
    "rounds": 1,
    "dreams": 4,
    "dream_steps": 1,
    "warmup_epochs": 1,
    "kd_epochs": 1,
}


EVERY_ARTEFACT = pytest.mark.parametrize(
    "found",
    [
        pytest.param(artefact(name, scale, quick=quick), id=f"{kind}-{name}")
        for kind, scale, quick in (
            ("quick", "tiny", True),
            ("tiny", "tiny", False),
            ("small", "small", False),
            ("full", "full", False),
        )
        for name in ARTEFACTS
    ],
)


def given_by(text):
    """Return the configuration that a printed command line asks for."""
    program, subcommand, *words = shlex.split(text)
    assert (program, subcommand) == ("codream-secure", "simulate")
    parameters = simulate_command.make_context(subcommand, words).params
    known = Config().options()
    return Config.from_options({name: parameters[name] for name in known})


@EVERY_ARTEFACT
def test_every_row_of_every_scale_has_a_configuration(found):
    for row in found.rows:
        config = resolve(Config.from_options({**row.options, "seed": 0}))
        assert config.data.dataset in DATASET_NAMES
        assert set(config.model.models.split(",")) <= set(MODEL_NAMES)


@EVERY_ARTEFACT
def test_every_row_deals_no_more_examples_than_there_are(found):
    for row in found.rows:
        data = resolve(Config.from_options(row.options)).data
        labels = np.arange(TRAINING_EXAMPLES[data.dataset]) % 10
        samples = data.samples_per_client
        parts = partition(
            labels, data.clients, data.partition, 0, samples_per_client=samples, min_examples=4
        )
        assert [len(part) for part in parts] == [samples] * data.clients


@EVERY_ARTEFACT
def test_the_command_line_is_the_configuration(found):
    for row in found.rows:
        seeded = {**row.options, "seed": 3}
        assert given_by(command_line("simulate", seeded)) == Config.from_options(seeded)


@EVERY_ARTEFACT
def test_sums_are_masked_wherever_there_are_three_clients(found):
    for row in found.rows:
        config = resolve(Config.from_options(row.options))
        assert config.secure.secure == (config.data.clients >= 3)
        assert masked(row.options) == (config.data.clients >= 3 and config.dream.collaboration)


@EVERY_ARTEFACT
def test_the_reported_round_is_chosen_on_validation_examples(found):
    for row in found.rows:
        assert resolve(Config.from_options(row.options)).data.validation > 0


def test_the_paper_s_setting_is_the_paper_s():
    config = resolve(Config.from_options(artefact("table1", "full").rows[0].options))
    assert (config.data.dataset, config.data.clients, config.dream.rounds) == ("cifar10", 4, 400)
    assert (config.dream.dreams, config.dream.dream_batches) == (256, 5)
    assert (config.dream.dream_steps, config.dream.local_steps) == (1, 5)
    assert (config.dream.entropy_weight, config.dream.bn_weight) == (0.5, 10)
    assert (config.learning.kd_temperature, config.learning.kd_period) == (20, 5)
    assert {r.options["clients"] for r in artefact("figure3", "full").rows} == {2, 4, 8, 12, 24}


@pytest.mark.parametrize("scale", SEEDS)
def test_printed_figures_belong_to_columns(scale):
    for name in ARTEFACTS:
        found = artefact(name, scale)
        for row in found.rows:
            assert row.printed.keys() <= {column.name for column in found.columns}
            assert row.labels.keys() == found.rows[0].labels.keys()


def test_the_paper_s_mean_of_table_1_is_that_of_its_clients():
    """But for alpha=10, which the page remarks on; to a point, since the paper rounds."""
    columns = ("WRN-16-1", "VGG-11", "WRN-40-1", "ResNet-34")
    for row in artefact("table1", "full").rows:
        mean = statistics.mean(row.printed[name].value for name in columns)
        close = abs(mean - row.printed["Independent"].value) < 1
        assert close == (row.labels["partition"] != "alpha=10")


def test_a_printed_table_is_read_with_and_without_spread():
    found = printed_table("- a b\nw/o_R_bn 1.5(0.2) 3")
    assert found["w/o R_bn"]["a"].spread == 0.2
    assert found["w/o R_bn"]["b"].value == 3
    assert found["w/o R_bn"]["b"].spread is None


# Runs --------------------------------------------------------------------------------------------


@pytest.fixture
def minimal(monkeypatch):
    """Let every artefact run in a moment."""
    monkeypatch.setattr("benchmarks.paper.artefacts.QUICK", {**QUICK, **MINIMAL})


@pytest.fixture
def invoke(minimal, monkeypatch, capsys):
    """Return a function that runs the script and gives what it printed."""

    def call(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["benchmarks.paper.tables.py", "--quick", *map(str, arguments)]
        )
        paper_tables.main()
        return capsys.readouterr().out

    return call


def test_one_artefact_runs_and_prints_its_table(invoke, monkeypatch):
    monkeypatch.setattr("benchmarks.paper.artefacts.CLIENTS_3", (2, 4))
    text = invoke("--only", "figure3")
    assert "Figure 3: number of clients K" in text
    assert "structure only" in text
    assert "codream-secure compare --methods codream,fedavg" in text
    commands = [line for line in text.splitlines() if "codream-secure simulate" in line]
    assert len(commands) == 2
    assert "--no-secure" in commands[0]
    assert "row 1: without secure aggregation" in text


def test_json_has_every_row_and_cell(invoke):
    result = json.loads(invoke("--only", "table5", "--json"))
    assert result["schema_version"] == paper_tables.SCHEMA_VERSION
    assert result["structure_only"] is True
    assert result["scale"] == "tiny"
    assert result["seeds"] == [0]
    assert result["gates"] == []
    assert result["command"].endswith("--quick --only table5 --json")
    assert result["artefacts"].keys() == {"table5"}
    assert len(result["rows"]) == 15
    for row in result["rows"]:
        assert row["artefact"] == "table5"
        assert row["labels"].keys() == {"variant", "partition"}
        assert row["cells"].keys() == {"CoDream", "Independent", "server student"}
        assert row["errors"] == [""]
        assert len(row["commands"]) == 1
        assert 1 <= row["reported_rounds"][0] <= 1
        given_by(row["commands"][0])
    first = result["rows"][0]["cells"]["CoDream"]
    assert first["status"] == "measured"
    assert 0 <= first["mean"] <= 100
    assert first["spread"] is None
    assert (first["paper"], first["paper_spread"]) == (69.2, 0.1)
    alone = next(r for r in result["rows"] if r["labels"]["variant"] == "w/o collaboration")
    assert alone["cells"]["server student"]["mean"] is None
    assert not alone["secure"]
    assert alone["kB_up"] == [0]


def test_the_paper_s_setting_runs_when_it_is_cut_down(tmp_path):
    """Same method, losses and order of learning; on digits, with a linear model."""
    cut = {
        **MINIMAL,
        "dataset": "digits",
        "rounds": 2,
        "adaptive_start": 2,
        "dream_batches": 2,
        "latent": 8,
        "generator_width": 4,
        "kd_period": 1,
        "local_epochs": 1,
    }
    for row in (*artefact("table1", "full").rows[:1], *artefact("table5", "full").rows[::3]):
        kept = {name: value for name, value in cut.items() if name != "adaptive_start"}
        outcome = dream({**row.options, **(cut if "adaptive" in row.options else kept)})
        assert len(outcome.rounds) == 2


def minimal_row():
    """Return a row of Table 1 that runs in a moment, and the methods beside it."""
    found = artefact("table1", "tiny")
    options = {**found.rows[2].options, **MINIMAL, "models": "linear"}
    del options["width"]
    return found, dataclasses.replace(found.rows[2], options=options)


def test_other_methods_are_those_of_the_comparison_that_the_row_names(tmp_path):
    """The command beside a row, run in its own process, finds the figures of its cells."""
    found, row = minimal_row()
    line = run_line(row, found.methods, Grid(), (0,))
    ours = {c.method: line.figure(c).values[0] for c in found.columns if c.method}
    assert ours.keys() == {"centralized", "avgkd"}
    words = shlex.split(comparison({**row.options, "seed": 0}, found.methods))
    result = CliRunner().invoke(compare_command, [*words[2:], "--json", "--out", str(tmp_path)])
    means = {row["method"]: row["mean"] for row in json.loads(result.stdout)["rows"]}
    assert {name: means[name]["accuracy_validated"] for name in ours} == ours


def test_a_method_that_fails_is_its_figure_alone(tmp_path, monkeypatch):
    def never(config, method, settings):
        raise ValueError("no such luck")

    monkeypatch.setattr(federations, "BaselineRun", never)
    found, row = minimal_row()
    line = run_line(row, found.methods, Grid(tmp_path), (0,))
    statuses = {
        c.name: line.figure(c).status for c in found.columns if c.method or c.name == "CoDream"
    }
    assert statuses["Centralized"] == statuses["AvgKD"] == "failed: ValueError: no such luck"
    assert statuses["CoDream"] == "measured"
    assert len(list(tmp_path.glob("*.json"))) == 1, "a failure is not kept"


def test_kept_results_are_not_run_again(invoke, tmp_path, monkeypatch):
    first = json.loads(invoke("--only", "table2", "--json", "--keep", tmp_path))
    assert len(list(tmp_path.glob("*.json"))) == 3 * (1 + len(artefact("table2", "tiny").methods))
    monkeypatch.setattr(federations, "Simulation", None)
    monkeypatch.setattr(federations, "BaselineRun", None)
    again = json.loads(invoke("--only", "table2", "--json", "--keep", tmp_path))
    assert again["rows"] == first["rows"]


def test_a_result_of_other_data_is_not_used(tmp_path):
    path = tmp_path / "some.npz"
    (row, *_) = artefact("table2", "tiny", data=path).rows
    row = dataclasses.replace(row, options={**row.options, **MINIMAL})
    kept = Grid(tmp_path / "kept")
    for shift in (0, 1):
        y = (np.arange(60) + shift) % 3
        x = np.repeat((80 * y).astype(np.uint8), 64).reshape(60, 8, 8)
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
        (cell,) = run_line(row, (), kept, (0,)).runs
        assert not cell.error
    assert len(list((tmp_path / "kept").glob("*.json"))) == 2


def test_a_failed_run_is_its_cells_and_the_rest_goes_on(invoke, tmp_path, monkeypatch):
    simulation = federations.Simulation

    def sometimes(config, **settings):
        if config.data.partition == "dirichlet:1":
            raise ValueError("no such luck")
        return simulation(config, **settings)

    monkeypatch.setattr(federations, "Simulation", sometimes)
    result = json.loads(invoke("--only", "table2", "--json", "--out", tmp_path))
    cells = [row["cells"]["CoDream"] for row in result["rows"]]
    assert [c["status"] for c in cells] == [
        "measured",
        "failed: ValueError: no such luck",
        "measured",
    ]
    assert cells[1]["mean"] is None
    assert cells[1]["paper"] == 57.7
    assert result["rows"][1]["cells"]["FedAvg"]["status"] == cells[1]["status"]
    assert result["rows"][1]["commands"][0].startswith("codream-secure simulate")
    kept = 2 * (1 + len(artefact("table2", "tiny").methods))
    assert len(list(tmp_path.glob("*.json"))) == kept, "a failure is not kept"


def test_bad_options_are_refused(invoke):
    for arguments in (
        ["--only", "table9"],
        ["--scale", "small"],  # with --quick
        ["--data", "missing.npz"],
        ["--record"],  # with --quick
    ):
        with pytest.raises(SystemExit) as exit_:
            invoke(*arguments)
        assert exit_.value.code == 2


# Pages -------------------------------------------------------------------------------------------


@functools.cache
def outcome():
    """Return a real outcome, whose figures `made_up` replaces."""
    return dream({**artefact("table5", "tiny").rows[0].options, **MINIMAL, "seed": 0})


def cell(name, options, result, error=""):
    return Cell(
        name=name,
        settings=options,
        made_with={},
        seconds=1.0,
        cpu_seconds=1.5,
        result=None if error else result,
        error=error,
    )


def made_up(row, methods, seeds, *, error=""):
    """Return a line whose runs have round figures, two rounds each."""
    clients, names = row.options["clients"], row.options["models"].split(",")
    models = tuple(names[c % len(names)] for c in range(clients))
    runs, others = [], {method: [] for method in methods}
    for seed in seeds:
        first, last = (
            msgspec.structs.replace(
                outcome().rounds[0],
                round=number,
                clients=(0.5 + 0.1 * seed,) * clients,
                independent=(0.4,) * clients,
                server=server,
            )
            for number, server in ((1, 0.2), (2, 0.3))
        )
        summary = msgspec.structs.replace(outcome().summary, models=models, reported_round=2)
        whole = msgspec.structs.replace(outcome(), summary=summary, rounds=(first, last))
        options = {**row.options, "seed": seed}
        runs.append(cell("codream", options, whole, error))
        theirs = msgspec.structs.replace(last, server=0.7, clients=(0.7,))
        for method, cells in others.items():
            other = msgspec.structs.replace(whole, rounds=(first, theirs))
            cells.append(cell(method, options, other, error))
    return Line(row, tuple(runs), {method: tuple(cells) for method, cells in others.items()})


def page_of(name, scale="small", **kinds):
    found = artefact(name, scale)
    lines = [made_up(row, found.methods, SEEDS[scale], **kinds) for row in found.rows]
    return Page(found, tuple(lines))


def test_several_seeds_give_mean_and_spread():
    page = page_of("table1")
    texts = page.rows()[0]
    assert texts["CoDream"] == "60.0 ± 10.0\npaper 69.6 ± 1.0"
    assert texts["Centralized"] == "70.0 ± 0.0\npaper 68.8"
    assert texts["WRN-40-1"].endswith("paper 43.5")
    assert texts["server student"] == "30.0 ± 0.0"


def test_a_mean_over_fewer_seeds_is_none():
    found = artefact("table1", "small")
    (row, *_) = found.rows
    good, bad = (made_up(row, (), (0,), error=error).runs[0] for error in ("", "broken"))
    figure = Line(row, (good, bad, good)).figure(
        next(c for c in found.columns if c.name == "CoDream")
    )
    assert figure.status == "failed: broken (1 of 3 seeds)"
    assert figure.as_json()["mean"] is None


@pytest.mark.parametrize("scale", SEEDS)
def test_the_page_has_every_command_figure_and_picture(scale, tmp_path):
    pages = [page_of(name, scale) for name in ARTEFACTS]
    pictures = {
        page.artefact.name: f"{page.artefact.name}.png"
        for page in pages
        if draw(page, tmp_path / f"{page.artefact.name}.png", "here")
    }
    assert pictures.keys() == {"figure3", "figure4", "figure5"}
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in pictures.values())
    text = markdown(pages, label="here", notes=["note"], facts={"date": "today"}, pictures=pictures)
    for page in pages:
        assert f"## {page.artefact.title} (here)" in text
        for line in page.lines:
            assert all(command in text for command in line.commands)
    for name in pictures.values():
        assert f"]({name})" in text


def test_a_figure_whose_runs_all_failed_is_drawn_empty(tmp_path):
    for name in ("figure3", "figure4", "figure5"):
        assert draw(page_of(name, error="broken"), tmp_path / f"{name}.png", "here")


def test_the_recorded_page_is_of_these_rows():
    recorded = json.loads((paper_tables.RESULTS / "paper_tables_tiny.json").read_text())
    rows = [row for name in ARTEFACTS for row in artefact(name, "tiny").rows]
    expected = [command_line("simulate", {**row.options, "seed": 0}) for row in rows]
    assert [row["commands"][0] for row in recorded["rows"]] == expected
    page = (paper_tables.RESULTS / "paper_tables_tiny.md").read_text(encoding="utf-8")
    assert "structure only" in page
    for name in ("figure3", "figure4", "figure5"):
        assert Path(paper_tables.RESULTS / f"paper_tables_tiny_{name}.png").exists()
