"""`glmtune completion`: print a script by which a shell completes verbs, flags, files and names of settings."""

from __future__ import annotations

import argparse
from typing import Any

from glmtune.terminal import say

# What words of these names are, for the shell.
FILES = {"recipe", "target", "input", "output", "data", "html", "resume", "files"}
SETTINGS = {"settings", "recipe", "files"}
HOW_TO = """\
write the script to a file that the shell reads:
  glmtune completion bash > ~/.local/share/bash-completion/completions/glmtune
  glmtune completion zsh > ~/.zfunc/_glmtune      (with fpath=(~/.zfunc $fpath) above compinit in ~/.zshrc)
  glmtune completion tcsh > /etc/profile.d/glmtune.completion.csh
"""
# Settings are completed by a function for bash and zsh; a recipe or a file may stand in the place of the first.
SETTINGS_OF_BASH = """
_glmtune_settings() {{ compgen -S = -W "{names}" -- "$1"; }}
_glmtune_files_or_settings() {{ compgen -f -- "$1"; _glmtune_settings "$1"; }}
"""
SETTINGS_OF_ZSH = """
_glmtune_settings() {{ compadd -S = {names}; }}
_glmtune_files_or_settings() {{ _files; _glmtune_settings; }}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shell."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HOW_TO
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose script")


def main(options: argparse.Namespace) -> None:
    """Print the script."""
    say(run(options.parser, options.shell))


def run(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that completes the command line of a parser in a shell.

    Args:
        parser: of the whole command line.
        shell: bash, zsh or tcsh; settings are completed by the first two.
    """
    import shtab

    mark_words(parser, shtab.FILE)
    names = " ".join(name_settings())
    preamble: Any = {"bash": SETTINGS_OF_BASH.format(names=names), "zsh": SETTINGS_OF_ZSH.format(names=names)}
    return str(shtab.complete(parser, shell, preamble=preamble))


def mark_words(parser: argparse.ArgumentParser, files: Any) -> None:
    """Say of each argument of each verb whether it is a file, a setting, or either."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                mark_words(verb, files)
        kinds = (action.dest in FILES, action.dest in SETTINGS)
        setting = dict.fromkeys(("bash", "zsh"), "_glmtune_settings")
        either = dict.fromkeys(("bash", "zsh"), "_glmtune_files_or_settings")
        if complete := {(True, True): either, (True, False): files, (False, True): setting}.get(kinds):
            action.complete = complete  # type: ignore[attr-defined]


def name_settings() -> list[str]:
    """Return the names of all settings, those of every task, method and objective among them."""
    from glmtune import registry
    from glmtune.config import OPEN_SECTIONS, Recipe, describe_settings

    names = [name for name, _, _ in describe_settings(Recipe)]
    for section, package in OPEN_SECTIONS.items():
        for entry in registry.names(package):
            settings: Any = registry.find(package, entry).Settings
            names += [name for name, _, _ in describe_settings(settings, f"{section}.")]
    return list(dict.fromkeys(names))
