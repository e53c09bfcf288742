"""The site as the protocol's client: its key, and the bounds of its policy and of the terms."""

from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.session import Session, SiteSettings
from codream_secure.sites.wire import Batch
from protocols.client.states import Party
from protocols.params import BatchParams, Chosen
from protocols.policy import Policy


def batch_of(session: Session, batch: Batch) -> BatchParams:
    """Return what all parties agreed on for a key batch."""
    terms = session.terms
    return BatchParams(
        session=session.session,
        batch=batch.number,
        steps=batch.steps,
        roster=tuple(range(terms.clients)),
        threshold=terms.threshold,
        threat_model=terms.threat_model,
        identities=session.identities,
        chosen=None if terms.chosen is None else Chosen(*terms.chosen),
    )


def party_of(
    settings: SiteSettings, site_policy: SitePolicy, session: Session, batch: Batch
) -> Party:
    """Return the site in a key batch, under the conditions on which it takes part."""
    terms = session.terms
    malicious = terms.threat_model == "malicious"
    policy = Policy(
        min_clients=terms.threshold,
        colluders=terms.colluders,
        max_steps=terms.key_steps,
        kinds=frozenset(terms.kinds),
        rejoin=terms.rejoin,
        max_length=site_policy.max_vector,
        min_clip=site_policy.min_clip,
        max_clip=site_policy.max_clip,
    )
    return Party(
        batch_of(session, batch),
        settings.client,
        identity=settings.identity if malicious else None,
        policy=policy if malicious else None,
    )
