"""The remote that the user's settings describe."""

from __future__ import annotations

from edgellm.errors import UsageError
from edgellm.routing.remote.keys import KEY_FILE, read_key_file
from edgellm.routing.remote.options import RemoteOptions, Secret
from edgellm.routing.remote.prices import PRICE_FILE, find_price
from edgellm.settings import Settings


def from_settings(chosen: Settings) -> RemoteOptions | None:
    """The remote of --remote, EDGELLM_REMOTE_URL and their kin; None when none is named.

    The key is EDGELLM_REMOTE_KEY, else what `remote.key` in the home folder holds. The price is
    that of `prices.toml` there. UsageError and Refused name what is wrong, never the key.
    """
    if chosen.remote_url is None:
        if chosen.remote_model is not None:
            raise UsageError("a remote model needs an address: --remote URL or EDGELLM_REMOTE_URL")
        return None
    if chosen.remote_model is None:
        raise UsageError("a remote needs a model: --remote-model NAME or EDGELLM_REMOTE_MODEL")
    home = chosen.home_folder()
    key_file = home / KEY_FILE
    key: Secret | None = None
    if chosen.remote_key is not None:
        key = Secret(chosen.remote_key)
    elif key_file.exists():
        key = read_key_file(key_file)
    plain = RemoteOptions(chosen.remote_url, chosen.remote_model)
    price = find_price(home / PRICE_FILE, plain.url, plain.model)
    return RemoteOptions(plain.url, plain.model, key, price=price)
