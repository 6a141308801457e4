"""The benchmark items: for each a job that this project ("ours") and the peer read, and its FLOPs.

A job is JSON. Texts are tokenized here once, so that both sides compute the same tokens; ours also
gets the records, because it encodes them as its commands do.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import checkpoint
from fgrlhf_jax.data import sources
from fgrlhf_jax.data.records import Preference, Record, sides
from fgrlhf_jax.data.templates import encode_prompts, encode_responses, encode_text
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.models.flops import decoding_flops, logits_flops, rows_flops
from fgrlhf_jax.models.lora import Lora

GROUPS = ("rm", "rm_edits", "sft", "decode", "ppo", "ppo_lora", "ppo_real")
LORA = Lora(rank=16)


class Sizes(NamedTuple):
    """Sizes of the items; the defaults are those of the table in the documentation."""

    pairs: int = 4
    columns: int = 128
    edits: int = 32
    edit_columns: int = 512
    decode: tuple[int, ...] = (1, 8, 32)
    prompt: int = 64
    response: int = 64
    ppo_rows: int = 8
    real_prompts: int = 64
    real_prompt: int = 192
    real_response: int = 128
    steps: int = 3


TINY = Sizes(2, 16, 8, 192, (1, 2), 8, 48, 2, 4, 160, 8)


class Work(NamedTuple):
    """A benchmark item.

    Attributes:
      script: name of the script in ``peers/`` and of the work in ``ours``.
      peer: name of the peer in the table.
      unit: counted unit, for example tokens; a result has their number in ``count``.
      job: input of both sides.
      flops: function from a side's result to the model FLOPs of its counted units.
    """

    name: str
    title: str
    script: str
    peer: str
    unit: str
    job: dict[str, Any]
    flops: Callable[[dict], float]


def make(
    groups: Sequence[str], model: Path, cache: Path, edits: str, prompts: str, sizes: Sizes
) -> list[Work]:
    """The items of ``groups`` for a checkpoint.

    Raises:
      InputError: for files without usable rows.
    """
    tokenizer, cfg = hf_load.load_tokenizer(model), hf_load.read_config(model)
    text = checkpoint.TEXT.read_text()
    ids = 4 * encode_text(tokenizer, text)
    base = {"model": str(model), "warmup": 1, "steps": sizes.steps}
    work = []
    if "rm" in groups:
        work.append(_reward_model(base, tokenizer, cfg, text, sizes))
    if "rm_edits" in groups and edits:
        work.append(_real_edits(base, tokenizer, cfg, edits, sizes))
    if "sft" in groups:
        rows = [ids[17 * b :][: sizes.columns] for b in range(sizes.pairs)]
        count = sizes.pairs * sizes.columns
        flops = 3 * (rows_flops(cfg, [len(ids) for ids in rows]) + logits_flops(cfg, count))
        title = f"SFT step, {sizes.pairs} × {sizes.columns}"
        job = base | {"rows": rows, "count": count}
        work.append(Work("sft", title, "sft", "torch", "tokens", job, lambda _: flops))
    if "decode" in groups:
        work += [_decode(base, cfg, ids, rows, sizes) for rows in sizes.decode]
    if {"ppo", "ppo_lora", "ppo_real"} & set(groups):
        longest = sizes.real_prompt + sizes.real_response
        base["reward_model"] = str(checkpoint.reward_model(model, cache, longest))
    if {"ppo", "ppo_lora"} & set(groups):
        count = sizes.ppo_rows * (1 + sizes.steps)
        rows = [ids[17 * b :][: sizes.prompt] for b in range(count)]
        title = f"PPO iteration, {sizes.ppo_rows} × ({sizes.prompt} + {sizes.response})"
        shape = {"batch_size": sizes.ppo_rows, "micro_batch_size": sizes.ppo_rows}
        shape |= {"prompt": sizes.prompt, "response": sizes.response, "end": None}
        job = base | shape | {"prompts": rows}
        if "ppo" in groups:
            work.append(_ppo("ppo", title, cfg, job, "tokens"))
        if "ppo_lora" in groups:
            adapter = checkpoint.reward_model(model, cache, longest, LORA)
            job = job | {"lora_rank": LORA.rank, "reward_adapter": str(adapter)}
            title = f"PPO iteration by LoRA of rank {LORA.rank}, TRL's of all weights"
            work.append(_ppo("ppo_lora", title, cfg, job, "tokens"))
    if "ppo_real" in groups and prompts:
        work.append(_real_prompts(base, tokenizer, cfg, prompts, sizes))
    return work


def _reward_model(base: dict, tokenizer, cfg, text: str, sizes: Sizes) -> Work:
    """Pairs of rows of equal length that share only the line break of an empty prompt."""
    width, count = sizes.columns, sizes.pairs * (1 + sizes.steps)
    rows = [Preference("", "", text[61 * n :], text[73 * n + 23 :], 1) for n in range(count)]
    data = {"template": "plain", "max_length": width, "max_prompt_length": width // 2}
    job = base | _encode_sides(tokenizer, rows, data)
    if {len(ids) for pair in job["rows"] for ids in pair} != {width}:
        raise InputError(f"{checkpoint.TEXT}: is too short a text for rows of {width} tokens")
    job |= {"batch_size": sizes.pairs, "count": 2 * sizes.pairs * width}
    flops = 3 * rows_flops(cfg, [width] * 2 * sizes.pairs)
    title = f"reward-model step, {sizes.pairs} pairs × 2 × {width}"
    return Work("rm", title, "rm", "TRL", "tokens", job, lambda _: flops)


def _real_edits(base: dict, tokenizer, cfg, path: str, sizes: Sizes) -> Work:
    """One epoch over the edits of a file, with rows of their real lengths."""
    template = "chat" if tokenizer.chat_template else "alpaca"
    width = sizes.edit_columns
    data = {"template": template, "max_length": width, "max_prompt_length": 3 * width // 4}
    rows = evenly_spaced(sources.read(path, need="pairs"), 2 * sizes.edits)
    job = base | _encode_sides(tokenizer, rows, data)
    usable = [n for n, (i, j) in enumerate(job["rows"]) if i != j][: sizes.edits]
    if len(usable) < sizes.edits:
        raise InputError(f"edits={path}: has only {len(usable)} usable pairs of {sizes.edits}")
    job |= {name: [job[name][n] for n in usable] for name in ("rows", "records")}
    job |= {"batch_size": sizes.pairs, "epoch": True}
    flops = 3 * rows_flops(cfg, [len(ids) for pair in job["rows"] for ids in pair])
    title = f"reward model on {sizes.edits} edits of real lengths"
    return Work("rm_edits", title, "rm", "TRL", "pairs", job, lambda _: flops)


def _encode_sides(tokenizer, rows: Sequence[Record], data: dict) -> dict:
    """Token ids of both sides of pairs, truncated as the reward model's reader truncates them."""
    options = {"max_prompt_length": data["max_prompt_length"], "append_eos": True}
    pairs = []
    for row in rows:
        names = sides(row)
        encoded, _ = encode_responses(tokenizer, data["template"], row, names, **options)
        pairs.append([side.ids[: data["max_length"]] for side in encoded])
    fields = [dataclasses.asdict(row) for row in rows]
    return {"rows": pairs, "records": fields, "data": data}


