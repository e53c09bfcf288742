"""Bytes to sites by number, through Flower's Grid."""

import logging
import time
from collections.abc import Mapping

import msgspec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid

from codream_secure.sites import wire
from codream_secure.sites.peers import Traffic, one_line

# Flower's own `send_and_receive` looks every 3 seconds, which would be most of a round trip.
_PAUSE = 0.3

log = logging.getLogger("flwr")


class Carrier:
    """Moves bytes to sites by number, whatever node Flower has for each.

    A node says itself which site it is. The first that says so is that site while it is connected;
    others that say the same are sent nothing.

    Args:
        grid: Flower's.
        timeout: seconds to wait for answers, each time.
        message_type: which function of the ClientApp answers.

    Attributes:
        message_type: may be changed between messages.
        traffic: is told the size of whole messages, as protocol buffers; what carries these in turn
            (HTTP, TLS) is not counted.
    """

    def __init__(
        self, grid: Grid, timeout: float, message_type: str = f"query.{wire.ACTION}"
    ) -> None:
        self._grid, self._timeout = grid, timeout
        self.message_type = message_type
        self.traffic = Traffic()
        # What connected nodes say that they are, in the order in which they said it.
        self._claims: dict[int, int] = {}

    def wait_for(self, sites: int, seconds: float) -> None:
        """Wait until so many sites are there, or the time is over."""
        until = time.monotonic() + seconds
        while len(self.sites()) < sites and time.monotonic() < until:
            time.sleep(_PAUSE)

    def __call__(self, messages: Mapping[int, bytes]) -> dict[int, bytes]:
        """Send, and return what comes back in time, by site."""
        sites = self.sites()
        nodes = {site: node for node, site in sites.items()}
        there = {nodes[site]: data for site, data in messages.items() if site in nodes}
        return {sites[node]: data for node, data in self._send(there).items()}

    def sites(self) -> dict[int, int]:
        """Return the number of every connected node that has one; new ones are asked for it."""
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
                RecordDict({wire.RECORD: ConfigRecord({wire.BODY: body})}),
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
            body = wire.body_of(reply.content)
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
