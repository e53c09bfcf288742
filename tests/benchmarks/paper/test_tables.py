"""The paper's tables: what they would run, how they print, and what they do with failures."""

import json
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.paper import runs as paper_runs
from benchmarks.paper import tables as paper_tables
from benchmarks.paper.cells import ARTEFACTS, QUICK, SEEDS, artefact, printed_table
from benchmarks.paper.pages import Line, Page, draw, markdown, masked
from benchmarks.paper.runs import Run, Runner, command, comparison
from codream_secure.cli.compare import compare as compare_command
from codream_secure.cli.simulate import simulate as simulate_command
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.names import DATASET_NAMES
from codream_secure.data.partition import partition
from codream_secure.models.names import MODEL_NAMES

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
        assert given_by(command(seeded)) == Config.from_options(seeded)


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
    monkeypatch.setattr("benchmarks.paper.cells.QUICK", {**QUICK, **MINIMAL})


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
    monkeypatch.setattr("benchmarks.paper.cells.CLIENTS_3", (2, 4))
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
    assert result["command"] == (
        "python -m benchmarks.paper.tables --scale tiny --only table5 --quick"
    )
    assert result["artefacts"].keys() == {"table5"}
    assert len(result["rows"]) == 15
    for row in result["rows"]:
        assert row["artefact"] == "table5"
        assert row["labels"].keys() == {"variant", "partition"}
        assert row["cells"].keys() == {"Co-Dream", "Independent", "server student"}
        assert row["errors"] == [""]
        assert len(row["commands"]) == 1
        assert 1 <= row["reported_rounds"][0] <= 1
        given_by(row["commands"][0])
    first = result["rows"][0]["cells"]["Co-Dream"]
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
        run = Runner(None).run({**row.options, **(cut if "adaptive" in row.options else kept)})
        assert not run.error
        assert len(run.server_history) == 2


def test_other_methods_are_those_of_the_comparison_that_the_row_names(tmp_path):
    """The command beside a row, run in its own process, finds the figures of its cells."""
    found = artefact("table1", "tiny")
    options = {**found.rows[2].options, **MINIMAL, "models": "linear", "seed": 0}
    del options["width"]
    run = Runner(None).run(options, found.methods)
    assert run.others.keys() == {"centralized", "avgkd"}
    words = shlex.split(comparison(options, found.methods))
    result = CliRunner().invoke(compare_command, [*words[2:], "--json", "--out", str(tmp_path)])
    means = {row["method"]: row["mean"] for row in json.loads(result.stdout)["rows"]}
    assert {name: means[name]["accuracy_validated"] for name in run.others} == run.others


def test_a_method_that_fails_is_its_cell_alone(tmp_path, monkeypatch):
    def never(config, method, settings):
        raise ValueError("no such luck")

    monkeypatch.setattr("benchmarks.paper.runs.BaselineRun", never)
    found = artefact("table1", "tiny")
    options = {**found.rows[0].options, **MINIMAL, "models": "linear", "seed": 0}
    del options["width"]
    run = Runner(tmp_path).run(options, found.methods)
    line = Line(found.rows[0], (run,), found.methods)
    statuses = {
        c.name: line.cell(c).status for c in found.columns if c.method or c.name == "Co-Dream"
    }
    assert statuses["Centralized"] == statuses["AvgKD"] == "failed: ValueError: no such luck"
    assert statuses["Co-Dream"] == "measured"
    assert not list(tmp_path.iterdir()), "a failure is not kept"


def test_kept_results_are_not_run_again(invoke, tmp_path, monkeypatch):
    first = json.loads(invoke("--only", "table2", "--json", "--out", tmp_path))
    assert len(list(tmp_path.glob("*.json"))) == 3
    monkeypatch.setattr("benchmarks.paper.runs.Simulation", None)
    again = json.loads(invoke("--only", "table2", "--json", "--out", tmp_path))
    assert again["rows"] == first["rows"]


