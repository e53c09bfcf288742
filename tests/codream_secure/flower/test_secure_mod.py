"""`secure_mod` and `SecureGrid` around Flower's strategies and ClientApps, without processes."""

import itertools
import os
import stat
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from flwr.supercore.task_identity import TaskIdentity

from codream_secure.errors import RequestRefused, UserError
from codream_secure.flower.carrier import BODY, RECORD, body_of, content_with
from codream_secure.flower.mean import array_record
from codream_secure.flower.mean_request import (
    decode_request,
    encode_request,
)
from codream_secure.flower.operations.credentials import make_keys, write_roster
from codream_secure.flower.secure_grid import SecureGrid
from codream_secure.flower.secure_mod import secure_mod
from codream_secure.sites import session, wire
from codream_secure.sites.contents import forget
from codream_secure.sites.history import SIZE
from protocols import messages

CLIENTS = 4
RUN_CONFIG = {"rate": 0.5, "name": "x"}
START = ArrayRecord(
    {"w": Array(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)), "n": Array(np.array(7))}
)
# What training adds at every client, and how many examples it says to have.
DELTA = {c: (c + 1) / 10 for c in range(CLIENTS)}
EXAMPLES = {c: 10 * (c + 1) for c in range(CLIENTS)}


class Nodes:
    """Flower's Grid and SuperNodes in one; a fault is a function of (site, message)."""

    def __init__(self, folder, malicious=False):
        self.folder, self.malicious = folder, malicious
        self.fault = lambda *_: None
        self.returned = lambda _site, content: content
        self.ids = {100 + c: c for c in range(CLIENTS)}
        self.run_configs = {c: dict(RUN_CONFIG) for c in range(CLIENTS)}
        self.replies, self.sent, self.trained = {}, [], []
        self.numbers = itertools.count(1)
        if malicious:
            for c in range(CLIENTS):
                make_keys(c, folder / "keys")
            self.roster = folder / "roster.json"
            write_roster(sorted((folder / "keys").glob("*.public")), self.roster)

    def app(self, site):
        app = ClientApp(mods=[secure_mod])

        @app.train()
        def train(message, context):
            self.trained.append((site, message.content["config"]["server-round"]))
            arrays = message.content["arrays"]
            new = {"w": Array(arrays["w"].numpy() + np.float32(DELTA[site])), "n": arrays["n"]}
            metrics = {"loss": site / 2, "secret": 4.5, "num-examples": EXAMPLES[site]}
            found = {"arrays": ArrayRecord(new), "metrics": MetricRecord(metrics)}
            return reply(message, self.returned(site, found))

        @app.evaluate()
        def evaluate(message, context):
            metrics = {"acc": site / 4, "num-examples": EXAMPLES[site]}
            return reply(message, {"metrics": MetricRecord(metrics)})

        @app.query()
        def query(message, context):
            return reply(message, {})

        return app

    def context(self, site):
        config = {"client": site, "state": str(self.folder / f"site-{site}")}
        if self.malicious:
            config["identity"] = str(self.folder / "keys" / f"{site}.private")
            config["roster"] = str(self.roster)
        return Context(1, 100 + site, config, RecordDict(), self.run_configs[site])

    def answer(self, site, message):
        return self.app(site)(message, self.context(site))

    def get_node_ids(self):
        return list(self.ids)

    def push_messages(self, messages):
        found = []
        for message in messages:
            number = str(next(self.numbers))
            message.metadata.__dict__["_message_id"] = number
            found.append(number)
            site = self.ids[message.metadata.dst_node_id]
            self.sent.append((site, message))
            decoded = wire.decode(body_of(message.content))
            fault = self.fault(site, decoded)
            if fault == "before":
                continue
            # Message types as Flower's: the content is another object than the server's.
            copy = Message(
                RecordDict(dict(message.content)), dst_node_id=100 + site,
                message_type=message.metadata.message_type,
            )  # fmt: skip
            copy.metadata.__dict__["_message_id"] = number
            copy.metadata.__dict__["_dst_node_id"] = 100 + site
            answer = self.answer(site, copy)
            answer.metadata.__dict__["_src_node_id"] = 100 + site
            if fault != "after":
                self.replies[number] = answer
        return found

    def pull_messages(self, numbers):
        return [self.replies.pop(n) for n in list(numbers) if n in self.replies]


