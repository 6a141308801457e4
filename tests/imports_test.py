"""Folders import only what ``ALLOWED`` says, without circles; third parties are declared."""

import ast
import graphlib
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("fgrlhf_jax", "launch", "configs")
SOURCES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for part in OURS
    for file in sorted((ROOT / part).rglob("*.py"))
}

# What the files of a folder may import from this package, besides their own folder.
ALLOWED = {
    "errors": "",
    "functional": "errors",
    "runtime": "errors functional",
    "data": "errors runtime",
    "models": "errors runtime data",
    "training": "errors functional runtime data models",
    "reward_model": "errors functional runtime data models training",
    "ppo": "errors functional runtime data models training reward_model",
    "feedback.llm": "errors runtime data models",
    "feedback.edits": "errors runtime data feedback.llm report.html",
    "feedback.judges": "errors functional runtime data feedback.llm",
    "feedback.annotation": "errors runtime data feedback.edits report.html",
    "report": "errors functional runtime",
    "tiny_world": "errors runtime.files data",
    "plan": "errors runtime data models training reward_model ppo",
    "pipeline": "errors functional runtime data models training reward_model ppo feedback report "
    "tiny_world",
}

# Installed by an extra, imported where it is used and nowhere else.
OPTIONAL = {
    "gguf": "models.gguf",
    "tensorboardX": "runtime.metric_log",
    "vaderSentiment": "feedback.judges.vader",
    "sklearn": "functional.logistic",
} | dict.fromkeys(
    ["anthropic", "openai", "httpx2", "starlette", "uvicorn", "markdown_it"], "feedback"
)

FACADES = ("__init__", "functional.__init__")
OUTSIDE = ("launch", "configs", "tests", "torch")
STANDARD = " ".join(sys.stdlib_module_names)


def imported(source: str) -> set[str]:
    """Full dotted names of everything that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names}
    return names


def folder_of(module: str) -> str | None:
    """The name in ``ALLOWED`` of the folder that has ``module``, a dotted name without ours."""
    return next((name for name in ALLOWED if within(module, name)), None)


def within(module: str, folders: str) -> bool:
    return any(f"{module}.".startswith(f"{folder}.") for folder in folders.split())


def faults(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at ``path`` (relative to the repository)."""
    names = imported(source)
    found = [f"{path}: imports {n}, which is private" for n in names if re.search(r"\._[^_]", n)]
    found += [f"{path}: imports {n} by a relative name" for n in names if n.startswith(".")]
    if not path.startswith("fgrlhf_jax/"):
        return found + [f"{path}: imports {n}" for n in names if within(n, "torch")]

    module = ".".join(Path(path).with_suffix("").parts[1:])
    if module in FACADES:  # import our modules when a name is first used
        ours = [n for n in imported(at_once(source)) if not within(n, STANDARD)]
        return found + [f"{path}: imports {n} at once" for n in ours]
    if module.endswith("__init__"):
        return found + [f"{path}: imports {n}, but is meant to be empty" for n in names]
    folder = folder_of(module)
    if not folder:
        return [*found, f"{path}: is in no folder of ALLOWED"]
    for name in names:
        top, _, rest = name.partition(".")
        if top in OUTSIDE:
            found.append(f"{path}: imports {name}")
        elif top in OPTIONAL and not within(module, OPTIONAL[top]):
            found.append(f"{path}: imports {name}, which is optional")
        elif top == "fgrlhf_jax" and not within(rest, f"{folder} {ALLOWED[folder]}"):
            found.append(f"{path}: imports {name}, which {folder} may not")
    return found


def modules_imported(source: str) -> set[str]:
    """The files of this package that one imports when it is imported."""
    names = imported(at_once(source))
    modules = {dotted(other) for other in SOURCES if "__init__" not in other}
    return {module for module in modules if any(within(name, module) for name in names)}


def at_once(source: str) -> str:
    """The imports of a file that are carried out when it is imported."""
    nodes = ast.parse(source).body
    return ast.unparse([n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)])


def dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def test_folders_import_what_they_may():
    assert len(SOURCES) > 10
    found = [fault for path, source in SOURCES.items() for fault in faults(path, source)]
    assert not found, "\n".join(found)


def test_no_circle_among_folders_or_files():
    graphlib.TopologicalSorter(
        {
            name: {folder_of(other) or other for other in allowed.split()} - {name}
            for name, allowed in ALLOWED.items()
            if name != "pipeline"  # may import all of them
        }
    ).prepare()
    files = {dotted(path): modules_imported(text) for path, text in SOURCES.items()}
    assert files["fgrlhf_jax.ppo.train"]
    graphlib.TopologicalSorter(files).prepare()


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("fgrlhf_jax/data/pairs.py", "from fgrlhf_jax import models", "data may not"),
        ("fgrlhf_jax/models/llama.py", "from ..ppo import train", "by a relative name"),
        ("fgrlhf_jax/models/llama.py", "def f():\n    import fgrlhf_jax.ppo.train", "may not"),
        ("fgrlhf_jax/feedback/edits/report.py", "from fgrlhf_jax.report import page", "may not"),
        ("fgrlhf_jax/utils.py", "", "is in no folder"),
        ("fgrlhf_jax/__init__.py", "from fgrlhf_jax.models import llama", "llama at once"),
        ("fgrlhf_jax/data/__init__.py", "import json", "meant to be empty"),
        ("fgrlhf_jax/models/hf_load.py", "from configs import rm", "imports configs.rm"),
        ("launch/score.py", "from torch import nn", "imports torch.nn"),
        ("fgrlhf_jax/models/llama.py", "import gguf", "optional"),
        ("fgrlhf_jax/models/llama.py", "from jax._src import core", "private"),
    ],
)
def test_a_fault_is_found(path, source, message):
    assert any(message in fault for fault in faults(path, source)), faults(path, source)


def test_third_party_imports_are_declared():
    """Whatever the installed packages import is a dependency, not a dependency's dependency."""

    def normal(distribution):
        return re.sub(r"[-_.]+", "-", distribution).lower()

    required = importlib.metadata.requires("fgrlhf_jax") or []
    declared = {normal(re.split(r"[^\w.-]", r)[0]) for r in required if "extra ==" not in r}
    provided_by = importlib.metadata.packages_distributions()
    used = {name.split(".")[0] for source in SOURCES.values() for name in imported(source)}
    assert {"jax", "flax"} <= used
    known = {*OURS, *OPTIONAL, *sys.stdlib_module_names}
    undeclared = {
        top for top in used - known if not declared & set(map(normal, provided_by.get(top, [])))
    }
    assert not undeclared
