"""A reward of your own, paid token by token: every filler word costs one, an ending pays one.

python -m launch.ppo --config.policy=FOLDER --config.prompts=FILE \
    --config.reward_function=examples.own_reward:reward --config.run_dir=runs/own_reward

PPO calls the function with the rollout's prompts and responses (texts). Because its signature asks
for them it also gets ``tokens``, the texts of each response's sampled tokens, and ``finished``,
whether each ended by itself. It returns, for each response, one number for each token; a function
that returns one number a response gives a sequence-level reward instead, for which rloo and grpo
want --config=configs/ppo.py:MODEL,sequence.
"""

FILLERS = {"basically", "like", "well", "actually", "literally", "just", "um", "uh"}


def reward(prompts, responses, tokens, finished):
    """Returns a list with, for each response, a list of one float for each of its tokens."""
    rewards = []
    for response_tokens, has_ended in zip(tokens, finished, strict=True):
        row = [-1.0 if token.strip().lower() in FILLERS else 0.0 for token in response_tokens]
        row[-1] += float(has_ended)
        rewards.append(row)
    return rewards
