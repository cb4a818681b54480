"""From a model reference to a bundle folder on this machine.

reference ── parse ──▶ Alias | HfRef | PypiRef | LocalRef
open_bundle: in the store? ─ yes ─▶ its folder, no network
                 │ no
                 ▼ lock, fetch (resumable, hashed), convert, publish (one rename)

reference  the four forms, as values          aliases   short names → ordered sources
download   one resumable, verified GET        fetch     one source → files on disk
store      folders, locks, atomic publish     resolve   `open_bundle`, which joins the rest
"""

from edgellm.hub.adapter import read_adapter
from edgellm.hub.progress import Progress, Silent, Terminal
from edgellm.hub.reference import Alias, HfRef, LocalRef, PypiRef, Reference, parse
from edgellm.hub.resolve import HubOptions, export_to, find_bundle, open_bundle
from edgellm.hub.store import Entry, Store, store_home

__all__ = [
    "Alias",
    "Entry",
    "HfRef",
    "HubOptions",
    "LocalRef",
    "Progress",
    "PypiRef",
    "Reference",
    "Silent",
    "Store",
    "Terminal",
    "export_to",
    "find_bundle",
    "open_bundle",
    "parse",
    "read_adapter",
    "store_home",
]
