"""Typed configuration: dataclasses, filled from YAML and ``key=value`` overrides, checked with the key's full name.

One idiom everywhere: a dataclass states the options and their defaults, a YAML file overrides them, the command line
overrides the file. An unknown key is an error that names the nearest known one. Knows no file format but YAML.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml


class UserError(Exception):
    """What a user can mend: its text names file, line, key or option, what is wrong and the remedy; no bug."""


class ConfigError(UserError, ValueError):
    """A wrong key or value in a config; the message begins with the key's full name."""


def need(holds: object, message: str, error: type[ValueError] = ConfigError) -> None:
    """Raises ``error`` with ``message`` unless ``holds``."""
    if not holds:
        raise error(message)


def needs(*checks: tuple[object, str], error: type[ValueError] = ConfigError) -> None:
    """As ``need`` of each of ``checks`` (what has to hold, what is said otherwise): a line of each that does not."""
    wrong = [message for holds, message in checks if not holds]
    need(not wrong, "\n".join(wrong), error)


def together(*checks: Callable[[], typing.Any]) -> list[typing.Any]:
    """What each of ``checks`` returns. All are made: what several of them refuse is one ConfigError, a line each."""
    found: list[typing.Any] = []
    errors: list[UserError] = []
    for check in checks:
        try:
            found.append(check())
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(map(str, errors))))
    return found


def build(cls: type, values: dict, where: str = "") -> typing.Any:
    """Fill dataclass ``cls`` from ``values``; ``where`` is the key under which they stand, for messages.

    Raises:
        ConfigError: of ``typed``, or values that do not go together.
    """
    kwargs = typed(cls, values, where)
    try:
        return cls(**kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("\n".join(f"{where or 'config'}: {line}" for line in str(error).split("\n"))) from None


def typed(cls: type, values: dict, where: str = "") -> dict:
    """``values`` as the fields of dataclass ``cls`` are typed, each looked at by itself.

    Raises:
        ConfigError: unknown keys (with the nearest known one), missing keys, values of the wrong type: all of them.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'config'}: expected a mapping of keys, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)

    def one(key: str) -> typing.Any:
        if key in fields:
            return convert(values[key], hints[key], join(where, key))
        raise ConfigError(f"{join(where, key)}: unknown key; {nearest(str(key), list(fields), where)}")

    def default(f: dataclasses.Field) -> None:
        has = f.name in values or f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        need(has, f"{join(where, f.name)}: missing, and it has no default")

    given = [partial(one, key) for key in values]
    found = together(*given, *(partial(default, f) for f in fields.values()))
    return dict(zip(values, found[: len(given)], strict=True))


def nearest(word: str, known: Sequence[str], where: str = "", noun: str = "keys") -> str:
    """The remedy for an unknown ``word``: the nearest of the ``known`` ones, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {join(where, near[0])}?" if near else f"known {noun}: {', '.join(known) or 'none'}"


def unknown(key: str, value: typing.Any, known: Sequence[typing.Any]) -> str:
    """What is said of a ``value`` of ``key`` that is none of the ``known`` ones."""
    return f"{key}: {value!r} is unknown; {nearest(str(value), list(map(str, known)), noun='values')}"


def unusable(where: str, what: str, error: Exception) -> Exception:
    """``error``, which came up when ``what`` was built from the mapping ``where``, as a ConfigError of one line.

    Libraries say in exceptions of any kind that a value does not fit. A user's error is one already, and no memory says
    nothing about the config: they stay what they are.
    """
    if isinstance(error, UserError | MemoryError) or "memory" in str(error):
        return error
    said = " ".join(str(error).split())[:300]
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ConfigError(f"{where}: {what} cannot be built from it ({kind}{said}); correct the value that this names")


def join(where: str, key: str) -> str:
    """Full name of ``key`` below ``where``."""
    return f"{where}.{key}" if where else str(key)


def convert(value: typing.Any, hint: typing.Any, key: str) -> typing.Any:
    """``value`` as the annotated type ``hint``; numbers are never guessed from odd strings."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if value == "" and type(None) in args:
            raise ConfigError(f"{key}: it is empty; give a value, or null for none")
        options = [a for a in args if a is not type(None)]
        for option in options:
            try:
                return convert(value, option, key)
            except ConfigError:
                if option is options[-1]:
                    raise
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(unknown(key, value, args))
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, key)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}: expected a list, got {value!r}")
        inner = args[0] if args else typing.Any
        return origin(convert(v, inner, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: expected a mapping, got {value!r}")
        if len(args) < 2:
            return dict(value)
        return {convert(k, args[0], f"{key}, a key"): convert(v, args[1], join(key, k)) for k, v in value.items()}
    return convert_scalar(value, hint, key)


def convert_scalar(value: typing.Any, hint: type, key: str) -> typing.Any:
    """A bool, int, float or str. YAML reads ``1e-3`` as a string, so a float field accepts it."""
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{key}: expected a number, got {value!r}") from None
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{key}: expected {hint.__name__}, got {value!r}")
    if isinstance(value, str):
        need("\0" not in value, f"{key}: {value!r} holds a NUL character, which no name has; write it without")
    return value


class _Loader(yaml.SafeLoader):
    """As ``yaml.safe_load``, but a key stands once in a mapping: the second would silently win."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> typing.Any:
    """A value from YAML; yaml.YAMLError for what is none, a key that stands twice, and what is nested too deep."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except RecursionError:
        raise yaml.YAMLError("lists and mappings are nested too deeply") from None


def read_yaml(path: str | Path) -> dict:
    """A YAML mapping from ``path``.

    Raises:
        ConfigError: missing file, malformed YAML (with its line), or no mapping.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the config must be a mapping of keys")
    return values


def override(values: dict, assignments: list[str]) -> dict:
    """A copy of ``values`` with ``a.b.c=value`` assignments applied; values are read as YAML.

    Raises:
        ConfigError: an assignment without ``=``, or one that goes below a plain value.
    """
    result = merge(values, {})
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if equals and key and not text.strip():
            raise ConfigError(f"{assignment} has no value (an empty variable?); write {key}=null for none")
        if not equals or not key:
            raise ConfigError(f"{assignment!r}: overrides are written key=value, for example train.steps=100")
        node = result
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent} is a plain value, so it has no keys")
        try:
            node[last] = parse_yaml(text)
        except yaml.YAMLError:
            node[last] = text
    return result