def reply(message, content):
    return Message(RecordDict(content), reply_to=message)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("codream_secure.flower.carrier._PAUSE", 0.0)
    monkeypatch.setattr("codream_secure.sites.pace._sleep", lambda _: None)
    # What Flower sets in the processes of a run.
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


@pytest.fixture
def nodes(tmp_path):
    return lambda **options: Nodes(tmp_path / "nodes", **options)


def secure(nodes, **options):
    context = Context(1, 0, {}, RecordDict(), dict(RUN_CONFIG))
    asked = {"clients": CLIENTS, "timeout": 0.05, "start_timeout": 0.0}
    if nodes.malicious:
        asked |= {"threat_model": "malicious", "roster": nodes.roster}
    return SecureGrid(nodes, context, **(asked | options))


def run(grid, strategy=None, rounds=1):
    strategy = strategy or FedAvg(fraction_evaluate=0.0, min_evaluate_nodes=0)
    return strategy.start(grid=grid, initial_arrays=START, num_rounds=rounds)


def moved(result, rounds=1):
    return result.arrays["w"].numpy() - START["w"].numpy()


@pytest.mark.parametrize("malicious", [False, True])
def test_fedavg_gets_the_mean_and_nothing_else(nodes, malicious):
    there = nodes(malicious=malicious)
    grid = secure(there, train_metrics=("loss",), evaluate_metrics=("acc",))
    result = run(grid, FedAvg(), rounds=2)
    assert moved(result) == pytest.approx(2 * np.mean(list(DELTA.values())), abs=1e-5)
    assert result.arrays["w"].numpy().dtype == np.float32
    assert result.arrays["n"].numpy() == 7
    assert set(result.train_metrics_clientapp[2]) == {"loss"}
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx(0.75, abs=1e-4)
    assert result.evaluate_metrics_clientapp[1]["acc"] == pytest.approx(0.375, abs=1e-4)
    assert sorted(there.trained) == [(c, r) for c in range(CLIENTS) for r in (1, 2)]


@pytest.mark.parametrize("strategy", [FedAdam, FedProx])
def test_other_strategies_that_average_are_the_same_with_it(nodes, strategy, monkeypatch):
    options = {"fraction_evaluate": 0.0, "min_evaluate_nodes": 0}
    options |= {"proximal_mu": 0.1} if strategy is FedProx else {}
    arrays = ArrayRecord({"w": START["w"]})
    secured = strategy(**options).start(grid=secure(nodes()), initial_arrays=START, num_rounds=1)
    mean = arrays["w"].numpy() + np.mean(list(DELTA.values()), dtype=np.float32)
    own = strategy(**options)
    if strategy is FedAdam:
        own.current_arrays = {k: a.numpy() for k, a in START.items()}
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(mean), "n": START["n"]}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    request = Message(RecordDict(), dst_node_id=1, message_type="train")
    expected, _ = own.aggregate_train(1, [Message(content, reply_to=request)])
    assert secured.arrays["w"].numpy() == pytest.approx(expected["w"].numpy(), abs=1e-4)


def test_nothing_of_a_reply_is_there_but_one_answer_of_the_protocol(nodes):
    there = nodes()
    seen = []
    original = there.pull_messages

    def pull(numbers):
        found = original(numbers)
        seen.extend(found)
        return found

    there.pull_messages = pull
    run(secure(there, train_metrics=("loss",)), FedAvg(), rounds=1)
    assert seen
    for answer in seen:
        assert set(answer.content) == {RECORD}
        assert set(answer.content[RECORD]) == {BODY}
        body = body_of(answer.content)
        assert wire.encode(wire.decode_answer(body)) == body
        assert b"secret" not in body


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_a_message_that_asks_in_the_clear_is_refused(nodes, kind):
    there = nodes()
    message = Message(
        RecordDict({"arrays": START, "config": ConfigRecord({"server-round": 1})}),
        dst_node_id=100,
        message_type=kind,
    )
    with pytest.raises(RequestRefused, match="masks only"):
        there.answer(0, message)
    assert there.trained == []


