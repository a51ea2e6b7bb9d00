"""The one error of model files."""


class CheckpointError(ValueError):
    """A model file or its configuration cannot be used; the message lists what is wrong and what to do."""
