"""``fgrlhf COMMAND [flags]`` runs ``python -m launch.COMMAND``; ``fgrlhf`` lists the commands."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from launch.shared import process


def list_commands() -> dict[str, str]:
    """The first docstring line of each command, by name; imports no command."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    documentation = {file.stem: ast.get_docstring(ast.parse(file.read_bytes())) for file in files}
    return {name: text.partition("\n")[0] for name, text in documentation.items()}


def main() -> None:
    """Runs the command that the first argument names; exit status 2 if there is none."""
    process.begin()
    commands, (program, *arguments) = list_commands(), sys.argv
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands))
        print("fgrlhf COMMAND [--config=FILE.py:ARGUMENT] [--config.FIELD=VALUE …]\n")
        print("\n".join(f"  {name:{width}}  {text}" for name, text in commands.items()))
        print("\nfgrlhf COMMAND --help explains a command and its fields.")
    elif arguments[0] in commands:
        sys.argv = [program, *arguments[1:]]
        runpy.run_module(f"launch.{arguments[0]}", run_name="__main__", alter_sys=True)
    else:
        close = difflib.get_close_matches(arguments[0], commands, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else "fgrlhf alone lists the commands"
        print(f"error: {arguments[0]!r} is no command; {hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
