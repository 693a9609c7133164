"""The errors of this package: mistakes of the user's, and numbers that are not finite."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A mistake in what the user gave; the message names the file, row, field or flag and says what to do.

    Recipes print the message without a traceback and exit with code 2.
    """


class NonFiniteError(InputError):
    """A loss, gradient, weight or prediction that is not a finite number, which ends a run: what follows would be
    wrong. The message names where it was found first."""


def one_line(value: object) -> str:
    """An error's message, or any other value's text, in one line; an empty one is the name of its type."""
    return " ".join(str(value).split()) or type(value).__name__


@contextmanager
def explained(what: str, *errors: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn an error within the block into an InputError: `what: its message`, or `what (its message); hint`.

    Args:
        what: where it was, and what went wrong.
        errors: the types to turn; by default all. An InputError passes unless it is named here, since it says itself
            what is wrong.
        hint: what to do.

    Raises:
        InputError: there was such an error.
    """
    turned = errors or (Exception,)
    try:
        yield
    except turned as error:
        if isinstance(error, InputError) and InputError not in errors:
            raise
        reason = one_line(error)
        raise InputError(f"{what} ({reason}); {hint}" if hint else f"{what}: {reason}") from error
