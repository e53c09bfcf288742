"""A curious server: it looks at the schema and at every byte, and compares with SECURITY.md."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

import codream_secure.aggregation.requests as broadcasts
from codream_secure.federation.simulation import Simulation
from codream_secure.flower import mean_request
from codream_secure.sites import wire
from protocols import messages
from protocols.phases import Phase, round_phases
from protocols.primitives.packing import unpack
from protocols.server.session import ServerSession

ROOT = Path(__file__).parents[2]

UPLOADS = {
    Phase.ADVERTISE_KEYS: messages.Advertisement,
    Phase.SHARE_KEYS: messages.ShareBundles,
    Phase.MASKED_INPUT: messages.MaskedInput,
    Phase.CONSISTENCY: messages.Consistency,
    Phase.UNMASKING: messages.UnmaskShares,
}
# Around all others in the malicious model; sent only when something is wrong.
RARE_UPLOADS = (messages.Signed, messages.BundleReport)
# Around all others over machines.
SITE_UPLOADS = (wire.Answer, wire.Claim, wire.Present, wire.Joined)
DOWNLOADS = (
    messages.KeyDirectory,
    messages.BundleDelivery,
    messages.StepRequest,
    messages.SurvivorSet,
    messages.ConsistencyProof,
    broadcasts.DreamRequest,
    broadcasts.LocalSteps,
    broadcasts.Student,
    broadcasts.LabelRequest,
    broadcasts.LabelTerms,
    broadcasts.StatisticsRequest,
    broadcasts.EvaluateRequest,
    broadcasts.ModelRequest,
    broadcasts.ModelState,
    broadcasts.NoisyTerms,
    broadcasts.GradientRequest,
    broadcasts.SoftLabels,
    wire.Who,
    wire.Hello,
    wire.Begin,
    mean_request.MeanRequest,
    mean_request.SentArray,
    wire.Batch,
    wire.Advertise,
    wire.Share,
    wire.Ask,
    wire.Confirm,
    wire.Unmask,
    wire.Deliver,
    wire.Entry,
    wire.Proof,
    wire.Listed,
    wire.Labels,
    wire.Learn,
    wire.Images,
)


def listed(heading):
    """Return the `Message.field` names in the first column of a section's table."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`(\w+\.\w+)`", row)}


def schema(types):
    return {f"{t.__name__}.{field.name}" for t in types for field in msgspec.structs.fields(t)}


def check_schema(uploads):
    """Raise AssertionError unless SECURITY.md lists exactly the fields that go up."""
    assert schema(uploads) == listed("What the server receives from one client")


def check_signed(data):
    """Return the signed body; raise AssertionError if there is more than it and a signature."""
    message = msgspec.msgpack.decode(data, type=messages.Signed)
    assert msgspec.msgpack.encode(message) == data
    return message.body


def check_upload(phase, data, *, signed=False):
    """Raise AssertionError unless the bytes are one listed message and nothing else."""
    kind = UPLOADS[phase]
    try:
        if signed:
            data = check_signed(data)
        message = msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise AssertionError(f"{phase}: {error}") from None
    assert msgspec.msgpack.encode(message) == data, f"{phase}: bytes beyond the schema"


@pytest.fixture
def record(tiny, monkeypatch):
    """Return a function that gives every upload of a run, as server-side functions received it."""
    received, tapped = [], []
    original = ServerSession.receive

    def receive(self, client, data):
        received.append((client, data))
        return original(self, client, data)

    def tap(phase, direction, client, data):
        if direction == "up":
            tapped.append((phase, client, data))

    def run(threat_model, **options):
        monkeypatch.setattr(ServerSession, "receive", receive)
        given = {"rounds": 2, "dropout": 0.1, "clients": 5, "threat_model": threat_model}
        config = tiny(**given | options)
        list(Simulation(config, tap=tap).rounds())
        assert received == [(client, data) for _, client, data in tapped]
        return tapped

    return run


def test_security_md_lists_exactly_what_goes_up():
    check_schema([*UPLOADS.values(), *RARE_UPLOADS, *SITE_UPLOADS])


def test_security_md_lists_exactly_what_comes_down():
    assert schema(DOWNLOADS) == listed("What other clients receive")


