"""Calls a user's reward or judge: a Python function named in the config as ``module:function``.

Its arguments are ``prompts`` and ``responses``, two lists of texts (a prompt is an instruction,
followed by a blank line and the input if there is one), and, if its signature names them:

    tokens    for each response the texts of its sampled tokens, EOS included
    finished  for each response whether it is complete, not cut at a length limit

Prompts and responses are passed by name if the signature has these names (or ``completions`` for
the responses, as in TRL), else by position. The function returns for each response a number or
(only a reward) a sequence with one number per token.
"""

import contextlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files

FIELDS = ("judge", "reward_function")  # config fields that name a function
# Functions of this package with other names in earlier versions.
MOVED_FUNCTIONS = {
    "fgrlhf_jax.tiny_judge:judge": "fgrlhf_jax.tiny_world.judge:judge",
    "fgrlhf_jax.tiny_judge:oracle_rewards": "fgrlhf_jax.tiny_world.judge:oracle_rewards",
    "fgrlhf_jax.tiny_world:judge": "fgrlhf_jax.tiny_world.judge:judge",
    "fgrlhf_jax.tiny_world:oracle_rewards": "fgrlhf_jax.tiny_world.judge:oracle_rewards",
    "fgrlhf_jax.vader:judge": "fgrlhf_jax.feedback.judges.vader:judge",
}


def load(name: str) -> Callable:
    """Imports ``module:function``, also from the current folder.

    Raises InputError with the reason if it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"{name!r}: give a function as module:function")
    if name in MOVED_FUNCTIONS:
        raise InputError(f"{name}: is now {MOVED_FUNCTIONS[name]}; give that name")
    try:
        with _current_folder():
            function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name
        is_own = f"{module}.".startswith(f"{missing}.")  # the user's module or its package
        advice = f"; install {missing}, such as with pip" if missing and not is_own else ""
        raise InputError(f"{name}: cannot be loaded ({_describe_error(error)}){advice}") from error
    if not callable(function):
        raise InputError(f"{name}: is a {type(function).__name__}, not a function")
    return function


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    current = os.getcwd()
    sys.path.insert(0, current)
    try:
        yield
    finally:
        sys.path.remove(current)


def file_digests(values: Mapping[str, object]) -> dict[str, str]:
    """{``FIELD.file``: truncated SHA-256 of the function's file} for each field with a function.

    Ignores imports of that file, and functions of this package.
    """
    modules = {f"{field}.file": str(values.get(field, "")).partition(":")[0] for field in FIELDS}
    return {name: digest for name, module in modules.items() if (digest := _file_digest(module))}


def comparable(current: Mapping[str, object], saved: Mapping[str, object]) -> dict[str, object]:
    """Drops the ``….file`` values that ``saved``, of an older version, does not have."""
    return {k: v for k, v in current.items() if k in saved or not k.endswith(".file")}


def _file_digest(module: str) -> str:
    try:
        with _current_folder():
            spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # :func:`load` raises it
        return ""
    is_own = module.startswith("fgrlhf_jax.")
    is_file = spec and not is_own and os.path.isfile(spec.origin or "")  # nor one in an archive
    return files.digest(spec.origin)[:16] if is_file else ""


def _describe_error(error: BaseException) -> str:
    """An exception in one line, with its place in the user's code."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    libraries = ("<", sys.prefix, sys.base_prefix, __file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f"{message} at {own[-1].filename}:{own[-1].lineno}" if own else message


def accepts(function: Callable, argument: str) -> bool:
    """Whether the signature of ``function`` has a parameter named ``argument``."""
    return _parameter_kinds(function).get(argument) in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def _parameter_kinds(function: Callable) -> dict[str, int]:
    """The kind of each parameter in a function's signature, in order."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some C functions have none
        return {}
    return {name: parameter.kind for name, parameter in parameters.items()}


def _responses_keyword(function: Callable) -> str:
    """The responses' parameter name if both texts are to be passed by name, as in TRL, else ""."""
    kinds = _parameter_kinds(function)
    answers = next((name for name in ("responses", "completions") if accepts(function, name)), "")
    if accepts(function, "prompts"):
        return answers
    # If they are the second parameter, the first one is the prompts, whatever its name.
    is_second = list(kinds)[1:2] == [answers] and kinds[answers] != inspect.Parameter.KEYWORD_ONLY
    has_kwargs = inspect.Parameter.VAR_KEYWORD in kinds.values()
    return answers if has_kwargs and not is_second else ""


def score_responses(
    function: Callable,
    name: str,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    tokens: Sequence[Sequence[str]] | None = None,
    finished: Sequence[bool] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[float | np.ndarray]:
    """Calls a user's function and checks every value that it returns.

    Args:
      name: the function's name in messages.
      tokens, finished: passed on if the function takes them.
      lengths: number of tokens of each response; None: only one number per response is allowed.

    Returns:
      For each response a float, or float64[T] with one number per token.

    Raises:
      InputError: the function raises, or returns the wrong number of values, or a value that is not
        a finite number; the message names function and response.
    """
    kwargs = {"tokens": tokens, "finished": finished}
    kwargs = {name: value for name, value in kwargs.items() if accepts(function, name)}
    args = [list(prompts), list(responses)]
    if responses_name := _responses_keyword(function):
        kwargs |= {"prompts": args[0], responses_name: args[1]}
        args = []
    try:
        values = function(*args, **kwargs)
        if inspect.iscoroutine(values):
            values.close()
        if isinstance(values, Iterable) and not isinstance(values, Mapping | Set):
            values = list(values)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        hint = "; it is called with (prompts, responses)" if isinstance(error, TypeError) else ""
        raise InputError(f"{name}: raised {_describe_error(error)}{hint}") from error
    if not isinstance(values, list):
        raise InputError(
            f"{name}: returned {values!r:.60}; return a list with one value per response"
        )
    if len(values) != len(responses):
        raise InputError(
            f"{name}: returned {len(values)} values for {len(responses)} responses; return one each"
        )
    lengths = [None] * len(values) if lengths is None else lengths
    return [
        _check_value(value, length, f"{name}: response {number} of {len(values)}")
        for number, (value, length) in enumerate(zip(values, lengths, strict=True), 1)
    ]


def _check_value(value, length: int | None, where: str) -> float | np.ndarray:
    """Checks the value of a response of ``length`` tokens (None: only a number is allowed)."""
    try:
        if value is None or isinstance(value, str):  # NumPy would convert them
            raise TypeError(type(value))
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: returned {value!r:.60}, which is not a number") from error
    if array.ndim and length is None:
        raise InputError(f"{where}: returned a {type(value).__name__}; return one number")
    if array.ndim > 1:
        raise InputError(f"{where}: returned {array.ndim} dimensions; return one number per token")
    if array.ndim and array.size != length:
        raise InputError(
            f"{where}: returned {array.size} rewards for {length} tokens; give one each (the "
            "end-of-sequence token is a token)"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{where}: returned NaN or infinity; return finite numbers")
    return array if array.ndim else float(array)


def scatter_rewards(
    values: Sequence[float | np.ndarray], lengths: Sequence[int], width: int
) -> np.ndarray:
    """Rewards of padded responses, float32[B, width], from the values of :func:`score_responses`.

    A number is the reward of a response's last token; a sequence has one reward per token.
    """
    reward_BT = np.zeros((len(values), width), np.float32)
    for b, (value, length) in enumerate(zip(values, lengths, strict=True)):
        start = length - 1 if isinstance(value, float) else 0
        reward_BT[b, start:length] = value
    return reward_BT
