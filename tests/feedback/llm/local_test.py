"""A local checkpoint in place of an API: a reply depends on its request alone."""

import ppo_cases
import pytest
import tiny_cases

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import local
from fgrlhf_jax.feedback.llm.client import Rejected, Reply, Request
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.tiny_world.datasets import make_instructions

pytestmark = pytest.mark.slow

TEXTS = [row.instruction for row in make_instructions(9, "test", 0)]
OPTIONS = {"batch_size": 4, "max_prompt_length": 16}
LONG = Request(" ".join(["apple"] * 40), max_tokens=6, temperature=1.0)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    return str(ppo_cases.save_policy(tmp_path_factory.mktemp("run") / "export", template="plain"))


@pytest.fixture(scope="module")
def send(policy):
    return local.connect(policy, **OPTIONS)


def requests(temperature: float = 1.0) -> list[Request]:
    return [Request(text, max_tokens=6, temperature=temperature) for text in TEXTS]


@pytest.fixture(scope="module")
def sampled(send) -> list[Reply]:
    return send(requests())


def test_greedy_replies_equal_generate(policy, send, sampled):
    model = LanguageModel.load(policy)
    responses = model.generate(TEXTS, SamplingParams(max_new_tokens=6))
    replies = send(requests(0.0))
    assert [reply.text for reply in replies] == responses.texts
    assert [reply.input_tokens for reply in replies] == [len(model.encode(t)) for t in TEXTS]
    assert [reply.output_tokens for reply in replies] == [len(ids) for ids in responses.ids]
    assert [reply.stop == "end" for reply in replies] == responses.finished
    assert {reply.stop for reply in sampled} == {"end", "length"}


def test_a_reply_depends_on_the_request_and_the_seed_alone(policy, send, sampled):
    assert send(requests()[::-1])[::-1] == sampled
    assert send(requests()[:1]) == sampled[:1]
    assert send([*requests(0.0), *requests()])[9:] == sampled
    assert local.connect(policy, **OPTIONS | {"batch_size": 16})(requests()) == sampled
    other_seed = local.connect(policy, **OPTIONS, seed=1)
    for replies in (other_seed(requests()), send(requests(0.99))):
        assert [r.text for r in replies] != [r.text for r in sampled]


def test_max_tokens_of_each_request_and_long_prompts(send, sampled):
    replies = send([Request(TEXTS[0], max_tokens=n, temperature=1.0) for n in (1, 2, 1)])
    assert [reply.output_tokens for reply in replies] == [1, 2, 1]
    assert replies[0] == replies[2]
    refused, *replies = send([LONG, *requests()])
    assert isinstance(refused, Rejected)
    assert "more than 16" in str(refused)
    assert replies == sampled
    assert "more than 4" in str(send([Request(TEXTS[0], max_tokens=60)])[0])
    with pytest.raises(InputError, match=r"max_new_tokens=64 leaves no room .* 64 positions"):
        send([Request(TEXTS[0], max_tokens=64)])


@pytest.mark.parity
def test_smollm2_answers_through_its_chat_template(smollm2):
    send = local.connect(str(smollm2), batch_size=1)
    (reply,) = send([Request("What is the capital of France?", max_tokens=16)])
    assert "Paris" in reply.text
    assert reply.stop == "end"
