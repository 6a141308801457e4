"""A small model and random pairs for tests."""

import inspect
import math
import re
from collections.abc import Callable

import chex
import jax
import numpy as np

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.pairs import Pair, pad_pairs
from fgrlhf_jax.models import heads, llama, lora
from fgrlhf_jax.plan import hlo
from fgrlhf_jax.ppo.algorithm import PPOSettings
from fgrlhf_jax.runtime import sharding

CFG = llama.LlamaConfig(64, 32, 64, 2, 4, 2, 8)
# Settings for rollouts of 8 rows, prompts of at most 4 tokens and responses of at most 6.
_SETTINGS = {"algorithm": "ppo", "samples_per_prompt": 1, "level": "token", "temperature": 0.8}
_SETTINGS |= {"rollout_batch_size": 8, "minibatch_size": 4, "micro_batch_size": 4, "ppo_epochs": 2}
_SETTINGS |= {"max_new_tokens": 6, "widths": (4 + 6,)}
_SETTINGS |= {"kl_estimator": "k1", "kl_in_reward": True, "gamma": 1.0, "gae_lambda": 0.95}
_SETTINGS |= {"missing_eos": "subtract", "missing_eos_penalty": -1.0}
_SETTINGS |= {"clip_ratio": 0.2, "value_clip_ratio": 0.2, "value_coef": 0.1}
_SETTINGS |= {"whiten_rewards": False, "whiten_advantages": True}
PPO_SETTINGS = PPOSettings(**_SETTINGS)


def parameters(model, seed: int = 0) -> dict:
    """Initial values plus noise, so that initial zeros and ones cannot hide a mistake."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = 0.2 * rng.standard_normal(leaf.shape)
        return (noise + path[-1].key.startswith("scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, heads.parameter_shapes(model))


def merged(params: dict, scale: float) -> dict:
    """Parameters with the adapter merged into the weights: W + scale A B."""
    params = dict(params)
    if adapter := params.pop("lora", None):
        layers = params["backbone"]["layers"], adapter["backbone"]["layers"]
        params["backbone"] = params["backbone"] | {"layers": lora.merge_layer(*layers, scale)}
    return params


def by_path(tree) -> dict:
    """The leaves of a tree by path, such as ``backbone/norm/scale``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def laid_out(rows, side: str, fill: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array, padded on ``side``, and its mask."""
    tokens, mask = np.full((len(rows), width), fill), np.zeros((len(rows), width), bool)
    for b, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[b, columns], mask[b, columns] = row, True
    return tokens, mask


def pair(prompt, edited, original, row: int = 0) -> Pair:
    """A pair of an edited and an original response, from token ids."""
    edit = align(edited, original)
    start = len(prompt)
    none, shift = np.zeros(start, bool), np.where(edit.partner_i >= 0, start, 0)
    return Pair(
        tokens_i=np.array([*prompt, *edited], np.int32),
        tokens_j=np.array([*prompt, *original], np.int32),
        start_i=start,
        start_j=start,
        changed_i=np.concatenate([none, edit.changed_i]),
        changed_j=np.concatenate([none, edit.changed_j]),
        marked_j=np.zeros(start + len(original), bool),
        partner=np.array([*[-1] * start, *(edit.partner_i + shift)], np.int32),
        row=row,
    )


def pairs(seed: int, count: int, vocab: int = 64) -> list[Pair]:
    """Random edits that are not empty, of responses of 1 to 8 tokens to prompts of 1 to 3."""
    rng = np.random.default_rng(seed)
    made = []
    while len(made) < count:
        prompt = rng.integers(0, vocab, rng.integers(1, 4))
        original = rng.integers(0, vocab, rng.integers(1, 9))
        start, end = np.sort(rng.integers(0, original.size + 1, 2))
        inserted = rng.integers(0, vocab, rng.integers(0, 3))
        edited = np.concatenate([original[:start], inserted, original[end:]])
        if not edited.size or np.array_equal(edited, original):
            continue
        made.append(pair(prompt, edited, original, row=len(made)))
    return made


def batch(seed: int, *shape: int, columns: int = 14) -> dict[str, np.ndarray]:
    """``pad_pairs`` of random pairs, with leading axes ``shape``."""
    padded = pad_pairs(pairs(seed, int(np.prod(shape))), columns)
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in padded.items()}


COLLECTIVE = r"(all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(-start)?"


def in_loops(program) -> list[tuple[hlo.Instruction, hlo.Computation]]:
    """All instructions that a compiled program's loops run, each with its computation."""
    computations, _ = hlo.parse(program.as_text())
    loops = [i for c in computations.values() for i in c.values() if i.opcode == "while"]
    found, called = [], [loop.attribute("body") for loop in loops]
    assert called
    for name in called:
        for i in computations[name].values():
            found.append((i, computations[name]))
            called += [target for target in i.called if target not in called]
    return found


def exchanged_in_loops(program) -> list[int]:
    """Sizes of the arrays that collectives in a compiled program's loops exchange."""
    every = [i for i, _ in in_loops(program) if re.fullmatch(COLLECTIVE, i.opcode)]
    return [math.prod(hlo.dimensions(shape)) for i in every for shape in i.elements]


def traced_once(function: Callable) -> Callable:
    """A jitted function, whose keywords are static, jitted anew to fail if it is traced twice."""
    chex.clear_trace_counter()
    parameters = inspect.signature(function).parameters.values()
    static = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return jax.jit(chex.assert_max_traces(function.__wrapped__, n=1), static_argnames=static)


def one_device(monkeypatch) -> None:
    """Limits meshes to one device, for which compilation is faster than for eight."""
    make = sharding.make_mesh
    monkeypatch.setattr(
        sharding, "make_mesh", lambda shape, devices=None: make(shape, jax.devices()[:1])
    )