def test_the_digest_covers_model_and_configuration(nodes):
    there = nodes()
    there.run_configs[3]["rate"] = 0.6
    grid = secure(there)
    result = run(grid)
    assert moved(result) == pytest.approx(np.mean([DELTA[c] for c in range(3)]), abs=1e-5)
    assert "another run configuration" in grid.server.sites.refused[3]
    ask = next(m for s, m in there.sent if isinstance(decoded(m), wire.Ask))
    request = decode_request(decoded(ask).broadcast[SIZE:])
    assert array_record(request)["w"].numpy() == pytest.approx(START["w"].numpy())
    assert request.config == {"server-round": 1}
    assert request.run_config == RUN_CONFIG


def decoded(message):
    return wire.decode(body_of(message.content))


@pytest.mark.parametrize("kind", [wire.Advertise, wire.Share, wire.Ask, wire.Unmask])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_that_is_gone_is_not_in_the_mean_and_comes_back(nodes, kind, when):
    there = nodes()
    there.fault = lambda site, message: when if site == 1 and isinstance(message, kind) else None
    grid = secure(there, key_steps=1)
    (first,) = ask(grid, START, 1)
    # An answer to Unmask is not needed: the client's input is in the sum by then.
    stays = kind is wire.Unmask
    there_first = [c for c in range(CLIENTS) if stays or c != 1]
    expected = np.mean([DELTA[c] for c in there_first])
    assert difference(first) == pytest.approx(expected, abs=1e-5)
    there.fault = lambda *_: None
    (second,) = ask(grid, START, 2)
    assert difference(second) == pytest.approx(np.mean(list(DELTA.values())), abs=1e-5)


def ask(grid, arrays, number):
    strategy = FedAvg()
    return grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid))


def difference(message):
    return message.content["arrays"]["w"].numpy() - START["w"].numpy()


def test_a_client_with_a_new_folder_is_back_with_the_next_keys(nodes):
    there = nodes()
    grid = secure(there, key_steps=3)
    ask(grid, START, 1)
    (there.folder / "site-1").rename(there.folder / "lost")
    without = np.mean([DELTA[c] for c in (0, 2, 3)])
    for number in (2, 3):
        (found,) = ask(grid, START, number)
        assert difference(found) == pytest.approx(without, abs=1e-5)
    (found,) = ask(grid, START, 4)
    assert difference(found) == pytest.approx(np.mean(list(DELTA.values())), abs=1e-5)


def test_below_the_threshold_the_model_stays_as_it_is(nodes):
    there = nodes()
    there.fault = lambda site, m: "before" if site > 1 and isinstance(m, wire.Ask) else None
    result = run(secure(there))
    assert not result.arrays


@pytest.mark.parametrize(("wrong", "counts_as"), [(np.nan, 0.0), (np.inf, 1.0), (-np.inf, -1.0)])
def test_what_is_not_finite_is_repaired_and_not_refused(nodes, wrong, counts_as, monkeypatch):
    """A server that hears a refusal learns of an overflow in one client's training (SPEC 7.1)."""
    monkeypatch.setitem(DELTA, 2, wrong)
    grid = secure(nodes())
    result = run(grid)
    expected = np.mean([DELTA[0], DELTA[1], counts_as, DELTA[3]])
    assert moved(result) == pytest.approx(expected, abs=1e-5)
    assert not grid.server.sites.refused


