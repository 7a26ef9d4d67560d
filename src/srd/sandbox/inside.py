"""What runs in the two processes that judge a program: a candidate, which runs it, and a judge, which runs the tests.

The judge never runs the program: where a test calls a function of the program, the judge sends the call through a
socket and gets the result back as plain data. So the program never sees a test or an expected value, and the verdict
is made and reported by a process that it cannot reach. Exiting early, patching builtins or modules, overriding
``__eq__`` or printing a fake report all end in a failed test, because nothing the program can do but answer right
makes the judge's ``assert`` hold.

Both sides speak the same protocol (``Peer``), a JSON message a line: ``["ask", action, arguments]`` is answered by
``["value", result, changes]`` or ``["error", class, arguments, description]``, and before it answers, the other side
may ask in turn (a test has passed it a function). What is no plain data stays where it is, and the other side gets a
``Remote`` that stands for it.

Only the standard library is imported, as little of it as possible. The parent starts this text as
``python -I -S -c TEXT candidate|judge SETTINGS``, where SETTINGS is JSON.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import itertools
import json
import operator
import os
import resource
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# A message larger than this is no answer to a test.
MESSAGE_BYTES = 16 << 20
# Lazy results (generators, map, zip) are worked out where they are, up to so many items.
ITEMS = 1_000_000
# Integers below it are written as JSON numbers, larger ones in hexadecimal: Python reads no 4300 decimal digits.
SMALL = 1 << 63

# Containers that travel by value, with the plain type's own iteration, whatever a subclass does.
FROZEN: dict[type, Callable[[Any], Iterator[Any]]] = {tuple: tuple.__iter__, frozenset: frozenset.__iter__}
# Those that can be changed travel by value and back: changes to an argument reach the caller's object.
MUTABLE: dict[type, Callable[[Any], Any]] = {
    list: list.__iter__,
    collections.Counter: dict.items,
    collections.OrderedDict: collections.OrderedDict.items,
    dict: dict.items,
    set: set.__iter__,
    bytearray: bytearray.__iter__,
    collections.deque: collections.deque.__iter__,
}
KINDS = {kind.__name__: kind for kind in (*FROZEN, *MUTABLE)}
# Values that are made from their parts again (a part that is a method is called).
PARTS: dict[str, tuple[str, ...]] = {
    "builtins.complex": ("real", "imag"),
    "builtins.range": ("start", "stop", "step"),
    "builtins.slice": ("start", "stop", "step"),
    "fractions.Fraction": ("numerator", "denominator"),
    "decimal.Decimal": ("__str__",),
    "datetime.datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    "datetime.date": ("year", "month", "day"),
    "datetime.time": ("hour", "minute", "second", "microsecond"),
    "datetime.timedelta": ("days", "seconds", "microseconds"),
}
# What the program may hand to the judge by name: types of plain data, and exceptions.
_BUILTIN = [bool, int, float, str, bytes, *KINDS.values()]
_BUILTIN += [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)]
PLAIN_TYPES = {*PARTS, *(f"{kind.__module__}.{kind.__qualname__}" for kind in _BUILTIN)}

# Operators that an object of a class of the other side's may have, and what does them there.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "__len__": len,
    "__bool__": bool,
    "__str__": str,
    "__repr__": repr,
    "__int__": int,
    "__float__": float,
    "__abs__": abs,
    "__iter__": iter,
    "__reversed__": reversed,
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
}
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
_FUNCTIONS |= {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in (*_BINARY, "eq", "ne", "lt", "le", "gt", "ge", "neg", "getitem", "setitem", "delitem", "contains")
}
_FUNCTIONS |= {
    f"__r{name}__": lambda own, other, do=_FUNCTIONS[f"__{name}__"]: do(other, own)
    for name in _BINARY
}  # fmt: skip
OPERATORS = tuple(_FUNCTIONS)


class RemoteError(BaseException):
    """The other side ended, or answered with something that is no answer. ``except Exception`` of a test lets it by."""


class Remote:
    """Something that lives on the other side. It can be called, and its attributes used.

    It equals nothing but itself, and has no length and no items: only plain data can satisfy a comparison. The
    operators of a class of the program's own are added by ``Peer.remote_class`` where the tests need them.
    """

    __slots__ = ("_index", "_peer")

    def __init__(self, peer: Peer, index: int) -> None:
        """Stand for the other side's object number ``index``."""
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_index", index)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Call it there."""
        return self._peer.ask("call", self, list(positional), named)

    def __getattr__(self, name: str) -> Any:
        """Read its attribute there."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set its attribute there."""
        self._peer.ask("set", self, name, value)


