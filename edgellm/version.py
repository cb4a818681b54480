"""The version of this package: pyproject.toml says it, an installation remembers it."""

from __future__ import annotations


def version() -> str:
    """For example "0.1.0"; "0+checkout" where nothing was installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("edgellm")
    except PackageNotFoundError:
        return "0+checkout"
