"""``LanguageModel``: weights, tokenizer, prompt template and mesh in one object, for generation.

    model = LanguageModel.load("runs/sft_tiny")
    answers = model.generate(["Name three fruits."], SamplingParams(max_new_tokens=64), seed=0)
    answers.texts[0]

Each response has its own random key and does not depend on its batch.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral

import jax
import numpy as np
from jax.sharding import Mesh

from fgrlhf_jax.data import chat, templates
from fgrlhf_jax.data.bucketing import by_length, make_buckets
from fgrlhf_jax.data.formats import as_list, parse_record
from fgrlhf_jax.data.records import Instruction, Record
from fgrlhf_jax.data.tokenizers import Tokenizer, decode
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import decoding, heads, hf_load, llama, sampling
from fgrlhf_jax.runtime import sharding

Prompt = str | Record | Mapping[str, str] | Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters.

    Attributes:
      temperature: divides the logits; 0 always takes the most likely token (greedy).
      top_k: samples from the k most likely tokens only; 0 from all of them.
      top_p: samples from the smallest set of most likely tokens whose probabilities sum to this.
      max_new_tokens: the longest response in tokens, including its end.
      int8_cache: stores the KV cache in 8 bits: less memory, nearly the same tokens.

    Raises InputError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    int8_cache: bool = False

    def __post_init__(self):
        k, longest = self.top_k, self.max_new_tokens
        for name, is_valid, bounds in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", isinstance(k, Integral) and k >= 0, "whole and at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_new_tokens", isinstance(longest, Integral) and longest > 0, "whole and above 0"),
        ):
            if not is_valid:
                raise InputError(f"{name}={getattr(self, name)} must be {bounds}")


@dataclasses.dataclass(frozen=True, eq=False)
class Generations:
    """N responses, in the order of their prompts.

    Attributes:
      texts: the responses, without the end-of-sequence token.
      ids: their token ids, including the end-of-sequence token if there is one.
      logprobs: float32[N, max_new_tokens], the log-probability of each token under the distribution
        that it was sampled from (0 when greedy); 0 beyond the end.
      finished: True if a response ended with EOS, False if it was cut at max_new_tokens.
    """

    texts: list[str]
    ids: list[list[int]]
    logprobs: np.ndarray
    finished: list[bool]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded language model.

    Attributes:
      path: location of its weights.
      module: the Flax module of its weights.
      tokenizer: a transformers tokenizer.
      mesh: with the axes data, fsdp and tensor.
      template: the prompt template: alpaca | chat | plain.
      end_ids: the tokens that end a response.
    """

    path: str | os.PathLike
    module: heads.CausalLM = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    mesh: Mesh
    template: str
    end_ids: tuple[int, ...]

    def read_params(self) -> dict:
        """The parameters of ``module``, sharded over ``mesh``."""
        with jax.set_mesh(self.mesh):
            return hf_load.load_params(self.path, heads.abstract_params(self.module, self.mesh))

    @functools.cached_property
    def weights(self) -> decoding.DecodingWeights:
        """The parameters in the form for decoding; those of :meth:`read_params` are not kept."""
        params = self.read_params()
        return decoding.make_placer(params, self.module, self.mesh)(params)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        mesh: str = "1,-1,1",
        dtype: str = "float32",
        template: str = "",
        max_new_tokens: int = 0,
        lazy: bool = False,
        log: Callable[[str], None] = print,
    ) -> "LanguageModel":
        """Loads a checkpoint.

        Args:
          path: a run folder, a Hugging Face folder, a hub id or a GGUF file.
          mesh: devices along data, fsdp and tensor; one of them may be -1 for the rest.
          dtype: compute dtype, float32 or bfloat16.
          template: alpaca | chat | plain; "": the template that this project fine-tuned the model
            with, else "chat" if the tokenizer has a chat template, else "alpaca".
          max_new_tokens: the longest response that will be requested, if known: one that leaves no
            room for a prompt is refused before the weights are read.
          lazy: reads the weights only when they are needed, after prompts have been checked.
          log: receives a line about what ends a turn in training, or with other tools, but does not
            end a response here.

        Raises InputError for an unusable model, mesh, dtype, tokenizer or template.
        """
        dtype = llama.dtype_name(dtype)
        hf_load.check_language_model(path)
        cfg = dataclasses.replace(hf_load.read_config(path), dtype=dtype)
        check_max_new_tokens(max_new_tokens, cfg)
        module, tokenizer = heads.CausalLM(cfg), hf_load.load_tokenizer(path)
        template = hf_load.resolve_template(path, tokenizer, template)
        templates.check_template(template, tokenizer)
        chat.check_vocabulary(tokenizer, cfg.vocab_size, template)
        ends = hf_load.end_ids(path, tokenizer, log)
        if note := chat.check_end_of_turn(tokenizer, template, ends):
            log(f"{path}: {note}")
        model = cls(path, module, tokenizer, sharding.make_mesh(mesh), template, ends)
        if not lazy:
            _ = model.weights
        return model

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt in the model's template.

        A prompt is an instruction, a record or a mapping with its fields (responses are ignored),
        or chat messages (``[{"role": "user", "content": "…"}, …]``). Raises InputError for other
        types, and for messages that the template does not accept.
        """
        if isinstance(prompt, str):
            prompt = Instruction(prompt, "", "")
        elif not isinstance(prompt, Record):
            row = prompt if isinstance(prompt, Mapping) else {"messages": prompt}
            prompt = parse_record(row, "prompt")
        return templates.encode_prompt(self.tokenizer, self.template, prompt)[0]

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams = SamplingParams(),
        *,
        seed: int = 0,
        batch_size: int = 16,
        guide: sampling.Guide | None = None,
    ) -> Generations:
        """One response per prompt; the key of prompt i depends on the seed and i only.

        Args:
          prompts: prompts as for :meth:`encode`, or a pandas DataFrame of such fields.
          guide: improves the policy at every token, see ``reward_model.guide.load_guide``.
          batch_size: prompts at a time, rounded up to a multiple that the mesh divides.

        Raises InputError for prompts that cannot be encoded, or that leave no room for
        ``max_new_tokens`` within the model's positions.
        """
        ids = [self.encode(prompt) for prompt in as_list(prompts, "prompt")]
        return self.generate_from_ids(
            ids,
            sampling_params,
            seed=seed,
            streams=[(number, 0) for number in range(len(ids))],
            batch_size=batch_size,
            guide=guide,
        )

    def generate_from_ids(
        self,
        prompts: Sequence[Sequence[int]],
        sampling_params: SamplingParams,
        *,
        seed: int,
        streams: Sequence[tuple[int, int]],
        batch_size: int,
        guide: sampling.Guide | None = None,
        longest: int = 0,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> Generations:
        """One response to each of N encoded prompts, lists of token ids.

        Args:
          streams: two numbers below 2^32 per prompt; with the seed they give the random key.
          guide: as for :meth:`generate`.
          longest: tokens of the longest prompt of later calls, which then need no recompilation; 0:
            the longest of these.
          progress: wraps the iteration over batches.

        Raises InputError if prompt and response exceed the model's positions.
        """
        modules = [self.module, *([guide.module] if guide else [])]
        lengths = [len(ids) for ids in prompts]
        limit = min(module.cfg.max_position for module in modules)
        max_new = sampling_params.max_new_tokens
        if max(lengths, default=0) + max_new > limit:
            raise InputError(
                f"a prompt of {max(lengths)} tokens and max_new_tokens={max_new} are more than the "
                f"model's {limit} positions; lower max_new_tokens or max_prompt_length"
            )
        ids: list[list[int]] = [[]] * len(prompts)
        logprobs = np.zeros((len(prompts), max_new), np.float32)
        finished = [False] * len(prompts)
        batch_size = sharding.round_batch_size(batch_size, self.mesh)
        buckets = make_buckets(longest or max(lengths, default=1), 16)
        with jax.set_mesh(self.mesh):
            for batch in progress(by_length(lengths, batch_size, buckets)):
                arrays = templates.pad_prompts([prompts[row] for row in batch.filled], batch.width)
                responses = sampling.generate(
                    self.weights,
                    *sharding.put_batch(arrays, self.mesh),
                    sampling.stream_keys(seed, [streams[row] for row in batch.filled]),
                    guide,
                    model=self.module,
                    ends=self.end_ids,
                    max_new=max_new,
                    temperature=sampling_params.temperature,
                    top_k=sampling_params.top_k,
                    top_p=sampling_params.top_p,
                    int8_cache=sampling_params.int8_cache,
                )
                responses = sharding.to_host(responses)
                for b, row in enumerate(batch.rows):
                    ids[row] = responses.tokens_BT[b, : responses.length_B[b]].tolist()
                    logprobs[row] = responses.logprob_BT[b]
                    finished[row] = bool(responses.finished_B[b])
        texts = [
            decode(self.tokenizer, response[: len(response) - ended])
            for response, ended in zip(ids, finished, strict=True)
        ]
        return Generations(texts, ids, logprobs, finished)


def check_max_new_tokens(max_new_tokens: int, cfg: llama.LlamaConfig) -> None:
    """Raises InputError if a response of that many tokens leaves no position for a prompt."""
    if max_new_tokens >= cfg.max_position:
        raise InputError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's "
            f"{cfg.max_position} positions; lower it"
        )
