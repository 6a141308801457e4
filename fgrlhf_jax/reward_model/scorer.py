"""A reward model in use: load and save it, encode pairs, predict their values, fill Table 2."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from fgrlhf_jax.data import records
from fgrlhf_jax.data.bucketing import by_length
from fgrlhf_jax.data.pairs import Pair, encode_pairs, pad_pairs, span_labels
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.runtime import sharding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = {"edits": records.Edit, "preferences": records.Preference}


@dataclasses.dataclass(frozen=True)
class Meta:
    """What the numbers of a reward model mean; kept as ``fgrlhf`` in its ``config.json``.

    ``data`` are the arguments of ``encode_pairs`` that it was trained with.
    """

    head: str
    settings: dict  # loss, consistency_weight, center_weight
    normalization: reward.Normalization
    data: dict

    @property
    def level(self) -> str:
        return reward.level_of(self.settings["loss"])


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A reward model ready for use."""

    model: llama.TokenValueModel
    params: dict
    tokenizer: "PreTrainedTokenizerFast"
    meta: Meta
    mesh: Mesh

    def score_tokens(self, tokens_BS, mask_BS) -> jax.Array:
        """``reward.score_tokens`` with this model's parameters."""
        with jax.set_mesh(self.mesh):
            return reward.score_tokens(
                self.params, tokens_BS, mask_BS, model=self.model, level=self.meta.level
            )


def make_model(cfg: llama.LlamaConfig, loss: str, head: str) -> llama.TokenValueModel:
    """The module for a loss; raises InputError for a state-action head on a sequence score.

    Bradley-Terry cannot see the bias of a sequence score, and rounding in its zero gradient is
    what Adam would follow: the sequence variant has none.
    """
    level = reward.level_of(loss)
    if head == "state_action" and level == "sequence":
        raise InputError("model.head=state_action needs a token loss; use head=after")
    return llama.TokenValueModel(cfg, kind=head, use_bias=level == "token")


def save(folder: Path, scorer: Scorer) -> str:
    """Write a Hugging Face folder; returns a sentence on what transformers can load it as."""
    if scorer.meta.head == "state_action":
        architecture = hf_load.STATE_ACTION
    elif scorer.meta.level == "token":
        architecture = "LlamaForTokenClassification"
    else:
        architecture = "LlamaForSequenceClassification"
    extra = {
        "head": scorer.meta.head,
        "settings": scorer.meta.settings,
        "calibration": scorer.meta.normalization._asdict(),
        "data": scorer.meta.data,
    }
    return hf_load.save(
        folder,
        scorer.params,
        scorer.model.cfg,
        scorer.tokenizer,
        architecture=architecture,
        extra=extra,
    )


def export_folder(path: str) -> Path:
    """Where the weights are: ``path/export`` of a run folder, or ``path`` itself."""
    folder = Path(path)
    return folder / "export" if (folder / "export").is_dir() else folder


