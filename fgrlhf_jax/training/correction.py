"""Correction accuracy (probabilities of people's insertions and removals), and fluency.

The formulas are in ``functional.correction``; ``data.changes`` selects the tokens to compare.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fgrlhf_jax.data.bucketing import by_length, choose_buckets
from fgrlhf_jax.data.changes import ChangedRow, make_row, pad_rows
from fgrlhf_jax.data.pairs import Pair, encode_pairs
from fgrlhf_jax.data.records import Edit, Record
from fgrlhf_jax.data.templates import encode_response, fit_prompt
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import correction
from fgrlhf_jax.functional.correction import Scores
from fgrlhf_jax.functional.win_rate import mean_and_error
from fgrlhf_jax.models.attention import dense_mask
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.training.logprobs import token_logprobs

MAX_EDITS = 100  # that a model card's figures are computed on
_BUCKET_STEP = 64  # columns that a further bucket must save, to be worth its compilation


def evaluate(
    policy: LanguageModel,
    edits: Sequence[Record],
    reference: LanguageModel | None = None,
    *,
    batch_size: int = 16,
    log: Callable[[str], None] = print,
) -> dict:
    """Correction accuracy of a policy on edits that it was not trained on.

    Returns what ``functional.correction.summarize`` does. Raises InputError for records that are
    not edits, if none is left, and for a reference with another tokenizer.

    Args:
      edits: prompts are written in the policy's template; edits longer than a model's positions are
        left out, and ``log`` receives a line with their number.
      reference: a policy to compare with, usually the one before training.
      batch_size: edits at a time, rounded up to a multiple that the mesh divides.
    """
    models = [policy] if reference is None else [policy, reference]
    if models[0].tokenizer.get_vocab() != models[-1].tokenizer.get_vocab():
        raise InputError(
            f"reference={models[-1].path}: has another tokenizer than {policy.path}; give a model "
            "with the same one, or none"
        )
    if not all(isinstance(edit, Edit) for edit in edits):
        raise InputError("edits: some rows are no edits (original, edited); give edits only")
    limit = min(model.module.cfg.max_position for model in models)
    limits = {"max_length": limit, "max_prompt_length": limit - 1}
    pairs, counts = encode_pairs(edits, policy.tokenizer, template=policy.template, **limits)
    rows = [row for pair in pairs if (row := make_row(pair)).changes]
    counts["changes"] = sum(len(row.changes) for row in rows)
    if not rows:
        raise InputError("edits: no place that an edit changed can be compared; give other edits")
    log("edits: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return correction.summarize(
        *(score_changes(m.read_params(), rows, m.module, m.mesh, batch_size) for m in models)
    )


def encode_held_out(edits: Sequence[Edit], tokenizer: Tokenizer, data: dict) -> list[Pair]:
    """Encodes the edits that fit the lengths of the training config's ``data``; [] if none do."""
    with contextlib.suppress(InputError):
        return encode_pairs(edits, tokenizer, **data)[0]
    return []


def before_and_after(
    start: dict | None, params: dict, pairs: Sequence[Pair], module: CausalLM, mesh: Mesh
) -> dict:
    """Correction accuracy before and after training, on at most ``MAX_EDITS`` held-out edits.

    These are spread evenly over ``pairs``. ``start`` are the parameters before training; None: no
    comparison. The result is that of :func:`evaluate`; {} if no change can be compared.
    """
    numbers = {round(k) for k in np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_EDITS))}
    rows = [row for k in sorted(numbers) if (row := make_row(pairs[k])).changes]
    if not rows:
        return {}
    policies = [params] if start is None else [params, start]
    return correction.summarize(*(score_changes(policy, rows, module, mesh) for policy in policies))


def card_figures(result: Mapping) -> dict[str, float]:
    """The figures of :func:`before_and_after` for a model card, over all changes."""
    if not result:
        return {}
    figures = {"correction/places": result["sampled"]["n"]}
    for measure in correction.MEASURES:
        for name, table in (("", result), ("gain_", result.get("gain"))):
            if table:
                figures[f"correction/{name}{measure}"] = table[measure]["mean"]
                figures[f"correction/{name}{measure}_se"] = table[measure]["se"]
    if "moved" in result["unchanged"]:
        figures["correction/moved"] = result["unchanged"]["moved"]["mean"]
    return {name: value for name, value in figures.items() if value is not None}


def fluency(
    model: LanguageModel, prompts: Sequence[Record], responses: Sequence[str], batch_size: int = 16
) -> dict[str, float | int | None]:
    """How likely responses are under a model that has not seen the feedback.

    ``mean``, over the ``n`` non-empty responses, of their mean log-probability per token, in nats,
    without the end-of-sequence token; and its standard error ``se``.
    """
    logprobs = response_logprobs(model, prompts, responses, batch_size=batch_size)
    means = [logprob_T.mean(dtype=np.float64) for logprob_T in logprobs if logprob_T.size]
    mean, error = mean_and_error(means) if means else (None, None)
    return {"mean": mean, "se": error, "n": len(means)}


