"""The errors of this package: mistakes of the user's, and numbers that are not finite."""


class InputError(ValueError):
    """A mistake in what the user gave; the message names the file, row, field or flag and says what to do.

    Recipes print the message without a traceback and exit with code 2.
    """


class NonFiniteError(InputError):
    """A loss, gradient, weight or prediction that is not a finite number, which ends a run: what follows would be
    wrong. The message names where it was found first."""


def install(extra: str) -> str:
    """How to install the packages of one of the extras in setup.cfg, for messages."""
    return f"pip install '.[{extra}]' in a clone of bert_multitask"


def one_line(value: object) -> str:
    """An error's message, or any other value's text, in one line; an empty one is the name of its type."""
    return " ".join(str(value).split()) or type(value).__name__
