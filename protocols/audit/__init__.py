"""For audits: a lying server, an attacker that does the algebra, and properties to check.

`LyingServer` drives real clients with requests of the caller's choice: any directory, delivery,
key step, active set, task, survivor set or proof, to each client another one, again and out of
order. Whatever comes back goes to a `ReferenceAttacker`, which knows all shares that ever left,
and everything that corrupt clients hold, and finds every sum that these open.

`protocols.audit.run` runs a fixed list of properties, on this package or on a `Subject` of
one's own. It, `strategies` and `machine` need Hypothesis (extra `audit`); nothing that is
imported here does.
"""

from protocols.audit.attacker import Opened, ReferenceAttacker, Sent
from protocols.audit.checks import Checks, Outcome, PropertyFailed, Subject
from protocols.audit.lying import LOW_ORDER, ClientFactory, LyingServer

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
