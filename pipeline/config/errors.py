"""Errors whose message is all that a user needs: the command line prints them without a traceback."""

__all__ = ["ConfigError", "MissingFileError", "PipelineError", "StorageError"]


class PipelineError(Exception):
    """A stage cannot go on; the message names the file, row or key, the value and what to do."""


class ConfigError(PipelineError):
    """The configuration is wrong; the message lists every mistake."""


class StorageError(PipelineError):
    """The storage refuses what it may do another time; the message names action, URL and reason."""


class MissingFileError(PipelineError):
    """A file is not there; the message names it."""
