"""The arms, reward models and rounds of edits that every variant of configs/pipeline.py knows.

Fields that are not here have the defaults of configs/pipeline.py; what may name what is said in
fgrlhf_jax/pipeline/arms.py.
"""

ARMS = {
    "sft_edits": {"label": "SFT on the edits", "learner": "sft"},
    "ppo_rlhf": {
        "label": "PPO-RLHF: sequence, preferences",
        "learner": "ppo",
        "reward": "rm_preferences",
    },
    "fine_grained": {
        "label": "Fine-grained: sequence, edits",
        "learner": "ppo",
        "reward": "rm_edits",
    },
    "fine_grained_token": {
        "label": "Fine-grained: token, edits",
        "learner": "ppo",
        "reward": "rm_token",
    },
    "kl_outside": {
        "label": "Token, no KL in the reward",
        "learner": "ppo",
        "reward": "rm_token",
        "defaults": "kl.in_reward=False",
    },
    "state_action": {
        "label": "Fine-grained: token, state-action head",
        "learner": "ppo",
        "reward": "rm_state_action",
    },
    # From where the best arm starts. No penalty of PPO's own: the judge charges a missing end.
    "oracle": {
        "label": "SFT on three rounds, then oracle: gold token rewards",
        "learner": "ppo",
        "start": "sft_three_rounds",
        "reward": "oracle",
        "defaults": "missing_eos=none",
    },
    "edits_then_token": {
        "label": "SFT on the edits, then token",
        "learner": "ppo",
        "start": "sft_edits",
        "reward": "rm_state_action",
    },
    "rloo": {
        "label": "RLOO: token, state-action head",
        "learner": "rloo",
        "reward": "rm_state_action",
    },
    "grpo": {
        "label": "GRPO: token, state-action head",
        "learner": "grpo",
        "reward": "rm_state_action",
    },
    "edits_then_grpo": {
        "label": "SFT on the edits, then GRPO",
        "learner": "grpo",
        "start": "sft_edits",
        "reward": "rm_state_action",
    },
    "edits_then_distill": {
        "label": "SFT on the edits, then distilled rewards",
        "learner": "distill",
        "start": "sft_edits",
        "reward": "rm_action",
    },
    **{
        learner: {"label": label, "learner": learner}
        for learner, label in {
            "dpo": "DPO on the edits",
            "ddpo": "Dense DPO on the edits",
            "salt": "SALT on the edits",
            "figa": "FIGA on the edits",
        }.items()
    },
    "sft_longer": {"label": "SFT on the edits, longer", "learner": "sft", "start": "sft_edits"},
    "sft_one_round": {
        "label": "SFT on a third of the edits",
        "learner": "sft",
        "data": "edits_1_of_3",
    },
    "sft_two_rounds": {
        "label": "SFT on a second round of edits too",
        "learner": "sft",
        "start": "sft_one_round",
        "data": "edits_1_of_3,second_round",
    },
    "sft_three_rounds": {
        "label": "SFT on three rounds of edits",
        "learner": "sft",
        "start": "sft_two_rounds",
        "data": "edits_1_of_3,second_round,third_round",
    },
    "three_rounds_then_token": {
        "label": "SFT on three rounds, then token",
        "learner": "ppo",
        "start": "sft_three_rounds",
        "reward": "rm_three_rounds",
    },
}
REWARD_MODELS = {
    "rm_preferences": {"label": "sequence, preferences", "data": "preferences", "loss": "sequence"},
    "rm_edits": {"label": "sequence, edits", "loss": "sequence"},
    "rm_token": {"label": "token, edits", "loss": "token_edit"},
    "rm_state_action": {
        "label": "token, edits, state-action",
        "loss": "token_edit",
        "defaults": "model.head=state_action",
    },
    "rm_action": {
        "label": "token, edits, action head",
        "loss": "token_edit",
        "defaults": "model.head=action",
    },
    "rm_three_rounds": {
        "label": "token, three rounds, state-action, from the policy that imitates them",
        "start": "sft_three_rounds",
        "data": "edits_1_of_3,second_round,third_round",
        "loss": "token_edit",
        "defaults": "model.head=state_action",
    },
}
ROUNDS = {
    "second_round": {"policy": "sft_one_round", "part": "2_of_3"},
    "third_round": {"policy": "sft_two_rounds", "part": "3_of_3"},
}
