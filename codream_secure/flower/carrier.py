"""Carries bytes between the server and numbered sites, in Flower's messages."""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

from codream_secure.sites import wire
from codream_secure.sites.peers import Traffic, one_line

if TYPE_CHECKING:  # at a site it would be a slow import of what only servers need
    from flwr.serverapp import Grid

# The record and the entry of a Flower message that hold our bytes, and the action of a query.
RECORD, BODY, ACTION = "codream-secure", "body", "secure"
# Seconds between two looks for answers. Flower's own `send_and_receive` waits 3 seconds, which is
# longer than most round trips.
_PAUSE = 0.3

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

    Every node says itself which site it is. The first node that claims a number keeps it while it
    is connected; other nodes with the same claim are sent nothing.

    Args:
        grid: Flower's.
        timeout: seconds to wait for the answers to each set of messages.
        message_type: selects the function of the ClientApp that answers.

    Attributes:
        message_type: may be changed between messages.
        traffic: counts whole messages, as protocol buffers; HTTP and TLS around them are not
            counted.
    """

    def __init__(self, grid: "Grid", timeout: float, message_type: str = f"query.{ACTION}") -> None:
        self._grid, self._timeout = grid, timeout
        self.message_type = message_type
        self.traffic = Traffic()
        # The site that each connected node claims to be, in the order of their claims.
        self._claims: dict[int, int] = {}

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
        new = {node: wire.encode(wire.Who()) for node in connected - set(self._claims)}
        for node, data in self._send(new).items():
            try:
                site = int(wire.decode_answer(data).data)
            except (msgspec.DecodeError, ValueError):
                log.warning("node %d does not say which site it is", node)
                continue
            if site in self._claims.values():
                log.warning("node %d says that it is site %d, as another does: ignored", node, site)
            self._claims[node] = site
        first: dict[int, int] = {}
        for node, site in self._claims.items():
            first.setdefault(site, node)
        return {node: site for site, node in first.items()}

    def _send(self, bodies: Mapping[int, bytes]) -> dict[int, bytes]:
        messages = [
            Message(
                content_with(body),
                dst_node_id=node,
                message_type=self.message_type,
                ttl=self._timeout,
            )
            for node, body in bodies.items()
        ]
        found = {}
        for reply in self._exchange(messages):
            node = reply.metadata.src_node_id
            if not reply.has_content():
                log.warning("node %d: %s", node, one_line(str(reply.error.reason)))
                continue
            body = body_of(reply.content)
            if body is None or node not in bodies:
                log.warning("node %d sent what is no answer", node)
                continue
            found[node] = body
        return found

    def _exchange(self, messages: list[Message]) -> list[Message]:
        if not messages:
            return []
        self.traffic.whole_down += sum(map(_size, messages))
        waiting = {m for m in self._grid.push_messages(messages) if m is not None}
        until = time.monotonic() + self._timeout
        replies: list[Message] = []
        while waiting and time.monotonic() < until:
            time.sleep(_PAUSE)
            new = list(self._grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            replies += new
        self.traffic.whole_up += sum(map(_size, replies))
        return replies


def _size(message: Message) -> int:
    return int(message_to_proto(message).ByteSize())