@pytest.mark.parametrize("threat_model", ["semi-honest", "malicious"])
def test_every_byte_the_server_receives_is_a_listed_field(record, threat_model):
    recorded = record(threat_model)
    assert {phase for phase, *_ in recorded} == set(round_phases(threat_model))
    assert all(type(data) is bytes for *_, data in recorded)
    for phase, _, data in recorded:
        check_upload(phase, data, signed=threat_model == "malicious")


def test_a_common_model_leaves_clients_masked_and_nothing_else_does(record):
    """Every upload is listed; a masked section is as long as the update, or as the labels."""
    options = {"messenger": "linear", "messenger_sums": 2, "messenger_steps": 1, "dream_batches": 1}
    recorded = record("malicious", method="codream-messenger", rounds=1, dropout=0.0, **options)
    sizes = set()
    for phase, _, data in recorded:
        check_upload(phase, data, signed=True)
        if phase is Phase.MASKED_INPUT:
            body = msgspec.msgpack.decode(data, type=messages.Signed).body
            sections = msgspec.msgpack.decode(body, type=messages.MaskedInput).sections
            sizes.add(tuple(map(len, sections)))
    # 64 x 10 weights and 10 biases at 8 bits, summed over 5; 6 dreams x 10 classes at 8 bits.
    assert sizes == {(-(-650 * 11 // 8),), (-(-60 * 11 // 8),)}


@pytest.mark.parametrize("planted", ["loss", "examples", "clip", "accuracy"])
def test_a_planted_field_in_the_schema_is_found(planted):
    leaky = msgspec.defstruct(
        "MaskedInput",
        [("key", int), ("sections", tuple[bytes, ...]), (planted, float)],
        frozen=True,
        array_like=True,
    )
    with pytest.raises(AssertionError):
        check_schema(
            [leaky if t is messages.MaskedInput else t for t in (*UPLOADS.values(), *RARE_UPLOADS)]
            + list(SITE_UPLOADS)
        )


@pytest.mark.parametrize("value", [0.6931, 139, [0.5, 0.25], {"accuracy": 0.9}])
def test_a_planted_value_in_a_message_is_found(record, value):
    for phase, _, data in record("semi-honest")[:40]:
        fields = msgspec.msgpack.decode(data)
        with pytest.raises(AssertionError):
            check_upload(phase, msgspec.msgpack.encode([*fields, value]))
        with pytest.raises(AssertionError):
            check_upload(phase, data + msgspec.msgpack.encode(value))


def test_what_is_masked_says_nothing_of_what_was_put_in(tiny):
    """Clients whose gradient codes are all alike still send uniform field elements."""
    vectors, codes = [], {}

    def tap(phase, direction, client, data):
        if phase is Phase.MASKED_INPUT and direction == "up":
            vectors.append(msgspec.msgpack.decode(data, type=messages.MaskedInput).sections[0])

    simulation = Simulation(tiny(dreams=64, dream_steps=3, bits=4), tap=tap)
    for c, member in simulation.federation.members.items():
        original = member.client.answer

        def constant(broadcast, step, c=c, original=original):
            values = dict(original(broadcast, step))
            codes[c] = {name: np.full_like(v, 3) for name, v in values.items()}
            return codes[c]

        simulation.aggregator._clients[c] = constant
    list(simulation.rounds())
    bits, p, length = 6, 61, 64 * 64
    masked = np.concatenate([unpack(v, bits, length) for v in vectors if len(v) == length * 6 // 8])
    counts = np.bincount(masked, minlength=p)
    chi_square = float(((counts - len(masked) / p) ** 2 / (len(masked) / p)).sum())
    # 60 degrees of freedom: mean 60, standard deviation 11.
    assert len(masked) == 4 * 3 * length
    assert chi_square < 60 + 5 * 11


def test_the_aggregator_returns_sums_and_counts_only(tiny, monkeypatch):
    simulation = Simulation(tiny(clients=5))
    seen = []
    original = simulation.aggregator.sum

    def spy(request):
        total = original(request)
        seen.append(total)
        return total

    monkeypatch.setattr(simulation.aggregator, "sum", spy)
    list(simulation.rounds())
    assert {tuple(total.__dataclass_fields__) for total in seen} == {
        ("totals", "count", "sections")
    }
    assert all(total.count == 5 for total in seen)