class Shared:
    """The changeable containers of one request and its answer: both sides count them in the same order."""

    def __init__(self) -> None:
        """Begin with none."""
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def add(self, value: Any) -> int:
        """Give a container its number; ``objects`` keeps it alive, so that its id stays its own."""
        self.objects.append(value)
        self.numbers[id(value)] = len(self.objects) - 1
        return len(self.objects) - 1


class Peer:
    """One end of the socket between judge and candidate."""

    def __init__(self, receive: Any, send: Any, operators: tuple[str, ...] = OPERATORS) -> None:
        """Take the streams, and the operators that a ``Remote`` of this side has."""
        self.receive, self.send = receive, send
        self.exports: list[Any] = []
        self.export_numbers: dict[int, int] = {}
        self.remotes: dict[int, Any] = {}
        self.broken: str | None = None
        self.used: set[str] = set()
        forwarded = {name: _forwarded(name) for name in operators}
        self.remote_class = type("Remote", (Remote,), {"__slots__": (), **forwarded, "__hash__": Remote.__hash__})

    # ---------------------------------------------------------------------------------------------- messages

    def ask(self, action: str, *arguments: Any) -> Any:
        """Have the other side do something, and return what comes of it; its exceptions are raised here."""
        shared = Shared()
        self._write(["ask", action, self.encode(list(arguments), shared)])
        while True:
            message = self._read()
            try:
                kind, *content = message
                if kind == "ask":
                    self.answer(content)
                    continue
                if kind == "value":
                    result = self.decode(content[0], shared)
                    for number, items in content[1]:
                        _refill(shared.objects[number], [self.decode(item, shared) for item in items])
                    return result
                error = self._error(*content)
            except Exception as broken:
                raise self._break("the program wrote something into the socket that is no answer") from broken
            raise error

    def answer(self, request: list[Any]) -> None:
        """Do what the other side asks for, and send what comes of it."""
        shared = Shared()
        try:
            action, arguments = request
            decoded = self.decode(arguments, shared)
            before = [self._content(value, shared) for value in shared.objects]
            reply = ["value", self.encode(self.perform(action, *decoded), shared), []]
            for number, items in enumerate(before):
                now = self._content(shared.objects[number], shared)
                if now != items:
                    reply[2].append([number, now])
        except BaseException as error:  # SystemExit and KeyboardInterrupt are answers of the program, too
            reply = self._error_reply(error)
        self._write(reply)

    def serve(self) -> None:
        """Answer until the other side is gone."""
        while line := self.receive.readline():
            self.answer(json.loads(line)[1:])

    def _write(self, message: Any) -> None:
        line = json.dumps(message)
        try:
            self.send.write(line + "\n")
            self.send.flush()
        except OSError as error:
            raise self._break("the program ended before it answered") from error

    def _read(self) -> Any:
        try:
            line = self.receive.readline(MESSAGE_BYTES)
        except OSError:
            line = ""
        if not line:
            raise self._break("the program ended before it answered")
        try:
            return json.loads(line)
        except Exception as error:
            raise self._break("the program wrote something into the socket that is no answer") from error

    def _break(self, reason: str) -> RemoteError:
        self.broken = self.broken or reason
        return RemoteError(reason)

    def _error_reply(self, error: BaseException) -> list[Any]:
        kind, arguments = None, None
        if isinstance(error, Exception):
            with_plain_arguments = all(isinstance(part, str | int | float | bytes) for part in error.args)
            kind = self.encode(type(error), Shared())
            arguments = self.encode(list(error.args) if with_plain_arguments else [describe(error)], Shared())
        return ["error", kind, arguments, describe(error)]

    def _error(self, kind: Any, arguments: Any, description: str) -> BaseException:
        """Make the exception that the other side raised: of the same builtin class, or of a class of its own."""
        text = str(description)[:200]
        if kind is None:
            return self._break(text)
        cls = self.decode(kind, Shared())
        try:
            error = cls(*self.decode(arguments, Shared()))
        except TypeError:  # such as UnicodeDecodeError, which wants five arguments
            error = cls.__mro__[1](text)
        error.description = text
        return error

    # ------------------------------------------------------------------------------------------ values as data

    def encode(self, value: Any, shared: Shared) -> Any:
        """Turn ``value`` into JSON: plain data by value, anything else as a number that stands for it.

        Subclasses of plain types (a ``str`` with an ``__eq__`` of its own) travel as the plain type, so that no
        behaviour of the candidate's reaches the judge.
        """
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Remote):
            return ["yours", value._index]
        for kind, write in SCALARS.items():
            if isinstance(value, kind):
                return write(value)
        for kind in MUTABLE:
            if isinstance(value, kind):
                if id(value) in shared.numbers:
                    return ["same", shared.numbers[id(value)]]
                number = shared.add(value)
                return ["new", number, kind.__name__, self._content(value, shared)]
        return self._encode_rest(value, shared)

    def _content(self, value: Any, shared: Shared) -> list[Any]:
        items = next(items for kind, items in MUTABLE.items() if isinstance(value, kind))
        return [self.encode(item, shared) for item in items(value)]

    def _encode_rest(self, value: Any, shared: Shared) -> Any:
        for kind, items in FROZEN.items():
            if isinstance(value, kind):
                content = [self.encode(item, shared) for item in items(value)]
                fields = getattr(type(value), "_fields", None) if kind is tuple else None
                return ["named", type(value).__name__, list(fields), content] if fields else [kind.__name__, content]
        for kind in type(value).__mro__:
            name = _name(kind)
            if name in PARTS:
                parts = [getattr(value, part) for part in PARTS[name]]
                return ["made", name, [self.encode(part() if callable(part) else part, shared) for part in parts]]
        if self.goes_by_name(value):
            return ["global", _name(value)]
        if isinstance(value, Iterator):
            return ["iterator", [self.encode(item, shared) for item in itertools.islice(value, ITEMS)]]
        return self._export(value)

    def _export(self, value: Any) -> list[Any]:
        self.check_export(value)
        if id(value) not in self.export_numbers:
            self.exports.append(value)
            self.export_numbers[id(value)] = len(self.exports) - 1
        number = self.export_numbers[id(value)]
        if isinstance(value, type) and issubclass(value, Exception):
            base = next(_name(base) for base in value.__mro__ if _name(base) in PLAIN_TYPES)
            return ["exception", number, value.__name__, base]
        return ["mine", number]

    def decode(self, data: Any, shared: Shared) -> Any:
        """Turn the output of the other side's ``encode`` back into a value."""
        if not isinstance(data, list):
            return data
        tag, content = data[0], data[1]
        if tag == "new":
            value = KINDS[data[2]]()
            if shared.add(value) != content:
                raise ValueError("the containers are counted in another order")
            _refill(value, [self.decode(item, shared) for item in data[3]])
            return value
        if tag in ("tuple", "frozenset"):
            return KINDS[tag](self.decode(item, shared) for item in content)
        return getattr(self, f"_decode_{tag}")(*data[1:], shared)

    def _decode_int(self, digits: str, shared: Shared) -> int:
        return int(digits, 16)

    def _decode_bytes(self, digits: str, shared: Shared) -> bytes:
        return bytes.fromhex(digits)

    def _decode_same(self, number: int, shared: Shared) -> Any:
        return shared.objects[number]

    def _decode_named(self, name: str, fields: list[str], items: list[Any], shared: Shared) -> Any:
        return collections.namedtuple(name, fields)(*(self.decode(item, shared) for item in items))

    def _decode_made(self, name: str, parts: list[Any], shared: Shared) -> Any:
        if name not in PARTS:
            raise ValueError(f"{name} is not made from parts")
        return _found(name)(*(self.decode(part, shared) for part in parts))

    def _decode_global(self, name: str, shared: Shared) -> Any:
        if not self.takes_by_name(name):
            raise ValueError(f"{name} is not taken from the other side")
        return _found(name)

    def _decode_iterator(self, items: list[Any], shared: Shared) -> Iterator[Any]:
        return iter([self.decode(item, shared) for item in items])

    def _decode_yours(self, number: int, shared: Shared) -> Any:
        return self.exports[number]

    def _decode_mine(self, number: int, shared: Shared) -> Any:
        if number not in self.remotes:
            self.remotes[number] = self.remote_class(self, int(number))
        return self.remotes[number]

    def _decode_exception(self, number: int, name: str, base: str, shared: Shared) -> Any:
        if number not in self.remotes:
            self.remotes[number] = type(name, (self._decode_global(base, shared),), {})
        return self.remotes[number]

    # -------------------------------------------------------------------------------------------- what is done

    def perform(self, action: str, *arguments: Any) -> Any:
        """Do one request: call, read or set an attribute, apply an operator."""
        if action == "call":
            return arguments[0](*arguments[1], **arguments[2])
        if action == "operate":
            return _FUNCTIONS[arguments[0]](*arguments[1:])
        return {"get": getattr, "set": setattr}[action](*arguments)

    def goes_by_name(self, value: Any) -> bool:
        """Whether the other side finds this by name, as it is part of Python."""
        return isinstance(value, type) and _name(value) in PLAIN_TYPES and _found(_name(value)) is value

    def takes_by_name(self, name: str) -> bool:
        """Whether the other side may name this."""
        return True

    def check_export(self, value: Any) -> None:
        """Raise TypeError if the other side must not hold this."""


