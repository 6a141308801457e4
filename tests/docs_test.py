"""README and docs/ say what is true: commands parse, links and files exist, folders are named."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import rm_cases

from launch.shared import config_files

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every ``python -m launch.NAME …`` in a fence of a page."""
    found = []
    for page in PAGES:
        for fence in re.findall(r"^```bash.*?\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in fence.replace("\\\n", " ").splitlines():
                for command in re.findall(r"python -m (launch\.\w+[^#&\n]*)", line):
                    found.append((page.name, shlex.split(command.rstrip('" '))))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: str(value)[:60])
def test_a_command_parses(page, words):
    flags = [re.sub(",?(LOSS|LEVEL)$", "", w) for w in words[1:] if w.startswith("--config")]
    flags = [re.sub("=(STEPS|COEF)$", "=1", w) for w in flags]
    assert len(commands()) > 30
    module = importlib.import_module(words[0])
    config_files.parse(["", *flags], module.CONFIG, *getattr(module, "OTHERS", ()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_both_lists_of_pages():
    names = {path.name for path in PAGES[1:]} - {"index.md"}
    assert names == set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    nav = (ROOT / "mkdocs.yml").read_text()
    assert names == set(re.findall(r": (\w+\.md)$", nav, re.M)) - {"index.md"}


# Not in the API reference: a page's or a command's own parts, and steps of one documented function.
INTERNAL = {
    *("data.row_fields", "data.row_labels", "feedback.llm.answers", "report.tables"),
    *(f"feedback.annotation.{n}" for n in ("database", "exports", "old_log", "page", "server")),
    *(f"models.{n}" for n in ("cards", "chat_template", "row_groups")),
    *(f"models.hf_{n}" for n in ("files", "fill", "names", "tensors")),
    *(f"pipeline.{n}" for n in ("arms", "datasets", "flags", "starter", "tasks")),
    *("plan.emulation", "plan.hlo", "ppo.checks", "ppo.model_flops"),
}


def test_every_module_is_in_the_api_reference_or_internal():
    files = [f for f in (ROOT / "fgrlhf_jax").rglob("*.py") if f.stat().st_size]
    dotted = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    modules = {name.removesuffix(".__init__") for name in dotted}
    pages = (ROOT / "docs" / "api").glob("*.md")
    documented = [n for p in pages for n in re.findall(r"^::: (\S+)$", p.read_text(), re.M)]
    assert sorted(modules - {f"fgrlhf_jax.{name}" for name in INTERNAL}) == sorted(documented)


def test_the_readme_is_short_and_names_the_folders():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 140
    assert max(map(len, lines)) <= 120
    folders = [path.parent.name for path in (ROOT / "fgrlhf_jax").glob("*/__init__.py")]
    assert not [name for name in folders if f"`{name}/`" not in "\n".join(lines)]


def test_every_metric_that_the_code_names_is_explained():
    """Tests of runs check the fields of their metrics.jsonl."""
    groups = "debug|logprob|policy|ptx|response|reward|time|tokens_per_second|validation|value"
    folders = ("functional", "ppo", "reward_model", "runtime", "training")
    files = [f for name in folders for f in (ROOT / "fgrlhf_jax" / name).glob("*.py")]
    names = [n for f in files for n in re.findall(rf'"((?:{groups})/\w+)"', f.read_text())]
    assert len(names) > 40
    assert not rm_cases.unexplained(names)


def test_every_fault_names_tests_that_exist():
    table = (ROOT / "docs" / "peer_faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)\. .* \| (.*) \|$", table, flags=re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 13))
    for _, cell in rows:
        names = re.findall(r"`(tests/\w+/\w+_test\.py)::(test_\w+)`", cell)
        assert len(names) == cell.count("`") // 2 > 0, cell
        for path, test in names:
            assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)


def functions_of(file: str) -> set[str]:
    """Names of a file's functions, and of its classes' methods as Class.method."""
    tree = ast.parse((ROOT / "fgrlhf_jax" / file).read_text(encoding="utf-8"))
    classes = [("", tree), *((f"{n.name}.", n) for n in tree.body if isinstance(n, ast.ClassDef))]
    return {p + n.name for p, each in classes for n in each.body if isinstance(n, ast.FunctionDef)}


def test_the_two_walks_exist_and_are_short():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    title = r"^\*\*From .+: (\d+) files, (\d+) functions\.\*\*\n"
    walks = re.findall(title + r"((?:\n?\|.*)+)", page, re.M)
    assert len(walks) == 2
    for *counts, table in walks:
        files = [re.findall(r"`([^`]+)`", line) for line in table.split("\n|")[3:]]
        steps = [(file, name) for file, *names in files for name in names]
        assert [*map(int, counts)] == [len(files), len(set(steps))]
        assert len(files) <= 10
        assert len(steps) <= 28
        assert not [step for step in steps if step[1] not in functions_of(step[0])]
