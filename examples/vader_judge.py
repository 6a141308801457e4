"""Example of a custom judge: the more positive response wins, unless it only repeats words.

pip install vaderSentiment
python -m launch.evaluate --config.outputs=after.json --config.reference=before.json \
    --config.judge=examples.vader_judge:judge

With the same flag launch.ppo scores validation responses; ``best_metric=score`` then exports the
policy with the best score.
"""

import functools


@functools.cache
def analyzer():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def judge(prompts, responses):
    """Returns one score per response: VADER's compound sentiment (-1 to 1) times the share of
    distinct words, so that repeated praise scores low."""
    scores = []
    for response in responses:
        words = response.lower().split()
        variety = len(set(words)) / max(len(words), 1)
        scores.append(analyzer().polarity_scores(response)["compound"] * variety)
    return scores