def _forwarded(name: str) -> Callable[..., Any]:
    def operate(self: Remote, *arguments: Any) -> Any:
        # Nothing that the other side says makes one of its objects equal to plain data.
        if name in ("__eq__", "__ne__") and not isinstance(arguments[0], Remote):
            return NotImplemented
        self._peer.used.add(name)
        return self._peer.ask("operate", name, self, *arguments)

    return operate


def _encode_int(value: int) -> Any:
    value = int.__int__(value)
    return value if -SMALL < value < SMALL else ["int", hex(value)]


def _encode_bytes(value: bytes) -> list[str]:
    return ["bytes", bytes.hex(value)]


def _refill(value: Any, items: list[Any]) -> None:
    """Give a changeable container new content."""
    value.clear()
    if isinstance(value, collections.Counter):
        dict.update(value, items)  # its own adds
    elif isinstance(value, dict | set):
        value.update(items)
    else:
        value.extend(items)


SCALARS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    float: float.__float__,
    int: _encode_int,
    bytes: _encode_bytes,
}


def _name(value: Any) -> str:
    """Name a class or function, such as ``fractions.Fraction`` or ``builtins.str.upper``."""
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    return f"{module}.{getattr(value, '__qualname__', None)}"


def _found(name: str) -> Any:
    """Import what is called so, such as ``fractions.Fraction``."""
    module, _, path = name.partition(".")
    return operator.attrgetter(path)(importlib.import_module(module))


