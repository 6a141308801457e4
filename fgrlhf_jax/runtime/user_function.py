"""A user's own reward or judge: a Python function, named in the config as ``module:function``.

It is called with ``prompts`` and ``responses``, two lists of texts (an instruction, followed by a
blank line and its input where there is one), and with those of these that its signature names:

    tokens    for each response the texts of its sampled tokens, the end-of-sequence token included
    finished  for each response whether it ended by itself

and returns, for each response, a number or (a reward only) a sequence with one number a token.
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fgrlhf_jax.errors import InputError

EXTRAS = ("tokens", "finished")


def load(name: str) -> Callable:
    """The function ``module:function``; modules are also looked for in the current folder.

    Raises:
      InputError: when there is no such module or function, naming what went wrong.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"{name!r}: give a function as module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything
        raise InputError(f"{name}: cannot be loaded ({_said(error)})") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise InputError(f"{name}: is a {type(found).__name__}, not a function")
    return found


def _said(error: Exception) -> str:
    """An exception in one line, and where in the user's own code it was raised."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    theirs = [
        f for f in frames if not f.filename.startswith(("<", sys.prefix, sys.base_prefix))
    ]
    return f"{said} at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else said


def wants(function: Callable, extra: str) -> bool:
    """Whether the signature of ``function`` names ``extra`` (one of EXTRAS)."""
    try:
        return extra in inspect.signature(function).parameters
    except ValueError:  # some functions of C have none
        return False


def call(
    function: Callable,
    name: str,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    tokens: Sequence[Sequence[str]] | None = None,
    finished: Sequence[bool] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[float | np.ndarray]:
    """What the function says, checked: a float, or float64[T] with one number a token.

    Args:
      tokens, finished: what the function is given if it wants it.
      lengths: tokens of each response; without them only one number a response will do.

    Raises:
      InputError: naming the function and the response, when it raises, or returns too few or too
        many values, something that is no number, or NaN or infinity.
    """
    given = {"tokens": tokens, "finished": finished}
    extras = {key: value for key, value in given.items() if wants(function, key)}
    try:
        values = list(function(list(prompts), list(responses), **extras))
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"{name}: raised {_said(error)}") from error
    if len(values) != len(responses):
        raise InputError(
            f"{name}: returned {len(values)} values for {len(responses)} responses; return one each"
        )
    checked = []
    for number, value in enumerate(values):
        where = f"{name}: response {number + 1} of {len(values)}"
        try:
            if value is None or isinstance(value, str):  # which NumPy would take for numbers
                raise TypeError(type(value))
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: returned {value!r:.60}, which is no number") from error
        if array.ndim and lengths is None:
            raise InputError(f"{where}: returned a {type(value).__name__}; return one number")
        if array.ndim > 1:
            raise InputError(
                f"{where}: returned {array.ndim} dimensions; give a number a token"
            )
        if array.ndim and array.size != lengths[number]:
            raise InputError(
                f"{where}: returned {array.size} rewards for {lengths[number]} tokens; "
                "give one each (the end-of-sequence token is a token)"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{where}: returned NaN or infinity; return finite numbers")
        checked.append(array if array.ndim else float(array))
    return checked


def spread(
    values: Sequence[float | np.ndarray], lengths: Sequence[int], width: int
) -> np.ndarray:
    """float32[B, width]: a number stands at the last token, a sequence where it belongs."""
    reward_BT = np.zeros((len(values), width), np.float32)
    for b, (value, length) in enumerate(zip(values, lengths, strict=True)):
        if isinstance(value, float):
            reward_BT[b, length - 1] = value
        else:
            reward_BT[b, :length] = value
    return reward_BT
