"""The arms of a study: the policies that it compares, and the reward models that these need."""

from typing import NamedTuple

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError


class RewardModel(NamedTuple):
    """A reward model of a study, trained by ``launch.train_rm``."""

    label: str  # its name in the report
    data: str  # the feedback it learns from: preferences | edits
    loss: str  # sequence | token_edit
    flags: str = ""  # of launch.train_rm, as "NAME=VALUE,…"


class Arm(NamedTuple):
    """A policy of a study, trained by ``launch.ppo``, or by ``launch.sft`` on the edits."""

    label: str  # its name in the report
    start: str  # the policy it starts from: sft | sft_edits
    reward: str  # a key of REWARD_MODELS, "oracle", or "" for supervised fine-tuning
    flags: str = ""  # of launch.ppo, as "NAME=VALUE,…"


REWARD_MODELS = {
    "rm_preferences": RewardModel("sequence, preferences", "preferences", "sequence"),
    "rm_edits": RewardModel("sequence, edits", "edits", "sequence"),
    "rm_token": RewardModel("token, edits", "edits", "token_edit"),
    "rm_state_action": RewardModel(
        "token, edits, state-action", "edits", "token_edit", "model.head=state_action"
    ),
}
ARMS = {
    "sft_edits": Arm("SFT on the edits", "sft", ""),
    "ppo_rlhf": Arm("PPO-RLHF: sequence, preferences", "sft", "rm_preferences"),
    "fine_grained": Arm("Fine-grained: sequence, edits", "sft", "rm_edits"),
    "fine_grained_token": Arm("Fine-grained: token, edits", "sft", "rm_token"),
    "kl_outside": Arm("Token, no KL in the reward", "sft", "rm_token", "kl.in_reward=False"),
    "state_action": Arm("Fine-grained: token, state-action head", "sft", "rm_state_action"),
    # No penalty of PPO's own: the judge charges a missing end.
    "oracle": Arm("Oracle: gold token rewards", "sft", "oracle", "missing_eos=none"),
    "edits_then_token": Arm("SFT on the edits, then token", "sft_edits", "rm_state_action"),
}


def select_arms(config: ConfigDict) -> dict[str, Arm]:
    """The arms that ``config.run_arms`` names.

    Raises:
      InputError: for an unknown arm, or one that the config's data cannot train.
    """
    names = [name for name in config.run_arms.split(",") if name]
    for name in names:
        if name not in ARMS:
            raise InputError(f"run_arms: {name!r} is not one of {', '.join(ARMS)}")
        if ARMS[name].start != "sft" and ARMS[name].start not in names:
            raise InputError(f"run_arms: {name} starts from {ARMS[name].start}; add it")
        if name == "ppo_rlhf" and not config.embedded and not config.files.preferences:
            raise InputError("run_arms: ppo_rlhf needs files.preferences; give it or drop the arm")
        if name == "oracle" and not config.embedded:
            raise InputError("run_arms: the oracle exists in the embedded world only; drop it")
    return {name: ARMS[name] for name in names}


def select_reward_models(arms: dict[str, Arm]) -> dict[str, RewardModel]:
    """The reward models that reward at least one of the arms."""
    needed = {arm.reward for arm in arms.values()}
    return {name: model for name, model in REWARD_MODELS.items() if name in needed}
