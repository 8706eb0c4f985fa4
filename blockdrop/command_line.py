"""A dataclass as a command line: flat flags, in boxes of --help that say what belongs together.

A config class may name by `FIRST` the flags that a newcomer needs, and by `GROUPS` the boxes of the others. That
is about the help alone: no flag has a prefix, and the object has all of them as its attributes.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro

from blockdrop.errors import BlockdropError
from blockdrop.ranges import Range, declared_rules, types_of

Config = TypeVar("Config")
TyroField = tuple[str, Any, Any]
"""As `dataclasses.make_dataclass` takes them."""
METAVARS = {str: "STR", int: "INT", float: "FLOAT"}


def parse_flags(
    config_class: type[Config],
    arguments: Sequence[str],
    prog: str | None = None,
    description: str | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> Config:
    """The config that a command line stands for.

    Args:
        choices: values that --help names for a flag whose type doesn't.
    Raises:
        SystemExit: --help was asked for and is printed, or tyro has said on stderr what is wrong.
        BlockdropError: no config may have these flags.
    """
    flags = tyro_fields(config_class, arguments, choices or {})
    values = _parsed_alone(flags, arguments)
    if values is None:
        shown: list[Any] = []
        for number, (title, names) in enumerate(boxes(config_class).items()):
            own = [flags[name] for name in names]
            if title:
                box = _made(f"Box{number}", own)
                own = [(f"box{number}", Annotated[box, tyro.conf.arg(name=title)], dataclasses.field())]
            shown += own
        parsed: Any = tyro.cli(
            _made("CommandLine", shown), args=list(arguments), prog=prog, description=description,
            use_underscores=True,
        )  # fmt: skip
        values = {}
        for name, value in vars(parsed).items():
            values |= {name: value} if name in flags else vars(value)
    return config_class(**{name: _at_home(value) for name, value in values.items()})


def _parsed_alone(flags: Mapping[str, TyroField], arguments: Sequence[str]) -> dict[str, Any] | None:
    """The values of all flags. Tyro sees only those that the command line names, as it takes its time for each.
    None where it must see all of them: for --help, and for a flag or a value that is wrong."""
    forms = {form: name for name in flags for form in (name, f"no_{name}")}
    words = flag_words(arguments)
    values = {name: field.default for name, _, field in flags.values()}
    named = {forms[word] for word in words if word in forms}
    lacking = [name for name, value in values.items() if value is dataclasses.MISSING and name not in named]
    if "-h" in arguments or lacking or not all(word in forms for word in words):
        return None
    command_line = _made("CommandLine", [flags[name] for name in flags if name in named])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it complains again when it has seen all flags
            return values | vars(tyro.cli(command_line, args=list(arguments), use_underscores=True))
    except SystemExit:
        return None


def _at_home(value: Any) -> Any:
    """A path that begins with ~ as the shell would give it: it leaves --flag=~/x as it is."""
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _made(name: str, fields: Sequence[TyroField]) -> type:
    """A dataclass made at run time, marked so that tyro doesn't look for its source: it would read the file of
    another module for it, for each flag."""
    made = dataclasses.make_dataclass(name, fields, kw_only=True)
    made.__module__ = "builtins"
    return made


def boxes(config_class: type) -> dict[str, list[str]]:
    """The flags in the order of --help, by the title of their box; "" is the first one's."""
    rest = [field.name for field in dataclasses.fields(config_class)]
    found = {"": [name for name in getattr(config_class, "FIRST", rest) if name in rest]}
    groups = [vars(parent).get("GROUPS", {}) for parent in config_class.__mro__]
    for title in itertools.chain(*groups):  # a command's own boxes before those of all commands
        members = [name for group in reversed(groups) for name in group.get(title, ())]
        found.setdefault(
            title, [name for name in dict.fromkeys(members) if name in rest and name not in found[""]]
        )
    shown = {name for names in found.values() for name in names}
    found["other"] = [name for name in rest if name not in shown]
    return {title: names for title, names in found.items() if names}


