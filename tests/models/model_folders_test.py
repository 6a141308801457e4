"""Folders as people have them: used as they are meant, or one sentence says why not."""

import dataclasses

import pytest
import sentencepiece
from hf_cases import CFG, configure, save, tokenizer
from layout_cases import TEXT, texts
from tokenizers import AddedToken

from fgrlhf_jax.data.chat import check_vocabulary
from fgrlhf_jax.data.tokenizers import decode
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, hf_save
from fgrlhf_jax.models.language_model import LanguageModel


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ([7, 9], 5, (7, 9)),
        (None, [2, 8], (2, 8)),
        (6, [2, 8], (6,)),
        (None, None, (2,)),
        ([], 3, (3,)),
        ("</s>", 2, "eos_token_id='</s>' is no token id"),
        ([2, -1], 2, "eos_token_id=-1 is no token id"),
    ],
)
def test_a_response_ends_with_all_ids_of_the_generation_config_or_else_the_config(
    tmp_path, generation, config, ends
):
    """And with those stop strings that are tokens; the others are told."""
    configure(tmp_path / "generation_config.json", eos_token_id=generation)
    configure(tmp_path / "config.json", eos_token_id=config)
    if isinstance(ends, tuple):
        assert hf_load.end_ids(tmp_path, tokenizer()) == ends
        configure(tmp_path / "generation_config.json", stop_strings=["<s>", "\nUser:"])
        told = []
        assert hf_load.end_ids(tmp_path, tokenizer(), told.append) == (*ends, 1)
        assert r"stop_strings='\nUser:' in generation_config.json are no tokens" in told[0]
        return
    with pytest.raises(InputError, match=ends):
        hf_load.end_ids(tmp_path, tokenizer())


def test_a_control_token_without_a_row_is_fine_where_no_text_gives_it(tmp_path):
    added = hf_load.load_tokenizer(save(tmp_path / "model")[0])
    size = len(added)
    added.add_special_tokens({"pad_token": "<pad>"})
    check_vocabulary(added, size)
    message = rf"1 of its tokens, such as '<pad>' with id {size}, do not fit .* of {size};"
    for source in ("{{ '<pad>' }}", "{% for m in messages %}{{ '<p' + 'ad>' }}{% endfor %}"):
        added.chat_template = source
        check_vocabulary(added, size, "alpaca")
        with pytest.raises(InputError, match=message):
            check_vocabulary(added, size)
    added.chat_template, added.eos_token = None, "<pad>"
    with pytest.raises(InputError, match=message):
        check_vocabulary(added, size)
    with pytest.raises(InputError, match="51 of its tokens"):
        check_vocabulary(tokenizer(), len(tokenizer()) - 51)
    text = hf_load.load_tokenizer(tmp_path / "model")
    text.add_tokens(AddedToken("word"))
    with pytest.raises(InputError, match="such as 'word'"):
        check_vocabulary(text, size)


def test_decoding_is_exact(tmp_path):
    """Whatever a checkpoint says about cleaning up."""
    folder, _ = save(tmp_path / "model")
    configure(folder / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    configure(folder / "config.json", fgrlhf={})
    loaded, text = hf_load.load_tokenizer(folder), "x != y , it 's  </s>"
    ids = loaded.encode(text, add_special_tokens=False)
    assert decode(loaded, [*ids, loaded.eos_token_id]) == f"{text}</s>"


@pytest.mark.parametrize(
    "options", [None, {"legacy": False, "add_bos_token": True}, {"add_bos_token": False}]
)
def test_a_folder_with_a_sentencepiece_model_only(tmp_path, options):
    """Ids are those of sentencepiece, a BOS stands before a text as before LLaMA's."""
    (tmp_path / "text").write_text("\n".join(TEXT * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    configure(tmp_path / "config.json", model_type="llama")
    if options:
        configure(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", **options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = hf_load.load_tokenizer(tmp_path)
    bos = [] if options == {"add_bos_token": False} else [theirs.bos_id()]
    for text in texts(200, TEXT):
        ids = ours(text, split_special_tokens=True)["input_ids"]
        assert ids == [*bos, *theirs.encode(text)]
        assert decode(ours, ids[len(bos) :]) == text
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(InputError, match=r"tokenizer\.model: is no SentencePiece model"):
        hf_load.load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["TokenizersBackend", "Mine"])
def test_code_in_a_folder_is_never_run(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder, _ = save(tmp_path / "model")
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    mapped = {"AutoTokenizer": ["mine.Mine", None], "AutoConfig": "mine.Config"}
    configure(folder / "tokenizer_config.json", auto_map=mapped, tokenizer_class=kind)
    configure(folder / "config.json", fgrlhf={}, auto_map=mapped)
    if kind == "Mine":
        with pytest.raises(InputError, match=r"code of its own .auto_map.*, which is never run"):
            hf_load.load_tokenizer(folder)
    else:
        assert hf_load.load_tokenizer(folder).encode("the cat") == tokenizer().encode("the cat")
    assert hf_load.read_config(folder) == CFG


def test_a_run_folder_without_an_export_is_no_model(tmp_path):
    run = tmp_path / "run"
    configure(run / "config.json", run_dir="run", steps=5)
    for read in (hf_load.read_config, hf_load.load_tokenizer):
        with pytest.raises(InputError, match="is a run folder without an export, since its run"):
            read(run)
    save(run / "export")
    assert hf_load.read_config(run) == CFG


def test_a_reward_model_is_no_language_model(tmp_path):
    """Also where the embedding is the head, so that no tensor is missing."""
    cfg = dataclasses.replace(CFG, tie_embeddings=True)
    folder, _ = save(tmp_path / "rm", hf_save.TOKEN_REWARD, heads.TokenValueModel(cfg))
    with pytest.raises(InputError, match=r"is a reward model .*, and a language model is expected"):
        LanguageModel.load(folder)
