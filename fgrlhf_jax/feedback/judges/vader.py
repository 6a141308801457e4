"""A judge of sentiment, e.g. of film reviews: the VADER lexicon (Hutto and Gilbert 2014)."""

from collections.abc import Sequence

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def judge(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Returns the compound score of each response, from -1 (negative) to 1 (positive)."""
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(response)["compound"] for response in responses]
