"""Pairs of responses for a reward model: records to token ids, and pairs to padded batches.

Both sides of a pair begin with the same tokens: the prompt and an equal beginning of the responses.
A pair is one row, which holds and computes these tokens only once (:func:`pad_pairs`).

Masks are computed from lengths, never from token ids: a tokenizer may have no pad token (LLaMA) or
pad with its EOS (SmolLM2).

Shape suffixes: B pairs, 2 sides (0 = i, preferred; 1 = j), S columns of a row or tokens of a side,
T response tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.bucketing import fill_batch
from fgrlhf_jax.data.records import Edit, Preference, Record, better_and_worse, kind_of, sides
from fgrlhf_jax.data.templates import Encoded, check_limits, encode_responses
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two responses to one prompt, i preferred to j.

    Attributes:
      tokens_i, tokens_j: int32[Si], int32[Sj], the same prompt, then the response.
      start_i, start_j: the first column of the response. They differ if one response shares a
        token with the end of the prompt.
      changed_i, changed_j: bool[Si], bool[Sj], the response tokens without an equal partner.
      partner: int32[Si], the column of j matched with each column of i; -1 for the prompt, changed
        tokens, and tokens whose partner was truncated.
      row: number of the record.
      marked_j: bool[Sj], the response tokens that overlap an annotated error span.
    """

    tokens_i: np.ndarray
    tokens_j: np.ndarray
    start_i: int
    start_j: int
    changed_i: np.ndarray
    changed_j: np.ndarray
    marked_j: np.ndarray
    partner: np.ndarray
    row: int

    @functools.cached_property
    def common(self) -> int:
        """Number of equal tokens at the beginning of both sides."""
        return common_length(self.tokens_i, self.tokens_j)

    @property
    def length(self) -> int:
        """Number of columns of the pair's row."""
        return len(self.tokens_i) + len(self.tokens_j) - self.common


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal tokens at the beginning of two rows."""
    shorter = min(len(a), len(b))
    differs = a[:shorter] != b[:shorter]
    return int(differs.argmax()) if differs.any() else shorter


def encode_by_kind(
    rows: Sequence[Record],
    source: str,
    tokenizer: Tokenizer,
    data: dict,
    log: Callable[[str], None] = print,
) -> dict[str, list[Pair]]:
    """Encodes pairs by kind ("edits", "preferences"); logs counts of left-out records by reason.

    Args:
      source: name of the data in messages.
      data: keyword arguments for ``encode_pairs``.

    Raises:
      InputError: for records of other kinds, or if no pair is left.
    """
    rows_of_kind: dict[str, list[int]] = {"edits": [], "preferences": []}
    for number, row in enumerate(rows):
        if kind_of(row) not in rows_of_kind:
            raise InputError(
                f"{source}: holds instructions; give edits (original, edited) or preferences "
                "(output_1, output_2, preference)"
            )
        rows_of_kind[kind_of(row)].append(number)
    pairs = {}
    for kind, numbers in rows_of_kind.items():
        if not numbers:
            continue
        try:
            encoded, counts = encode_pairs([rows[n] for n in numbers], tokenizer, **data)
        except InputError as error:
            raise InputError(f"{source}: {kind}: {error}") from error
        # Renumber `row` from within the kind to within the file.
        pairs[kind] = [dataclasses.replace(pair, row=numbers[pair.row]) for pair in encoded]
        log(f"{source}: {kind}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return pairs


def print_preference_note(pairs: dict[str, list[Pair]]) -> None:
    """Prints a note that losses on changed tokens treat all tokens of preferences as changed."""
    if "preferences" in pairs:
        print(
            f"train: {len(pairs['preferences'])} preferences: every token counts as changed; to "
            "learn from differing tokens only, give --config.columns=original=rejected,"
            "edited=chosen (or your field names)"
        )


def encode_pairs(
    records: Sequence[Edit | Preference],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    max_prompt_length: int,
    overlong: str = "drop",
    alignment: str = "levenshtein",
    append_eos: bool = True,
) -> tuple[list[Pair], dict[str, int]]:
    """Encodes the usable records as pairs, in order; also returns counts of left-out records.

    An edit is aligned before truncation, EOS included unless the response is unfinished. In a
    preference every response token counts as changed and no token has a partner, so that Equation 4
    equals Equation 3. A pair with equal sides has no gradient and is left out.

    Args:
      max_length: tokens of the prompt and either response.
      overlong: "drop" leaves out rows beyond the limits; "truncate" shortens their prompts
        (``fit_prompt``) and truncates the responses, EOS included.
      alignment: a method of :func:`align`.

    Returns:
      The pairs, and counts: rows = kept + dropped_overlong + unchanged; truncated (among kept).

    Raises:
      InputError: for limits that leave no room for a response, and if no pair is left.
    """
    check_limits(overlong, max_prompt_length, max_length)
    options = {"max_prompt_length": max_prompt_length, "append_eos": append_eos}
    names = ("kept", "dropped_overlong", "truncated", "unchanged")
    counts = {"rows": len(records), **dict.fromkeys(names, 0)}
    pairs = []
    for row, record in enumerate(records):
        encoded, truncated = encode_responses(tokenizer, template, record, sides(record), **options)
        truncated = truncated or max(len(side.ids) for side in encoded) > max_length
        if truncated and overlong == "drop":
            counts["dropped_overlong"] += 1
        elif encoded[0].ids[:max_length] == encoded[1].ids[:max_length]:
            counts["unchanged"] += 1
        else:
            method = alignment if isinstance(record, Edit) else None
            pairs.append(_make_pair(*encoded, record, row, method, max_length))
            counts["truncated"] += truncated
    counts["kept"] = len(pairs)
    if not pairs:
        truncate = "set overlong='truncate', " if counts["dropped_overlong"] else ""
        raise InputError(
            f"no pair is left of {counts['rows']} rows ({counts['dropped_overlong']} longer "
            f"than max_length {max_length} or max_prompt_length {max_prompt_length}, "
            f"{counts['unchanged']} without a changed token); raise the lengths, "
            f"{truncate}or give other data"
        )
    return pairs, counts


def _make_pair(
    edited: Encoded, original: Encoded, record: Record, row: int, method: str | None, length: int
) -> Pair:
    """Aligns two whole responses, then truncates both sides to ``length`` tokens."""
    starts = edited.start, original.start
    aligned = align(edited.ids[starts[0] :], original.ids[starts[1] :], method)

    def columns(response_T: np.ndarray, start: int, prompt_value=False) -> np.ndarray:
        return np.concatenate([np.full(start, prompt_value, response_T.dtype), response_T])[:length]

    partner = columns(
        np.where(aligned.partner_i < 0, -1, aligned.partner_i + starts[1]), starts[0], -1
    )
    text, spans = better_and_worse(record)[1], getattr(record, "error_spans", ())
    return Pair(
        tokens_i=np.array(edited.ids[:length], np.int32),
        tokens_j=np.array(original.ids[:length], np.int32),
        start_i=starts[0],
        start_j=starts[1],
        changed_i=columns(aligned.changed_i, starts[0]),
        changed_j=columns(aligned.changed_j, starts[1]),
        marked_j=columns(span_labels(original.spans, text, spans), starts[1]),
        partner=np.where(partner < length, partner, -1).astype(np.int32),
        row=row,
    )


def span_labels(
    tokens: Sequence[tuple[int, int]], text: str, spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The tokens of a response that overlap an annotated span of its text: bool[T].

    Blanks at a span's ends are ignored, since many tokens begin with the blank before their word.

    Args:
      tokens: (start, end) characters of each token, as in ``Encoded.spans``.
      spans: (start, end) characters of ``text``.
    """
    in_span = np.zeros(len(text), bool)
    for start, end in spans:
        word = text[start:end]
        start += len(word) - len(word.lstrip())
        in_span[start : start + len(word.strip())] = True
    return np.array([in_span[start:end].any() for start, end in tokens], bool)


