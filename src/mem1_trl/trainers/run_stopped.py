"""The end of a run that cannot usefully go on."""


class RunStopped(RuntimeError):
    """Raised where going on would be a waste; its sentence says what happened and what to do, so the command line shows that alone."""