def test_a_result_that_cannot_be_read_is_made_again(tmp_path):
    options = {**artefact("table2", "tiny").rows[0].options, **MINIMAL, "seed": 0}
    made = Runner(tmp_path).run(options)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"{")
    again = Runner(tmp_path).run(options)
    assert again.clients == made.clients
    assert path.read_bytes() != b"{"


def test_a_result_of_other_data_is_not_used(tmp_path):
    path = tmp_path / "some.npz"
    options = {**artefact("table2", "tiny", data=path).rows[0].options, **MINIMAL, "seed": 0}
    kept = Runner(tmp_path / "kept")
    for shift in (0, 1):
        y = (np.arange(60) + shift) % 3
        x = np.repeat((80 * y).astype(np.uint8), 64).reshape(60, 8, 8)
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
        assert not kept.run(options).error
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_failed_run_is_its_cells_and_the_rest_goes_on(invoke, tmp_path, monkeypatch):
    simulation = paper_runs.Simulation

    def sometimes(config):
        if config.data.partition == "dirichlet:1":
            raise ValueError("no such luck")
        return simulation(config)

    monkeypatch.setattr("benchmarks.paper.runs.Simulation", sometimes)
    result = json.loads(invoke("--only", "table2", "--json", "--out", tmp_path))
    cells = [row["cells"]["Co-Dream"] for row in result["rows"]]
    assert [c["status"] for c in cells] == [
        "measured",
        "failed: ValueError: no such luck",
        "measured",
    ]
    assert cells[1]["mean"] is None
    assert cells[1]["paper"] == 57.7
    assert result["rows"][1]["cells"]["FedAvg"]["status"] == cells[1]["status"]
    assert result["rows"][1]["commands"][0].startswith("codream-secure simulate")
    assert len(list(tmp_path.iterdir())) == 2, "a failure is not kept"


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


def made_up(options, seed, *, error=""):
    clients = options["clients"]
    names = options["models"].split(",")
    return Run(
        options={**options, "seed": seed},
        made_with={},
        seconds=1.0,
        cpu_seconds=1.5,
        error=error,
        models=[names[c % len(names)] for c in range(clients)],
        reported_round=2,
        clients=[0.5 + 0.1 * seed] * clients,
        independent=[0.4] * clients,
        server=0.3,
        server_history=[0.2, 0.3],
        others=dict.fromkeys(("centralized", "fedavg", "avgkd"), 0.7),
    )


def page_of(name, scale="small", **kinds):
    found = artefact(name, scale)
    return Page(
        found,
        tuple(
            Line(
                row,
                tuple(made_up(row.options, seed, **kinds) for seed in SEEDS[scale]),
                found.methods,
            )
            for row in found.rows
        ),
    )


def test_several_seeds_give_mean_and_spread():
    page = page_of("table1")
    texts = dict(zip(page.headings, page.cells()[0], strict=True))
    assert texts["Co-Dream"] == "60.0 ± 10.0\npaper 69.6 ± 1.0"
    assert texts["Centralized"] == "70.0 ± 0.0\npaper 68.8"
    assert texts["WRN-40-1"].endswith("paper 43.5")
    assert texts["server student"] == "30.0 ± 0.0"


def test_a_mean_over_fewer_seeds_is_none():
    found = artefact("table1", "small")
    good, bad = (made_up(found.rows[0].options, 0, error=error) for error in ("", "broken"))
    cell = Line(found.rows[0], (good, bad, good)).cell(found.columns[-2])
    assert cell.status == "failed: broken (1 of 3 seeds)"
    assert cell.as_json()["mean"] is None


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
    expected = [command({**row.options, "seed": 0}) for row in rows]
    assert [row["commands"][0] for row in recorded["rows"]] == expected
    page = (paper_tables.RESULTS / "paper_tables_tiny.md").read_text(encoding="utf-8")
    assert "structure only" in page
    for name in ("figure3", "figure4", "figure5"):
        assert Path(paper_tables.RESULTS / f"paper_tables_tiny_{name}.png").exists()
