"""The command line."""

from winnow.cli.main import app

__all__ = ["app"]
