"""What every command shares: flags to a config, errors to one sentence and an exit status."""

import difflib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.run_folder import flatten

ROOT = Path(configs.__file__).parent.parent


def parse(argv: list[str], default: str) -> ConfigDict:
    """The locked config of ``--config=FILE.py:ARGUMENT`` (or ``default``) and its overrides.

    Raises:
      InputError: for an unknown file, argument or field (naming the close match) or a bad value.
    """
    argv = [_located(arg) for arg in argv]
    try:
        config, rest = _read(argv, default)
    except InputError:
        raise
    except Exception as error:  # config files and absl raise many types
        raise InputError(_explain(argv, default, error)) from error
    if rest:
        raise InputError(f"{rest[0]!r} is not a flag; write --config.FIELD=VALUE")
    return config


def _read(argv: list[str], default: str) -> tuple[ConfigDict, list[str]]:
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", str(ROOT / default), flag_values=values)
    rest = values(argv)[1:]
    return holder.value.lock(), rest


def _located(arg: str) -> str:
    """``--config=configs/…`` works from any folder: the installed file stands in."""
    name, _, value = arg.partition("=")
    file = value.partition(":")[0]
    if name.lstrip("-") == "config" and not Path(file).exists() and (ROOT / file).exists():
        return f"{name}={ROOT / value}"
    return arg


def _explain(argv: list[str], default: str, error: Exception) -> str:
    """One sentence for what absl or ml_collections could not parse."""
    chosen = [arg for arg in argv[1:] if arg.lstrip("-").startswith("config=")]
    overrides = [
        arg.lstrip("-").partition("=")[0].removeprefix("config.")
        for arg in argv[1:]
        if arg.lstrip("-").startswith("config.")
    ]
    try:
        known = list(flatten(_read([argv[0], *chosen], default)[0].to_dict()))
    except Exception as nested:
        lines = [line.strip() for line in str(nested).splitlines() if line.strip()]
        return f"{' '.join(chosen) or default}: {lines[-1] if lines else nested!r}"
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
            return f"--config.{name}: there is no such field{hint}"
    return str(error).splitlines()[-1]


def command(main: Callable[[ConfigDict], None], default: str, doc: str) -> None:
    """Run ``main`` on the command line's config: exit status 2 for bad input, 130 for Ctrl-C."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every step of every save
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            config = parse([arg for arg in sys.argv if arg not in ("-h", "--help")], default)
            fields = "\n".join(
                f"  --config.{k}={v!r}" for k, v in flatten(config.to_dict()).items()
            )
            print(f"{doc.strip()}\n\nFields and their values with this config:\n{fields}")
            return
        main(parse(sys.argv, default))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(f"{error or 'interrupted'}; run the same command to go on", file=sys.stderr)
        sys.exit(130)
