"""Flower's ClientApp of a site that dreams: opens its folder, answers one message, closes it.

The SuperNode's ``--node-config`` describes the site:

- ``client``: its number in the roster, from 0.
- ``state``: the folder of this site alone.
- ``data``: an .npz file, a dataset's name, or ``module:function`` that returns a `Dataset`.
- ``classes``: how many classes its data have; default: as many as a run says.
- ``model``: its own architecture, a name or ``module:function``; default: the one that the run
  assigns to it.
- ``whole`` (true): the whole training part is this site's; false: its part of the run's partition.
- ``identity``, ``roster``: files of `codream-secure deploy keys`, in the malicious model.

The site's bounds are in ``policy.toml`` beside the folder ``state``, see `sites.policy`.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from codream_secure.errors import RequestRefused
from codream_secure.flower.carrier import ACTION, body_of, content_with
from codream_secure.flower.node_config import site_settings
from codream_secure.sites.dream_site import DreamSite

# Seconds to wait for the folder: a message of a killed server may still be answered in another
# process.
_PATIENCE = 60.0

app = ClientApp()


@app.query(ACTION)
def secure(message: Message, context: Context) -> Message:
    """Answer one message of the coordinator.

    Raises:
        RequestRefused: the Flower message holds no bytes of ours.
        UserError: the node's configuration is wrong, or the folder cannot be used.
    """
    body = body_of(message.content)
    if body is None:
        raise RequestRefused("not a message of a coordinator")
    settings = site_settings(context.node_config, node=context.node_id)
    with DreamSite(settings, patience=_PATIENCE) as site:
        answer = site.handle_bytes(body)
    return Message(content_with(answer), reply_to=message)
