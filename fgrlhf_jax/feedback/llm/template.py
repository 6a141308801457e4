"""Prompt templates: jinja2 text with the fields of a row, checked before any request is sent."""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from fgrlhf_jax.errors import InputError

_ENVIRONMENT = jinja2.sandbox.SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def choose_unused(form: str, separator: str, texts: Iterable[str]) -> str:
    """Returns the first of ``form`` with "", _2, _3 … that no text contains in any case."""
    shown = "\n".join(texts).casefold()
    numbers = itertools.chain([""], (f"{separator}{n}" for n in itertools.count(2)))
    names = (form.format(number) for number in numbers)
    return next(name for name in names if name.casefold() not in shown)


class PromptTemplate:
    """A valid template that uses only ``fields`` and shows all of ``required``.

    ``path`` is the user's file, "" for the text ``default``; ``literal_text`` is the constant text
    of all prompts. Raises InputError if the file is unreadable or not such a template.
    """

    def __init__(self, path: str, default: str, fields: Sequence[str], required: Sequence[str]):
        self.where, self.fields = f"template_file={path}", fields
        try:
            source = Path(path).read_text(encoding="utf-8-sig") if path else default
            tree = _ENVIRONMENT.parse(source)
            used = jinja2.meta.find_undeclared_variables(tree) - set(_ENVIRONMENT.globals)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "invalid UTF-8"
            raise InputError(f"{self.where}: cannot be read ({reason})") from error
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"{self.where}:{error.lineno}: is not a jinja2 template ({error.message})"
            ) from error
        for name in sorted(used - set(fields)):
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}"
            raise InputError(f"{self.where}: there is no field {{{{ {name} }}}}; {hint}")
        self._template = _ENVIRONMENT.from_string(source)
        data = tree.find_all(jinja2.nodes.TemplateData)
        self.literal_text = "\n".join(node.data for node in data)
        for name in required:
            if not self.shows(name):
                needed = ", ".join(f"{{{{ {field} }}}}" for field in required)
                raise InputError(
                    f"{self.where}: does not show {{{{ {name} }}}}; a prompt needs {needed}"
                )

    def shows(self, name: str) -> bool:
        """Whether the value of a field is in the prompt."""
        mark = "\ue000"  # a private-use character that is in no template
        return mark in self.fill({**dict.fromkeys(self.fields, "a text"), name: mark})

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the prompt with the values of the fields; raises InputError if that fails."""
        try:
            return self._template.render(values)
        except Exception as error:  # a template may compute anything
            raise InputError(f"{self.where}: cannot be filled ({error})") from error
