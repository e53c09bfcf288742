"""Labels that a server invents: what a site checks in them, and whom they cannot be told alone."""

import msgspec
import numpy as np
import pytest
from machines import OPTIONS

from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import LabelRequest, SoftLabels, encode
from codream_secure.aggregation.sections import sections
from codream_secure.sites import history, wire
from protocols.primitives.field import PrimeField
from protocols.primitives.packing import pack

RUN = {**OPTIONS, "rounds": 2, "models": "linear", "dream_steps": 1, "dreams": 4}
SITES, VICTIM = 4, 1


def labels_are_asked(message):
    return isinstance(message, wire.Ask) and isinstance(
        decode_request(message.broadcast[history.SIZE :]), LabelRequest
    )


@pytest.mark.parametrize("resent", ["nothing", "another request"])
@pytest.mark.parametrize("malicious", [False, True])
def test_who_does_not_learn_what_the_others_learn_is_in_no_later_sum(machines, malicious, resent):
    """The attack: train everybody but the victim on invented labels, then sum honestly.

    The victim never gets the request for labels. Before, it skipped them with the same history, and
    an honest sum gave its predictions, since the server had made those of all others.
    """
    there = machines(malicious=malicious)

    def lie(site, message):
        if site != VICTIM or not (isinstance(message, wire.Learn) and message.requests):
            return message
        other = b"other" if resent == "another request" else None
        return msgspec.structs.replace(message, requests=(other,) if other else ())

    there.lie(lie)
    there.fault = lambda _n, site, m: "before" if site == VICTIM and labels_are_asked(m) else None
    model = "malicious" if malicious else "semi-honest"
    rounds = list(there.coordinator({**RUN, "threat_model": model}).rounds())
    assert [one.learned for one in rounds] == [SITES - 1, SITES - 1]
    answered = [m for s, m in there.messages if s == VICTIM and isinstance(m, wire.Unmask)]
    # It took part in the first dream step alone, before anybody had learned anything.
    assert {m.batch.number for m in answered} == {0}
    assert len(answered) == 1
    refusals = [line for line in there.told if line.startswith(f"site {VICTIM} refused")]
    assert any("was told other things" in line for line in refusals)


def repacked(change):
    """Return a lie about the sums of labels: `change` gets the totals and the largest possible."""

    def lie(labels, request):
        found = msgspec.msgpack.decode(labels.sums, type=SoftLabels)
        (section,) = sections(request)
        field = PrimeField.for_sum(SITES, section.maximum)
        totals = change(section, field, found.count)
        packed = (pack(np.asarray(totals, np.uint32), field.bits),)
        return msgspec.structs.replace(
            labels, sums=encode(msgspec.structs.replace(found, totals=packed))
        )

    return lie


def counted(labels, _request):
    found = msgspec.msgpack.decode(labels.sums, type=SoftLabels)
    changed = msgspec.structs.replace(found, count=found.count - 1)
    return msgspec.structs.replace(labels, sums=encode(changed))


def of_other_dreams(labels, _request):
    found = msgspec.msgpack.decode(labels.sums, type=SoftLabels)
    changed = msgspec.structs.replace(found, dreams=bytes(32))
    return msgspec.structs.replace(labels, sums=encode(changed))


LIES = {
    "another count": (counted, "count others than the survivors"),
    "other dreams": (of_other_dreams, "other dreams than the record's request"),
    "no labels": (lambda m, _: msgspec.structs.replace(m, sums=b"x"), "not summed labels"),
    "a step that was not": (
        lambda m, _: msgspec.structs.replace(m, step=m.step + 100),
        "that the record lists no sum of",
    ),
    "beyond the answers": (
        repacked(lambda s, f, n: np.full(s.length, min(n * s.maximum + 1, f.p - 1))),
        "larger than answers can make them",
    ),
    "rows too large": (
        repacked(lambda s, f, n: np.full(s.length, n * s.maximum)),
        "no probabilities",
    ),
    "rows of nothing": (repacked(lambda s, f, n: np.zeros(s.length)), "no probabilities"),
    "no signatures": (
        lambda m, _: msgspec.structs.replace(m, proof=None),
        "no signatures on a sum's survivors",
    ),
    "wrong signatures": (
        lambda m, _: msgspec.structs.replace(
            m,
            proof=wire.Proof(m.proof.signers, (bytes(64), *m.proof.signatures[1:])),
        ),
        "signature is not valid",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_labels_that_no_sum_gave_are_refused_by_all(machines, name):
    there, (lie, told) = machines(malicious=True), LIES[name]
    there.fault = lambda _n, site, m: "before" if site == 0 and labels_are_asked(m) else None
    coordinator = there.coordinator({**RUN, "rounds": 1, "threat_model": "malicious"})
    tell, aggregator = coordinator._lessons.tell, coordinator.aggregator

    def lying(lesson):
        request = decode_request(aggregator._call.broadcast)
        labels = tuple(lie(one, request) for one in lesson.labels)
        return tell(msgspec.structs.replace(lesson, labels=labels))

    coordinator._lessons = type(
        "Lying", (), {"tell": staticmethod(lying), "catch_up": lambda _: 0}
    )()
    (only,) = coordinator.rounds()
    assert only.learned == 0
    assert sum(told in line for line in there.told) == SITES


def test_labels_that_were_repaired_are_learned_from(machines, monkeypatch):
    """A row of a site whose numbers are no numbers counts as 1/2 in every class (SPEC 7.1)."""

    def broken(*_):
        return {"labels": np.full(40, np.nan)}

    monkeypatch.setattr("codream_secure.federation.client.label_contribution", broken)
    there = machines(malicious=True)
    (only,) = there.coordinator({**RUN, "rounds": 1, "threat_model": "malicious"}).rounds()
    assert only.learned == SITES
