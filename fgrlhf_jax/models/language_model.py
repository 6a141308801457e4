"""Responses of a model to a file of prompts, in the output format of alpaca_eval."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from fgrlhf_jax.data.bucketing import by_length, make_buckets
from fgrlhf_jax.data.prompts import encode_prompts, pad_prompts
from fgrlhf_jax.data.tokenizers import check_vocabulary
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama, sampling
from fgrlhf_jax.runtime import sharding


def answer(
    path: str,
    records: list,
    *,
    template: str,
    max_prompt_length: int,
    max_new_tokens: int,
    overlong: str = "truncate",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    mesh: str = "1,-1,1",
    dtype: str = "float32",
    unroll: bool = True,
    generator: str = "",
    progress: Callable[[Iterable], Iterable] = iter,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """One row a sample: instruction, input, output, generator, and how it was said.

    The key of a response is that of (seed, number of its record, number of its sample): it changes
    neither with ``batch_size`` nor with the other prompts.

    Args:
      path: Hugging Face folder, hub id or GGUF file of a language model.
      records: any records; their prompts are read.
      samples: responses a prompt; rows come prompt by prompt.
      generator: the model's name in the rows; "" is ``path``.
      progress: wraps the iteration over batches.
      say: is told how many prompts were cut or left out, where any were.

    Returns:
      {"instruction", "input", "output", "generator", "length" (tokens, end included), "finished",
      "logprob" (summed, under the distribution it was drawn from)}.

    Raises:
      InputError: for a model, tokenizer or prompts that cannot be used.
    """
    cfg = dataclasses.replace(hf_load.read_config(path), dtype=dtype)
    model, tokenizer = llama.CausalLM(cfg), hf_load.load_tokenizer(path)
    check_vocabulary(tokenizer, cfg.vocab_size)
    ids, kept, counts = encode_prompts(
        records,
        tokenizer,
        template=template,
        max_prompt_length=max_prompt_length,
        overlong=overlong,
    )
    if counts["truncated"] or counts["dropped_overlong"]:
        say(", ".join(f"{n} {what}" for what, n in counts.items()))
    width = max(map(len, ids))
    if width + max_new_tokens > cfg.max_position:
        raise InputError(
            f"a prompt of {width} tokens and max_new_tokens={max_new_tokens} are more than the "
            f"model's {cfg.max_position} positions; lower max_new_tokens or max_prompt_length"
        )
    made = sharding.make_mesh(mesh)
    batch_size = sharding.round_batch_size(batch_size, made)
    jobs = [(prompt, sample) for prompt in range(len(ids)) for sample in range(samples)]
    lengths = [len(ids[prompt]) for prompt, _ in jobs]
    planned = by_length(lengths, batch_size, make_buckets(width, 16))
    rows: list[dict] = [{}] * len(jobs)
    base = jax.random.key(seed)
    with jax.set_mesh(made):
        params = hf_load.load_params(path, llama.abstract_params(model, made))
        for batch in progress(planned):
            padded = [jobs[j] for j in batch.filled]
            arrays = pad_prompts([ids[prompt] for prompt, _ in padded], batch.width)
            numbers = np.array([[kept[prompt], sample] for prompt, sample in padded])
            keys = jax.vmap(jax.random.fold_in, (None, 0))(base, numbers[:, 0])
            keys = jax.vmap(jax.random.fold_in)(keys, numbers[:, 1])
            out = sampling.generate(
                params,
                *sharding.put_batch(arrays, made),
                keys,
                model=model,
                eos=tokenizer.eos_token_id,
                max_new=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                unroll=unroll,
            )
            out = sharding.to_host(out)
            for b, j in enumerate(batch.rows):
                record, length = records[kept[jobs[j][0]]], int(out.length_B[b])
                finished = bool(out.finished_B[b])
                said = out.tokens_BT[b, : length - finished].tolist()
                rows[j] = {
                    "instruction": record.instruction,
                    "input": record.input,
                    "output": tokenizer.decode(said, skip_special_tokens=False),
                    "generator": generator or path,
                    "length": length,
                    "finished": finished,
                    "logprob": float(out.logprob_BT[b].sum()),
                }
    return rows