def describe(error: BaseException) -> str:
    """Say an exception in a line of at most 200 characters, whatever its own ``__str__`` does."""
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return "an exception that cannot be shown"


# ---------------------------------------------------------------------------------------------- the candidate


class Candidate(Peer):
    """Runs a program, and does what the judge asks for."""

    module: types.ModuleType

    def perform(self, action: str, *arguments: Any) -> Any:
        """Run a new program, find some of its names, or do what both sides do."""
        if action == "load":
            self.exports, self.export_numbers, self.remotes = [], {}, {}
            self.module = sys.modules["candidate"] = types.ModuleType("candidate")
            exec(compile(arguments[0], "<program>", "exec"), self.module.__dict__)
            return None
        if action == "find":
            return {name: getattr(self.module, name) for name in arguments[0] if hasattr(self.module, name)}
        return super().perform(action, *arguments)


# -------------------------------------------------------------------------------------------------- the judge


class Judge(Peer):
    """Runs the tests. The candidate can reach nothing here but what a test has passed to the program."""

    def __init__(self, receive: Any, send: Any, job: dict[str, Any]) -> None:
        """Take the streams and the tests."""
        super().__init__(receive, send, OPERATORS if job["operators"] is None else tuple(job["operators"]))
        self.job = job
        self.namespace: dict[str, Any] = {"__name__": "tests"}

    def verdict(self) -> list[Any]:
        """Run setup and tests against the candidate; return whether all passed, why not, and the operators used."""
        place = ""
        try:
            self.ask("load", self.job["source"])
            self._run("imports")
            names = names_to_find(self.job, self.namespace)
            found = self.ask("find", names)
            # What was not asked for is not taken, or an answer with a "sorted" of its own could make the tests pass.
            self.namespace.update({name: found[name] for name in names if name in found})
            self._run("setup")
            for number, test in enumerate(self.job["tests"], start=1):
                place = f"test {number}: "
                exec(compile(test, f"<test {number}>", "exec"), self.namespace)
            if self.broken:  # a bare `except:` of a test hid it
                raise RemoteError(self.broken)
        except BaseException as error:
            return [False, place + explain(error), []]
        return [True, "passed", sorted(self.used)]

    def _run(self, part: str) -> None:
        exec(compile(self.job[part], f"<{part}>", "exec"), self.namespace)

    def perform(self, action: str, *arguments: Any) -> Any:
        """Call a function that a test has passed, or use an object of a class that the tests define; nothing else.

        Attributes with an underscore lead to the tests' own namespace, and so to the expected values.
        """
        if action == "call":
            if id(arguments[0]) not in self.export_numbers:
                raise TypeError("the tests have not passed this to the program")
        elif action == "operate":
            if not any(map(self._is_own, arguments)):
                raise TypeError("the tests have not passed this to the program")
        elif not self._is_own(arguments[0]) or str(arguments[1]).startswith("_"):
            raise AttributeError("this is the tests' own")
        return super().perform(action, *arguments)

    def _is_own(self, value: Any) -> bool:
        """Whether this is an object of a class that the tests define."""
        return type(value).__module__ == "tests"

    def check_export(self, value: Any) -> None:
        """Let functions and classes of the tests, their objects, and methods of these and of containers go over."""
        own = getattr(value, "__module__", None) == "tests" and isinstance(value, types.FunctionType | type)
        bound = (
            getattr(value, "__self__", None) if isinstance(value, types.MethodType | types.BuiltinMethodType) else None
        )
        if not (own or type(bound) in MUTABLE or self._is_own(bound) or self._is_own(value)):
            raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent to the program")

    def goes_by_name(self, value: Any) -> bool:
        """Types and functions of the standard library are found by name: the candidate uses its own."""
        name = _name(value)
        if not callable(value) or name.partition(".")[0] not in sys.stdlib_module_names:
            return False
        try:
            return _found(name) is value
        except (ImportError, AttributeError):
            return False

    def takes_by_name(self, name: str) -> bool:
        """Only types of plain data and exceptions are taken from the candidate by name."""
        return name in PLAIN_TYPES


