"""A made-up study: its arms, their runs and curves, its reward models and heat maps."""

import numpy as np


def decoded(outcome, gold=0.5, length=10):
    return {
        "scores": [gold] * len(outcome),
        "outcome": list(outcome),
        "lengths": [length] * len(outcome),
        "unfinished": 0.25,
        "kl": 1.5,
    }


def points(gold, every=10):
    """A curve whose other figures follow from its step."""
    return [
        {
            "step": every * k,
            "gold": value,
            "reward": 0.1 * k,
            "kl": 0.5 * k,
            "length": 10 + k,
            "unfinished": 0.0,
            "seconds": 2.0 * k,
        }
        for k, value in enumerate(gold)
    ]


def arm(label, outcomes, curves=None, greedy=None, **given):
    """One run an outcome list."""
    curves = curves or [[]] * len(outcomes)
    greedy = greedy or outcomes
    return {
        "label": label,
        "runs": [
            {
                "sampled": decoded(outcome, **given),
                "greedy": decoded(other, **given),
                "curve": points(curve),
                "seconds_per_step": 0.5 if curve else None,
            }
            for outcome, other, curve in zip(outcomes, greedy, curves, strict=True)
        ],
    }


def reward_model(label, accuracies, auroc=0.7):
    return {
        "label": label,
        "runs": [
            {"edits": {"accuracy": a, "se": 0.02, "n": 50}, "auroc": auroc} for a in accuracies
        ],
    }


SLOW, FAST = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4], [0.0, 0.6, 0.8, 0.8, 0.8, 0.8]
ROUNDS = np.random.default_rng(0).random(64)


def outcomes(rate, seeds):
    """A share ``rate`` of 64 prompts won, each seed others, one more with every seed."""
    return [
        [float(v) for v in np.roll(ROUNDS, k) < np.quantile(ROUNDS, rate + 0.01 * k)]
        for k in range(seeds)
    ]


def make_study(seeds=3, token=0.8, preferences=0.4, **arms):
    curves = lambda gold: [[g + 0.01 * k for g in gold] for k in range(seeds)]  # noqa: E731
    given = {
        "sft": arm("SFT", [[0.5] * 64]),
        "ppo_rlhf": arm("PPO on preferences", outcomes(preferences, seeds), curves(SLOW)),
        "fine_grained": arm("PPO on edits", outcomes(preferences, seeds), curves(SLOW)),
        "fine_grained_token": arm("PPO on tokens", outcomes(token, seeds), curves(FAST)),
        **arms,
    }
    return {
        "config": {"ppo.kl": 0.3},
        "seeds": seeds,
        "title": "A study",
        "judge": "gold",
        "test_prompts": 64,
        "arms": {name: value for name, value in given.items() if value},
        "reward_models": {
            "token_edit": reward_model("tokens", [0.8 + 0.01 * k for k in range(seeds)]),
            "sequence": reward_model("sequence", [0.7] * seeds, auroc=None),
        },
        "heatmaps": [
            {
                "prompt": "name a fruit",
                "response": "a carrot",
                "gold": 0.25,
                "by": {
                    "token_edit": {
                        "tokens": ["a", " carrot", "</s>"],
                        "rewards": [0.5, -1, 0.25],
                    },
                    "oracle": {"tokens": ["a", " carrot", "</s>"], "rewards": [0.0, -0.5, 0.1]},
                },
            }
        ],
        "seconds": {"sft": 84.25, "ppo": 31.5},
        "commands": {"sft": "python -m launch.sft", "ppo": "python -m launch.ppo"},
        "bootstrap_seed": 0,
    }