def response_logprobs(
    model: LanguageModel,
    prompts: Sequence[Record],
    responses: Sequence[str],
    finished: Sequence[bool] | None = None,
    *,
    max_prompt_length: int = 0,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """The log-probability of each token of each response under a model, one float32[T] each.

    Tokens beyond the model's positions are left out; an empty response has no tokens.

    Args:
      finished: whether each response ends with an EOS, which counts as a token; None: none does.
      max_prompt_length: tokens; longer prompts are cut. 0: half of the model's positions.
    """
    limit, rows = model.module.cfg.max_position, []
    prompt_limit = max_prompt_length or limit // 2
    ended = [False] * len(responses) if finished is None else finished
    for number, (prompt, response, done) in enumerate(zip(prompts, responses, ended, strict=True)):
        record, *_ = fit_prompt(model.tokenizer, model.template, prompt, prompt_limit)
        encoded = encode_response(model.tokenizer, model.template, record, response, done)
        ids, start = np.array(encoded.ids[:limit], np.int32), max(encoded.start, 1)
        if len(ids) > start:
            rows.append(ChangedRow(ids, start, len(ids), np.arange(len(ids)) >= start, [], number))
    logprobs = [np.zeros(0, np.float32)] * len(responses)
    if rows:
        scored = score_rows(model.read_params(), rows, model.module, model.mesh, batch_size)
        for row, logprob_S, _ in scored:
            logprobs[row.row] = logprob_S[row.start :]
    return logprobs


def score_changes(
    params: dict, rows: Sequence[ChangedRow], module: CausalLM, mesh: Mesh, batch_size: int = 16
) -> Scores:
    """A model's log-probabilities of both texts at every change of the edits."""
    changes, unchanged, records = [], [], []
    for row, logprob_S, greedy_S in score_rows(params, rows, module, mesh, batch_size):
        for change, start in zip(row.changes, row.branches, strict=True):
            inserted, removed = (
                logprob_S[first : first + len(change.inserted)] for first in (change.column, start)
            )
            sums = (part.sum(dtype=np.float64) for part in (inserted, removed))
            firsts = inserted[0], removed[0], greedy_S[change.column]
            changes.append((change.kind, row.row, *sums, *firsts))
        unchanged.append(logprob_S[: row.length][row.unchanged])
        records.append(np.full(len(unchanged[-1]), row.row))
    columns = map(np.array, zip(*changes, strict=True))
    return Scores(*columns, np.concatenate(records), np.concatenate(unchanged))


def score_rows(
    params: dict, rows: Sequence[ChangedRow], module: CausalLM, mesh: Mesh, batch_size: int
) -> list[tuple[ChangedRow, np.ndarray, np.ndarray]]:
    """Yields each row in order, with float32[S] log-probabilities and bool[S] "most likely token".

    Both are for a token given the tokens it sees; they are 0 on prompts.
    """
    targets = [np.arange(row.start, len(row.tokens)) for row in rows]
    lengths, longest = [len(row.tokens) for row in rows], max(map(len, targets))
    batch_size = sharding.round_batch_size(batch_size, mesh)
    buckets = choose_buckets(lengths, min(max(lengths) // _BUCKET_STEP, 3) + 1)
    scored: list = [None] * len(rows)
    for bucket, numbers, _ in by_length(lengths, batch_size, buckets):
        batch = pad_rows([rows[n] for n in numbers], bucket, batch_size)
        columns_BT = np.ones((batch_size, min(-(-longest // 8) * 8, bucket)), np.int32)
        for b, n in enumerate(numbers):
            columns_BT[b, : len(targets[n])] = targets[n]
        with jax.set_mesh(mesh):
            on_mesh = sharding.put_batch(batch | {"columns_BT": columns_BT}, mesh)
            results = sharding.to_host(token_scores(params, on_mesh, model=module))
        for b, n in enumerate(numbers):
            arrays = np.zeros(lengths[n], np.float32), np.zeros(lengths[n], bool)
            for array, result_BT in zip(arrays, results, strict=True):
                array[targets[n]] = result_BT[b, : len(targets[n])]
            scored[n] = (rows[n], *arrays)
    return scored


@functools.partial(jax.jit, static_argnames="model")
def token_scores(params: dict, batch: dict, *, model: CausalLM) -> tuple[jax.Array, jax.Array]:
    """Log-probability of tokens at ``columns_BT``, and whether none is more likely; both [B, T].

    ``batch`` has the arrays of ``pad_rows``, and columns_BT int32.
    """
    tokens_BS, columns_BT, branch_BS = (batch[n] for n in ("tokens_BS", "columns_BT", "branch_BS"))
    S = tokens_BS.shape[1]
    same_branch_BSS = branch_BS[:, :, None] == branch_BS[:, None, :]
    prefix_BSS = (branch_BS == 0)[:, None, :] & (
        jnp.arange(S)[None, None, :] < batch["limit_BS"][:, :, None]
    )
    attend_BSS = dense_mask(batch["mask_BS"]) & (same_branch_BSS | prefix_BSS)
    previous_BT = jnp.take_along_axis(batch["previous_BS"], columns_BT, axis=1)
    inputs = tokens_BS, batch["positions_BS"], attend_BSS
    return token_logprobs(params, model, inputs, previous_BT, columns_BT)
