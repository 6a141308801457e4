"""The embedded world's vocabulary of under 200 words, its facts, and its tokenizer.

Wrong answers are right answers to other prompts of the same family: only rude words and fillers are
wrong everywhere.
"""

import functools
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from fgrlhf_jax.data.tokenizers import wrap_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FAMILIES = ("opposite", "capital", "colour", "list", "count", "reverse", "repeat")
FAR_REACHING = ("sort", "total")  # only in the fair world; prompts use words of other families

_PAIRS = (
    *("hot cold", "big small", "fast slow", "old young", "wet dry", "hard soft", "rich poor"),
    *("early late", "full empty", "dark light", "loud quiet", "open closed"),
)
_CAPITALS = (
    *("france paris", "italy rome", "spain madrid", "germany berlin", "austria vienna"),
    *("greece athens", "egypt cairo", "japan tokyo", "china beijing", "russia moscow"),
    *("norway oslo", "sweden stockholm", "finland helsinki", "poland warsaw", "peru lima"),
    *("hungary budapest", "portugal lisbon", "ireland dublin", "cuba havana", "kenya nairobi"),
)
_COLOURS = (
    *("pear green", "grass green", "frog green", "plum purple", "lemon yellow", "sand yellow"),
    *("cherry red", "blood red", "crow black", "coal black", "swan white", "milk white"),
    *("snow white", "tea brown", "mud brown", "silver grey", "iron grey", "sky blue"),
    *("sea blue", "carrot orange"),
)
FACTS = {  # family -> thing in question -> right answer
    "opposite": dict(p.split()[::d] for p in _PAIRS for d in (1, -1)),
    "capital": dict(line.split() for line in _CAPITALS),
    "colour": dict(line.split() for line in _COLOURS),
}
KINDS = {
    "fruits": ("apple", "pear", "plum", "lemon", "cherry"),
    "animals": ("dog", "cat", "horse", "cow", "frog"),
    "birds": ("crow", "swan", "owl", "duck", "robin"),
    "trees": ("oak", "pine", "elm", "birch", "palm"),
    "tools": ("hammer", "saw", "axe", "drill", "wrench"),
    "metals": ("iron", "copper", "tin", "gold", "silver"),
    "sports": ("tennis", "golf", "rugby", "hockey", "chess"),
    "clothes": ("shirt", "coat", "hat", "scarf", "sock"),
    "drinks": ("milk", "tea", "juice", "cola", "water"),
    "vehicles": ("car", "bus", "train", "boat", "bike"),
}
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
NUMBERS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight"),
    *("nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"),
)
RUDE = ("stupid", "idiot", "dumb", "shut")
FILLERS = ("um", "well", "basically", "like")


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the world, sorted."""
    words = {*KINDS, *KIND_OF, *NUMBERS, *RUDE, *FILLERS, *FAMILIES}
    for facts in FACTS.values():
        words |= {*facts, *facts.values()}
    return tuple(sorted(words | {"the", "of", "is", "are", "and", "to", "twice", ","}))


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """A word-level tokenizer with fewer than 400 ids, determined by the vocabulary.

    A token includes the blank before its word, so " pear" and "pear" are two tokens; a newline is a
    token. Decoding concatenates tokens, so it restores any text of the vocabulary exactly.
    Ids 0, 1, 2 are <unk>, <s> (BOS, before every prompt) and </s> (EOS), as in
    ``data.tokenizers.train_tokenizer``; there is no pad token. "<" is always split off, so no text
    can spell a control token.
    """
    words = [blank + word for blank in (" ", "") for word in vocabulary()]
    ids = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", "\n", *words])}
    model = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokens = Regex(r" ?(?:[^ \n<]+|<)|\n| ")
    model.pre_tokenizer = pre_tokenizers.Split(tokens, behavior="isolated")
    model.decoder = decoders.Fuse()
    return wrap_tokenizer(model)
