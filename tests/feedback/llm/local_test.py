"""A checkpoint as a language model: a reply is the request's own."""

import jax
import ppo_cases
import pytest

from fgrlhf_jax.data import templates
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import local
from fgrlhf_jax.feedback.llm.client import Refused, Reply, Request
from fgrlhf_jax.feedback.llm.requests import Rejected, Usage, collect_replies
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.tiny_world.datasets import make_instructions

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXTS = [row.instruction for row in make_instructions(9, "test", 0)]
OPTIONS = {"batch_size": 4, "max_prompt_length": 16}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        ppo_cases.one_device(patch)
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run")
    return str(ppo_cases.save_policy(folder / "export", template="plain"))


@pytest.fixture(scope="module")
def send(policy, quick_compilation):
    return local.connect(policy, **OPTIONS)


def asked(temperature: float = 1.0, texts=TEXTS) -> list[Request]:
    return [Request(text, max_tokens=6, temperature=temperature) for text in texts]


@pytest.fixture(scope="module")
def sampled(send) -> list[Reply]:
    return send(asked())


def test_greedy_replies_are_those_of_generation(policy, send):
    responses = LanguageModel.load(policy).generate(TEXTS, SamplingParams(max_new_tokens=6))
    replies = send(asked(0.0))
    assert [reply.text for reply in replies] == responses.texts
    assert [reply.output_tokens for reply in replies] == [len(ids) for ids in responses.ids]
    assert [reply.stop == "end" for reply in replies] == responses.finished


def test_what_a_reply_says_of_itself(sampled):
    for text, reply in zip(TEXTS, sampled, strict=True):
        ids, _ = templates.encode_prompt(ppo_cases.TOKENIZER, "plain", text, "", None)
        assert reply.input_tokens == len(ids)
        assert 1 <= reply.output_tokens <= 6
        assert reply.stop == "end" or reply.output_tokens == 6
    assert {reply.stop for reply in sampled} == {"end", "length"}


def test_a_reply_does_not_depend_on_what_else_is_asked(policy, send, sampled):
    assert send(asked()[::-1])[::-1] == sampled
    assert [send([request])[0] for request in asked()[:3]] == sampled[:3]
    assert send([*asked(0.0), *asked()])[9:] == sampled
    other = local.connect(policy, **OPTIONS | {"batch_size": 16})
    assert other(asked()) == sampled


def test_another_seed_or_request_is_another_draw(policy, sampled, send):
    other = local.connect(policy, **OPTIONS, seed=1)
    assert [r.text for r in other(asked())] != [r.text for r in sampled]
    assert [r.text for r in send(asked(0.99))] != [r.text for r in sampled]


def test_replies_of_different_lengths_side_by_side(send):
    requests = [Request(TEXTS[0], max_tokens=n, temperature=1.0) for n in (1, 2, 5, 1)]
    replies = send(requests)
    for request, reply in zip(requests, replies, strict=True):
        assert reply.output_tokens <= request.max_tokens
    assert replies[0] == replies[3]


def test_a_prompt_that_is_too_long_is_refused_and_the_others_are_not(send, sampled):
    long = Request(" ".join(["apple"] * 40), max_tokens=6, temperature=1.0)
    replies = send([long, *asked()])
    assert isinstance(replies[0], Refused)
    assert "more than 16" in str(replies[0])
    assert replies[1:] == sampled
    tight = Request(TEXTS[0], max_tokens=60)
    assert "more than 4" in str(send([tight])[0])


def test_max_tokens_that_leave_no_room_stop_the_run(send):
    with pytest.raises(InputError, match=r"max_new_tokens=64 leaves no room .* 64 positions"):
        send([Request(TEXTS[0], max_tokens=64)])


def test_a_system_prompt_stands_before_the_prompt(send):
    one = Request("b c", "a", max_tokens=6)
    (other,) = send([Request("a\n\nb c", max_tokens=6)])
    assert send([one])[0] == other


def test_through_the_cache(tmp_path, send, sampled):
    requests = [*asked(), Request(" ".join(["apple"] * 40), max_tokens=6)]
    options = {
        "cache": tmp_path / "cache.sqlite",
        "identity": {"model": "tiny"},
        "batch_size": 4,
    }
    usage = Usage()
    replies = list(collect_replies(requests, send, **options, usage=usage))
    assert replies[:9] == sampled
    assert isinstance(replies[9], Rejected)
    assert usage.requests == 10
    assert usage.output_tokens == sum(reply.output_tokens for reply in sampled)

    def nobody(requests):
        raise AssertionError

    assert list(collect_replies(requests[:9], nobody, **options)) == sampled


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_answers_through_its_chat_template(smollm2):
    jax.config.update("jax_disable_most_optimizations", False)
    send = local.connect(str(smollm2), batch_size=2)
    asked = [
        Request(f"What is the capital of {c}?", max_tokens=24) for c in ("France", "Japan")
    ]
    replies = send(asked)
    assert "Paris" in replies[0].text
    assert "Tokyo" in replies[1].text
    assert {reply.stop for reply in replies} == {"end"}