def test_an_app_that_raises_adds_zeros_and_tells_its_operator_alone(nodes, monkeypatch, caplog):
    class Private(dict):
        def __getitem__(self, site):
            if site == 1:
                raise ValueError("private: 4711")
            return super().__getitem__(site)

    monkeypatch.setattr(sys.modules[__name__], "DELTA", Private(DELTA))
    there = nodes()
    grid = secure(there)
    result = run(grid)
    assert not grid.server.sites.refused
    assert moved(result) == pytest.approx((DELTA[0] + DELTA[2] + DELTA[3]) / 4, abs=1e-5)
    assert "private: 4711" in caplog.text
    assert not any(b"4711" in body_of(r.content) for r in there.replies.values())


# Data and functions of one client that must not show in whether, when or in which size it answers.
PRIVATE = {
    "usual": {},
    "not finite": {"DELTA": np.nan},
    "very large": {"DELTA": 1e30},
    "no examples": {"EXAMPLES": 0},
    "strange examples": {"EXAMPLES": float("nan")},
    "raises": {"fails": True},
    "no metric": {"without": "metrics"},
    "no arrays": {"without": "arrays"},
}


@pytest.mark.parametrize("private", PRIVATE)
def test_sessions_over_different_private_data_look_alike(nodes, private, monkeypatch):
    """Non-interference: all messages are equal, but for masked vectors, which only have a size."""
    case = PRIVATE[private]
    for table in ("DELTA", "EXAMPLES"):
        if table in case:
            monkeypatch.setitem(getattr(sys.modules[__name__], table), 1, case[table])
    there = nodes()

    def returned(site, content):
        if site == 1 and "fails" in case:
            raise RuntimeError("out of memory")
        return {k: v for k, v in content.items() if site != 1 or k != case.get("without")}

    there.returned = returned
    grid, seen = two_steps(there, monkeypatch)
    assert not grid.server.sites.refused
    assert seen == alike(nodes)


def two_steps(there, patch):
    """Take two steps with secrets that every call repeats; return the grid and the answers."""
    secrets = itertools.count()
    patch.setattr(os, "urandom", lambda n: next(secrets).to_bytes(n, "big"))
    seen = shapes_of_answers(there)
    grid = secure(there, train_metrics=("loss",), weight_cap=35, key_steps=1)
    for number in (1, 2):
        ask(grid, START, number)
    return grid, seen


def alike(nodes, _known=[]):  # noqa: B006 - the usual session is run once
    """Return what a session with the usual data looks like."""
    if not _known:
        there = nodes()
        there.folder = there.folder.with_name("usual")
        with pytest.MonkeyPatch.context() as patch:
            _, seen = two_steps(there, patch)
        _known.extend(seen)
    return _known


def shapes_of_answers(there):
    """Record every answer: its bytes, or of a masked input only the key and its sizes."""
    seen, original = [], there.answer

    def answer(site, message):
        asked = decoded(message)
        found = original(site, message)
        sent = wire.decode_answer(body_of(found.content))
        if isinstance(asked, wire.Ask) and not sent.refused:
            masked = msgspec.msgpack.decode(sent.data, type=messages.MaskedInput)
            sent = (masked.key, *map(len, masked.sections), sent.report, sent.key_exchange)
        seen.append((site, type(asked).__name__, sent))
        return found

    there.answer = answer
    return seen


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("max_model_value = 0.5", "max_model_value = 0.5"),
        ("max_config_value = 0.5", "'server-round' 1 is beyond this site's max_config_value"),
        ("max_weight_cap = 34", "weight_cap 35 is beyond this site's max_weight_cap = 34"),
        ("kinds = ['fedavg-evaluate']", "not in this site's list kinds"),
        ("max_bits = 19", "max_bits = 19"),
    ],
)
def test_the_client_s_policy_bounds_what_training_starts_from(nodes, policy, told):
    there = nodes()
    there.folder.mkdir()
    (there.folder / "policy.toml").write_text(policy)
    grid = secure(there, weight_cap=35)
    with pytest.raises(UserError, match="aborted"):
        run(grid)
    assert there.trained == []
    assert all(told in grid.server.sites.refused[site] for site in range(CLIENTS))


