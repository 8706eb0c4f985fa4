"""The version of this project, as recorded in whatever it writes."""

from importlib.metadata import PackageNotFoundError, version


def project_version() -> str:
    """The installed version; "unknown" where nothing is installed."""
    try:
        return version("blockdrop")
    except PackageNotFoundError:
        return "unknown"


__version__ = project_version()
