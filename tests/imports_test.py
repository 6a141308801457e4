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
    "feedback.annotation": "errors runtime data feedback.edits",
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

OUTSIDE = ("launch", "configs", "tests", "torch")


def imported(path: str, source: str) -> set[str]:
    """Full dotted names of everything that a file imports, at any depth of its code."""
    package = Path(path).parent.parts
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def private_attributes(source: str) -> set[str]:
    """``module._name`` for every name that is bound by an import and then reached into."""
    tree = ast.parse(source)
    bound = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    attributes = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    }
    return {name for name in attributes if name.split(".")[0] in bound} - {"os._exit"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def folder_of(module: str) -> str | None:
    """The name in ``ALLOWED`` of the folder that has ``module``, a dotted name without ours."""
    return next((name for name in ALLOWED if within(module, name)), None)


def within(module: str, folders: str) -> bool:
    return any(f"{module}.".startswith(f"{folder}.") for folder in folders.split())


def faults(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at ``path`` (relative to the repository)."""
    names = imported(path, source)
    found = [f"{path}: imports private {n}" for n in names if any(map(is_private, n.split(".")))]
    found += [f"{path}: uses private {n}" for n in private_attributes(source)]
    if not path.startswith("fgrlhf_jax/"):
        return found + [f"{path}: imports {n}" for n in names if n.split(".")[0] == "torch"]

    module = ".".join(Path(path).with_suffix("").parts[1:])
    if module == "__init__":  # the facade imports our modules when a name is first used
        names = imported(path, at_once(source))
        ours = [n for n in names if n.split(".")[0] not in sys.stdlib_module_names]
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


def modules_imported(path: str, source: str) -> set[str]:
    """The files of this package that ``path`` imports when it is imported."""
    names = imported(path, at_once(source))
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
    files = {dotted(path): modules_imported(path, text) for path, text in SOURCES.items()}
    assert files["fgrlhf_jax.ppo.train"]
    graphlib.TopologicalSorter(files).prepare()


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("fgrlhf_jax/data/pairs.py", "from fgrlhf_jax import models", "data may not"),
        ("fgrlhf_jax/runtime/optim.py", "import fgrlhf_jax.data.records", "runtime may not"),
        ("fgrlhf_jax/data/pairs.py", "from ..models.sizes import SIZES", "data may not"),
        ("fgrlhf_jax/models/llama.py", "from ..ppo import train", "models may not"),
        ("fgrlhf_jax/models/llama.py", "def f():\n    from fgrlhf_jax.ppo import x", "may not"),
        ("fgrlhf_jax/models/llama.py", "from fgrlhf_jax import nothing", "models may not"),
        ("fgrlhf_jax/errors.py", "from fgrlhf_jax.runtime import optim", "errors may not"),
        ("fgrlhf_jax/feedback/llm/client.py", "from ..judges import judge", "feedback.llm may not"),
        ("fgrlhf_jax/feedback/edits/report.py", "from fgrlhf_jax.report import page", "may not"),
        ("fgrlhf_jax/utils.py", "", "is in no folder"),
        ("fgrlhf_jax/__init__.py", "from fgrlhf_jax.models import llama", "llama at once"),
        ("fgrlhf_jax/data/__init__.py", "import json", "meant to be empty"),
        ("fgrlhf_jax/models/hf_load.py", "import launch.train_rm", "imports launch.train_rm"),
        ("fgrlhf_jax/models/hf_load.py", "from configs import rm", "imports configs.rm"),
        ("fgrlhf_jax/models/hf_load.py", "import torch.nn as nn", "imports torch.nn"),
        ("launch/score.py", "from torch import nn", "imports torch.nn"),
        ("fgrlhf_jax/models/llama.py", "import gguf", "optional"),
        ("fgrlhf_jax/models/llama.py", "from jax._src import core", "private jax._src.core"),
        ("fgrlhf_jax/models/llama.py", "from flax.linen import _x", "private flax.linen._x"),
        ("fgrlhf_jax/models/llama.py", "import jax\njax._src.core.f()", "private jax._src"),
        ("launch/score.py", "from fgrlhf_jax.models.hf_load import _t", "private fgrlhf_jax"),
        ("launch/score.py", "from fgrlhf_jax.models import llama as x\nx._t", "private x._t"),
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
    used = {name.split(".")[0] for item in SOURCES.items() for name in imported(*item)}
    assert {"jax", "flax"} <= used
    known = {*OURS, *OPTIONAL, *sys.stdlib_module_names}
    undeclared = {
        top for top in used - known if not declared & set(map(normal, provided_by.get(top, [])))
    }
    assert not undeclared
