"""What runs inside the sandboxes: a candidate process and a judge process, in two sandboxes of their own.

The candidate process runs the generated program. The judge process runs the tests, and never the program:
where a test calls a function of the program, the judge sends the call through a pipe and gets the result back
as plain data. So the program never sees a test or an expected value, and the verdict is made and reported by
a process that it cannot reach. Exiting early, patching builtins, overriding ``__eq__`` or printing a fake
report all end in a failed test, because nothing the program can do but answer right makes the judge's
``assert`` hold.

Only the standard library is imported, as this file runs as a script in an otherwise empty file system:
``python confined.py candidate|judge JOB``, where JOB is JSON with the file descriptors and the limits.
"""

from __future__ import annotations

import ast
import builtins
import collections
import itertools
import json
import os
import resource
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# A message larger than this is no answer to a test.
MESSAGE_BYTES = 16 << 20
# Types travel by name, so that a test may pass one: remove_datatype((4, 7.7), int).
TYPES = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, type(None))
# Containers that travel by value, with the plain type's own iteration, whatever a subclass does.
CONTAINERS: dict[type, Callable[[Any], Iterator[Any]]] = {
    list: list.__iter__,
    tuple: tuple.__iter__,
    set: set.__iter__,
    frozenset: frozenset.__iter__,
    collections.deque: collections.deque.__iter__,
}
MAKERS = {kind.__name__: kind for kind in CONTAINERS}
# Lazy results (generators, map, zip) are worked out on the candidate's side, up to so many items.
ITEMS = 1_000_000


class RemoteError(Exception):
    """The candidate raised an exception, ended, or answered with something that is no answer."""


# ------------------------------------------------------------------------------------------------- values as
# data


def encode(value: Any, handles: list[Any]) -> Any:
    """Turn ``value`` into JSON: plain data by value, anything else as a handle (its index in ``handles``).

    Subclasses of plain types (Counter, named tuples, a ``str`` with an ``__eq__`` of its own) travel as the
    plain type, so that no behaviour of the candidate's reaches the judge.
    """
    scalar = encode_scalar(value)
    if scalar is not None or value is None:
        return scalar
    if isinstance(value, dict):
        pairs = [[encode(key, handles), encode(item, handles)] for key, item in dict.items(value)]
        return ["dict", pairs]
    for kind, items_of in CONTAINERS.items():
        if isinstance(value, kind):
            return [kind.__name__, [encode(item, handles) for item in items_of(value)]]
    if isinstance(value, Iterator):
        return ["iterator", [encode(item, handles) for item in itertools.islice(value, ITEMS)]]
    handles.append(value)
    return ["handle", len(handles) - 1]


def encode_scalar(value: Any) -> Any:
    """Turn a truth value, a text, a number, bytes or a builtin type into JSON; None for anything else."""
    if value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        # Hexadecimal, because Python refuses to read decimal numbers of more than 4300 digits.
        return ["int", hex(int.__int__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["bytearray" if isinstance(value, bytearray) else "bytes", bytes(value).hex()]
    if isinstance(value, type) and value in TYPES:
        return ["type", TYPES.index(value)]
    return None


def decode(data: Any, resolve: Any) -> Any:
    """Turn the output of ``encode`` back into a value; ``resolve(index)`` gives what a handle stands for."""
    if not isinstance(data, list):
        return data
    kind, content = data[0], data[1]
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(float.fromhex(content), float.fromhex(data[2]))
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind)(bytes.fromhex(content))
    if kind == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}
    if kind == "type":
        return TYPES[content]
    if kind == "handle":
        return resolve(content)
    make: Callable[[Any], Any] = iter if kind == "iterator" else MAKERS[kind]
    return make([decode(item, resolve) for item in content])


# ---------------------------------------------------------------------------------------------------- the
# candidate


