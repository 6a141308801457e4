"""A checkpoint on this machine as a language model: many requests in, their replies out.

    send = ask_local("HuggingFaceTB/SmolLM2-135M-Instruct", batch_size=8)
    collect_replies(requests, send, batch_size=64, …)

Requests are sampled together, each with the random key of its own digest, so that a reply depends
neither on what else is asked nor on when. An instruction-tuned model is asked through its chat
template.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.bucketing import by_length, make_buckets
from fgrlhf_jax.data.prompts import pad_prompts
from fgrlhf_jax.data.tokenizers import check_vocabulary
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.client import END, LENGTH, Refused, Reply, Request
from fgrlhf_jax.models import hf_load, llama, sampling
from fgrlhf_jax.runtime import sharding


def ask_local(
    model: str,
    *,
    batch_size: int = 8,
    max_prompt_length: int = 1024,
    template: str = "",
    seed: int = 0,
    mesh: str = "1,-1,1",
    dtype: str = "float32",
    unroll: bool = True,
) -> Callable[[Sequence[Request]], list[Reply | Refused]]:
    """A function from requests to a Reply or a Refused for each, in their order.

    Args:
      model: a Hugging Face folder, a hub id, a GGUF file, or the folder of a run of ours.
      max_prompt_length: tokens; a longer prompt is refused, never cut.
      template: chat | alpaca | plain; "" is what a model of ours learned, or else the model's chat
        template where it has one, or else alpaca. A system prompt stands before the prompt.
      seed: of the samples of requests with a temperature above 0.

    Raises:
      InputError: for a model or a template that cannot be used. The function raises it where
        max_tokens leaves no room for any prompt.
    """
    if not model:
        raise InputError("model is empty; give a folder, a hub id or a FILE.gguf")
    if Path(model, "export").is_dir():
        model = str(Path(model, "export"))
    cfg = dataclasses.replace(hf_load.read_config(model), dtype=dtype)
    lm, tokenizer = llama.CausalLM(cfg), hf_load.load_tokenizer(model)
    check_vocabulary(tokenizer, cfg.vocab_size)
    template = template or _template(model, tokenizer)
    templates.check_template(template, tokenizer)
    made = sharding.make_mesh(mesh)
    batch_size = sharding.round_batch_size(batch_size, made)
    buckets = make_buckets(max_prompt_length, 16)
    base = jax.random.key(seed)
    with jax.set_mesh(made):
        params = hf_load.load_params(model, llama.abstract_params(lm, made))

    def encode(request: Request) -> list[int] | Refused:
        if request.max_tokens >= cfg.max_position:
            raise InputError(
                f"max_new_tokens={request.max_tokens} leaves no room for a prompt in the model's "
                f"{cfg.max_position} positions; lower it"
            )
        text = f"{request.system}\n\n{request.prompt}" if request.system else request.prompt
        ids, _ = templates.encode_prompt(tokenizer, template, text, "", None)
        room = min(max_prompt_length, cfg.max_position - request.max_tokens)
        if len(ids) > room:
            return Refused(f"the prompt has {len(ids)} tokens, more than {room}")
        return ids

    def sample(padded: list[tuple[Request, list[int]]], width: int) -> list[Reply]:
        """One batch, of requests that differ in their prompts only."""
        first = padded[0][0]
        arrays = pad_prompts([ids for _, ids in padded], width)
        words = np.array([_words(request) for request, _ in padded])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(base, words[:, 0])
        keys = jax.vmap(jax.random.fold_in)(keys, words[:, 1])
        with jax.set_mesh(made):
            out = sampling.generate(
                params,
                *sharding.put_batch(arrays, made),
                keys,
                model=lm,
                eos=tokenizer.eos_token_id,
                max_new=first.max_tokens,
                temperature=first.temperature,
                unroll=unroll,
            )
            out = sharding.to_host(out)
        replies = []
        for b, (_, ids) in enumerate(padded):
            length, finished = int(out.length_B[b]), bool(out.finished_B[b])
            said = out.tokens_BT[b, : length - finished].tolist()
            text = tokenizer.decode(said, skip_special_tokens=False)
            replies.append(Reply(text, END if finished else LENGTH, len(ids), length))
        return replies

    def send(requests: Sequence[Request]) -> list[Reply | Refused]:
        replies = [encode(request) for request in requests]  # ids, until they are replaced
        alike: dict[tuple, list[int]] = {}
        for number, ids in enumerate(replies):
            if not isinstance(ids, Refused):
                request = requests[number]
                alike.setdefault((request.max_tokens, request.temperature), []).append(number)
        for numbers in alike.values():
            lengths = [len(replies[number]) for number in numbers]
            for width, rows, filled in by_length(lengths, batch_size, buckets):
                batch = [(requests[numbers[row]], replies[numbers[row]]) for row in filled]
                for row, reply in zip(rows, sample(batch, width), strict=False):
                    replies[numbers[row]] = reply
        return replies

    return send


def _template(model: str, tokenizer) -> str:
    has_chat = getattr(tokenizer, "chat_template", None)
    return hf_load.learned_template(model) or ("chat" if has_chat else "alpaca")


def _words(request: Request) -> np.ndarray:
    """Two 32-bit words of the request's digest."""
    digest = hashlib.sha256(json.dumps(dataclasses.astuple(request)).encode()).digest()
    return np.frombuffer(digest[:8], np.uint32)