def read_model(path: str, how: dict) -> tuple[llama.TokenValueModel, Meta]:
    """Module and meta data of a reward model in a run folder or its ``export``; no weights.

    Args:
      how: fields of LlamaConfig on how to compute, such as ``dtype``.

    Raises:
      InputError: when the folder is missing or is no reward model of ours.
    """
    folder = export_folder(path)
    try:
        extra = json.loads((folder / "config.json").read_text())["fgrlhf"]
        meta = Meta(
            head=extra["head"],
            settings=extra["settings"],
            normalization=reward.Normalization(**extra["calibration"]),
            data=extra["data"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is not a reward model of launch.train_rm (no usable export/config.json); "
            "give the run_dir of a finished run"
        ) from error
    cfg = dataclasses.replace(hf_load.read_config(str(folder)), **how)
    return make_model(cfg, meta.settings["loss"], meta.head), meta


def load(path: str, *, mesh: str = "1,-1,1", dtype: str = "float32") -> Scorer:
    """A reward model from a run folder or its ``export``.

    Raises:
      InputError: when the folder is missing, is no reward model of ours, or is damaged.
    """
    model, meta = read_model(path, {"dtype": dtype})
    folder, made = str(export_folder(path)), sharding.make_mesh(mesh)
    with jax.set_mesh(made):
        params = hf_load.load_params(folder, llama.abstract_params(model, made))
    return Scorer(model, params, hf_load.load_tokenizer(folder), meta, made)


def length_limit(scorer: Scorer, given: int) -> int:
    """``max_length`` as given, or where that is 0 the training run's.

    Raises:
      InputError: when it is more than the model has positions.
    """
    most = scorer.model.cfg.max_position
    if given > most:
        raise InputError(
            f"max_length={given} is more than the model's {most} positions; lower it"
        )
    return given or scorer.meta.data["max_length"]


def encode(
    rows: list, source: str, tokenizer, data: dict, say: Callable[[str], None] = print
) -> dict[str, list[Pair]]:
    """Pairs by kind ("edits", "preferences"), saying what was left out.

    Raises:
      InputError: for records that are neither, or when no pair is left.
    """
    if any(not isinstance(row, tuple(KINDS.values())) for row in rows):
        raise InputError(
            f"{source}: holds instructions; a reward model needs edits (original, edited) or "
            "preferences (output_1, output_2, preference)"
        )
    pairs = {}
    for kind, record in KINDS.items():
        group = [(number, row) for number, row in enumerate(rows) if isinstance(row, record)]
        if not group:
            continue
        numbers, group = zip(*group, strict=True)
        try:
            encoded, counts = encode_pairs(group, tokenizer, **data)
        except InputError as error:
            raise InputError(f"{source}: {kind}: {error}") from error
        # `row` counts within the kind; from here on it counts within the file.
        pairs[kind] = [dataclasses.replace(pair, row=numbers[pair.row]) for pair in encoded]
        say(f"{source}: {kind}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return pairs


class Predictor:
    """Values of pairs in few fixed shapes, one executable a bucket."""

    def __init__(self, model, settings: dict, mesh: Mesh, buckets, batch_size: int):
        self.mesh, self.buckets = mesh, buckets
        self.batch_size = sharding.round_batch_size(batch_size, mesh)
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        step = functools.partial(reward.eval_step, model=model, **settings)
        self.step = jax.jit(step, out_shardings=whole)
        self.params = llama.abstract_params(model, mesh)
        self.compiled = {}

    def batches(self, pairs: list[Pair]):
        """(rows, host batch) of batches of similar length, in a fixed order."""
        lengths = [pair.length for pair in pairs]
        for bucket, rows, _ in by_length(lengths, self.batch_size, self.buckets):
            yield rows, pad_pairs([pairs[r] for r in rows], bucket, self.batch_size)

    def run(self, params, batch: dict):
        """The executable of this batch's shape, compiled at first use; None only compiles."""
        bucket = batch["tokens_B2S"].shape[-1]
        on_mesh = sharding.put_batch(batch, self.mesh)
        if bucket not in self.compiled:
            with jax.set_mesh(self.mesh):
                self.compiled[bucket] = self.step.lower(self.params, on_mesh).compile()
        return None if params is None else self.compiled[bucket](params, on_mesh)

    def warm_up(self, pairs: dict[str, list]) -> None:
        """Compile every shape that ``pairs`` (by kind) need."""
        for group in pairs.values():
            for _, batch in self.batches(group):
                if batch["tokens_B2S"].shape[-1] not in self.compiled:
                    self.run(None, batch)

    def figures(self, params, pairs: dict[str, list]) -> dict[str, float]:
        """Mean loss and accuracy (of the score that the loss trains) over all kinds of pairs."""
        total = sum(len(group) for group in pairs.values())
        sums = {"validation/loss": 0.0, "validation/accuracy": 0.0}
        for group in pairs.values():
            for _, batch in self.batches(group):
                found, _ = self.run(params, batch)
                for name in sums:
                    sums[name] += float(found[name.removeprefix("validation/")]) / total
        return sums

    def __call__(self, params, pairs: list) -> tuple[float, list[pair_metrics.PairValues]]:
        """Mean loss, and every pair's values in the order of ``pairs``."""
        loss = 0.0
        scored = [None] * len(pairs)
        for rows, batch in self.batches(pairs):
            sums, values = self.run(params, batch)
            loss += float(sums["loss"])
            unpadded = pair_metrics.unpad(np.asarray(values), batch)
            for row, one in zip(rows, unpadded, strict=True):
                scored[row] = one
        return loss / len(pairs), scored


def tables(predict: Predictor, scorer: Scorer, pairs: dict[str, list], rows: list) -> dict:
    """``eval.json``'s entry of one set of records: a table for each kind of pair in it."""
    meta, tokenizer = scorer.meta, scorer.tokenizer
    result = {}
    for kind, group in pairs.items():
        loss, scored = predict(scorer.params, group)
        result[kind] = pair_metrics.compute_pair_metrics(
            scored, level=meta.level, edits=kind == "edits", center=meta.normalization.mean
        )
        result[kind]["loss"] = loss
        values, labels = [], []
        for one, pair in zip(scored, group, strict=True):
            spans = getattr(rows[pair.row], "error_spans", ())
            if spans:
                text, append_eos = rows[pair.row].original, meta.data["append_eos"]
                label = span_labels(tokenizer, text, spans, append_eos)
                values.append(one.value_j)
                labels.append(label[: one.value_j.size])
        if values:
            result[kind]["auroc_spans"] = pair_metrics.span_auroc(values, labels)
    return result


def fit_normalization(
    predict: Predictor, params, pairs: dict[str, list], level: str, limit: int
) -> reward.Normalization:
    """From the responses nobody edited of at most ``limit`` pairs, spread evenly over all of them.

    These are the originals of edits and both sides of preferences: samples of the policy that the
    feedback was given to.
    """
    values = []
    total = sum(len(group) for group in pairs.values())
    for kind, group in pairs.items():
        count = max(1, round(len(group) * min(1.0, limit / total)))
        some = [group[i] for i in np.linspace(0, len(group) - 1, count).astype(int)]
        _, scored = predict(params, some)
        values += [one.value_j for one in scored]
        values += [one.value_i for one in scored] if kind == "preferences" else []
    return reward.fit_normalization(values, level=level)