def merge(base: dict, extra: dict) -> dict:
    """``base`` with ``extra`` laid over it, mapping by mapping."""
    result = {k: merge(v, {}) if isinstance(v, dict) else v for k, v in base.items()}
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def later(default: typing.Any) -> typing.Any:
    """A field that a dataclass got after its values were first written into files, compared or hashed there: at its
    default ``to_dict`` leaves it out, so that they stay what they were."""
    return dataclasses.field(default=default, metadata={"later": True})


def to_dict(config: typing.Any) -> dict:
    """A dataclass as plain nested dicts and lists, ready for YAML or json."""
    values = ((f, getattr(config, f.name)) for f in dataclasses.fields(config))
    return {f.name: plain(value) for f, value in values if not (f.metadata.get("later") and value == f.default)}


def plain(value: typing.Any) -> typing.Any:
    """Dataclasses as dicts and tuples as lists, so that YAML stays readable."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def at_least(where: str, settings: object, least: float, *names: str) -> None:
    """ConfigError for values below ``least``, infinite or NaN among the fields ``names``; None is left alone."""
    given = ((f"{where}.{name}", value) for name in names if (value := getattr(settings, name)) is not None)
    bound = {True: "finite", False: f"at least {least}"}
    needs(*((least <= v < math.inf, f"{key}: {v}, but it must be {bound[v == math.inf]}") for key, v in given))
