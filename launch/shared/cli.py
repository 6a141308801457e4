"""Shared code of all commands: running, error messages, exit status, checks of files and runs."""

import errno
import importlib.util
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ml_collections import ConfigDict

from fgrlhf_jax.data.sources import split_sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files, interrupt
from fgrlhf_jax.runtime.run_dir import flatten, unlock
from launch.shared import config_files, explain, process, terminal


def check_run(config: ConfigDict) -> None:
    """Raises InputError for values that are invalid for every training run."""
    check_run_dir(config)
    check_expression("optimizer.freeze", config.optimizer.freeze)
    check_adapters(config)
    if config.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise InputError("tensorboard=True needs: pip install 'fgrlhf_jax[tensorboard]'")


def check_run_dir(config: ConfigDict) -> None:
    """Raises InputError if ``run_dir`` is empty, which would mean the current folder."""
    if not config.run_dir.strip():
        raise InputError("run_dir is empty; give --config.run_dir=FOLDER")


def check_expression(name: str, value: str) -> None:
    """Raises InputError if ``value`` is not a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise InputError(f"{name}={value!r}: is not a regular expression ({error})") from error


def check_adapters(config: ConfigDict) -> None:
    """Raises InputError for an invalid ``config.lora``, or settings without effect."""
    check_expression("lora.targets", config.lora.targets)
    for name, default in (("base_dtype", "float32"), ("targets", ".")):
        if not config.lora.rank and config.lora[name] != default:
            raise InputError(
                f"lora.{name}={config.lora[name]}: has no effect, since lora.rank=0 trains all "
                "weights; give --config.lora.rank=16"
            )


def check_embedded(config: ConfigDict) -> None:
    """Raises InputError if a config without a training file does not fit the embedded data."""
    paths = (config.model.get("path"), config.validation, config.get("test"))
    if any(paths) or config.model.size != "tiny":
        raise InputError(
            "train is empty; give --config.train=FILE (only tiny uses embedded data, and only "
            "without model.path, validation and test; launch.pipeline writes such files to its "
            "run_dir)"
        )
    if config.lora.rank:
        raise InputError(
            f"lora.rank={config.lora.rank}: needs a model to adapt; give --config.model.path "
            "and --config.train (launch.pipeline writes both: sft/export and seed_0/feedback)"
        )


def use_devices(config: ConfigDict | None = None) -> None:
    """Initializes JAX's devices and prints them; call before anything else uses devices.

    With ``config.distributed``, it joins the other processes of the run first. Raises InputError if
    it cannot join them, or if JAX_PLATFORMS has no devices.
    """
    import jax  # not at the top: commands without devices start a second faster

    if config and config.distributed:
        if not re.fullmatch(r".+:\d+|", config.coordinator):
            raise InputError(f"coordinator={config.coordinator}: give HOST:PORT of process 0")
        try:
            jax.distributed.initialize(
                config.coordinator or None,
                config.num_processes or None,
                config.process_id if config.process_id >= 0 else None,
                shutdown_timeout_seconds=30,  # others end this long after an error in one process
            )
        except Exception as error:  # the type differs by wrong value
            raise InputError(
                f"distributed=True: {error}; give coordinator, num_processes and process_id"
            ) from error
    from fgrlhf_jax.runtime import versions

    try:
        devices = versions.describe_devices()
    except (RuntimeError, AssertionError) as error:  # jax.devices() raises AssertionError
        platforms, reason = jax.config.jax_platforms, f" ({error})" if str(error) else ""
        raise InputError(
            f"JAX_PLATFORMS={platforms}: there is no such device, or no jaxlib for it; unset "
            f"JAX_PLATFORMS to use available devices, or see JAX's installation guide{reason}"
        ) from error
    from fgrlhf_jax.runtime import multihost

    multihost.end_on_error_of_others(_exit_as_other)
    if jax.process_index() == 0:
        print(devices)


def check_output(
    config: ConfigDict,
    suffixes: tuple[str, ...],
    read: Sequence[str] = (),
    *,
    field: str = "output",
    extra: Sequence[Path] = (),
) -> Path:
    """The path of the output; raises InputError if writing it at the end would fail.

    An existing file needs ``config.overwrite``, unless the config has no such field because the
    command appends to its file.

    Args:
      read: the command's inputs, which it must not overwrite: FILE, or several separated by commas.
      field: the config field with the path, which may be "".
      extra: other files that the command writes.
    """
    path = Path(config[field])
    if not config[field]:
        return path
    if path.suffix not in suffixes:
        raise InputError(f"{field}={path}: give a FILE{' or a FILE'.join(suffixes)}")
    may_overwrite = config.get("overwrite", True) or config.get("dry_run")
    sources = {os.path.realpath(f) for spec in read if spec for f in split_sources(spec)}
    for file in (path, *extra):
        if os.path.realpath(file) in sources:
            raise InputError(f"{field}: would overwrite {file}, an input; choose another")
        check_writable(field, file, "" if may_overwrite else "--config.overwrite")
    return path


def check_writable(name: str, path: Path, overwrite: str) -> None:
    """Raises InputError, ``name=path: …``, if a file cannot be written there.

    ``overwrite`` is the flag that an existing file needs, "" if none.
    """
    if not path.parent.is_dir():
        raise InputError(f"{name}={path}: the folder {path.parent} does not exist; create it")
    if path.is_dir():
        raise InputError(f"{name}={path}: is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{name}={path}: cannot be written; choose another folder")
    if overwrite and path.exists():
        raise InputError(f"{name}={path}: exists; choose another, or overwrite it with {overwrite}")


def _exit_with(sentence: str) -> NoReturn:
    """Prints a sentence and ends the process, and other processes of the run, with status 2."""
    unlock()
    sentence = terminal.as_sentence(sentence)
    if interrupt.is_distributed():
        from fgrlhf_jax.runtime import multihost

        multihost.leave(2, sentence, sentence.removeprefix("error: "))
    print(sentence, file=sys.stderr)
    sys.exit(2)


def _exit_as_other(error: str) -> None:
    """Ends the process while its main thread waits, for the error of another process."""
    print(file=sys.stderr)  # after the progress bar
    _exit_with(f"error: {error}")


def _exit_all(error: Exception) -> None:
    """Ends the process, if it is one of several, for an error that has no sentence of its own."""
    if interrupt.is_distributed():
        from fgrlhf_jax.runtime import multihost

        if other := multihost.error_of_others():  # one that has ended, which a collective noticed
            _exit_with(f"error: {other}")
        unlock()
        multihost.leave(1, traceback.format_exc().rstrip(), f"{type(error).__name__}: {error}")


def explain_fault(error: Exception) -> str:
    """A sentence for errors of memory, disk or files; "" for errors that may be bugs."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = " ".join(str(error).split()) or "MemoryError"
        return (
            f"out of memory ({reason:.200}); use fewer rows at a time (micro_batch_size, "
            "batch_size) or shorter rows, or let launch.plan predict what fits"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: cannot be used ({error.strerror}); give another path"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}; {files.advice(error)}"
    return ""


def command(main: Callable[[ConfigDict], None], default: str, doc: str, *others: str) -> None:
    """Runs ``main`` on the command line's config; exit status 2 for bad input, 130 for Ctrl-C.

    Args:
      default: the default of --config, as FILE.py[:ARGUMENT].
      doc: the first lines of ``--help``.
      others: other config files that the command accepts.
    """
    config = ConfigDict()
    try:
        process.prepare()
        help_flags = {"-h", "--help", "--help=all"} & set(sys.argv[1:])
        argv = [argument for argument in sys.argv if argument not in help_flags]
        config, fields = config_files.parse_described(argv, default, *others)
        if help_flags:
            values = flatten(config.to_dict())
            print(explain.help_text(doc, values, fields, "--help=all" in help_flags))
        else:
            main(config)
        sys.stdout.flush()
    except InputError as error:
        sentence = f"error: {error}"
        if "template" in config.get("data", {}):
            sentence = sentence.replace("--config.template", "--config.data.template")
        _exit_with(sentence)
    except Exception as error:
        if sentence := explain_fault(error):
            _exit_with(f"error: {sentence}")
        _exit_all(error)
        raise
    except KeyboardInterrupt as error:
        unlock()
        advice = "; run the same command to go on"
        interrupt.end_command(f"{error}{advice}" if str(error) else interrupt.EXIT_MESSAGE)
    finally:
        unlock()
    if fault := getattr(sys.stdout, "fault", None):
        if isinstance(fault, BrokenPipeError):  # as with `| head`
            sys.exit(128 + signal.SIGPIPE)
        print(f"the output is incomplete: {fault.strerror}", file=sys.stderr)
