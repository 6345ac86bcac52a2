"""The one exception family of the package: every message says what was found, where, and what to do."""

from greats_jax.secrets import masked


class GreatsError(ValueError):
    """Base of every error that a user can cause and mend; no message shows a secret, wherever its words came from."""

    def __init__(self, message: str = ""):
        super().__init__(masked(str(message)))


class ArgumentError(GreatsError):
    """A function was called with arguments that cannot work together."""


class ConfigError(GreatsError):
    """A configuration file or override is wrong."""


class DataError(GreatsError):
    """A data source, record or chat template cannot be used."""


class ModelError(GreatsError):
    """A model, adapter or tokenizer cannot be loaded, changed or saved."""


class TaskError(GreatsError):
    """A target task is unknown or its data are missing."""


class RunError(GreatsError):
    """A run cannot start, continue or write its folder."""
