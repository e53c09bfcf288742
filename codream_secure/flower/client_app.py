"""Flower's ClientApp: opens the site's folder, answers one message, closes it.

The site is what the SuperNode's ``--node-config`` says:

- ``client``: its number in the roster, from 0.
- ``state``: a folder of its own.
- ``data``: an .npz file, a dataset's name, or ``module:function`` that returns a `Dataset`.
- ``model``: its own architecture, a name or ``module:function``; without it the run's for it.
- ``whole`` (true): all of the training part is this site's; false: its part of the run's partition.
- ``identity``, ``roster``: files of `codream-secure deploy keys`, in the malicious model; there
  ``rejoin`` (false) allows sites that missed a step to be back in the next one.
- ``max-epsilon``, ``max-delta``: what all runs may spend, see `flower.allowance`.
"""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from codream_secure.errors import RequestRefused
from codream_secure.flower.node_config import site_settings
from codream_secure.sites import wire
from codream_secure.sites.site import Site

# A server that was killed may have left a message that is still being answered.
_PATIENCE = 60.0

app = ClientApp()


@app.query(wire.ACTION)
def secure(message: Message, context: Context) -> Message:
    """Answer one message of the coordinator.

    Raises:
        RequestRefused: it holds no message.
    """
    body = wire.body_of(message.content)
    if body is None:
        raise RequestRefused("not a message of a coordinator")
    settings = site_settings(context.node_config)
    with Site(settings, patience=_PATIENCE) as site:
        answer = site.handle(wire.decode(body))
    content = RecordDict({wire.RECORD: ConfigRecord({wire.BODY: wire.encode(answer)})})
    return Message(content, reply_to=message)