def pad_pairs(
    pairs: Sequence[Pair], bucket: int, batch_size: int | None = None
) -> dict[str, np.ndarray]:
    """One batch with a row per pair, padded on the right with zeros to ``bucket`` columns.

    For i = a b c d and j = a b e f g:

        tokens     a b c d e f g 0      columns of j  0 1 4 5 6
        branch     0 0 1 1 2 2 2 0
        positions  0 1 2 3 2 3 4 0
        before     0 0 1 2 1 4 5 0

    Args:
      batch_size: rows; the last pair is repeated with weight 0 to fill them.

    Returns:
      By column of the row: tokens_BS int32; mask_BS bool, real tokens; branch_BS int8, 0 common,
      1 rest of i, 2 rest of j; positions_BS int32, position in the side; previous_BS int32, column
      of the previous token, 0 for the first. By token of a side: columns_B2S int32, its column in
      the row; response_B2S bool, response tokens; changed_B2S bool, U1; partner_BS int32, token of
      side 0 -> matched token of side 1, or -1. And weight_B float32, 1 or 0.
    """
    pairs, weight_B = fill_batch(pairs, batch_size)
    shape = (len(pairs), bucket)
    tokens_BS, positions_BS, previous_BS = np.zeros((3, *shape), np.int32)
    mask_BS, branch_BS = np.zeros(shape, bool), np.zeros(shape, np.int8)
    columns_B2S = np.zeros((len(pairs), 2, bucket), np.int32)
    response_B2S, changed_B2S = np.zeros((2, *columns_B2S.shape), bool)
    partner_BS = np.full(shape, -1, np.int32)
    for b, pair in enumerate(pairs):
        mask_BS[b, : pair.length] = True
        partner_BS[b, : len(pair.partner)] = pair.partner
        for side, letter in enumerate("ij"):
            tokens, start, changed = (
                getattr(pair, f"{name}_{letter}") for name in ("tokens", "start", "changed")
            )
            length = len(tokens)
            columns = np.arange(length)
            if side == 1:
                columns[pair.common :] += len(pair.tokens_i) - pair.common
            tokens_BS[b, columns] = tokens
            branch_BS[b, columns[pair.common :]] = side + 1
            positions_BS[b, columns] = np.arange(length)
            previous_BS[b, columns[1:]] = columns[:-1]
            columns_B2S[b, side, :length] = columns
            response_B2S[b, side, start:length] = True
            changed_B2S[b, side, :length] = changed
    return {
        "tokens_BS": tokens_BS,
        "mask_BS": mask_BS,
        "branch_BS": branch_BS,
        "positions_BS": positions_BS,
        "previous_BS": previous_BS,
        "columns_B2S": columns_B2S,
        "response_B2S": response_B2S,
        "changed_B2S": changed_B2S,
        "partner_BS": partner_BS,
        "weight_B": weight_B,
    }
