"""The errors that qkspec raises on purpose: each is one sentence with a next step, printed once by ``main()``."""


class QkspecError(Exception):
    """Anything that went wrong for a reason the user can act on. ``exit_code`` is the process's status (see cli.md)."""

    exit_code = 4


class UsageError(QkspecError):
    """The command line or a setting is wrong."""

    exit_code = 2


class InputError(QkspecError):
    """An input cannot be read, is no checkpoint, or holds nothing to measure."""

    exit_code = 3


class CheckpointError(InputError):
    """A file or directory is not a readable checkpoint: the bytes, the container or its index are wrong."""


class LayoutError(InputError):
    """The tensors are readable, but the query and key weights cannot be told apart with certainty."""


class UnknownLayoutError(LayoutError):
    """The tensors are readable and match no layout that is known: a layout file can be drafted from their names."""


class OutputError(QkspecError):
    """A result could not be written."""
