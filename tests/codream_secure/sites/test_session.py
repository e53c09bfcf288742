"""Versions: a server with another one is refused before anything else happens."""

import msgspec
from machines import OPTIONS

from codream_secure.sites import wire


def test_another_version_is_refused_by_name(machines):
    there = machines()
    real = there.carry

    def carry(messages):
        for site, data_ in messages.items():
            message = wire.decode(data_)
            if site == 1 and isinstance(message, wire.Hello):
                other_ = msgspec.structs.replace(message, version=message.version + 1)
                messages = {**messages, site: wire.encode(other_)}
        return real(messages)

    there.carry = carry
    rounds = list(there.coordinator(OPTIONS).rounds())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert any("site 1 refused" in line and "same codream-secure" in line for line in there.told)
