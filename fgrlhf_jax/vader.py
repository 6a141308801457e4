"""A judge of sentiment: the VADER lexicon (Hutto and Gilbert 2014), for texts about films, say."""

from collections.abc import Sequence

from fgrlhf_jax.errors import InputError


def judge(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The compound score of each response, from -1 (negative) to 1 (positive).

    Raises InputError where the package is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise InputError("the judge needs: pip install vaderSentiment") from error
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(response)["compound"] for response in responses]