def test_a_model_that_is_no_number_trains_nobody(nodes):
    there = nodes()
    arrays = ArrayRecord({"w": Array(np.array([np.nan, 0], np.float32))})
    grid = secure(there)
    assert ask(grid, arrays, 1) == []
    assert there.trained == []
    assert "max_model_value" in grid.server.sites.refused[0]


def test_weights_are_those_of_fedavg_and_told_once(nodes):
    there = nodes()
    grid = secure(there, weight_cap=35)
    (first,) = ask(grid, START, 1)
    weights = np.array([min(n, 35) for n in EXAMPLES.values()])
    deltas = np.array(list(DELTA.values()))
    assert difference(first) == pytest.approx(deltas @ weights / weights.sum(), abs=1e-4)
    # A client drops out: the mean weight of the first step stands for the others' (D2).
    there.fault = lambda site, m: "before" if site == 0 and isinstance(m, wire.Ask) else None
    (second,) = ask(grid, START, 2)
    expected = deltas[1:] @ weights[1:] / (3 * weights.mean())
    assert difference(second) == pytest.approx(expected, abs=1e-4)
    asked = [decode_request(decoded(m).broadcast[SIZE:]).weigh for s, m in there.sent
             if s == 1 and isinstance(decoded(m), wire.Ask)]  # fmt: skip
    assert asked == [True, False]


def test_a_client_tells_its_weight_once_whatever_the_server_asks(nodes):
    there = nodes()
    grid = secure(there, weight_cap=35)
    ask(grid, START, 1)
    grid._mean_weight = None
    with pytest.raises(UserError, match="told once"):
        ask(grid, START, 2)
    assert all("told once" in grid.server.sites.refused[c] for c in range(CLIENTS))


def test_a_later_session_is_not_told_the_weight_again(nodes):
    """Two sums of weights over sets that differ by one client tell that client's."""
    there = nodes()
    ask(secure(there, weight_cap=35), START, 1)
    other = ArrayRecord({"w": Array(np.ones((2, 3), np.float32)), "n": Array(np.array(7))})
    grid = secure(there, weight_cap=35)
    with pytest.raises(UserError, match="deploy forget"):
        ask(grid, other, 1)
    assert "the weight was told once" in grid.server.sites.refused[0]
    grid = secure(there, weight_cap=20)
    with pytest.raises(UserError, match="deploy forget"):
        ask(grid, other, 1)
    assert "the weight was told under 35" in grid.server.sites.refused[0]
    for site in range(CLIENTS):
        forget(there.folder / f"site-{site}")
    assert ask(secure(there, weight_cap=20), other, 1)


@pytest.mark.parametrize(("first", "then"), [(0, 35), (35, 20), (35, 0)])
def test_the_cap_of_a_session_stays_as_it_was(nodes, first, then):
    """A session with equal weights answered any cap; two caps tell whose weight is between them."""
    there = nodes()
    grid = secure(there, weight_cap=first)
    ask(grid, START, 1)
    grid._weight_cap, grid._mean_weight = then, 1.0
    assert ask(grid, START, 2) == []
    assert f"weight_cap {then}: it was {first}" in grid.server.sites.refused[0]
    assert {r for _, r in there.trained} == {1}


def test_a_weight_is_no_metric(nodes):
    grid = secure(nodes(), train_metrics=("num-examples",))
    assert ask(grid, START, 1) == []
    assert "not a metric" in grid.server.sites.refused[0]


def test_the_weight_has_one_name_in_a_session(nodes):
    there = nodes()
    grid = secure(there)
    ask(grid, START, 1)
    # Under another name a client's number of examples would be a metric like others.
    grid._weighted_by = "loss"
    assert ask(grid, START, 2) == []
    assert "another name in this session" in grid.server.sites.refused[0]
    assert {r for _, r in there.trained} == {1}


def test_the_number_of_examples_is_no_metric_whatever_the_weight_is_called(nodes):
    grid = secure(nodes(), train_metrics=("num-examples",), weighted_by_key="loss")
    assert ask(grid, START, 1) == []
    assert "num-examples is not a metric" in grid.server.sites.refused[0]


