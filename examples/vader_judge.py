"""A judge of your own: the more positive response wins, unless it only repeats itself.

pip install vaderSentiment
python -m launch.evaluate --config.outputs=after.json --config.reference=before.json \
    --config.judge=examples.vader_judge:judge

The same flag of launch.ppo makes it score PPO's validation responses; ``best_metric=score`` then
exports the policy that it liked best.
"""

import functools


@functools.cache
def analyzer():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def judge(prompts, responses):
    """Returns a score for each response: VADER's compound sentiment (-1 to 1) times the share of
    different words, so that a string of praise is worth little."""
    scores = []
    for response in responses:
        words = response.lower().split()
        variety = len(set(words)) / max(len(words), 1)
        scores.append(analyzer().polarity_scores(response)["compound"] * variety)
    return scores