def tyro_fields(
    config_class: type, arguments: Sequence[str], choices: Mapping[str, Sequence[str]]
) -> dict[str, TyroField]:
    """By name what `make_dataclass` wants of a flag: its name, its type with what tyro is to show, its default."""
    recipes = getattr(config_class, "RECIPES", None)
    recipe = value_of("recipe", arguments) if recipes else None
    of_recipe = {} if recipe is None else config_class.recipe_flags(recipe)  # type: ignore[attr-defined]
    named = {**choices, "recipe": [*recipes]} if recipes else choices
    texts, hints, rules = help_texts(config_class), types_of(config_class), declared_rules(config_class)
    found = {}
    for flag in dataclasses.fields(config_class):
        name, default = flag.name, of_recipe.get(flag.name, flag.default)
        ranges = dict.fromkeys(str(rule) for rule in rules.get(name, ()) if isinstance(rule, Range) and str(rule))
        value = " ".join(map(str, default)) if isinstance(default, tuple) else default
        shown = f"(default{f' of {recipe}' if name in of_recipe else ''}: {value})"
        hidden = name not in of_recipe and (default in (None, ()) or name in choices)
        appearance = tyro.conf.arg(
            prefix_name=False,
            help=" ".join([texts.get(name, ""), *(f"Range: {words}." for words in ranges)]),
            metavar=f"{{{','.join(named[name])}}}" if name in named else _metavar(hints[name]),
            help_behavior_hint=None if default is dataclasses.MISSING else "" if hidden else shown,
        )
        field = dataclasses.field() if default is dataclasses.MISSING else dataclasses.field(default=default)
        found[name] = (name, Annotated[hints[name], appearance], field)
    return found


def _metavar(hint: Any) -> str | None:
    """What stands for the value of a flag that may be None, which only --help's default shows; else tyro's own."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType not in get_args(hint) or len(kinds) != 1:
        return None
    (kind,) = kinds
    return f"{{{','.join(get_args(kind))}}}" if get_origin(kind) is Literal else METAVARS.get(kind)


@functools.cache
def help_texts(config_class: type) -> dict[str, str]:
    """The text under each field in its class's source; that of a field without one is its parent's."""
    found: dict[str, str] = {}
    for parent in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(parent):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag on a command line that isn't parsed yet."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", nargs="?")
    return getattr(parser.parse_known_args(arguments)[0], flag)


def flag_words(arguments: Sequence[str]) -> list[str]:
    """The flags on a command line that isn't parsed yet, as fields are spelled."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]


# ---- commands of several config classes


def choose_class(
    config_class: type[Config] | Mapping[str, type[Config]], arguments: Sequence[str], flag: str
) -> tuple[type[Config], list[str]]:
    """Of several config classes the one whose name --`flag`, or the command line's first word, gives.

    Returns:
        The class, and the command line with --`flag`. Where nothing names one, and --help is asked for, the class
        that all derive from.
    Raises:
        BlockdropError: the command line names none of them, or has a flag that only others have.
    """
    if not isinstance(config_class, Mapping):
        return config_class, list(arguments)
    if arguments and arguments[0] in config_class:
        arguments = [f"--{flag}", *arguments]
    name, names = value_of(flag, arguments), ", ".join(config_class)
    if name is None:
        if not {"-h", "--help"} & {*arguments}:
            raise BlockdropError(f"--{flag}: choose {names}")
        return _common_class(config_class.values()), list(arguments)
    if name not in config_class:
        raise BlockdropError(f"invalid choice {name!r} for argument '--{flag}'; choose {names}")
    words = flag_words(arguments)
    given = [form for word in words for form in (word, word.removeprefix("no_"))]
    refuse_flags_of_others(config_class, name, given)
    return config_class[name], list(arguments)


def _common_class(classes: Iterable[type[Config]]) -> type[Config]:
    first, *others = classes
    return next(parent for parent in first.__mro__ if all(issubclass(other, parent) for other in others))


def refuse_flags_of_others(classes: Mapping[str, type], name: str, flags: Iterable[str]) -> None:
    """Raises `BlockdropError` for the first flag that the class of that name doesn't have, but others do."""
    owners: dict[str, list[str]] = {}
    for owner, config_class in classes.items():
        for field in dataclasses.fields(config_class):
            owners.setdefault(field.name, []).append(owner)
    for flag in flags:
        if flag in owners and name not in owners[flag]:
            raise BlockdropError(f"--{flag}: means nothing to {name}, only to {', '.join(owners[flag])}")
