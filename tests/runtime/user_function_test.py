"""A user's own reward: loaded by its name, called with what it takes, and its values checked."""

import math
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import run_dir, user_function
from fgrlhf_jax.tiny_world.judge import judge

PROMPTS, RESPONSES = ["one", "two"], ["a b", "c"]
TOKENS, FINISHED = [["a", " b", "</s>"], ["c"]], [True, False]
LENGTHS = [3, 1]


def call(function, **changes):
    arguments = {"tokens": TOKENS, "finished": FINISHED, "lengths": LENGTHS} | changes
    return user_function.score_responses(function, "mine:f", PROMPTS, RESPONSES, **arguments)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, which is on no path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    name = f"of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "number = 3\n"
        "def f(prompts, responses):\n"
        "    return [float(len(r)) for r in responses]\n"
        "class Judge:\n"
        "    def __call__(self, prompts, responses, finished):\n"
        "        return [1.0 * f for f in finished]\n"
        "judge = Judge()\n"
    )
    (tmp_path / f"{name}_broken.py").write_text("import there_is_no_such_module\n")
    yield name
    for loaded in (name, f"{name}_broken"):
        sys.modules.pop(loaded, None)


def test_a_function_of_the_current_folder_or_installed(module):
    before = list(sys.path)
    assert call(user_function.load(f"{module}:f")) == [3.0, 1.0]
    assert call(user_function.load(f"{module}:judge")) == [1.0, 0.0]  # anything to be called
    assert sys.path == before
    assert user_function.load("fgrlhf_jax.tiny_world.judge:judge") is judge


def test_a_function_is_known_by_its_file(module, tmp_path):
    values = ConfigDict({"judge": f"{module}:judge", "reward_function": "no_such:f", "seed": 1})
    before = run_dir.config_values(values)
    assert before.keys() == {*values, "judge.file"}
    run_dir.check_config(tmp_path, values.to_dict(), values)  # of an earlier version
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(InputError, match=r"file of judge=.*:judge has changed since; choose"):
        run_dir.check_config(tmp_path, before, values)
    assert user_function.file_digests({"judge": "fgrlhf_jax.tiny_world.judge:judge"}) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":f", "':f': give a function as module:function"),
        ("nowhere_at_all.of:f", r"cannot be loaded \(ModuleNotFoundError: .*nowhere_at_all'\)$"),
        ("MODULE:g", r"cannot be loaded \(AttributeError: .* no attribute 'g'\)"),
        (
            "MODULE_broken:f",
            r"cannot be loaded \(ModuleNotFoundError: .*\); install there_is_no_such",
        ),
        ("MODULE:number", "is a int, not a function"),
    ],
)
def test_what_cannot_be_loaded_is_refused(module, name, message):
    before = list(sys.path)
    with pytest.raises(InputError, match=message):
        user_function.load(name.replace("MODULE", module))
    assert sys.path == before


def test_names_of_earlier_versions_are_refused_with_the_new_name():
    for old, new in user_function.MOVED_FUNCTIONS.items():
        with pytest.raises(InputError, match=f"^{old}: is now {new}; give that name$"):
            user_function.load(old)
        assert callable(user_function.load(new))


def test_it_is_given_what_its_signature_names():
    seen = []

    def plain(prompts, responses):
        seen.append((prompts, responses))
        return [0, 1]

    def everything(prompts, responses, *, finished, tokens):
        seen.append((prompts, responses, finished, tokens))
        return [0, 1]

    def other_order(finished, responses, prompts):
        return plain(prompts, responses)

    def of_trl(completions, **kwargs):
        return plain(kwargs["prompts"], completions)

    def by_position(prompts, responses, /):
        return plain(prompts, responses)

    def second(instructions, responses, **kwargs):
        return plain(instructions, responses)

    def second_of_two(prompts, /, completions, **kwargs):
        return plain(prompts, completions)

    functions = (other_order, of_trl, by_position, second, second_of_two, lambda x, y: plain(x, y))
    for function in functions:
        assert call(function) == [0.0, 1.0]
        assert seen.pop() == (PROMPTS, RESPONSES)
    assert not user_function.accepts(max, "tokens")  # it has no signature to read
    assert call(plain) == call(everything) == [0.0, 1.0]
    assert seen == [(PROMPTS, RESPONSES), (PROMPTS, RESPONSES, FINISHED, TOKENS)]


def test_one_number_a_token_or_one_a_response():
    for kind in (tuple, np.array, iter):
        values = call(lambda prompts, responses, kind=kind: kind([np.float32(0.5), 2]))
        assert values == [0.5, 2.0]
        assert all(type(value) is float for value in values)
    first, second = call(lambda prompts, responses: [(0.5, -1, 0.25), np.float64(3)])
    assert first.tolist() == [0.5, -1.0, 0.25]
    assert first.dtype == np.float64
    assert second == 3.0


def returns(*values):
    return lambda prompts, responses: list(values)


def raises(prompts, responses):
    return {"a": 1}["b"]


async def later(prompts, responses):
    return [0, 1]


REFUSED = {
    "raises": (raises, "mine:f: raised KeyError: 'b'"),
    "ends": (lambda prompts, responses: sys.exit(3), "mine:f: raised SystemExit: 3"),
    "not a list": (lambda prompts, responses: 3, "mine:f: returned 3; return a list"),
    "by name": (lambda prompts, responses: {0: 0.1, 1: 0.2}, "returned {0: 0.1, 1: 0.2}; return a"),
    "no order": (lambda prompts, responses: {0.2, 0.1}, r"returned \{0\..*\}; return a list"),
    "later": (later, "mine:f: returned <coroutine .*; return a list"),
    "too few": (returns(1), "mine:f: returned 1 values for 2 responses; return one each"),
    "too few tokens": (returns([1, 2], 1), "response 1 of 2: returned 2 rewards for 3 tokens; gi"),
    "NaN": (returns(1, math.nan), "response 2 of 2: returned NaN or infinity"),
    "text": (returns(1, "good"), "response 2 of 2: returned 'good', which is not a number"),
    "ragged": (returns([[1], [2, 3], 4], 1), "response 1 of 2: returned .* is not a number"),
    "matrix": (returns([[1, 2, 3]], 1), "response 1 of 2: returned 2 dimensions"),
}


@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_what_it_may_not_do_is_refused(function, message):
    with pytest.raises(InputError, match=message) as refusal:
        call(function)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="response 1 of 2: returned a list; return one number"):
        call(returns([1.0, 2.0, 3.0], 1), lengths=None)  # as of a judge


def test_a_number_stands_at_the_last_token_and_a_sequence_where_it_belongs():
    rewards = user_function.scatter_rewards([2.5, np.array([0.5, -1.0]), 7.0], [3, 2, 1], 4)
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [[0, 0, 2.5, 0], [0.5, -1.0, 0, 0], [7.0, 0, 0, 0]]
