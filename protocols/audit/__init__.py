"""For audits: a lying server, an attacker that does the algebra, and properties to check.

`LyingServer` sends real clients any message that a script wants: another directory, active set,
task or survivor set to every client, repeated and out of order. It gives every reply to a
`ReferenceAttacker`. The attacker knows all shares that ever left a client, and everything that
corrupt clients hold, and finds every sum that these open.

`protocols.audit.run` checks a fixed list of properties, on this package or on your own `Subject`.
It needs Hypothesis (extra `audit`). What is imported here does not.
"""

from protocols.audit.attacker import Opened, ReferenceAttacker, Sent
from protocols.audit.checks import Checks, Outcome, PropertyFailed
from protocols.audit.lying import LOW_ORDER, ClientFactory, LyingServer
from protocols.audit.subject import Subject

__all__ = [
    "LOW_ORDER",
    "Checks",
    "ClientFactory",
    "LyingServer",
    "Opened",
    "Outcome",
    "PropertyFailed",
    "ReferenceAttacker",
    "Sent",
    "Subject",
]