@pytest.mark.parametrize("kind", ["train.none", "evaluate", "query"])
def test_a_server_cannot_choose_the_function_of_one_client(nodes, kind):
    """Functions that add nothing at all others would leave one client's update alone in the sum."""
    there = nodes(malicious=True)
    app, called = there.app, []

    def with_another(site):
        found = app(site)

        @found.train("none")
        def none(message, context):
            called.append(site)
            return reply(message, {"arrays": message.content["arrays"]})

        return found

    answer = there.answer

    def lie(site, message):
        if site != 0 and isinstance(decoded(message), wire.Ask):
            message.metadata.__dict__["_message_type"] = kind
        return answer(site, message)

    there.app, there.answer = with_another, lie
    grid = secure(there)
    assert ask(grid, START, 1) == []
    assert called == []
    assert {c for c, _ in there.trained} == {0}
    assert all("'train' messages only" in grid.server.sites.refused[c] for c in (1, 2, 3))


def test_an_evaluation_is_no_training(nodes):
    there = nodes()
    grid = secure(there, evaluate_metrics=("acc",))
    there.answer = as_type(there.answer, "train")
    strategy = FedAvg()
    asked = strategy.configure_evaluate(1, START, ConfigRecord(), grid)
    assert grid.send_and_receive(asked) == []
    assert there.trained == []
    assert "'evaluate' messages only" in grid.server.sites.refused[0]


def as_type(answer, kind):
    def changed(site, message):
        message.metadata.__dict__["_message_type"] = kind
        return answer(site, message)

    return changed


@pytest.mark.parametrize("old", [0, 1])
def test_a_step_of_before_trains_nothing(nodes, old):
    """Asked otherwise for a step that was answered, or never was but is passed: refused at once."""
    there = nodes()
    there.fault = lambda s, m: "before" if isinstance(m, wire.Ask) and m.step == 0 else None
    grid = secure(there)
    ask(grid, START, 1)
    there.fault = lambda *_: None
    ask(grid, START, 2)
    last = [m for s, m in there.sent if s == 0 and isinstance(decoded(m), wire.Ask)][-1]
    asked = decoded(last)
    assert asked.step == 1
    request = msgspec.structs.replace(
        decode_request(asked.broadcast[SIZE:]), step=old, config={"server-round": 7}
    )
    public = asked.broadcast[:SIZE] + encode_request(request)
    lie = msgspec.structs.replace(asked, step=old, broadcast=public)
    trained = list(there.trained)
    answer = wire.decode_answer(sent(there, lie))
    assert f"step {old} after step 1" in answer.refused
    assert there.trained == trained
    # What was answered is still answered with the same bytes, without the app.
    assert sent(there, asked) == sent(there, asked)
    assert not wire.decode_answer(sent(there, asked)).refused
    assert there.trained == trained


def sent(there, message):
    """Return site 0's answer to a message of training."""
    content = content_with(wire.encode(message))
    message = Message(content, dst_node_id=100, message_type="train")
    return there.answer(0, message).content[RECORD][BODY]


@pytest.mark.parametrize("body", ["x", 2**40, [b"x"]])
def test_a_body_that_is_no_bytes_is_refused(nodes, body):
    content = content_with(body)
    with pytest.raises(RequestRefused, match="masks only"):
        nodes().answer(0, Message(content, dst_node_id=100, message_type="train"))


def test_without_examples_there_is_no_mean(nodes, monkeypatch):
    for c in range(CLIENTS):
        monkeypatch.setitem(EXAMPLES, c, 0)
    with pytest.raises(UserError, match="no client has an example"):
        ask(secure(nodes(), weight_cap=35), START, 1)


