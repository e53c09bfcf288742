"""The tables that both sessions run on: complete, consistent, and printed in SPEC 6.10."""

import re

import pytest
from secagg_helpers import ROOM, make_params, malicious_params

from protocols.client import session, states
from protocols.client.session import TRANSITIONS, find
from protocols.errors import LocalProtocolError
from protocols.messages import RING_UPLOADS, UPLOADS
from protocols.phases import OPEN_BUNDLES, Phase, round_phases
from protocols.server import step as server_step
from protocols.server import table as server_table
from protocols.server.session import ServerSession
from protocols.server.table import ORDER, RESTING, ROUNDS


def names(kinds) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


def aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def figure() -> str:
    """Both tables as text."""
    client = [("client in state", "is asked for", "with message", "goes to", "only")]
    for row in TRANSITIONS:
        message = row.takes.__name__ if row.takes else "-"
        client.append((names(row.places), row.stage, message, names(row.leads_to), row.only))
    server = [("server in state", "takes", "in round", "and goes to")]
    for state, row in ROUNDS.items():
        server.append((state.__name__, row.takes.__name__, row.phase, names(row.leads_to)))
    server += [(state.__name__, "-", "begin_step", "CollectingInputs") for state in RESTING]
    return aligned(client) + "\n" + aligned(server)


def test_the_specification_shows_the_tables():
    text = (ROOM / "SPEC.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"### 6\.10 .*?```\n(.*?)```", text, flags=re.DOTALL)
    assert shown == figure()


def test_every_state_of_the_client_is_in_the_table():
    places = {place for row in TRANSITIONS for place in row.places}
    reached = {place for row in TRANSITIONS for place in row.leads_to}
    assert places == reached | {states.Start}
    bases = {states.State, states.Failed, states.Ended}
    assert places == set(states.State.__subclasses__()) - bases | set(session._WITHIN_STEP)


def test_every_state_of_the_server_is_in_the_table():
    reached = {state for row in ROUNDS.values() for state in row.leads_to} | {
        server_table.CollectingKeys,
        server_step.CollectingInputs,
    }
    assert reached == set(ROUNDS) | set(RESTING)


@pytest.mark.parametrize(
    "params", [make_params(), malicious_params(), make_params(9)], ids=lambda p: p.threat_model
)
def test_at_most_one_row_fits_a_place_and_a_call(params):
    for stage in (*Phase, OPEN_BUNDLES):
        places = [p for r in TRANSITIONS if r.stage == stage and r.applies(params.batch)
                  for p in r.places]  # fmt: skip
        assert len(places) == len(set(places))
        asked = stage in {*round_phases(params.threat_model), OPEN_BUNDLES}
        assert bool(places) == asked
        if not places:
            with pytest.raises(LocalProtocolError, match="has no step"):
                find(params.batch, states.Start(), stage)


def test_all_uploads_have_a_place_in_the_order():
    kinds = {kind for kind in (*UPLOADS, *RING_UPLOADS) if kind not in ORDER}
    assert {kind.__bases__[0] for kind in kinds} <= set(ORDER)
    taken = [row.takes for row in ROUNDS.values()]
    assert [kind for kind in ORDER if kind in taken] == taken


def test_a_transition_that_is_not_in_the_table_is_refused(monkeypatch):
    params = make_params()
    server = ServerSession(params.batch)
    run = {u: session.ClientSession(params.batch, u, bytes_of) for u in params.roster}
    for u, client in run.items():
        server.receive(u, client.advertise_keys())
    row = ROUNDS[server_table.CollectingKeys]
    wrong = server_table.Round(
        row.phase, row.takes, row.bound, row.receive, row.end, (server_step.Finished,)
    )
    monkeypatch.setitem(ROUNDS, server_table.CollectingKeys, wrong)
    with pytest.raises(LocalProtocolError, match="does not lead to"):
        server.end_round()


def bytes_of(size: int) -> bytes:
    bytes_of.calls = getattr(bytes_of, "calls", 0) + 1
    return bytes_of.calls.to_bytes(size, "big")
