"""Predict memory and time of a run: compiles every step ahead of time, allocates nothing.

python -m launch.plan --config=configs/ppo.py:llama_7b [--devices=8] [--device=h100]
                      [--memory=80] [--efficiency=0.5] [--mesh=data,fsdp,tensor] [--lengths=FILE]
                      [--json=FILE [--overwrite]] [--config.FIELD=VALUE …]

For configs/ppo.py, rm.py, sft.py and dpo.py, on virtual CPU devices. --device (h100, h200, a100,
v5p, v5e, v6e) or --memory=GB sets their memory. Prints bytes per device, FLOPs, and the least time
of a step if products reach --efficiency of the peak. With --memory, it finds the largest
micro-batch. If a step does not fit, it finds the smallest change that does and exits with 1.
Rows have the longest allowed lengths or those of --lengths=FILE: token counts {"prompt",
"response"} or {"common", "edited", "original"} per row, or any file of training data.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import jax
import numpy as np

from configs.fields import Field
from fgrlhf_jax.data import sources
from fgrlhf_jax.data.demonstrations import Demonstration, encode_demonstrations
from fgrlhf_jax.data.pairs import Pair, encode_by_kind
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.plan.fit import format_change, holds_models, largest_micro_batch, smallest_change
from fgrlhf_jax.plan.lengths import Lengths, dummy_demonstration, dummy_pair
from fgrlhf_jax.plan.memory import format_advice, format_table, measure
from fgrlhf_jax.plan.roofline import format_roofline, roofline
from fgrlhf_jax.plan.shapes import dpo_shapes, ppo_shapes, reward_model_shapes, sft_shapes
from fgrlhf_jax.runtime.accelerators import ACCELERATORS
from fgrlhf_jax.runtime.files import write_json
from launch import ppo
from launch.shared import cli, reading

CONFIG = "configs/ppo.py:llama_7b"
OTHERS = ("configs/rm.py", "configs/sft.py", "configs/dpo.py")
SHAPES = {"ppo": ppo_shapes, "rm": reward_model_shapes, "sft": sft_shapes, "dpo": dpo_shapes}
OPTIONS = {
    "devices": Field(8, "", at_least=1, at_most=4096),  # more virtual devices take too long
    "device": Field("h100", "", choices=ACCELERATORS),
    "memory": Field(0.0, "GB; 0: that of the device", at_least=1e-4),
    "efficiency": Field(0.5, "", at_least=0.01, at_most=1),
    **dict.fromkeys(("mesh", "lengths", "json"), Field("", "")),
    "overwrite": Field(False, ""),
}


def main(config, options: dict) -> bool:
    """Prints the plan; returns whether the run fits."""
    options = check_options(options)
    devices, device = options["devices"], options["device"]
    memory = options["memory"] * 1e9 or ACCELERATORS[device].memory
    if options["json"]:
        overwrite = "" if options["overwrite"] else "--overwrite"
        cli.check_writable("--json", Path(options["json"]), overwrite)
    kind = kind_of(config)
    if options["mesh"]:
        config.mesh = options["mesh"]
    use_virtual_devices(devices)
    make_shapes = SHAPES[kind]
    if options["lengths"]:
        rows = read_rows(config, kind, options["lengths"])
        make_shapes = lambda config: SHAPES[kind](config, rows)  # noqa: E731
    shapes = make_shapes(config)
    if not (can_fit := holds_models(config, make_shapes, memory)):
        shapes = shapes._replace(steps={})
    plan = measure(shapes, memory, report)
    print(format_table(plan))
    if plan["steps"]:
        plan["roofline"] = roofline(plan, device, options["efficiency"])
        print("\n" + format_roofline(plan["roofline"], devices))
    plan["change"] = None
    if not plan["fits"]:
        change = can_fit and smallest_change(config, make_shapes, memory, report)
        plan["change"] = change or None
        print(format_advice(format_change(change) if change else None, memory))
    elif options["memory"]:
        plan["change"] = largest_micro_batch(config, make_shapes, memory, report) or None
        change = plan["change"] and format_change(plan["change"])
        print(f"\nThe largest micro-batch that fits: {change or 'the present one'}")
    if options["json"]:
        write_json(options["json"], plan)
    return plan["fits"]


def report(line: str) -> None:
    """Prints progress to stderr, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def split_arguments(argv: list[str]) -> tuple[dict, list[str]]:
    """Splits the options of this command from the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, field in OPTIONS.items():
        kind = {"action": "store_true"} if field.default is False else {"nargs": "?", "const": ""}
        parser.add_argument(f"-{name}", f"--{name}", default=argparse.SUPPRESS, **kind)
    options, others = parser.parse_known_args(argv[1:])
    return vars(options), [argv[0], *others]


def check_options(flags: dict) -> dict:
    """Returns the value of every option; raises InputError for an invalid one."""
    values = {name: field.default for name, field in OPTIONS.items()} | flags
    for name, text in flags.items():
        with contextlib.suppress(ValueError):
            values[name] = type(OPTIONS[name].default)(text)
        fault = OPTIONS[name].fault(values[name]) if text else "give a value"
        if fault:
            raise InputError(f"--{name}={text}: {fault}")
    return values


def read_rows(config, kind: str, path: str) -> Lengths | list[Demonstration] | list[Pair]:
    """Rows of --lengths for ``SHAPES[kind]``, from token counts or from tokenized texts."""
    is_paired = kind in ("rm", "dpo")
    names = ("common", "edited", "original") if is_paired else ("prompt", "response")
    if numbers := read_numbers(path, names):
        if kind == "ppo":
            return Lengths(*np.array(numbers).T)
        make = dummy_pair if is_paired else dummy_demonstration
        limit = config.data.max_length
        rows = [make(*row) for row in numbers if row[0] + max(row[1:]) <= limit]
        if not rows:
            raise InputError(f"--lengths={path}: all rows are longer than data.max_length={limit}")
        return rows
    field = "policy" if "policy" in config else "model.path"
    if not (model := config.policy if field == "policy" else config.model.path):
        example = dict(zip(names, (57, 120, 110), strict=False))
        raise InputError(
            f"--lengths={path}: tokenizing texts needs a model; give --config.{field}, or rows of "
            f"{json.dumps(example)}, whole numbers above 0"
        )
    tokenizer = hf_load.load_tokenizer(model)
    data = config.data.to_dict()
    data.pop("buckets", None)
    if kind in ("ppo", "dpo"):
        data["template"] = hf_load.resolve_template(model, tokenizer, config.data.template)
    if is_paired:
        pairs = encode_by_kind(reading.read(config, path, "pairs"), path, tokenizer, data, report)
        return [*chain(*pairs.values())]
    if kind == "ppo":  # the plan limits lengths itself
        longest = {"max_length": sys.maxsize, "max_prompt_length": sys.maxsize - 1}
        data = {"template": data["template"]} | longest
    rows, _ = encode_demonstrations(reading.read(config, path, "responses"), tokenizer, **data)
    if kind == "sft":
        return rows
    prompts = np.array([row.prompt_length for row in rows])
    return Lengths(prompts, np.array([len(row.tokens) for row in rows]) - prompts)


def read_numbers(path: str, names: Sequence[str]) -> list[list[int]]:
    """The numbers in the fields ``names`` of every row; [] if a row lacks one."""
    files = sources.split_sources(path)
    if not all(file.endswith(sources.SUFFIXES) for file in files):
        return []
    rows = [row for file in files for _, row in sources.read_rows(file)]
    for fault in (row for row in rows if isinstance(row, InputError)):
        raise fault
    numbers = [[row.get(name) for name in names] for row in rows if isinstance(row, dict)]
    known = len(numbers) == len(rows) and all(type(n) is int and n > 0 for n in chain(*numbers))
    return numbers if known else []


def kind_of(config) -> str:
    """The kind of a config, a key of ``SHAPES``, after its command's own checks."""
    if "rollout_batch_size" in config:
        ppo.check(config)
        return "ppo"
    cli.check_run(config)
    if "beta" in config:
        return "dpo"
    return "rm" if "loss" in config else "sft"


def use_virtual_devices(devices: int) -> None:
    """Creates virtual CPU devices; call before anything else uses devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def command() -> None:
    options, sys.argv = split_arguments(sys.argv)
    fits: list[bool] = []
    cli.command(lambda config: fits.append(main(config, options)), CONFIG, __doc__, *OTHERS)
    if not all(fits):
        sys.exit(1)


if __name__ == "__main__":
    command()
