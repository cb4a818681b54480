"""A Hugging Face repository: `huggingface_hub` says what it holds, our download fetches it.

That library checks sizes only and starts again after a killed process, so files go through
`download`: resumed, and compared with the sha256 that the Hub lists for every large file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgellm.bundle.manifest import Source
from edgellm.errors import Incompatible, MissingExtra, NotFound, Unreachable
from edgellm.hub.disk import need_space
from edgellm.hub.download import Blob, download
from edgellm.hub.fetch import Fetched
from edgellm.hub.progress import Progress
from edgellm.hub.reference import HfRef

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

# Never pickles (.bin, .pt, .pth), never code.
TEXT_SUFFIXES = (".json", ".jinja", ".txt")
API_SECONDS = 15.0
# In GGUF-only repositories: formats that are carried over exactly, the best quality first.
GGUF_ORDER = ("Q8_0", "Q4_1", "Q4_0", "F16", "F32")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def fetch_repository(reference: HfRef, folder: Path, progress: Progress) -> Fetched:
    """The weights and text files of a repository at one commit, which the origin records."""
    info = _describe(reference)
    commit = info.sha
    if not commit:
        raise Unreachable(f"{reference}: the Hub names no commit; try later")
    chosen = choose([file for file in info.siblings or [] if _usable(file)], reference, progress)
    # A moved branch must not leave two versions in one folder.
    folder = folder / commit
    need_space(folder, sum(f.size or 0 for f in chosen if not (folder / f.rfilename).exists()))
    hashes = {
        file.rfilename: download(_blob(reference, commit, file), folder / file.rfilename, progress)
        for file in chosen
    }
    weights = [name for name in hashes if name.endswith((".safetensors", ".gguf"))]
    path = folder / weights[0] if weights[0].endswith(".gguf") else folder
    sha256 = hashes[weights[0]] if len(weights) == 1 else None
    return Fetched(path, Source(str(reference), commit, sha256, _licence(info)))


def choose(files: Sequence[RepoSibling], reference: HfRef, progress: Progress) -> list[RepoSibling]:
    """Which files to fetch, small ones first: all safetensors, else one GGUF, and the texts."""
    texts = [file for file in files if file.rfilename.endswith(TEXT_SUFFIXES)]
    tensors = [
        file
        for file in files
        # Mistral ships the same weights a second time under this name.
        if file.rfilename.endswith(".safetensors") and "consolidated" not in file.rfilename
    ]
    if tensors:
        return sorted(texts, key=_name) + sorted(tensors, key=_name)
    ggufs = [file for file in files if file.rfilename.endswith(".gguf")]
    whole = sorted((file for file in ggufs if not _SHARD.search(file.rfilename)), key=_rank)
    if not whole:
        raise Incompatible(
            f"{reference} holds no safetensors and no GGUF file in one piece; "
            "pickled weights (.bin, .pt) are never read"
        )
    if len(whole) > 1:
        progress.notice(f"{reference} holds {len(whole)} GGUF files; taking {whole[0].rfilename}")
    return [whole[0]]


def _describe(reference: HfRef) -> ModelInfo:
    # Read once, when the library is imported: no usage data, no version checks.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingExtra(f"{reference} needs: pip install 'edgellm[export]'") from error
    # Its own base class: httpx's or httpx2's, whichever this version is built on.
    transport_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        return HfApi().model_info(
            reference.repo_id,
            revision=reference.revision,
            files_metadata=True,
            timeout=API_SECONDS,
        )
    except HfHubHTTPError as error:
        raise _refusal(reference, error.response.status_code) from error
    except (transport_error, OSError) as error:
        raise Unreachable(f"the Hugging Face Hub cannot be reached: {error}") from error


def _refusal(reference: HfRef, status: int) -> NotFound:
    if status in (401, 403):
        page = f"https://huggingface.co/{reference.repo_id}"
        return NotFound(f"{reference} is private, gated or absent: see {page}, then hf auth login")
    if status == 404:
        return NotFound(f"{reference} does not exist on the Hugging Face Hub; check the name")
    return Unreachable(f"the Hugging Face Hub answers HTTP {status} for {reference}; try later")


def _blob(reference: HfRef, commit: str, file: RepoSibling) -> Blob:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    login = build_hf_headers().get("authorization")
    return Blob(
        url=hf_hub_url(reference.repo_id, file.rfilename, revision=commit),
        size_bytes=file.size,
        sha256=file.lfs.sha256 if file.lfs else None,
        headers={"Authorization": login} if login else {},
    )


def _usable(file: RepoSibling) -> bool:
    """Top-level files only: subfolders hold other formats of the same weights."""
    suffixes = (*TEXT_SUFFIXES, ".safetensors", ".gguf")
    return _PLAIN_NAME.fullmatch(file.rfilename) is not None and file.rfilename.endswith(suffixes)


def _name(file: RepoSibling) -> str:
    return file.rfilename


def _rank(file: RepoSibling) -> tuple[int, str]:
    upper = file.rfilename.upper()
    rank = next((i for i, kind in enumerate(GGUF_ORDER) if kind in upper), len(GGUF_ORDER))
    return rank, file.rfilename


def _licence(info: ModelInfo) -> str | None:
    tags = [tag for tag in info.tags or [] if tag.startswith("license:")]
    return tags[0].removeprefix("license:") if tags else None
