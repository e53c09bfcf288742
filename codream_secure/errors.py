"""Errors that a user of the package can meet."""


class UserError(Exception):
    """One clear line that says what is wrong and how to fix it.

    The command line prints it and exits with code 2.
    """


class WriteError(UserError):
    """A file cannot be written: the disk is full, or it belongs to somebody else."""


class StepAborted(Exception):  # noqa: N818 - the field's word: the step is aborted, the run goes on
    """Too few clients stayed in one aggregation; nothing was learned from it."""


class RequestRefused(Exception):  # noqa: N818 - named after what the client does
    """A client will not answer this request: it is outside its policy or a repetition."""