def test_a_repeated_request_trains_once_and_gets_the_same_bytes(nodes):
    there = nodes()
    run(secure(there))
    site, message = next((s, m) for s, m in there.sent if isinstance(decoded(m), wire.Ask))
    copy = Message(RecordDict(dict(message.content)), dst_node_id=100 + site, message_type="train")
    trained = len(there.trained)
    first = there.answer(site, copy).content[RECORD][BODY]
    second = there.answer(site, copy).content[RECORD][BODY]
    assert first == second
    assert len(there.trained) == trained


def test_keys_are_in_a_folder_that_is_the_owners_alone(nodes):
    there = nodes()
    run(secure(there))
    folder = there.folder / "site-0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_another_roster_is_refused_and_named_and_the_rest_goes_on(nodes, tmp_path):
    there = nodes(malicious=True)
    for c in range(CLIENTS):
        make_keys(c, tmp_path / "others")
    # Site 2's roster file has another key for site 0.
    others = tmp_path / "others" / "0.public"
    own = [there.folder / "keys" / f"{c}.public" for c in range(1, CLIENTS)]
    write_roster([others, *own], tmp_path / "other.json")
    context = there.context

    def mistaken(site):
        found = context(site)
        if site == 2:
            found.node_config["roster"] = str(tmp_path / "other.json")
        return found

    there.context = mistaken
    grid = secure(there)
    result = run(grid)
    assert "not this site's roster" in grid.server.sites.refused[2]
    assert moved(result) == pytest.approx(np.mean([DELTA[c] for c in (0, 1, 3)]), abs=1e-5)


def test_a_wrong_signing_key_is_named_and_the_rest_goes_on(nodes, tmp_path, caplog):
    caplog.set_level("WARNING", "flwr")
    there = nodes(malicious=True)
    make_keys(2, tmp_path / "others")
    wrong = (tmp_path / "others" / "2.private").read_text()
    (there.folder / "keys" / "2.private").write_text(wrong)
    grid = secure(there)
    result = run(grid)
    assert "node 102 does not prove that it is site 2 of the roster: ignored" in caplog.text
    assert moved(result) == pytest.approx(np.mean([DELTA[c] for c in (0, 1, 3)]), abs=1e-5)


def test_a_site_with_a_key_takes_part_in_the_malicious_model_alone(nodes):
    there = nodes(malicious=True)
    there.malicious = False
    grid = secure(there)
    there.malicious = True
    assert ask(grid, START, 1) == []
    assert "not set up for the semi-honest model" in grid.server.sites.refused[0]


@pytest.mark.parametrize("malicious", [False, True])
def test_a_threshold_that_bears_too_few_colluders_is_refused(nodes, malicious):
    there = nodes(malicious=malicious)
    there.folder.mkdir(exist_ok=True)
    (there.folder / "policy.toml").write_text("colluders = 3")
    grid = secure(there)
    assert ask(grid, START, 1) == []
    assert "threshold 3 of 4 is too low" in grid.server.sites.refused[0]


def test_an_old_version_is_refused_and_named(nodes, caplog):
    caplog.set_level("WARNING", "flwr")
    there = nodes()
    answer = there.answer

    def old(site, message):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "VERSION", wire.VERSION - (site == 1))
            return answer(site, message)

    there.answer = old
    grid = secure(there)
    result = run(grid)
    assert "node 101 refused" in caplog.text
    assert "install the same codream-secure on both" in caplog.text
    assert moved(result) == pytest.approx(np.mean([DELTA[c] for c in (0, 2, 3)]), abs=1e-5)


def test_a_part_of_the_clients_cannot_be_asked(nodes):
    with pytest.raises(UserError, match="fraction_train"):
        run(secure(nodes()), FedAvg(fraction_train=0.5, min_train_nodes=2, fraction_evaluate=0.0))


def test_only_what_is_masked_goes_through(nodes):
    grid = secure(nodes())
    message = Message(RecordDict(), dst_node_id=100, message_type="query")
    for call in (grid.push_messages, grid.pull_messages, grid.send_and_receive):
        with pytest.raises(UserError, match="only send_and_receive"):
            call([message])


