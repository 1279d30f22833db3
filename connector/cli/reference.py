"""The reference of the command line, from the commands: python -m connector.cli.reference > docs/cli.md"""

from collections.abc import Iterator

import click

from connector.cli.group import LazyGroup, cli

WIDTH = 100
INTRODUCTION = """\
# The command line

This page is written by `python -m connector.cli.reference`. Each section is what `modalign COMMAND --help` prints.
"""


def commands(group: click.Group = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its words, in the order of the help."""
    for name in sorted(group.commands):
        if isinstance(group, LazyGroup):
            group.load(name)
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def reference() -> str:
    """Return the reference as Markdown."""
    sections = [_section("modalign", cli)]
    sections += [_section(f"modalign {' '.join(words)}", command) for words, command in commands()]
    return "\n".join([INTRODUCTION, *sections])


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, help_option_names=["-h", "--help"])
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