def run_candidate(job: dict[str, Any]) -> None:
    """Run the program in ``job``, then answer the judge's requests until it closes the pipe."""
    requests = os.fdopen(job["requests"], "r", encoding="ascii")
    replies = os.fdopen(job["replies"], "w", encoding="ascii")
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    sys.setrecursionlimit(job["recursion"])
    handles: list[Any] = []
    failure: str | None = None
    try:
        exec(compile(job["source"], "<program>", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are answers of the program, too
        failure = describe(error)
    for line in requests:
        reply: list[Any]
        try:
            if failure is not None:
                raise RemoteError(failure)
            reply = ["value", encode(perform(json.loads(line), module, handles), handles)]
        except BaseException as error:
            reply = ["error", str(error) if isinstance(error, RemoteError) else describe(error)]
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def perform(request: list[Any], module: types.ModuleType, handles: list[Any]) -> Any:
    """Do one request: find a name, call a handle, read or set an attribute."""
    request = decode(request, handles.__getitem__)
    action, arguments = request[0], request[1:]
    if action == "find":
        return {name: getattr(module, name) for name in arguments[0] if hasattr(module, name)}
    if action == "call":
        return arguments[0](*arguments[1], **arguments[2])
    if action == "get":
        return getattr(*arguments)
    return setattr(*arguments)


def describe(error: BaseException) -> str:
    """Say an exception in a line of at most 200 characters, whatever its own ``__str__`` does."""
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return "an exception that cannot be shown"


# -------------------------------------------------------------------------------------------------------- the
# judge


class Connection:
    """The judge's end of the pipes to the candidate."""

    def __init__(self, requests: int, replies: int) -> None:
        """Take the file descriptors to write requests to and to read replies from."""
        self.requests = os.fdopen(requests, "w", encoding="ascii")
        self.replies = os.fdopen(replies, "r", encoding="ascii", errors="replace")

    def ask(self, *request: Any) -> Any:
        """Send a request, and give the value that comes back; raises RemoteError where none does."""
        try:
            self.requests.write(json.dumps(encode_for_candidate(list(request))) + "\n")
            self.requests.flush()
            line = self.replies.readline(MESSAGE_BYTES)
        except OSError as error:
            raise RemoteError("the program ended before it answered") from error
        if not line:
            raise RemoteError("the program ended before it answered")
        try:
            verdict, content = json.loads(line)
            value = decode(content, lambda index: Remote(self, index)) if verdict == "value" else None
        except (ValueError, KeyError, IndexError, TypeError, RecursionError, OverflowError) as error:
            raise RemoteError("the program wrote something into the pipe that is no answer") from error
        if verdict != "value":
            raise RemoteError(str(content)[:200])
        return value


class Remote:
    """Something that lives in the candidate's process. It can be called and its attributes used.

    It equals nothing but itself, and has no length and no items: only plain data can satisfy a comparison.
    """

    __slots__ = ("_connection", "_index")

    def __init__(self, connection: Connection, index: int) -> None:
        """Stand for the candidate's handle number ``index``."""
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_index", int(index))

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Call it there."""
        return self._connection.ask("call", self, list(positional), named)

    def __getattr__(self, name: str) -> Any:
        """Read its attribute there."""
        return self._connection.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set its attribute there."""
        self._connection.ask("set", self, name, value)


def encode_for_candidate(value: Any) -> Any:
    """Encode a request; a Remote goes back as the handle it stands for."""
    if isinstance(value, Remote):
        return ["handle", value._index]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [encode_for_candidate(item) for item in value]]
    if isinstance(value, dict):
        return [
            "dict",
            [[encode_for_candidate(key), encode_for_candidate(item)] for key, item in value.items()],
        ]
    handles: list[Any] = []
    data = encode(value, handles)
    if handles:
        raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent to the program")
    return data


def judge(job: dict[str, Any]) -> list[Any]:
    """Run the setup and the tests in ``job`` against the candidate; return ``[passed, reason]``."""
    connection = Connection(job["requests"], job["replies"])
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(job["imports"], "<imports>", "exec"), namespace)
        names = names_to_find(job, namespace)
        found = connection.ask("find", names)
        # What was not asked for is not taken, or an answer with a "sorted" of its own could bend the tests.
        namespace.update({name: found[name] for name in names if name in found})
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
    except Exception as error:
        return [False, explain(error)]
    for number, test in enumerate(job["tests"], start=1):
        try:
            exec(compile(test, f"<test {number}>", "exec"), namespace)
        except Exception as error:
            return [False, f"test {number}: {explain(error)}"]
    return [True, "passed"]


def names_to_find(job: dict[str, Any], namespace: dict[str, Any]) -> list[str]:
    """List the names that the tests take from the program.

    Where the caller does not say, these are the names the tests use and neither Python nor the tests' own
    imports define. A builtin that the program redefines keeps its meaning in the tests, or ``set = len``
    could fake a pass.
    """
    trees = [ast.parse(text) for text in (job["setup"], *job["tests"])]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if job["names"] is not None:
        return sorted(used.intersection(job["names"]))
    return sorted(name for name in used if name not in namespace and not hasattr(builtins, name))


def explain(error: Exception) -> str:
    """Say why a test failed."""
    if isinstance(error, RemoteError):
        return str(error)
    return "the assertion does not hold" if isinstance(error, AssertionError) else describe(error)


# ------------------------------------------------------------------------------------------------------ the
# process


def confine_myself(limits: dict[str, Any]) -> None:
    """Give up the super-user's rights and set the limits of this process and its children, for good."""
    for name, value in limits["resources"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if limits["user"] is not None:
        # Root is exempt from the limit on processes, so a root caller has this run as a user that owns
        # nothing.
        os.setgroups([])
        os.setresgid(limits["user"], limits["user"], limits["user"])
        os.setresuid(limits["user"], limits["user"], limits["user"])


def main(role: str, job_path: str) -> None:
    """Read the job, shut the doors, and play the role."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    confine_myself(job["limits"])
    if role == "candidate":
        run_candidate(job)
    else:
        print(json.dumps(judge(job)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
