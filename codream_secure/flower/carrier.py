"""Carries bytes between the server and numbered sites, in Flower's messages."""

import logging
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

from codream_secure.sites import wire
from codream_secure.sites.peers import Traffic, one_line
from codream_secure.sites.presence import Doorkeeper, channel_of, fresh_nonce

if TYPE_CHECKING:  # at a site it would be a slow import of what only servers need
    from flwr.serverapp import Grid

# The record and the entry of a Flower message that hold our bytes, and the action of a query.
RECORD, BODY, ACTION = "codream-secure", "body", "secure"
# Seconds between two looks for answers. Flower's own `send_and_receive` waits 3 seconds, which is
# longer than most round trips.
_PAUSE = 0.3
# Seconds to wait until a new node says which site it is. It may come up with the answer later.
_GREETING = 30.0

log = logging.getLogger("flwr")


def body_of(content: Mapping[str, object]) -> bytes | None:
    """Return our bytes in the content of a Flower message; None if there are none."""
    record = content.get(RECORD)
    body = record.get(BODY) if isinstance(record, Mapping) else None
    return body if isinstance(body, bytes) else None


def content_with(body: bytes) -> RecordDict:
    """Return the content of a Flower message that holds these bytes."""
    return RecordDict({RECORD: ConfigRecord({BODY: body})})


class Carrier:
    """Sends bytes to sites by number, whichever Flower node each of them is.

    Every node says itself which site it is, and with a roster proves it (SPEC 3.12). The first node
    that does keeps the number while it is connected; other nodes with the same claim are sent
    nothing. Without a roster the first node is believed: then Flower must know its nodes.

    Args:
        grid: Flower's.
        timeout: seconds to wait for the answers to each set of messages.
        message_type: selects the function of the ClientApp that answers.

    Attributes:
        message_type: may be changed between messages.
        door: checks who a site is.
        traffic: counts whole messages, as protocol buffers; HTTP and TLS around them are not
            counted.
    """

    def __init__(self, grid: "Grid", timeout: float, message_type: str = f"query.{ACTION}") -> None:
        self._grid, self._timeout = grid, timeout
        self.message_type = message_type
        self.traffic = Traffic()
        # The site that each connected node claims to be, in the order of their claims.
        self._claims: dict[int, int] = {}
        self.door = Doorkeeper(bytes(32))
        # Open questions to nodes by message, and the nodes that were asked once.
        self._questions: dict[str, _Question] = {}
        self._asked: set[int] = set()

    def wait_for(self, sites: int, seconds: float) -> None:
        """Wait until so many sites are connected, or the seconds are over."""
        until = time.monotonic() + seconds
        while len(self.sites()) < sites and time.monotonic() < until:
            time.sleep(_PAUSE)

    def __call__(self, messages: Mapping[int, bytes]) -> dict[int, bytes]:
        """Send bytes by site; return the answers that arrive in time, by site."""
        sites = self.sites()
        nodes = {site: node for node, site in sites.items()}
        there = {nodes[site]: data for site, data in messages.items() if site in nodes}
        return {sites[node]: data for node, data in self._send(there).items()}

    def sites(self) -> dict[int, int]:
        """Return the site of every connected node that is one; new nodes are asked for it."""
        connected = set(self._grid.get_node_ids())
        self._claims = {node: site for node, site in self._claims.items() if node in connected}
        self._asked &= connected
        self._ask_who(connected - set(self._claims))
        first: dict[int, int] = {}
        for node, site in self._claims.items():
            first.setdefault(site, node)
        return {node: site for site, node in first.items()}

    def _ask_who(self, nodes: set[int]) -> None:
        """Ask nodes which site they are, and note what those say that have answered by now.

        Only the first question to a node is waited for: a node that never says who it is must not
        hold up the sites.
        """
        now = time.monotonic()
        self._questions = {
            message: question
            for message, question in self._questions.items()
            if question.node in nodes and now < question.until
        }
        open_to = {question.node for question in self._questions.values()}
        nonces = {node: fresh_nonce() for node in nodes - open_to}
        asked = {
            node: wire.encode(wire.Who(wire.VERSION, self.door.session, nonce))
            for node, nonce in nonces.items()
        }
        until = now + self._timeout
        pushed = self._push(asked)
        self._questions |= {m: _Question(n, nonces[n], until) for m, n in pushed.items()}
        new = {message for message, node in pushed.items() if node not in self._asked}
        self._asked |= set(nonces)
        replies = self._pull(new, min(self._timeout, _GREETING))
        replies += self._pull(set(self._questions) - new, 0.0)
        for reply in replies:
            question = self._questions.pop(reply.metadata.reply_to_message_id)
            self._note(question, self._body(reply, {question.node}))

    def _note(self, question: "_Question", body: bytes | None) -> None:
        """Note which site a node says that it is, if that is true as far as the server can tell."""
        node = question.node
        if body is None:
            return
        try:
            answer = wire.decode_answer(body)
            if answer.refused:
                log.warning("node %d refused: %s", node, one_line(answer.refused))
                return
            claim = wire.decode_claim(answer.data)
        except msgspec.DecodeError:
            log.warning("node %d does not say which site it is", node)
            return
        if not self.door.admits(claim.client, question.nonce, claim.proof, channel_of(node)):
            log.warning(
                "node %d does not prove that it is site %d of the roster: ignored",
                node,
                claim.client,
            )
            return
        if claim.client in self._claims.values():
            log.warning(
                "node %d says that it is site %d, as another does: ignored", node, claim.client
            )
        self._claims[node] = claim.client

    def _send(self, bodies: Mapping[int, bytes]) -> dict[int, bytes]:
        found = {}
        for reply in self._pull(set(self._push(bodies)), self._timeout):
            body = self._body(reply, bodies)
            if body is not None:
                found[reply.metadata.src_node_id] = body
        return found

    @staticmethod
    def _body(reply: Message, nodes: Container[int]) -> bytes | None:
        """Return our bytes in the reply of one of these nodes; None if it has none of use."""
        node = reply.metadata.src_node_id
        if not reply.has_content():
            log.warning("node %d: %s", node, one_line(str(reply.error.reason)))
            return None
        body = body_of(reply.content)
        if body is None or node not in nodes:
            log.warning("node %d sent what is no answer", node)
            return None
        return body

    def _push(self, bodies: Mapping[int, bytes]) -> dict[str, int]:
        """Send bytes by node; return the node of every message that Flower has taken."""
        if not bodies:
            return {}
        messages = [
            Message(
                content_with(body),
                dst_node_id=node,
                message_type=self.message_type,
                ttl=self._timeout,
            )
            for node, body in bodies.items()
        ]
        self.traffic.whole_down += sum(map(_size, messages))
        pushed = zip(self._grid.push_messages(messages), bodies, strict=True)
        return {message: node for message, node in pushed if message is not None}

    def _pull(self, waiting: set[str], seconds: float) -> list[Message]:
        """Return the replies to messages that have come when the seconds are over, or all are."""
        until = time.monotonic() + seconds
        replies: list[Message] = []
        while waiting:
            if seconds:
                time.sleep(_PAUSE)
            new = list(self._grid.pull_messages(waiting))
            waiting = waiting - {reply.metadata.reply_to_message_id for reply in new}
            replies += new
            if time.monotonic() >= until:
                break
        self.traffic.whole_up += sum(map(_size, replies))
        return replies


@dataclass(frozen=True, slots=True)
class _Question:
    """A question to a node which site it is; no answer is awaited after ``until``."""

    node: int
    nonce: bytes
    until: float


def _size(message: Message) -> int:
    return int(message_to_proto(message).ByteSize())
