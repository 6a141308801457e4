"""The predefined arms, reward models and rounds of edits of configs/pipeline.py.

Other fields have the defaults of configs/pipeline.py. fgrlhf_jax/pipeline/arms.py explains which
field may refer to what.
"""


def _arm(label: str, learner: str, reward: str = "", **fields: str) -> dict[str, str]:
    return {"label": label, "learner": learner, "reward": reward, **fields}


def _sharpened(label: str, arm: str) -> dict[str, str]:
    """Distillation of an arm's policy at temperature 1/2: kl.coef / (1 + kl.coef)."""
    flags = "kl.coef=1,reward_normalization=none"
    return _arm(f"{label}, sharpened", "distill", f"{arm}:{arm}:0", start=arm, defaults=flags)


def _model(label: str, loss: str = "token_edit", **fields: str) -> dict[str, str]:
    return {"label": label, "loss": loss, **fields}


_TWO_ROUNDS = "edits_1_of_3,second_round"
_THREE_ROUNDS = f"{_TWO_ROUNDS},third_round"
ARMS = {
    "sft_edits": _arm("SFT on the edits", "sft"),
    "ppo_rlhf": _arm("PPO-RLHF: sequence, preferences", "ppo", "rm_preferences"),
    "fine_grained": _arm("Fine-grained: sequence, edits", "ppo", "rm_edits"),
    "fine_grained_token": _arm("Fine-grained: token, edits", "ppo", "rm_token"),
    "kl_outside": _arm(
        "Token, no KL in the reward", "ppo", "rm_token", defaults="kl.in_reward=False"
    ),
    "state_action": _arm("Fine-grained: token, state-action head", "ppo", "rm_state_action"),
    # Same start as the best arm. No missing_eos penalty: the judge already penalizes a missing end.
    "oracle": _arm(
        "SFT on three rounds, then oracle: gold token rewards",
        "ppo",
        "oracle",
        start="sft_three_rounds",
        defaults="missing_eos=none",
    ),
    "edits_then_token": _arm(
        "SFT on the edits, then token", "ppo", "rm_state_action", start="sft_edits"
    ),
    "rloo": _arm("RLOO: token, state-action head", "rloo", "rm_state_action"),
    "grpo": _arm("GRPO: token, state-action head", "grpo", "rm_state_action"),
    "edits_then_grpo": _arm(
        "SFT on the edits, then GRPO", "grpo", "rm_state_action", start="sft_edits"
    ),
    "edits_then_distill": _arm(
        "SFT on the edits, then distilled rewards", "distill", "rm_action", start="sft_edits"
    ),
    "dpo": _arm("DPO on the edits", "dpo"),
    "ddpo": _arm("Dense DPO on the edits", "ddpo"),
    "salt": _arm("SALT on the edits", "salt"),
    "figa": _arm("FIGA on the edits", "figa"),
    "sft_longer": _arm("SFT on the edits, longer", "sft", start="sft_edits"),
    "sft_one_round": _arm("SFT on a third of the edits", "sft", data="edits_1_of_3"),
    "sft_two_rounds": _arm(
        "SFT on a second round of edits too", "sft", start="sft_one_round", data=_TWO_ROUNDS
    ),
    "sft_three_rounds": _arm(
        "SFT on three rounds of edits", "sft", start="sft_two_rounds", data=_THREE_ROUNDS
    ),
    "three_rounds_then_token": _arm(
        "SFT on three rounds, then token", "ppo", "rm_three_rounds", start="sft_three_rounds"
    ),
    "sharpened": _sharpened("SFT on three rounds, then token", "three_rounds_then_token"),
    "edits_sharpened": _sharpened("SFT on the edits", "sft_edits"),
}
_HEAD = "model.head=state_action"
REWARD_MODELS = {
    "rm_preferences": _model("sequence, preferences", "sequence", data="preferences"),
    "rm_edits": _model("sequence, edits", "sequence"),
    "rm_token": _model("token, edits"),
    "rm_state_action": _model("token, edits, state-action", defaults=_HEAD),
    "rm_action": _model("token, edits, action head", defaults="model.head=action"),
    "rm_three_rounds": _model(
        "token, three rounds, state-action, from the policy that imitates them",
        start="sft_three_rounds",
        data=_THREE_ROUNDS,
        defaults=_HEAD,
    ),
}
ROUNDS = {
    "second_round": {"policy": "sft_one_round", "part": "2_of_3"},
    "third_round": {"policy": "sft_two_rounds", "part": "3_of_3"},
}
