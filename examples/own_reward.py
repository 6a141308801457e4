"""Example of a custom token reward: −1 for every filler word, +1 for ending the response.

python -m launch.ppo --config.policy=FOLDER --config.prompts=FILE \
    --config.reward_function=examples.own_reward:reward --config.run_dir=runs/own_reward

PPO calls the function with the prompts and responses of a rollout, as texts. Its signature may also
ask for ``tokens``, the texts of each response's sampled tokens, and ``finished``, whether each
response has ended. It returns one number per token for each response. A function that returns one
number per response gives a sequence-level reward, for which rloo and grpo need
--config=configs/ppo.py:MODEL,sequence.
"""

FILLERS = {"basically", "like", "well", "actually", "literally", "just", "um", "uh"}


def reward(prompts, responses, tokens, finished):
    """Returns one list of floats per response, with one float per token."""
    rewards = []
    for response_tokens, has_ended in zip(tokens, finished, strict=True):
        row = [-1.0 if token.strip().lower() in FILLERS else 0.0 for token in response_tokens]
        row[-1] += float(has_ended)
        rewards.append(row)
    return rewards
