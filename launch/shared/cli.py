"""What every command shares: flags to a config, errors to one sentence and an exit status."""

import ast
import contextlib
import difflib
import functools
import importlib.util
import operator
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.run_dir import flatten, unlock
from launch.shared import process

ROOT = Path(configs.__file__).parent.parent
NOTHING = MappingProxyType({})


def parse(argv: list[str], default: str, open_dicts: tuple[str, ...] = ()) -> ConfigDict:
    """The locked config of ``--config=FILE.py:ARGUMENT`` (or ``default``) and its overrides.

    Args:
      open_dicts: names of dicts in the config to which an override may add keys. These are flags
        for other commands: ``a.b`` is the key ``a__b``.

    Raises:
      InputError: for an unknown file, argument or field (naming the close match) or a bad value.
    """
    file, overrides = str(ROOT / default), []
    rest = iter(argv[1:])
    for arg in rest:
        flag, given, value = arg.partition("=")
        if flag in ("--config", "-config"):
            file = value if given else next(rest, "")
        else:
            overrides.append(arg)
    config = load(file)
    known = list(flatten(config.to_dict()))
    overrides = [arg for arg in overrides if not _added(arg, config, known, open_dicts)]
    for arg in overrides:
        field = re.match(r"--?(?:no)?config\.([^=]*)", arg)
        if field and field[1] not in known:
            last = field[1].rpartition(".")[2]
            there = known + [f"{name}.{last}" for name in open_dicts]
            close = difflib.get_close_matches(field[1], there, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise InputError(f"--config.{field[1]}: there is no such field; {hint}")
    values = flags.FlagValues()
    try:
        argv = [argv[0], *overrides]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.Error as error:
        raise InputError(str(error).splitlines()[-1]) from error
    if rest:
        raise InputError(f"{rest[0]!r} is not a flag; write --config.FIELD=VALUE")
    return config


def _added(arg: str, config: ConfigDict, known: list[str], open_dicts: tuple[str, ...]) -> bool:
    """Whether ``arg`` was a new key of an open dict, which has it now."""
    given = re.fullmatch(r"--?config\.([^=]+)=(.*)", arg, re.DOTALL)
    home = next(
        (name for name in open_dicts if given and given[1].startswith(f"{name}.")), None
    )
    if not home or given[1] in known:
        return False
    key = given[1].removeprefix(f"{home}.").replace(".", "__")
    with contextlib.suppress(KeyError, TypeError), config.unlocked(), config.ignore_type():
        functools.reduce(operator.getitem, home.split("."), config)[key] = _literal(given[2])
        return True
    return False  # the config of another command


def _literal(text: str) -> int | float | bool | str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def load(spec: str) -> ConfigDict:
    """What ``get_config`` of FILE.py[:ARGUMENT] returns; FILE may be one of ours from anywhere.

    Raises:
      InputError: when there is no such file or it is no config.
    """
    name, _, argument = spec.partition(":")
    path = next((p for p in (Path(name), ROOT / name) if p.is_file()), None)
    if not path:
        raise InputError(f"--config={spec}: there is no such file; give FILE.py[:ARGUMENT]")
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        config = get_config(argument) if argument else get_config()
        return config.lock()
    except InputError:
        raise
    except Exception as error:  # the file may hold anything
        raise InputError(
            f"--config={spec}: is no usable config ({type(error).__name__}: {error}); "
            "its get_config() must return a ConfigDict"
        ) from error


def check(
    config: ConfigDict,
    *,
    choices: Mapping[str, tuple] = NOTHING,
    at_least: Mapping[str, float] = NOTHING,
) -> None:
    """Raises InputError for the first field whose value is no choice or below its least one."""
    values = flatten(config.to_dict())
    for name, known in choices.items():
        if values[name] not in known:
            raise InputError(f"{name}={values[name]!r} is not one of {', '.join(known)}")
    for name, least in at_least.items():
        if not values[name] >= least:
            raise InputError(f"{name}={values[name]} must be at least {least}")


SUPERVISED_CHOICES = {
    "best_metric": ("loss", "accuracy"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "cudnn"),
}
SUPERVISED_AT_LEAST = {
    **dict.fromkeys(("batch_size", "data.smallest_bucket", "max_to_keep"), 1),
    **dict.fromkeys(("seed", "micro_batch_size", "eval_batch_size", "epochs", "steps"), 0),
    **dict.fromkeys(("eval_every", "save_every", "patience"), 0),
    **dict.fromkeys((f"optimizer.{n}" for n in ("learning_rate", "warmup_share", "eps")), 0),
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.clip_norm"), 0),
}


def check_run(config: ConfigDict) -> None:
    """Raises InputError for what no run could use, whatever it trains."""
    if not config.run_dir:
        raise InputError("run_dir is empty; give --config.run_dir=FOLDER")
    try:
        re.compile(config.optimizer.freeze)
    except re.error as error:
        raise InputError(
            f"optimizer.freeze={config.optimizer.freeze!r}: is no regular expression ({error})"
        ) from error
    if config.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise InputError("tensorboard=True needs: pip install 'fgrlhf_jax[tensorboard]'")


def check_supervised(config: ConfigDict) -> None:
    """Raises InputError for a value that no data or model could make right."""
    check(config, choices=SUPERVISED_CHOICES, at_least=SUPERVISED_AT_LEAST)
    check_run(config)


def check_embedded(config: ConfigDict) -> None:
    """Raises InputError where a config without a training file asks for other than our own."""
    if (
        config.model.path
        or config.validation
        or config.get("test")
        or config.model.size != "tiny"
    ):
        raise InputError("train is empty; give --config.train=FILE (only tiny makes its data)")


def read_sets(config: ConfigDict) -> dict[str, list]:
    """Records of ``train``, ``validation`` (split off train where not given) and ``test``."""
    train = records.read(config.train)
    if config.validation:
        sets = {"train": train, "validation": records.read(config.validation)}
    else:
        train, validation = records.split(train, config.validation_share, config.seed)
        sets = {"train": train, "validation": validation}
    if config.get("test"):
        sets["test"] = records.read(config.test)
    return sets


def connect(config: ConfigDict) -> None:
    """Join the other processes; must come before anything else that uses devices."""
    try:
        jax.distributed.initialize(
            config.coordinator or None,
            config.num_processes or None,
            config.process_id if config.process_id >= 0 else None,
            shutdown_timeout_seconds=30,  # from an error in one process to the end of the others
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"distributed=True: {error}; give coordinator, num_processes and process_id"
        ) from error


def check_output(output: str, suffixes: tuple[str, ...], field: str = "output") -> Path:
    """The file to write later; raises InputError now where that could not work."""
    path = Path(output)
    if output and path.suffix not in suffixes:
        raise InputError(f"{field}={path}: give a FILE{' or a FILE'.join(suffixes)}")
    if output and not path.parent.is_dir():
        raise InputError(f"{field}={path}: the folder {path.parent} does not exist; make it")
    if output and path.is_dir():
        raise InputError(f"{field}={path}: is a folder; give the name of a file")
    return path


def check_kept(written: Sequence[Path], read: Sequence[str], field: str = "output") -> None:
    """Raises InputError where a file of the lists of files that are read would be written over."""
    kept = {Path(source).resolve() for spec in read if spec for source in records.sources(spec)}
    for path in written:
        if path.resolve() in kept:
            raise InputError(f"{field}: would write over {path}, which is read; choose another")


def command(
    main: Callable[[ConfigDict], None],
    default: str,
    doc: str,
    open_dicts: tuple[str, ...] = (),
) -> None:
    """Run ``main`` on the command line's config: exit status 2 for bad input, 130 for Ctrl-C."""
    try:
        process.prepare()
        if {"-h", "--help"} & set(sys.argv[1:]):
            argv = [arg for arg in sys.argv if arg not in ("-h", "--help")]
            config = parse(argv, default, open_dicts)
            fields = [f"  --config.{k}={v!r}" for k, v in flatten(config.to_dict()).items()]
            fields += [f"  --config.{name}.FIELD=VALUE" for name in open_dicts]
            print(f"{doc.strip()}\n\nFields and their values with this config:")
            print("\n".join(fields))
            return
        main(parse(sys.argv, default, open_dicts))
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # of `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt as error:
        print(f"{str(error) or 'interrupted'}; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    finally:
        unlock()
