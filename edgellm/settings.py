"""Settings that come from several places; which place wins is decided in `resolve` alone.

Precedence: argument > environment > project file `edgellm.toml` > default. A device profile goes
between the project file and the default once there is one to ask.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgellm.errors import UsageError

PROJECT_FILE = "edgellm.toml"
# A project file holds a dozen lines; a larger one is not ours.
PROJECT_LIMIT_BYTES = 1 << 20
VARIABLES = {
    "home": "EDGELLM_HOME",
    "offline": "EDGELLM_OFFLINE",
    "log": "EDGELLM_LOG",
    "remote_url": "EDGELLM_REMOTE_URL",
    "remote_model": "EDGELLM_REMOTE_MODEL",
    "remote_key": "EDGELLM_REMOTE_KEY",
}
# Where text goes and with which key is for the user to say: a folder that came from somewhere else
# must not send prompts, or the user's key, to a host of its own choice.
PERSONAL = ("remote_url", "remote_model", "remote_key")
# A folder may ask for more care than the user did, never for less: it sets caps where there are
# none, adds patterns that must not leave, and may block instead of answering here. `mask`, `ask`
# and `off` let more leave than the default, so they are arguments only; so is the policy, since
# a policy in a folder would send what is typed there to the user's own remote.
PROJECT_PRIVACY = ("pin-local", "block")
SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
KINDS: Mapping[str, type] = {
    "model": str,
    "home": str,
    "offline": bool,
    "log": str,
    "context_tokens": int,
    "provider": str,
    "require_provider": bool,
    "threads": int,
    "privacy": str,
    "deny": list,
    "budget": float,
    "budget_month": float,
    "budget_session": float,
    "budget_tokens": int,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds after all places were asked. `home` None means the platform's data folder."""

    model: str = "smollm2-135m"
    home: str | None = None
    offline: bool = False
    log: str = "warning"
    context_tokens: int | None = None
    provider: str = "auto"
    require_provider: bool = False
    threads: int | None = None
    remote_url: str | None = None
    remote_model: str | None = None
    remote_key: str | None = field(default=None, repr=False)
    privacy: str = "pin-local"
    deny: Sequence[str] = ()
    budget: float | None = None
    budget_month: float | None = None
    budget_session: float | None = None
    budget_tokens: int | None = None

    def home_folder(self) -> Path:
        """The folder of the store and of the chat history; it may not exist yet."""
        if self.home is not None:
            return Path(self.home).expanduser()
        import platformdirs

        return platformdirs.user_data_path("edgellm", appauthor=False)


def resolve(*layers: Mapping[str, Any]) -> Settings:
    """The settings of the first layer that has each one; None counts as not said."""
    chosen: dict[str, Any] = {}
    for name in (each.name for each in fields(Settings)):
        said = [layer[name] for layer in layers if layer.get(name) is not None]
        if said:
            chosen[name] = said[0]
    return Settings(**chosen)


def current(arguments: Mapping[str, Any] | None = None) -> Settings:
    """`resolve` for this process: arguments, its environment, the project file where it stands."""
    return resolve(arguments or {}, from_environment(os.environ), from_project(Path(PROJECT_FILE)))


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings the environment carries; an empty variable counts as unset."""
    found: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        text = environment.get(variable)
        if not text:
            continue
        found[name] = _switch(variable, text) if KINDS.get(name) is bool else text
    return found


def _switch(variable: str, text: str) -> bool:
    if text.lower() not in SWITCH:
        raise UsageError(f"{variable} must be 1 or 0, got {text!r}")
    return SWITCH[text.lower()]


def from_project(path: Path) -> dict[str, Any]:
    """The settings of a project file, {} when there is none. UsageError names a wrong line.

    Only the folder one stands in is looked at: a file further up may belong to somebody else.
    """
    if not path.is_file():
        return {}
    import tomllib

    try:
        with path.open("rb") as file:
            raw = tomllib.loads(file.read(PROJECT_LIMIT_BYTES).decode())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    for name, value in raw.items():
        if name in PERSONAL:
            raise UsageError(f"{path}: {name} is yours, not the folder's; set {VARIABLES[name]}")
        if name not in KINDS:
            raise UsageError(f"{path}: unknown setting {name!r}; known are {', '.join(KINDS)}")
        _check(path, name, value)
    return raw


def _check(path: Path, name: str, value: Any) -> None:
    kind = KINDS[name]
    # bool is an int in Python, but `threads = true` is a mistake; `budget = 1` is none.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UsageError(f"{path}: {name} must be {kind.__name__}, got {value!r}")
    if isinstance(value, list) and not all(isinstance(pattern, str) for pattern in value):
        raise UsageError(f"{path}: {name} must be a list of texts, got {value!r}")
    if name == "privacy" and value not in PROJECT_PRIVACY:
        raise UsageError(
            f"{path}: privacy may be {' or '.join(PROJECT_PRIVACY)} in a folder's file, "
            f"got {value!r}; say --privacy {value} yourself"
        )