def test_the_malicious_model_needs_a_roster(nodes):
    with pytest.raises(UserError, match="needs a roster of 4 keys"):
        secure(nodes(), threat_model="malicious")


def test_neither_side_imports_pytorch():
    code = (
        "import sys, codream_secure.flower.secure_mod, codream_secure.flower.secure_grid; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_a_step_that_is_never_finished_leaves_an_apps_state_alone(nodes):
    """State priming: before, the next mean held what the victim alone had been asked in between."""
    there, victim, states = nodes(malicious=True), 2, {}
    momentum = dict.fromkeys(range(CLIENTS), 0.0)

    def train(message, context):
        site = context.node_config["client"]
        kept = context.state["momentum"]["v"] if "momentum" in context.state else 0.0
        new = kept / 2 + DELTA[site]
        context.state["momentum"] = MetricRecord({"v": new})
        arrays = message.content["arrays"]
        found = {"w": Array(arrays["w"].numpy() + np.float32(new)), "n": arrays["n"]}
        content = {"arrays": ArrayRecord(found), "metrics": MetricRecord({"num-examples": 1})}
        return reply(message, content)

    def answer(site, message):
        app, context = ClientApp(mods=[secure_mod]), there.context(site)
        app.train()(train)
        context.state = states.get(site, RecordDict())
        answered = app(message, context)
        states[site] = context.state
        return answered

    there.answer = answer
    grid, moves = secure(there), []
    for number in range(4):
        primes = number == 1
        there.fault = lambda site, message, primes=primes: (
            "before" if primes and site != victim and isinstance(message, wire.Ask) else None
        )
        arrays = {"w": Array(START["w"].numpy() + np.float32(number)), "n": START["n"]}
        content = RecordDict(
            {"arrays": ArrayRecord(arrays), "config": ConfigRecord({"server-round": number})}
        )
        sent = [Message(content, dst_node_id=n, message_type="train") for n in grid.get_node_ids()]
        replies = grid.send_and_receive(sent)
        assert bool(replies) != primes
        if replies:
            momentum = {c: v / 2 + DELTA[c] for c, v in momentum.items()}
            moved_by = replies[0].content["arrays"]["w"].numpy() - arrays["w"].numpy()
            assert moved_by == pytest.approx(np.mean(list(momentum.values())), abs=1e-5)
            moves.append(number)
    assert moves == [0, 2, 3]
    # Flower stores the state of the finished steps: the last one is not known to be finished.
    assert states[victim]["momentum"]["v"] == pytest.approx(1.5 * DELTA[victim])


def test_a_large_common_weight_singles_no_client_out(nodes, caplog):
    """The attack: a model whose weight overflows at the client with the largest feature alone.

    Before, that client refused its infinite update, and a search over the weight read the feature
    off the refusals in 14 messages.
    """
    features = {0: 1.5, 1: 1.25, 2: 40.0, 3: 1.75}
    there, heard = nodes(), []

    def train(message, context):
        site = context.node_config["client"]
        weights = message.content["arrays"]["w"].numpy()
        with np.errstate(over="ignore"):
            out = np.float32(weights * np.float32(features[site]) * np.float32(1e35))
        content = {
            "arrays": ArrayRecord({"w": Array(out), "n": message.content["arrays"]["n"]}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return reply(message, content)

    def answer(site, message):
        app = ClientApp(mods=[secure_mod])
        app.train()(train)
        return app(message, there.context(site))

    there.answer = answer
    grid = secure(there)
    for number, exponent in enumerate((0, 1, 2, 3, 3.9, 5, 20, 38)):
        arrays = ArrayRecord({"w": Array(np.full(3, 10.0**exponent, np.float32)), "n": START["n"]})
        grid.server.sites.refused.clear()
        ask(grid, arrays, number)
        heard.append(sorted(grid.server.sites.refused))
    # Whatever is beyond the policy is refused by all alike; below it nobody refuses.
    assert heard == [[]] * 5 + [[0, 1, 2, 3]] * 3
    assert "count as 0 or as the clip" in caplog.text
