"""``RewardModel``: loads a reward model and scores the tokens of responses.

reward_model = RewardModel.load("runs/rm_tiny_token_edit")
for token, reward in reward_model.score([{"instruction": "…", "output": "…"}])[0]:
    print(token, reward)
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fgrlhf_jax.data.bucketing import by_length, make_buckets, pad_right
from fgrlhf_jax.data.records import RESPONSES, Record, as_instruction
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, hf_save, llama
from fgrlhf_jax.reward_model import token_rewards
from fgrlhf_jax.reward_model.combined import RewardModule
from fgrlhf_jax.reward_model.model import normalize_rewards, score_tokens
from fgrlhf_jax.reward_model.modules import RewardMeta, folders_of, load_params, read_modules
from fgrlhf_jax.runtime import sharding


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """A loaded reward model.

    Attributes:
      module: the Flax module of ``params``.
      params: its parameters, sharded over ``mesh``.
      tokenizer: a transformers tokenizer.
      meta: the meaning of its rewards.
      mesh: with the axes data, fsdp and tensor.
    """

    module: RewardModule = dataclasses.field(repr=False)
    params: dict = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    meta: RewardMeta
    mesh: Mesh

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        mesh: str = "1,-1,1",
        dtype: str = "float32",
        ensemble_penalty: float = 1.0,
    ) -> "RewardModel":
        """Loads the reward model in a run folder of launch.train_rm, or in its ``export``.

        Args:
          path: one model, or several, see :mod:`fgrlhf_jax.reward_model.modules`.
          mesh: devices along data, fsdp and tensor; one of them may be -1 for the rest.
          dtype: compute dtype, float32 or bfloat16.
          ensemble_penalty: for several reward models, see ``reward_losses.pessimistic_reward``.

        Raises InputError if the folder is missing, is not a reward model of this project, or is
        damaged, and for an unusable mesh or dtype.
        """
        dtype = llama.dtype_name(dtype)
        module, meta = read_modules(path, ensemble_penalty, dtype=dtype)
        first, devices = folders_of(path)[0], sharding.make_mesh(mesh)
        with jax.set_mesh(devices):
            params = load_params(path, heads.abstract_params(module, devices))
        tokenizer = hf_load.load_tokenizer(first)
        if not meta.data["template"]:  # language models of other origin
            meta.data["template"] = hf_load.resolve_template(first, tokenizer)
        return cls(module, params, tokenizer, meta, devices)

    def save(self, folder: Path, **options) -> str:
        """Saves the model with ``hf_save.save`` and its ``options``; returns its note."""
        is_token = self.meta.level == "token"
        architecture = hf_save.TOKEN_REWARD if is_token else hf_save.SEQUENCE_REWARD
        if self.meta.head != "after":
            architecture = hf_save.STATE_ACTION
        extra = {name: getattr(self.meta, name) for name in ("head", "settings", "data")}
        extra["calibration"] = self.meta.normalization._asdict()
        model = self.params, self.module.cfg, self.tokenizer
        return hf_save.save(folder, *model, architecture=architecture, extra=extra, **options)

    def length_limit(self, max_length: int) -> int:
        """``max_length``, or the training run's if it is 0.

        Raises InputError if it exceeds the model's positions.
        """
        positions = self.module.cfg.max_position
        if max_length > positions:
            raise InputError(
                f"max_length={max_length} is more than the model's {positions} positions; lower it"
            )
        return max_length or self.meta.data["max_length"]

    def score(
        self, records: Sequence[Record | Mapping[str, Any]], **options
    ) -> list[token_rewards.ScoredResponse]:
        """The rewards of one response per record: its ``output``, ``original`` or ``output_1``.

        Arguments and errors are those of :meth:`score_all`.
        """
        rows = token_rewards.as_records(records)
        rows = [as_instruction(row, RESPONSES[type(row)][0]) for row in rows]
        return [response for (response,) in self.score_all(rows, **options)]

    def score_all(
        self, records: Sequence[Record | Mapping[str, Any]], *, max_length: int = 0, **options
    ) -> list[list[token_rewards.ScoredResponse]]:
        """The rewards of all responses of each record, in the order of its fields.

        Args:
          records: records, mappings with their fields, or a pandas DataFrame of them.
          max_length: tokens of prompt and response; longer responses are cut. 0: the training
            run's.
          **options: normalized, batch_size and progress, as for :meth:`score_ids`.

        Raises InputError as :func:`token_rewards.encode_responses`.
        """
        max_length = self.length_limit(max_length)
        rows = token_rewards.as_records(records)
        encoded = token_rewards.encode_responses(rows, self.tokenizer, self.meta.data, max_length)
        flat = [response for row in encoded for response in row]
        ids = [response[1:] for response in flat]
        rewards = self.score_ids(ids, max_length=max_length, **options)
        for (response, *_), reward_T in zip(flat, rewards, strict=True):
            response.rewards.extend(reward_T.tolist())
        return [[response for response, *_ in row] for row in encoded]

    def score_ids(
        self,
        rows: Sequence[tuple[list[int], int]],
        *,
        max_length: int = 0,
        normalized: bool = True,
        batch_size: int = 16,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> list[np.ndarray]:
        """The rewards, float64[T] each, of responses given as token ids.

        Args:
          rows: token ids of prompt and response, and the number of prompt tokens.
          max_length: the longest row of later calls, which then need no recompilation; 0: the
            longest of these rows.
          normalized: True gives the rewards that PPO trains on, False the model's raw rewards.
          batch_size: responses at a time, rounded up to a multiple that the mesh divides.
          progress: wraps the iteration over batches.
        """
        lengths, rewards = [len(ids) for ids, _ in rows], [np.zeros(0)] * len(rows)
        batch_size = sharding.round_batch_size(batch_size, self.mesh)
        buckets = make_buckets(max_length or max(lengths, default=1))
        for batch in progress(by_length(lengths, batch_size, buckets)):
            padded = [rows[row] for row in batch.filled]
            tokens_BS = pad_right([np.array(ids, np.int32) for ids, _ in padded], batch.width)
            starts_B1, ends_B1 = np.array([(start, len(ids)) for ids, start in padded]).T[..., None]
            columns_1S = np.arange(batch.width)[None]
            on_mesh = sharding.put_batch((tokens_BS, columns_1S < ends_B1), self.mesh)
            reward_BS = sharding.to_host(self.score_tokens(*on_mesh))
            if normalized:
                response_BS = (starts_B1 <= columns_1S) & (columns_1S < ends_B1)
                reward_BS = normalize_rewards(
                    reward_BS, response_BS, self.meta.normalization, level=self.meta.level
                )
            for b, row in enumerate(batch.rows):
                ids, start = rows[row]
                rewards[row] = np.asarray(reward_BS[b, start : len(ids)], np.float64)
        return rewards

    def score_tokens(self, tokens_BS, mask_BS) -> jax.Array:
        """Rewards of every token, not normalized, as by ``model.score_tokens``."""
        options = {"model": self.module, "level": self.meta.level}
        with jax.set_mesh(self.mesh):
            return score_tokens(self.params, tokens_BS, mask_BS, **options)
