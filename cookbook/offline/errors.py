"""What can go wrong in a build, said so that a person can act on it."""


class OfflineError(RuntimeError):
    """The embedded default could not be built; the message says why and what to do."""
