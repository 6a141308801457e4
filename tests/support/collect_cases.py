"""A fake editing model with a few bad replies, responses to edit, and launch.collect_edits."""

import re

from fgrlhf_jax.runtime.continued_rows import rejected_path
from fgrlhf_jax.runtime.files import write_jsonl
from launch import collect_edits
from launch.shared import config_files

CONFIG = collect_edits.CONFIG


WORDS = "the quick brown fox jumps over a lazy dog while it rains on every old roof"


def original(n: int) -> str:
    return f"Response {n}: {WORDS[4 * (n % 3) :]}."


def edited(n: int) -> str:
    return original(n).replace("lazy", "sleeping" if n % 2 else "slow and lazy")


def editor(prompt: str) -> str:
    """A model's reply: text around an edit, which is bad for some rows."""
    response = re.search(r"Response (\d+): .*", prompt)
    n, (tag,) = int(response[1]), re.findall(r"between <(\w+)>", prompt) or [""]
    texts = {
        3: "I'm sorry, but I can't help with that.",
        6: response[0],
        8: "Something else entirely, which nobody had asked for at all in any case.",
    }
    text = texts.get(n % 10, f'"{edited(n)}"' if n % 10 == 9 else edited(n))
    return text if n % 10 == 3 else f"Sure!\n\n<{tag}>\n{text}\n</{tag}>\n\nI changed one word."


def write_responses(folder, count):
    """Writes a file of responses, one of them blank."""
    rows = [{"instruction": f"Question {n}?", "output": original(n)} for n in range(count)]
    rows[17]["output"] = " "
    write_jsonl(folder / "responses.jsonl", rows)
    return folder / "responses.jsonl"


def flags(server, input, output, provider="openai", **fields) -> list[str]:
    path = "/v1" if provider == "openai" else ""
    fields = {"provider": provider, "model": "m", "base_url": server.url + path} | fields
    fields |= {"input": input, "output": output}
    return [f"--config.{name}={value}" for name, value in fields.items()]


def parse(*args, **fields):
    return config_files.parse(["", *flags(*args, **fields)], CONFIG)


def collect(*args, **fields) -> None:
    collect_edits.main(parse(*args, **fields))


def files(output) -> tuple[bytes, bytes]:
    return output.read_bytes(), rejected_path(output).read_bytes()
