"""The errors of this package: mistakes of the user's, and numbers that are not finite."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import LocalEntryNotFoundError


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
    """An error's message, or any other value's text, in one line; an empty one is the name of its type. The hint of the
    Hub's client at a page about HTTP is left out."""
    if isinstance(getattr(value, "__cause__", None), LocalEntryNotFoundError):  # what Transformers makes of it is vague
        return "it is not in the Hub's cache, and the Hub is out of reach or HF_HUB_OFFLINE is set"
    lines = [line for line in str(value).splitlines() if not line.startswith("For more information")]
    return " ".join(" ".join(lines).split()) or type(value).__name__


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
        reason = getattr(error, "strerror", None) or one_line(error)  # without the file, which `what` names
        raise InputError(f"{what} ({reason}); {hint}" if hint else f"{what}: {reason}") from error


def check_installed(package: str, extra: str, what: str) -> None:
    """Check that a package is installed, which an extra of this project installs and `what` needs.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs {package}: {install(extra)}")
