"""Command line → settings. The flags are the fields of the settings dataclasses; their docstrings are the help."""

from __future__ import annotations

import re
from argparse import Action, ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from anyformer.core.errors import SettingsError
from anyformer.core.names import run_folder, runs_beside
from anyformer.core.settings import BatchSize
from anyformer.core.view import PlainView, QuietView

REPLAY = "runs reproduce"
"""The command on runs that executes a model's code, and so may have to ask for it."""
_COMMON = ("config", "print_config", "json", "quiet", "debug", "trust", "show_source")
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    BatchSize: "a whole number or auto",
}
_ALONE = {"--skip_checks": "no reason given"}
_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "{true,false}"}


@dataclass(frozen=True)
class Parsed:
    """A command line, understood."""

    target: str | None
    """MODEL or RUN, the positional argument."""
    settings: Any
    """An instance of the command's settings; None where it has none."""
    print_config: bool
    """Print the settings as YAML and do nothing else."""
    trust: bool
    """--trust stands on the command line; a settings file cannot turn it on."""
    show_source: bool
    """Show the source of MODEL and run nothing."""


class _Help(DefaultHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        """Docstring and default. ``None`` is left out: the docstring says what happens where nothing is given."""
        text = action.help or ""
        shown = action.option_strings and action.nargs != 0 and action.dest not in _COMMON
        if not shown or action.default in (None, ""):
            return text
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        return f"{text} (default: {default})"


def parse(command: str, summary: str, positional: str | None, settings: type | None, argv: Sequence[str]) -> Parsed:
    """Parse what follows ``anyformer COMMAND``. SettingsError explains a wrong line; --help prints and exits."""
    parser = _parser(command, summary, positional, settings)
    try:
        arguments = list(argv)
        if command == "train" and settings is not None:
            arguments = [*_settings_of_resumed_run(parser, settings, argv), *argv]
        arguments = _with_values(arguments, settings)
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise _explained(str(error), command, settings, argv) from error
    except UnicodeDecodeError as error:
        raise SettingsError("the settings file is not UTF-8 text", detail=str(error)) from error
    chosen = None if settings is None else settings(**{f.name: values[f.name] for f in fields(settings)})
    return Parsed(
        target=values["target"] if positional else None,
        settings=chosen,
        print_config=bool(settings) and bool(values["print_config"]),
        trust=(positional == "MODEL" or command == REPLAY) and _trusted(bool(values["trust"]), argv),
        show_source=command == "inspect" and bool(values["show_source"]),
    )


def _with_values(argv: Sequence[str], settings: type | None) -> list[str]:
    """``--in_place`` alone stands for ``--in_place true``."""
    hints = get_type_hints(settings) if settings else {}
    bare = {f"--{name}": "true" for name, hint in hints.items() if hint is bool} | _ALONE
    return [
        f"{argument}={bare[argument]}"
        if argument in bare and "".join(argv[i + 1 : i + 2])[:2] in ("", "--")
        else argument
        for i, argument in enumerate(argv)
    ]


def _trusted(value: bool, argv: Sequence[str]) -> bool:
    """Only the command line itself approves code: the parser would take ``trust: true`` from --config as well."""
    if value and "--trust" not in argv:
        raise SettingsError(
            "the settings file says trust: true; a file cannot approve code that comes over a network",
            fix="take the line out; --trust on the command line approves what is there now",
        )
    return value


def _parser(command: str, summary: str, positional: str | None, settings: type | None) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"anyformer {command}",
        usage=" ".join(
            part for part in ("anyformer", command, positional, settings and "[--SETTING VALUE ...]") if part
        ),
        description=summary,
        formatter_class=_Help,
        exit_on_error=False,
        print_config=None,
        allow_abbrev=False,
    )
    if positional:
        parser.add_argument("target", metavar=positional, nargs="?", help=_POSITIONAL_HELP[positional])
    if settings is not None:
        parser.add_argument(
            "--config", action="config", metavar="FILE", help="YAML file of settings; flags override it."
        )
        parser.add_argument("--print_config", action="store_true", help="Print all settings as YAML and exit.")
    if positional == "MODEL" or command == REPLAY:
        parser.add_argument(
            "--trust", action="store_true", help="Approve a gist's code as it is now, without a question."
        )
    if command == "inspect":
        parser.add_argument("--show_source", action="store_true", help="Show all of a gist's code; run nothing.")
    parser.add_argument("--json", action="store_true", help="One JSON object on stdout, everything else on stderr.")
    parser.add_argument("--quiet", action="store_true", help="Show results only.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    if settings is not None:
        parser.add_class_arguments(settings, None, as_group=True)
        for action in parser._actions:
            if action.dest in (hints := get_type_hints(settings)):
                kind = _plain(hints[action.dest])
                action.metavar = "{N,auto}" if kind == BatchSize else _METAVARS.get(kind)
    return parser


_POSITIONAL_HELP = {
    "MODEL": "model.py, model.py:Class, a folder with model.py, package.module:Class, gist:ID, or example:gpt.",
    "RUN": "A run's folder, runs/NAME.",
}


def _plain(hint: Any) -> Any:
    """``int | None`` → int."""
    options = [option for option in get_args(hint) if option is not type(None)]
    return options[0] if len(options) == 1 and get_origin(hint) is not Literal else hint


def _settings_of_resumed_run(parser: ArgumentParser, settings: type, argv: Sequence[str]) -> list[str]:
    """The run's own settings come first, so that every other flag overrides them.

    Which run ``auto`` means, the other flags say: the line is parsed once for that.
    """
    named = None
    for position, argument in enumerate(argv):
        if argument == "--resume" and position + 1 < len(argv):
            named = argv[position + 1]
        elif argument.startswith("--resume="):
            named = argument.partition("=")[2]
    if named == "auto":
        from anyformer.training.resume import find_for  # heavy

        values = parser.parse_args(_with_values(argv, settings))
        view = QuietView() if "--quiet" in argv else PlainView()
        view.line("  looking for a run to go on with …")
        chosen = settings(**{f.name: values[f.name] for f in fields(settings)})
        found = find_for(values["target"], chosen, view)
        named = None if found is None else str(found)
    if named is None:
        return []
    run = run_folder(named)
    stored = run / "settings.yaml"
    if not stored.is_file():
        why = f"{run} has no settings.yaml" if run.is_dir() else "there is no such folder"
        raise SettingsError(f"cannot resume {named}: {why}", fix=runs_beside(run))
    _require_readable(stored)
    return ["--config", str(stored)]


def _require_readable(file: Path) -> None:
    try:
        file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {file} cannot be read", detail=str(error)) from error


def _explained(message: str, command: str, settings: type | None, argv: Sequence[str]) -> SettingsError:
    """jsonargparse's message in ours: what is wrong, with the value, and the way out."""
    hints = get_type_hints(settings) if settings else {}
    flags = [*hints, *(_COMMON if settings else _COMMON[2:])]
    listing = f"anyformer {command} --help lists all flags"
    if found := re.match(r'Parser key "config": File does not exist: \'?(.*?)\'?$', message):
        return SettingsError(f"no settings file {found[1]}", fix=f"anyformer {command} --print_config > settings.yaml")
    if found := re.match(r'Parser key "([\w.]+)":\s+.*(?:Got|Given) value: (.*)', message, re.DOTALL):
        return _wrong_type(found[1], found[2], hints.get(found[1], str), argv)
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        unknown = found[1].partition("=")[0]
        if not unknown.startswith("-"):
            return SettingsError(f"unexpected argument {found[1]!r}", fix='text with spaces needs quotes: "…"')
        return SettingsError(f"{command} has no flag {unknown}", fix=_closest(unknown, flags, "--") or listing)
    if found := re.match(r"Option '([\w.]+)' is not accepted", message):
        what = f"the settings file has an unknown key {found[1]}"
        return SettingsError(what, fix=_closest(found[1], list(hints), "") or listing)
    if found := re.match(r"argument (--\w+): expected one argument", message):
        return SettingsError(f"{found[1]} needs a value", fix=f"a value that begins with - is given as {found[1]}=-…")
    if found := re.match(r"Problems parsing config: (.*)|Unexpected config: (.*)", message, re.DOTALL):
        detail = (found[1] or f"it holds {found[2]!r}").strip()
        return SettingsError("the settings file is not a YAML mapping of settings", detail=detail)
    return SettingsError(message, fix=listing)


def _wrong_type(name: str, value: str, hint: Any, argv: Sequence[str]) -> SettingsError:
    kind = _plain(hint)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    expected = f"one of {', '.join(choices)}" if choices else _KINDS.get(kind, str(kind))
    given = any(argument == f"--{name}" or argument.startswith(f"--{name}=") for argument in argv)
    where = f"--{name}" if given else f"{name} in the settings file"
    fix = f'write {name}: "{value}", in quotes' if value in choices else ""
    return SettingsError(f"{where} is {value!r}; it must be {expected}", fix=fix)


def _closest(name: str, known: Sequence[str], prefix: str) -> str:
    wanted = name.lstrip("-").replace("-", "_")
    begins = [flag for flag in known if wanted and flag.startswith(wanted)]
    near = get_close_matches(wanted, known, n=1) or begins
    return f"did you mean {prefix}{near[0]}?" if near else ""
