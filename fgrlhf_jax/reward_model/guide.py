"""Reward models used in generation, to guide every token or to rank whole responses.

model = LanguageModel.load("runs/sft_tiny")
guide = load_guide("runs/rm_action", model, beta=0.3)
answers = model.generate(["Name three fruits."], guide=guide)
"""

import os

import jax

from fgrlhf_jax.data.tokenizers import check_same
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load
from fgrlhf_jax.models.decoding import make_placer
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.models.sampling import Guide
from fgrlhf_jax.reward_model.modules import RewardMeta, folders_of, read_module


def load_guide(path: str | os.PathLike, model: LanguageModel, beta: float) -> Guide:
    """Loads a reward model as a guide of ``model``: pi+(a|s) ~ pi(a|s) exp(r(s, a) / beta).

    Rewards are normalized with the statistics stored in the reward model, so beta is on the scale
    of PPO's ``kl.coef``. An "action" head scores every next token. A "state_action" head guides
    only with the part that reads the state before the token.

    Args:
      path: a run folder of launch.train_rm, or its ``export``.
      beta: above 0; the smaller, the stronger the guidance (1 / beta nats per unit of reward).

    Raises InputError for several models, for a head that scores only the token that was taken, and
    for a reward model whose tokenizer, template or vocabulary differs from the model's.
    """
    if len(folders_of(path)) > 1:
        raise InputError(
            f"guide={path}: only one reward model guides; to use the log-ratio of two policies, "
            "distill it: launch.ppo --config.algorithm=distill --config.reward_model=…"
        )
    module, meta = read_module(path, dtype=model.module.cfg.dtype)
    if module.kind == "after":
        raise InputError(
            f"guide={path}: its head (model.head=after) reads the state after a token, so it "
            "cannot score every next token; train one with --config.model.head=action"
        )
    check_fits("guide", path, meta, model)
    sizes = module.cfg.vocab_size, model.module.cfg.vocab_size
    if sizes[0] != sizes[1]:
        raise InputError(
            f"guide={path}: scores {sizes[0]} tokens, and model={model.path} has {sizes[1]}; train "
            "the reward model from this model's checkpoint"
        )
    with jax.set_mesh(model.mesh):
        params = hf_load.load_params(path, heads.abstract_params(module, model.mesh))
    weights = make_placer(params, module, model.mesh)(params)
    return Guide(module, weights, 1 / (beta * meta.normalization.std))


def check_fits(field: str, path: str | os.PathLike, meta: RewardMeta, model: LanguageModel) -> None:
    """Raises InputError if a reward model cannot read the tokens of ``model``'s responses.

    ``field`` is the command's name for the reward model, used in the message.
    """
    tokenizer = hf_load.load_tokenizer(folders_of(path)[0])
    check_same(model.tokenizer, tokenizer, f"model={model.path}", f"{field}={path}")
    if (template := meta.data["template"]) != model.template:
        raise InputError(
            f"{field}={path}: was trained with the template {template}, and prompts are written "
            f"with {model.template}; if this is meant, give --config.template={template}"
        )