def names_to_find(job: dict[str, Any], namespace: dict[str, Any]) -> list[str]:
    """List the names that the tests take from the program, and import the modules that they use.

    Where the caller does not say, these are the names the tests use and neither Python nor the tests' own imports
    define. Builtins and modules keep their meaning in the tests, whatever the program calls so, or ``set = len`` could
    fake a pass.
    """
    import ast  # the candidate needs none

    nodes = [node for text in (job["setup"], *job["tests"]) for node in ast.walk(ast.parse(text))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    owners = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    known = {*namespace, *(job["names"] or ())}
    for name in owners.intersection(sys.stdlib_module_names) - called - known:
        namespace[name] = importlib.import_module(name)
    if job["names"] is not None:
        return sorted(used.intersection(job["names"]))
    return sorted(name for name in used if name not in namespace and not hasattr(builtins, name))


def explain(error: BaseException) -> str:
    """Say why a test failed."""
    if isinstance(error, RemoteError):
        return str(error)
    description = getattr(error, "description", None)
    if description:
        return str(description)
    return "the assertion does not hold" if isinstance(error, AssertionError) else describe(error)


# ------------------------------------------------------------------------------------------------ the process


def limit_myself(resources: dict[str, int]) -> None:
    """Set the limits of this process and its children, for good."""
    for name, value in resources.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def close_to_others() -> None:
    """Keep other processes of the same user from reading this one's memory and files (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def give_up_capabilities() -> None:
    """Leave a process of root's no power over other processes of root's (Linux)."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def main(role: str, settings: dict[str, Any]) -> None:
    """Shut the doors, and play the role."""
    if settings["unconfined"] and sys.platform == "linux":
        close_to_others() if role == "judge" else give_up_capabilities()
    limit_myself(settings["resources"])
    receive = os.fdopen(settings["socket"], "r", encoding="ascii", errors="replace", closefd=False)
    send = os.fdopen(settings["socket"], "w", encoding="ascii")
    if role == "candidate":
        Candidate(receive, send).serve()
        return
    report = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the tests print is no verdict
    print("ready", file=report, flush=True)
    for job in json.load(sys.stdin):
        print(json.dumps(Judge(receive, send, job).verdict()), file=report, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
