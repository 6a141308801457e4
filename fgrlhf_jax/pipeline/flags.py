"""Flags of a study's commands, which its config holds as text: ``steps=20,kl.coef=0.1``."""

import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError

# Flag of a command: the pipeline's field that sets it.
FIELD_OF_FLAG = {
    **{name: name for name in ("seed", "judge", "run_dir")},
    **{f"data.{name}": name for name in ("template", "max_prompt_length", "max_new_tokens")},
}
_NAME = r"[A-Za-z_][\w.]*"


def parse_flags(text: str, field: str = "flags") -> dict[str, str]:
    """Parses ``"steps=20,kl.coef=0.1"`` to ``{"steps": "20", "kl.coef": "0.1"}``.

    A comma that no ``NAME=`` follows belongs to the value before it, as in ``mesh=1,-1,1``. Raises
    InputError, with the name of the config ``field``, for text of another form.
    """
    flags = {}
    for flag in re.split(rf",\s*(?={_NAME}=)", text.strip(" ,")) if text.strip(" ,") else ():
        name, _, value = flag.partition("=")
        if not re.fullmatch(f"{_NAME}=.*", flag, re.DOTALL):
            raise InputError(f"{field}={text}: {flag!r} is no flag; write NAME=VALUE,NAME=VALUE")
        flags[name] = value
    return flags


def read_flags(config: ConfigDict, *groups: str) -> dict[str, str]:
    """The merged flags of groups such as "ppo" and "arms.oracle".

    In order of increasing priority: ``config.lora`` (except for SFT from random weights), the
    groups' defaults, the groups' flags; later groups override earlier ones.
    """
    flags = {}
    for kind in ("defaults", "flags"):
        for group in groups:
            values = config
            for name in group.split("."):
                values = values[name]
            flags |= parse_flags(values[kind], f"{group}.{kind}")
    has_adapter = config.lora.rank and ("sft" not in groups or flags.get("model.path"))
    adapters = {f"lora.{name}": str(value) for name, value in config.lora.items()}
    return adapters | flags if has_adapter else flags


def command_line(
    command: str, spec: str, flags: Mapping[str, object], settings: Mapping[str, object]
) -> tuple[str, ...]:
    """The words of the command line of ``command`` with ``--config=spec``.

    Raises InputError for a flag of the user or study that is among ``settings``, the pipeline's
    own: files of other stages, seeds and shared fields.
    """
    for name in sorted(flags.keys() & settings.keys()):
        field = FIELD_OF_FLAG.get(name)
        hint = f"give --config.{field}=…" if field else "drop it"
        raise InputError(
            f"{name}={flags[name]}: the pipeline sets this flag of {command} itself; {hint}"
        )
    overrides = (f"--config.{name}={value}" for name, value in {**flags, **settings}.items())
    return (command, f"--config={spec}", *overrides)
