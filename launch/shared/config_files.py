"""Parses command lines into checked configs: config files, overrides and their error messages."""

import difflib
import importlib
import inspect
import re
import runpy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from configs.fields import KINDS, Field, check_values, close_groups
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.run_dir import RENAMED_FIELDS, flatten

ROOT = Path(configs.__file__).parent.parent


def parse(argv: Sequence[str], *specs: str) -> ConfigDict:
    """Parses ``--config=FILE.py:ARGUMENT`` and overrides into a locked, checked config.

    ``argv`` begins with the command's name; the first of ``specs``, its configs as
    FILE.py[:ARGUMENT], is the default. Raises InputError for an unknown file, argument or field
    (with the closest name), an invalid value, or the config of another command.
    """
    return parse_described(argv, *specs)[0]


def parse_described(argv: Sequence[str], *specs: str) -> tuple[ConfigDict, dict[str, Field]]:
    """As :func:`parse`, but also returns the descriptions of the config's fields."""
    spec, overrides = str(ROOT / specs[0]), []
    arguments = iter(argv[1:])
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            spec = value if equals else next(arguments, "")
        else:
            overrides.append(argument)
    known = [fields_of(file) for file in specs]
    config, own_fields = _load(spec, known)
    fields = _matching_fields(spec, config, own_fields, dict(zip(specs, known, strict=True)))
    matches = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in overrides)
    overridden = [match[1] for match in matches if match]
    fields = close_groups(config, fields, overridden)
    names = list(flatten(config.to_dict()))
    for name in overridden:
        if name not in names:
            raise InputError(f"--config.{name}: {_unknown_field(name, names)}")
    try:
        _override(config, [argv[0], *overrides], fields)
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag(error.flagvalue, names)) from error
    check_values(flatten(config.to_dict()), fields)
    return config, fields


def _override(config: ConfigDict, argv: list[str], fields: Mapping[str, Field]) -> None:
    """Sets fields of ``config`` from command-line arguments."""
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError:
        raise
    except flags.IllegalFlagValueError as error:
        flag = str(error).removeprefix("flag ").removesuffix(f": {error.__context__}")
        field = fields.get(flag.partition("=")[0].partition(".")[2])
        kind = KINDS[type(field.default)][1] if field else "a value of its type"
        raise InputError(f"{flag}: give {kind}") from error
    except (flags.Error, ValueError) as error:
        raise InputError(str(error).splitlines()[-1]) from error
    if rest:
        raise flags.UnrecognizedFlagError(rest[0].partition("=")[0], rest[0])


def _unknown_field(name: str, names: Collection[str]) -> str:
    """The message for an unknown field: its new or its closest name."""
    if new := _new_name(name, names):
        return f"is now {new}"
    group = [other for other in names if other.startswith(f"{name}.")]
    if group:
        return f"is a group of fields: {', '.join(group)}"
    close = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else f"--help=all shows all {len(names)}"
    return f"there is no such field; {hint}"


def _unknown_flag(argument: str, names: Collection[str]) -> str:
    """The message for an unknown flag: the flag that was probably meant."""
    name, _, value = argument.lstrip("-").partition("=")
    if field := name if name in names else _new_name(name, names):
        hint = f"write --config.{field}={value or 'VALUE'}"
    elif name.partition(":")[0].endswith(".py"):
        hint = f"write --config={name}"
    elif argument != name and (close := difflib.get_close_matches(name, ["config", *names], 1)):
        hint = f"did you mean --{close[0] if close == ['config'] else f'config.{close[0]}'}?"
    else:
        hint = "write --config.FIELD=VALUE; --help shows the fields"
    return f"{argument}: is not a flag; {hint}"


def _new_name(name: str, names: Collection[str]) -> str:
    """The new name of a renamed field, or "" if ``name`` was not renamed."""
    new = RENAMED_FIELDS.get(name, "")
    return new if new in names and name not in names else ""


def load(spec: str) -> ConfigDict:
    """Calls ``get_config`` of FILE.py[:ARGUMENT]; finds this project's configs from any folder.

    Raises InputError if the file is missing or is not a config.
    """
    return _load(spec, ())[0]


def _load(spec: str, known: Sequence[Mapping[str, Field]]) -> tuple[ConfigDict, dict | None]:
    """Returns (config, ``FIELDS`` of its file); errors on renamed fields use ``known``."""
    name, _, argument = spec.partition(":")
    paths = (Path(name), ROOT / name, ROOT / "configs" / name)
    path = next((file for file in paths if file.is_file()), None)
    if not path:
        raise InputError(f"--config={spec}: there is no such file; give FILE.py[:ARGUMENT]")
    try:
        module = runpy.run_path(str(path))
        get_config = module["get_config"]
        if argument and not inspect.signature(get_config).parameters:
            raise InputError(f"--config={spec}: takes no argument; write --config={name}")
        config = get_config(*([argument] if argument else []))
        return config.lock(), module.get("FIELDS")
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the file may hold anything
        # A ConfigDict's error message quotes the name of the missing field.
        key = re.match(r"""['"]*(Key ")?(\w+)["']""", str(error))
        for fields in known if key else ():
            if key[1] or _new_name(key[2], fields):
                fault = _unknown_field(key[2], fields)
                raise InputError(f"--config={spec}: {key[2]}: {fault}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"--config={spec}: cannot be used ({reason}); its get_config() must return a ConfigDict"
        ) from error


def _matching_fields(
    spec: str, config: ConfigDict, own_fields: Mapping | None, known: Mapping[str, Mapping]
) -> Mapping[str, Field]:
    """The first of the ``known`` descriptions of a command whose fields are all in ``config``.

    ``own_fields`` are ``FIELDS`` of the config's file, if it has any. Raises InputError if the
    config is for another command or lacks a field.
    """
    names = {*flatten(config.to_dict())}
    files = " or ".join(file.partition(":")[0] for file in known)
    keys = own_fields and own_fields.keys()
    candidates = [fields for fields in known.values() if keys in (None, fields.keys())]
    if not candidates:
        raise InputError(
            f"--config={spec}: is a config of another command; give {files}, or your own file "
            "that builds on it"
        )
    required = [[name for name in fields if ".*." not in name] for fields in candidates]
    for fields, names_of_fields in zip(candidates, required, strict=True):
        if names.issuperset(names_of_fields):
            return fields
    missing = next(name for name in required[0] if name not in names)
    old = next((old for old in names if _new_name(old, candidates[0]) == missing), "")
    fault = f"{old} is now {missing}" if old else f"lacks the field {missing}"
    raise InputError(f"--config={spec}: {fault}; build on {files}")


def fields_of(spec: str) -> dict[str, Field]:
    """Field descriptions of one of this project's configs, given as FILE.py[:ARGUMENT]."""
    module = spec.partition(":")[0].removesuffix(".py").replace("/", ".")
    return importlib.import_module(module).FIELDS
