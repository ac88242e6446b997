"""The command line. Nothing heavy is imported before a command needs it."""

from gradbase.cli._main import main

__all__ = ["main"]
