"""The page about runs: what it says, and that it needs nothing but itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from codream_secure.audit.findings import Finding, PrivacyAudit
from codream_secure.errors import UserError
from codream_secure.report import page as report_page
from codream_secure.report.page import write_page
from codream_secure.runs.formats import pretty

HOSTILE = "<script>alert('$x$')</script>"


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path):
    """Return a function that writes a page and gives (answer, text)."""

    def write(*folders, command="make it"):
        path = tmp_path / "page.html"
        answer = write_page(folders, path, command)
        return " ".join(answer.sentences), path.read_text(encoding="utf-8")

    return write


def check_self_contained(text):
    seen = Seen(text)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {t for t, _ in seen.tags}
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))


def test_a_page_of_one_run_says_what_it_gains_and_needs_nothing_else(write_run, page):
    sizes = {"fedavg_per_client_up": 6000, "fedavg_per_client_down": 6000}
    run = write_run("run", independent=0.8, pictures=True, summary={"bytes": sizes})
    answer, text = page(run)
    assert "10.0 points more than each training alone (80.0 %)" in answer
    assert "sent 1.00 kB and received 2.00 kB" in answer
    assert "FedAvg of the same models over as many rounds moves 12.00 kB both ways, 4" in answer
    assert "no differential privacy" in answer
    check_self_contained(text)
    seen = Seen(text)
    assert len(seen.all("img")) == 2
    assert len(seen.all("svg")) == 2
    assert "make it" in text
    assert "partition = &#34;iid&#34;" in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in seen.all(
        "meta"
    )
    assert "@media print" in text


def test_a_run_that_gains_nothing_says_so(write_run, page):
    answer, _ = page(write_run("run", top=0.8, independent=0.9))
    assert "10.0 points less than each training alone" in answer


def test_a_small_gain_is_called_small(write_run, page):
    answer, _ = page(write_run("run", top=0.81, independent=0.8))
    assert "no more than clients differ among themselves" in answer


def test_fedavg_sending_less_is_said(write_run, page):
    sizes = {"per_client_up": 3000, "per_client_down": 3000}
    sizes |= {"fedavg_per_client_up": 1000, "fedavg_per_client_down": 1000}
    answer, _ = page(write_run("run", independent=0.8, summary={"bytes": sizes}))
    assert "CoDream sends 3 times as much as FedAvg" in answer


def test_seeds_make_one_group_and_methods_several(write_run, page):
    runs = [
        write_run(f"{method}{seed}", method=method, seed=seed, top=top + seed / 100, sent=sent)
        for method, top, sent in (("codream", 0.8, 1000), ("fedavg", 0.9, 9000))
        for seed in (0, 1)
    ]
    answer, text = page(*runs)
    assert "FedAvg reaches the best accuracy: 90.5 %, with 9.00 kB sent and 18.00 kB rec" in answer
    assert "CoDream (80.5 %, 3.00 kB in all) loses to: FedAvg, 90.5 %, 27.00 kB in all." in answer
    assert "overlap" not in answer
    assert "2 seeds, 80.0 % to 81.0 %" in text
    assert text.count('<th scope="row"><div>') == 2


def test_overlapping_seeds_are_named(write_run, page):
    tops = {"codream": (0.8, 0.9), "fedavg": (0.85, 0.95)}
    runs = [
        write_run(f"{method}{seed}", method=method, seed=seed, top=top)
        for method, both in tops.items()
        for seed, top in enumerate(both)
    ]
    assert "(their seeds' ranges overlap)" in page(*runs)[0]


def test_codream_ahead_names_who_sends_less(write_run, page):
    runs = [write_run("a", top=0.9), write_run("b", method="avgkd", top=0.8, sent=10)]
    answer, _ = page(*runs)
    assert "CoDream loses to no other method here; less is sent by: AvgKD, 80.0 %" in answer
    assert "One seed each" in answer


def test_codream_behind_training_alone_says_so(write_run, page):
    runs = [write_run("a", top=0.7, independent=0.75), write_run("b", method="avgkd", top=0.6)]
    assert "CoDream loses to training alone, which reaches 75.0 %" in page(*runs)[0]


def test_methods_that_send_nothing_say_so(write_run, page):
    runs = [
        write_run("a"),
        write_run("b", method="independent", top=0.7, sent=0),
        write_run("c", method="centralized", top=0.99, sent=0),
    ]
    answer, text = page(*runs)
    assert "CoDream reaches the best accuracy of the methods that leave data with its own" in answer
    assert "Centralized training, for which all data would have to lie in one place" in answer
    assert "independent training: sends nothing; every client trains alone." in text
    assert "centralized training: sends nothing here" in text
    assert "independent training (sends nothing)" in text
    answer, _ = page(runs[1])
    assert answer.startswith("The clients of independent training reach 70.0 %")
    assert "nobody sends anything" in answer


def test_partitions_are_not_compared_with_each_other(write_run, page):
    answer, _ = page(
        write_run("a", top=0.7, config={"partition": "shards:2"}),
        write_run("b", method="fedavg", top=0.9),
        write_run("c", method="fedavg", top=0.6, config={"partition": "shards:2"}),
    )
    assert "With shards:2 data, 2 clients: CoDream" in answer
    assert "loses to:" not in answer


def test_settings_that_differ_tell_groups_apart(write_run, page):
    _, text = page(
        write_run("a", config={"dream_steps": 3}), write_run("b", config={"dream_steps": 5})
    )
    assert "CoDream (dream_steps 3)" in text
    assert "CoDream (dream_steps 5)" in text


def test_labels_tell_no_more_than_they_must(write_run, page):
    private = {"dp_eps": 8.0, "norm": "group", "batch": 8}
    _, text = page(write_run("a", epsilon=8.0, config=private), write_run("b", method="codream"))
    assert "CoDream (dp_eps 8.0)</" in text or "CoDream (dp_eps 8.0)<small" in text
    assert "The rows of CoDream differ in: dp_eps, batch, norm." in text


def test_a_private_run_has_its_epsilon_and_a_chart_of_it(write_run, page):
    private = write_run("a", epsilon=8.0, config={"dp_eps": 8.0})
    answer, text = page(private)
    assert "ε = 8 at δ = 1e-05" in answer
    assert "Test accuracy over ε" in text
    _, text = page(private, write_run("b"))
    assert "(no privacy)" in text


def test_without_privacy_a_sentence_stands_for_the_chart(write_run, page):
    _, text = page(write_run("a"))
    assert "No run here is differentially private" in text


def test_noise_from_a_seed_is_no_privacy_and_says_so(write_run, page):
    seeded = {"privacy": {"noise_source": "seeded"}}
    answer, text = page(write_run("a", epsilon=8.0, summary=seeded))
    assert "whoever knows that removes it" in answer
    assert "experiment only" in text


def test_hostile_names_are_text(write_run, page):
    hostile = {"dataset": HOSTILE, "partition": HOSTILE, "note": "</pre>" + HOSTILE}
    phases = {"by_phase": {HOSTILE: {"up": 3, "down": 4}}}
    runs = [
        write_run("a", method=HOSTILE, config=hostile, summary={"bytes": phases}),
        write_run("b", method="fedavg", config=hostile),
    ]
    for folders in (runs[:1], runs):
        _, text = page(*folders, command=f"rerun {HOSTILE}")
        check_self_contained(text)
        assert "<script" not in text
        assert "&lt;script&gt;alert(" in text


def test_a_picture_that_is_none_is_left_out(write_run, page):
    run = write_run("a")
    (run / "dreams.png").write_text("<svg onload='alert(1)'>")
    _, text = page(run)
    assert "No run has a picture of dreams" in text


def test_what_neither_summary_nor_settings_say_is_unknown(write_run, page):
    run = write_run("a")
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text("")
    (run / "config.toml").write_text("")
    answer, text = page(run)
    assert "there is no accuracy to report" in answer
    assert "unknown method on unknown data, unknown partition" in text
    check_self_contained(text)


def test_a_run_without_summary_is_read_from_its_rounds(write_run, page):
    run = write_run("a", independent=0.8)
    (run / "summary.json").unlink()
    answer, text = page(run)
    assert "reach 90.0 %" in answer
    assert "not finished" in text
    (run / "metrics.jsonl").write_text("")
    assert "No round was finished" in page(run)[0]


def test_a_comparison_stands_for_its_cells(write_run, page, tmp_path):
    for method in ("codream", "fedavg"):
        write_run(f"{method}-seed0", method=method, folder=tmp_path / "compared" / "cells")
    answer, text = page(tmp_path / "compared", tmp_path / "compared" / "cells" / "fedavg-seed0")
    assert "loses to no other method" in answer
    assert text.count('<th scope="row"><div>') == 2


def test_cells_without_results_are_named_and_left_out(comparison, page):
    answer, text = page(comparison)
    assert "moon" not in answer.lower()
    assert "No result of moon-seed0: out of &lt;memory&gt;" in text
    assert "No result of scaffold-seed0: not finished" in text
    assert "Every method might spend equal bytes." in text
    assert "of 3" not in text


def edit_rows(run, **changes):
    rows = [json.loads(line) | changes for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_method_with_one_model_is_judged_by_it(write_run, page):
    # The clients of FedAvg hold copies that drifted: theirs would flatter whoever is compared.
    accuracies = {"clients_mean": 0.5, "clients_std": 0.1, "server": 0.95}
    fedavg = write_run("b", method="fedavg", summary={"accuracy": accuracies})
    edit_rows(fedavg, server=0.95, clients=[0.4, 0.6])
    answer, text = page(write_run("a", top=0.9), fedavg)
    assert "FedAvg reaches the best accuracy: 95.0 %" in answer
    assert "one model for all" in text
    assert "The one model of FedAvg reaches 95.0 %" in page(fedavg)[0]


def test_kinds_of_runs_are_compared_after_the_rounds_that_they_paid_for(write_run, page):
    reported = {"clients_mean": 0.99, "clients_std": 0.0}
    chosen = write_run("a", top=0.8, summary={"accuracy": reported})
    assert "reach 99.0 %" in page(chosen)[0]
    assert "CoDream (80.0 %" in page(chosen, write_run("b", method="avgkd", top=0.9))[0]


def test_a_page_that_cannot_be_written_is_one_line(write_run, tmp_path):
    with pytest.raises(UserError, match="cannot write to"):
        write_page([write_run("a")], tmp_path, "")


def test_charts_have_ids_of_their_own(write_run, page):
    _, text = page(write_run("a", epsilon=8.0), write_run("b", method="fedavg"))
    drawn = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawn) == 3
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in drawn]
    for svg, own in zip(drawn, ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own
        assert "currentColor" in svg
    assert not set.intersection(*ids)


def simulate(run):
    options = {"clients": 4, "rounds": 1, "dreams": 6, "dream-steps": 2, "models": "linear"}
    options |= {"warmup-epochs": 1, "kd-epochs": 1, "seed": 0, "out": "made"}
    pairs = [word for name, value in options.items() for word in (f"--{name}", value)]
    return run("simulate", "--quiet", *pairs)


def test_a_run_ends_with_its_page(run, tmp_path):
    assert simulate(run) == (0, "", "")
    text = (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    assert len(Seen(text).all("img")) == 2
    assert "codream-secure simulate --config made/config.toml" in text
    assert "dream gradients" in text


def test_a_page_that_fails_loses_nothing(run, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(report_page, "write_page", broken)
    with pytest.warns(UserWarning, match=r"report\.html was not written: no font"):
        code, _, _ = simulate(run)
    assert code == 0
    made = tmp_path / "made"
    assert json.loads((made / "summary.json").read_text())["rounds_finished"] == 1
    assert list((made / "models").iterdir())
    assert (made / "dreams.png").exists()


def test_the_privacy_audit_of_a_run_is_shown(write_run, page):
    run = write_run("run")
    told = {"what": "<b>", "found": "epsilon >= 3", "claimed": "epsilon = 2"}
    row = Finding(part="sums", holds=False, figures={}, **told)
    names = ["sums: <b>"]
    audit = PrivacyAudit(findings=[row], violated=names, config={}, shadows=8, seconds=1.5)
    (run / "audit.json").write_text(pretty(audit), encoding="utf-8")
    _, text = page(run)
    assert "REFUTED: sums: &lt;b&gt;" in text
    assert "epsilon &gt;= 3" in text
