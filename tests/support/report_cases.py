"""A made-up study: its arms, their runs and curves, its reward models and heat maps."""

import numpy as np

SLOW, FAST = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4], [0.0, 0.6, 0.8, 0.8, 0.8, 0.8]
PROMPTS = 64
ROUNDS = np.random.default_rng(0).random(PROMPTS)


def make_decoding(outcome):
    size = len(outcome)
    figures = {"scores": [0.5] * size, "outcome": list(outcome), "lengths": [10] * size}
    return figures | {"unfinished": 0.25}


def make_curve(gold):
    """Evaluations every 10 steps with these gold scores; other figures are linear in the step."""
    return [
        {"step": 10 * k, "gold": score, "reward": 0.1 * k, "kl": 0.5 * k, "length": 10 + k}
        | {"unfinished": 0.0, "seconds": 2.0 * k}
        for k, score in enumerate(gold)
    ]


def make_arm(label, outcomes, curves=None, greedy=None):
    """An arm with one run per list of outcomes; ``greedy`` are outcomes of greedy decoding."""
    curves = curves or [[]] * len(outcomes)
    runs = zip(outcomes, greedy or outcomes, curves, strict=True)
    return {
        "label": label,
        "runs": [
            {
                "sampled": make_decoding(sampled),
                "greedy": make_decoding(greedy),
                "curve": make_curve(curve),
                "seconds_per_step": 0.5 if curve else None,
                "length_correlation": 0.25 if curve else None,
                "kl": 1.5,
                "seconds": 90.0,
            }
            for sampled, greedy, curve in runs
        ],
    }


def make_reward_model(label, accuracies, auroc=0.7):
    tables = [{"accuracy": accuracy, "se": 0.02, "n": 50} for accuracy in accuracies]
    return {"label": label, "runs": [{"edits": table, "auroc": auroc} for table in tables]}


def make_outcomes(rate, seeds):
    """Outcomes per seed with win rate ``rate`` + 0.01 × seed, on different prompts per seed."""
    return [
        [float(v) for v in np.roll(ROUNDS, k) < np.quantile(ROUNDS, rate + 0.01 * k)]
        for k in range(seeds)
    ]


def make_study(seeds=3, token=0.8, preferences=0.4, **arms):
    """A study of four arms, whose win rates are ``token`` and ``preferences``.

    Args:
      arms: further arms, or None to leave one out.
    """

    def of_seeds(gold):
        return [[score + 0.01 * k for score in gold] for k in range(seeds)]

    lost, won = make_outcomes(preferences, seeds), make_outcomes(token, seeds)
    arms = {
        "sft": make_arm("SFT", [[0.5] * PROMPTS]),
        "ppo_rlhf": make_arm("PPO on preferences", lost, of_seeds(SLOW)),
        "fine_grained": make_arm("PPO on edits", lost, of_seeds(SLOW)),
        "fine_grained_token": make_arm("PPO on tokens", won, of_seeds(FAST)),
        **arms,
    }
    tokens = ["a", " carrot", "</s>"]
    rewards = {"token_edit": [0.5, -1, 0.25], "oracle": [0.0, -0.5, 0.1]}
    heatmap = {"prompt": "name a fruit", "response": "a carrot", "gold": 0.25}
    heatmap["by"] = {name: {"tokens": tokens, "rewards": r} for name, r in rewards.items()}
    accuracies = [0.8 + 0.01 * k for k in range(seeds)]
    return {
        "config": {"ppo.kl": 0.3},
        "seeds": seeds,
        "title": "A study",
        "judge": "gold",
        "test_prompts": PROMPTS,
        "arms": {name: arm for name, arm in arms.items() if arm},
        "reward_models": {
            "token_edit": make_reward_model("tokens", accuracies),
            "sequence": make_reward_model("sequence", [0.7] * seeds, auroc=None),
        },
        "heatmaps": [heatmap],
        "samples": [
            {
                "prompt": "name a fruit",
                "by": {
                    "reference": {"text": "a pear", "score": 0.5, "outcome": None},
                    "fine_grained_token": {"text": "an apple", "score": 1.0, "outcome": 1.0},
                },
            }
        ],
        "about": {"Hardware": "2 CPU cores"},
        "seconds": {"sft": 84.25, "ppo": 31.5},
        "commands": {"sft": "python -m launch.sft", "ppo": "python -m launch.ppo"},
    }
