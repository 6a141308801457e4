"""The floors of the house: imports go downwards, and what is imported is declared."""

import ast
import graphlib
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("fgrlhf_jax", "launch", "configs")
SOURCES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for part in OURS
    for file in sorted((ROOT / part).rglob("*.py"))
}

FLOORS = (
    "errors alignment objectives policy_objectives reward_stats sharding optim checkpoint metrics "
    "processes run_folder html_page dataset_rows",
    "llama weights records prompts train_loop",
    "gguf_file hf_export hf batches examples sampling",
    "supervised reward reward_eval reward_loop sft sft_loop",
    "ppo ppo_models ppo_programs rollouts ppo_loop reward_function generation",
    "feedback tiny_words tiny_tasks tiny_judge tiny_people tiny_world heatmap response_scores "
    "evaluation report report_answer report_tables report_figures report_page report_html stages "
    "study vader hlo_flops outlines plan conversions data_report",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}

# The only imports within a floor.
NEIGHBOURS = {
    "alignment": {"errors"},
    "sharding": {"errors"},
    "optim": {"errors", "sharding"},
    "dataset_rows": {"errors"},
    "checkpoint": {"errors", "sharding"},
    "metrics": {"errors"},
    "processes": {"errors"},
    "run_folder": {"errors", "processes"},
    "hf": {"gguf_file", "hf_export"},
    "reward_eval": {"reward", "supervised"},
    "reward_loop": {"reward", "reward_eval", "supervised"},
    "sft_loop": {"sft", "supervised"},
    "ppo_programs": {"ppo", "ppo_models"},
    "rollouts": {"ppo", "ppo_models", "reward_function"},
    "ppo_loop": {"ppo_models", "ppo_programs", "reward_function", "rollouts"},
    "tiny_tasks": {"tiny_words"},
    "tiny_judge": {"tiny_tasks", "tiny_words"},
    "tiny_people": {"tiny_judge", "tiny_tasks", "tiny_words"},
    "tiny_world": {"tiny_judge", "tiny_people", "tiny_tasks", "tiny_words"},
    "report": {"evaluation", "report_answer"},
    "report_tables": {"report_answer"},
    "report_html": {"heatmap", "report_figures", "report_page", "report_tables"},
    "feedback": {"evaluation", "heatmap", "report_page"},
    "study": {"evaluation", "response_scores", "tiny_judge", "tiny_people", "tiny_world"},
    "plan": {"hlo_flops", "outlines"},
    "data_report": {"conversions"},
}

# Installed by an extra, imported where it is used and nowhere else.
COLLECT_AND_ANNOTATE = [
    "anthropic",
    "openai",
    "tenacity",
    "sklearn",
    "gradio",
    "fastapi",
    "uvicorn",
]
OPTIONAL = {
    "gguf": {"gguf_file"},
    "tensorboardX": {"metrics"},
    "vaderSentiment": {"vader"},
    **{name: {"feedback"} for name in COLLECT_AND_ANNOTATE},
}

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
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            names = ast.unparse(node).split(".")
            if names[0] in bound:
                found.add(ast.unparse(node))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def faults(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at ``path`` (relative to the repository)."""
    names = imported(path, source)
    found = [
        f"{path}: imports private {n}" for n in names if any(map(is_private, n.split(".")))
    ]
    found += [f"{path}: uses private {n}" for n in private_attributes(source)]
    if not path.startswith("fgrlhf_jax/"):
        return found + [f"{path}: imports {n}" for n in names if n.split(".")[0] == "torch"]

    room = Path(path).with_suffix("").parts[1]
    if room == "__init__":
        return found + [f"{path}: imports {n}, but is meant to be empty" for n in names]
    if room not in FLOOR:
        return [*found, f"{path}: has no floor"]
    for name in names:
        top, other = (name + ".").split(".")[:2]
        if top in OUTSIDE:
            found.append(f"{path}: imports {name}")
        elif top in OPTIONAL and room not in OPTIONAL[top]:
            found.append(f"{path}: imports {name}, which is optional")
        elif top == "fgrlhf_jax":
            below = FLOOR.get(other, 99) < FLOOR[room]
            if not (below or other == room or other in NEIGHBOURS.get(room, ())):
                found.append(f"{path}: imports {name}, which is not on a floor below")
    return found


def test_floors():
    assert len(SOURCES) > 10
    found = [fault for path, source in SOURCES.items() for fault in faults(path, source)]
    assert not found, "\n".join(found)


def test_the_order_within_a_floor_has_no_circle():
    assert all(FLOOR[a] == FLOOR[b] for a, others in NEIGHBOURS.items() for b in others)
    graphlib.TopologicalSorter(NEIGHBOURS).prepare()


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("fgrlhf_jax/llama.py", "from fgrlhf_jax import hf", "not on a floor below"),
        ("fgrlhf_jax/llama.py", "import fgrlhf_jax.records", "not on a floor below"),
        ("fgrlhf_jax/llama.py", "from .records import read", "not on a floor below"),
        ("fgrlhf_jax/llama.py", "from . import batches", "not on a floor below"),
        ("fgrlhf_jax/llama.py", "def f():\n    from fgrlhf_jax.ppo import x", "not on a floor"),
        ("fgrlhf_jax/llama.py", "from fgrlhf_jax import nothing", "not on a floor below"),
        ("fgrlhf_jax/errors.py", "from fgrlhf_jax import sharding", "not on a floor below"),
        ("fgrlhf_jax/reward.py", "from fgrlhf_jax import reward_loop", "not on a floor below"),
        ("fgrlhf_jax/feedback/page.py", "from .. import nothing", "not on a floor below"),
        ("fgrlhf_jax/utils.py", "", "has no floor"),
        ("fgrlhf_jax/__init__.py", "from fgrlhf_jax import hf", "meant to be empty"),
        ("fgrlhf_jax/hf.py", "import launch.train_rm", "imports launch.train_rm"),
        ("fgrlhf_jax/hf.py", "from configs import rm", "imports configs.rm"),
        ("fgrlhf_jax/hf.py", "import torch.nn as nn", "imports torch.nn"),
        ("launch/score.py", "from torch import nn", "imports torch.nn"),
        ("fgrlhf_jax/llama.py", "import gguf", "optional"),
        ("fgrlhf_jax/llama.py", "from jax._src import core", "private jax._src.core"),
        ("fgrlhf_jax/llama.py", "from flax.linen import _x", "private flax.linen._x"),
        ("fgrlhf_jax/llama.py", "import jax\njax._src.core.f()", "private jax._src"),
        ("launch/score.py", "from fgrlhf_jax.hf import _table", "private fgrlhf_jax.hf._table"),
        ("launch/score.py", "from fgrlhf_jax import hf\nhf._table", "private hf._table"),
    ],
)
def test_a_fault_is_found(path, source, message):
    assert any(message in fault for fault in faults(path, source)), faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fgrlhf_jax/gguf_file.py", "import gguf\nfrom fgrlhf_jax.llama import LlamaConfig"),
        ("fgrlhf_jax/hf.py", "import jax\njax.__version__\nself._table"),
        ("fgrlhf_jax/reward_loop.py", "from fgrlhf_jax import metrics, reward, reward_eval"),
        ("fgrlhf_jax/feedback/page.py", "from fgrlhf_jax import ppo\nfrom .editor import edit"),
        ("launch/score.py", "from fgrlhf_jax import heatmap, hf\nfrom configs import rm"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert faults(path, source) == []


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