def _decode(base: dict, cfg, ids: list[int], rows: int, sizes: Sizes) -> Work:
    P, T = sizes.prompt, sizes.response
    prompts = [ids[37 * b :][:P] for b in range(rows)]
    flops = decoding_flops(cfg, [P] * rows, T) - decoding_flops(cfg, [P] * rows, 1)
    return Work(
        f"decode_{rows}",
        f"greedy decoding, {rows} × ({P} + {T})",
        "decode",
        "HF generate",
        "tokens",
        base | {"prompts": prompts, "response": T, "count": rows * (T - 1)},
        lambda _: flops,
    )


def _ppo(name: str, title: str, cfg: llama.LlamaConfig, job: dict, unit: str) -> Work:
    """An item of PPO; FLOPs of sampling, of scoring by four models and of updating two."""

    def flops(result: dict) -> float:
        responses = result["lengths"]
        prompts = [len(ids) for ids in job["prompts"][-len(responses) :]]
        value = rows_flops(cfg, np.add(prompts, responses))
        forward = value + logits_flops(cfg, sum(responses))
        scores, updates = 2 * forward + 2 * value, 3 * (forward + value)
        return decoding_flops(cfg, prompts, responses) + scores + updates

    return Work(name, title, "ppo", "TRL", unit, job, flops)


def _real_prompts(base: dict, tokenizer, cfg, path: str, sizes: Sizes) -> Work:
    """One PPO iteration on prompts of a file; responses end at EOS."""
    template = "chat" if tokenizer.chat_template else "alpaca"
    options = {"template": template, "max_prompt_length": sizes.real_prompt, "overlong": "drop"}
    rows = sources.read(path, need="prompts")
    rows = evenly_spaced(rows, 2 * sizes.real_prompts)
    prompts, _, _ = encode_prompts(rows, tokenizer, **options)
    if len(prompts) < sizes.real_prompts:
        raise InputError(
            f"prompts={path}: only {len(prompts)} of {len(rows)} have at most "
            f"{sizes.real_prompt} tokens; {sizes.real_prompts} are needed"
        )
    title = (
        f"PPO on {sizes.real_prompts} real prompts, at most {sizes.real_prompt} + "
        f"{sizes.real_response}"
    )
    shape = {"batch_size": sizes.real_prompts, "micro_batch_size": sizes.ppo_rows}
    shape |= {"prompt": sizes.real_prompt, "response": sizes.real_response}
    shape |= {"end": tokenizer.eos_token_id, "warmup": 0, "steps": 1}
    job = base | shape | {"prompts": prompts[: sizes.real_prompts]}
    return _ppo("ppo_real", title, cfg, job, "prompts")


def evenly_spaced(rows: Sequence, count: int) -> list:
    """Returns at most ``count`` rows, evenly spaced over a file."""
    step = max(len(rows) // count, 1)
    return list(rows[::step][:count])
