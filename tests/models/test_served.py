"""A served model: what it says and writes, in every way of asking; busy and wrong servers; keys that stay secret."""

from __future__ import annotations

import email.utils
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from srd.base.errors import RunError, UserError
from srd.models.engines.endpoint import ServedWriter
from srd.models.generation import Decoding, generate_tokens
from srd.models.served import client as served_client
from srd.models.served.client import SURROUNDINGS, Address, Client
from srd.models.served.endpoint import Endpoint
from srd.models.served.journal import Journal
from srd.recipe.schema import TeacherConfig
from tests.served import Reply, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

KEY = "sk-0123456789abcdef"
TOKENIZER = tiny_tokenizer("llama")
IDS = TOKENIZER.encode("What does the function return? It returns the 12 items.")
START = 8


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", seed=1)


@pytest.fixture
def served(model: Any) -> Iterator[Served]:
    with serving(model, TOKENIZER) as running:
        yield running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(served_client, "FIRST_PATIENCE", 0.05)


def endpoint(served: Served, top: int = 4, **settings: Any) -> Endpoint:
    return Endpoint(Address(served.url, **{"model": "tiny", "timeout": 5.0, "patience": 0.3, **settings}), top)


def checked(served: Served, top: int = 4, **settings: Any) -> Endpoint:
    found = endpoint(served, top, **settings)
    found.check(TOKENIZER, 100)
    return found


@pytest.mark.parametrize("top", [4, 0])
@pytest.mark.parametrize("way", ["prompt_logprobs", "generate", "echo", "echo texts"])
def test_what_a_server_says_is_what_its_model_thinks(way: str, top: int, model: Any) -> None:
    with serving(model, TOKENIZER, ways=(way,)) as running:
        if way == "echo texts" and top:
            with pytest.raises(UserError, match="no ids of the likeliest"):
                checked(running, top)
            return
        said = checked(running, top).say("one", IDS, START)
        wanted = running.log_probabilities(IDS)[START - 1 : -1].double()
    own = wanted.gather(1, torch.tensor(IDS[START:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(said.own, dtype=torch.float64), own, rtol=0, atol=1e-5)
    for place, likely in enumerate(said.likely):
        best = wanted[place].topk(top).indices.tolist() if top else []
        assert set(likely) == {*best, IDS[START + place]}
        assert all(abs(value - float(wanted[place, token])) < 1e-5 for token, value in likely.items())


def test_a_server_that_puts_a_bos_in_front_of_texts_has_the_same_tokenizer(model: Any) -> None:
    with serving(model, TOKENIZER) as running:
        plain = running.tokenizer.encode
        running.tokenizer = type("WithBos", (), {"encode": lambda self, text, **_: [1, *plain(text, **_)]})()
        checked(running)


def _with(name: str, value: Any) -> Callable[[Any], Any]:
    """Change the entry of the last token in vLLM's answer."""

    def change(answer: Any) -> Any:
        if "choices" in answer and len(answer["choices"][0].get("prompt_logprobs") or []) == len(IDS):
            entry = answer["choices"][0]["prompt_logprobs"][-1]
            entry[name.format(IDS[-1])] = {"logprob": value}
        return answer

    return change


def _without_last(answer: Any) -> Any:
    for choice in answer.get("choices", []):
        choice["prompt_logprobs"] = choice["prompt_logprobs"][: len(IDS) - 1]
    return answer


def _of_another(answer: Any) -> Any:
    if "choices" in answer and len(answer["choices"][0]["prompt_logprobs"]) == len(IDS):
        answer["choices"][0]["prompt_logprobs"][-1] = {"3": {"logprob": -1.0}, "4": {"logprob": -2.0}}
    return answer


WRONG_ANSWERS = {
    "nan": (_with("{}", float("nan")), "not a number.*--dtype"),
    "null": (_with("{}", None), "not a number.*--dtype"),
    "logits": (_with("{}", 7.5), "no log-probabilities.*raw_logprobs"),
    "too much mass": (_with("5", -0.01), "above one"),
    "text": (_with("{}", "high"), "'high' where a log-probability"),
    "no id": (_with("cat", -9.0), "'cat' where the id"),
    "short": (_without_last, f"tells of {len(IDS) - 1} tokens where {len(IDS)} were sent"),
    "other tokens": (_of_another, f"token {len(IDS) - 1} is {IDS[-1]}, but it tells of"),
    "no choices": (lambda answer: {"choices": []}, "no choice in it"),
    "a list": (lambda answer: [1, 2], "no choice in it"),
    "a mistake": (lambda answer: {"error": {"message": "the provider is away"}}, "200 the provider is away"),
    "a page": (lambda answer: "<html>log in", "200 <html>log in"),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_answers_that_cannot_be_right_are_refused(name: str, served: Served) -> None:
    asking = checked(served)
    served.change, message = WRONG_ANSWERS[name]
    with pytest.raises(RunError, match=f"example 'one'.*{message}"):
        asking.say("one", IDS, START)


def _always(*reply: Any) -> Callable[[int, str, Any], Reply]:
    return lambda number, path, body: (reply[0], reply[1], reply[2] if len(reply) > 2 else {})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # of the server, of the address: what is said
    "no key": ({"key": KEY}, {}, r"asks for a key \(401\).*teacher.api_key_env="),
    "wrong key": ({"key": "another"}, {"key_variable": "TEACHER_KEY"}, r"refuses the key in .*TEACHER_KEY \(401\)"),
    "no such key": ({}, {"key_variable": "NO_SUCH_KEY"}, r"NO_SUCH_KEY is not set.*export NO_SUCH_KEY"),
    "no model": ({}, {"model": "tinny"}, r"no model 'tinny'.*did you mean 'tiny'\?"),
    "short context": ({"limit": 80}, {}, r"texts of 80 tokens.*up to 100.*--max-model-len 101"),
    "text alone": ({"ways": ("text",)}, {}, r"gives no log-probabilities.*vLLM or SGLang.*training.method=seqkd"),
    "few": ({"most": 2}, {}, r"tells at most 2 of .* asks for 4. Set cache.top_k=2, or .*--max-logprobs 4"),
    "none": ({"most": 0}, {}, r"tells at most 0 .* Set cache.tier=likelihood, or"),
    "redirect": (
        {"trouble": _always(307, "", {"location": f"http://x/{KEY}"})},
        {"key_variable": "TEACHER_KEY"},
        r"elsewhere \(307 \(it points to http://x/\*\*\*.*teacher.endpoint",
    ),
    "redirect of questions alone": (
        {"trouble": lambda number, path, body: body and (301, "", {"location": "/v2"})},
        {},
        r"elsewhere \(301 \(it points to /v2",
    ),
    "page": ({"trouble": _always(200, "<html>")}, {}, r"gives no log-probabilities"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_servers_that_cannot_serve_are_refused_first(name: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    of_server, of_address, message = REFUSED[name]
    with serving(model, TOKENIZER, **of_server) as running, pytest.raises(UserError) as refused:
        checked(running, **of_address)
    assert re.search(message, str(refused.value)) and KEY not in str(refused.value)


def test_where_there_is_no_server_it_is_said_with_its_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=rf"{url} cannot be reached.*Start the server, or correct teacher.endpoint"):
        Endpoint(Address(url, "tiny"), 0).check(TOKENIZER, 100)


def test_an_address_without_v1_is_told_what_it_lacks(served: Served) -> None:
    right, served.url = served.url, served.url.removesuffix("/v1")
    with pytest.raises(UserError, match=f"ends in /v1: {right}$"):
        checked(served)


def test_another_tokenizer_is_refused_until_it_is_named(model: Any) -> None:
    kind = "qwen2"
    with serving(model, tiny_tokenizer(kind)) as running:
        with pytest.raises(UserError, match=r"another tokenizer than the student: .*\(teacher\.tokenizer\)"):
            checked(running)
        with pytest.raises(UserError, match=r"than 'wrong' \(teacher\.tokenizer\): "):
            checked(running, tokenizer="wrong")
        unknown = (400, {"error": {"message": "Token id 999 is out of vocabulary"}}, {})
        running.trouble = lambda _, path, body: unknown if body and isinstance(body["prompt"], list) else None
        with pytest.raises(UserError, match=r"another tokenizer than the student: .*\(teacher\.tokenizer\)"):
            checked(running)
        running.trouble = lambda *_: None
        endpoint(running).check(tiny_tokenizer(kind), 100)
    with serving(model, tiny_tokenizer(kind), ways=("text",)) as running:
        endpoint(running).check(tiny_tokenizer(kind), 100, needs_likelihoods=False)


def test_a_text_that_the_server_finds_too_long_is_said_with_its_length(served: Served) -> None:
    asking = checked(served)
    for limit, said in ((10, "maximum context length"), (len(IDS), "at least 1, got 0")):
        served.limit = limit
        with pytest.raises(UserError, match=rf"text of {len(IDS)} tokens.*{said}.*data.max_length"):
            asking.say("one", IDS, START)


def _busy(times: int, reply: Reply) -> Callable[[int, str, Any], Reply | None]:
    left = [times]

    def trouble(number: int, path: str, body: Any) -> Reply | None:
        left[0] -= 1
        return reply if left[0] >= 0 else None

    return trouble


@pytest.mark.parametrize(
    "reply",
    [
        (429, "slow down", {"retry-after": "0.1"}),
        (503, "", {"retry-after": email.utils.formatdate(time.time() - 5, usegmt=True)}),
        (500, {"error": {"message": "oh"}}, {}),
        (502, "<html>", {"retry-after": "soon"}),
        (200, '{"choices": [{"prompt_logprobs": [null', {}),
        (200, lambda file: file.write(b"["), {}),
        (200, "", {}),
        (200, "[]", {"content-encoding": "gzip"}),
    ],
    ids=["429", "503", "500", "502", "half a JSON", "a list that is not closed", "nothing", "not gzip"],
)
def test_a_busy_server_is_asked_again_when_it_wants_to_be(reply: Reply, served: Served) -> None:
    asking = checked(served, patience=5.0)
    served.trouble, started = _busy(2, reply), time.monotonic()
    asking.say("one", IDS, START)
    asked_to_wait = 0.2 if reply[2].get("retry-after") == "0.1" else 0.0
    assert asked_to_wait <= time.monotonic() - started < 3


def test_a_server_that_hangs_is_asked_again(served: Served) -> None:
    asking = checked(served, patience=5.0, timeout=0.2)
    plain, hung = served.change, []

    def hang(answer: Any) -> Any:
        hung.append(0) or (len(hung) == 1 and time.sleep(0.4))
        return plain(answer)

    served.change = hang
    asking.say("one", IDS, START)
    assert len(hung) >= 2


def test_what_is_waited_for_is_told_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_client, "QUIET", 0.0)
    asking = checked(served, patience=60)
    caplog.set_level("INFO")
    for times in (1, 2):
        until = served.requests + 3
        served.trouble = lambda number, path, body, until=until: (503, "loading", {}) if number <= until else None
        asking.say("one", IDS, START)
        told = [record.getMessage() for record in caplog.records if "asked again" in record.getMessage()]
        assert len(told) == times
        assert "answers 503 (loading): asked again until it answers, for up to 1 min 00 s" in told[-1]


def _drips(file: Any) -> None:
    while True:
        file.write(b" ")
        file.flush()
        time.sleep(0.02)


FOR_EVER = {
    "an answer without an end": ((200, _drips, {}), r"no answer within 0.5 seconds.*teacher.timeout=1"),
    "half a JSON": ((200, '{"choices": [', {}), r"breaks off in the middle of an answer after \d+ tries.*own log"),
    "429": (
        (429, f"key {KEY} is over its limit", {"retry-after": "900"}),
        r"limit; Retry-After: 900 seconds\).*teacher.parallel=4",
    ),
    "429 without a word": ((429, "", {}), r"answers 429 after \d+ tries.*teacher.patience=0.6"),
    "503": ((503, "loading", {}), r"answers 503 \(loading\) after \d+ tries.*server's own log"),
}


@pytest.mark.parametrize("name", FOR_EVER)
def test_a_server_that_stays_busy_is_given_up_with_a_remedy(
    name: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    seconds = 0.5 if FOR_EVER[name][0][1] is _drips else 10  # a busy machine takes its time for the others
    asking = checked(served, key_variable="TEACHER_KEY", timeout=seconds)
    served.trouble = _always(*FOR_EVER[name][0])
    with pytest.raises(RunError, match=f"{FOR_EVER[name][1]}.*the same command continues") as given_up:
        asking.say("one", IDS, START)
    assert KEY not in str(given_up.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9", r"through a proxy \(HTTP_PROXY\), which NO_PROXY=127.0.0.1 leaves"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "proxies or certificates cannot be used: .*unset ALL_PROXY"),
        ("https_proxy", "ftp://me:secret@x:1", "proxies or certificates cannot be used: .*unset https_proxy"),
        ("SSL_CERT_FILE", "/no/such/file", "proxies or certificates cannot be used: .*unset SSL_CERT_FILE"),
    ],
)
def test_what_the_environment_puts_between_is_told(
    variable: str, value: str, message: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*SURROUNDINGS, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as refused:
        checked(served)
    assert "secret" not in str(refused.value)
    if variable == "HTTP_PROXY":
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        checked(served)


def test_what_is_under_way_when_another_fails_is_still_given() -> None:
    client = Client(Address("http://nowhere/v1", "tiny", parallel=4))

    all_under_way, stopped = threading.Barrier(4), client._stopped

    def ask(number: int) -> int:
        all_under_way.wait(10)
        if number == 0:
            raise RunError("the first has failed")
        assert stopped.wait(10)
        return number

    given: list[tuple[int, int]] = []

    def collect() -> None:
        for found in client.in_parallel(ask, range(40)):
            given.append(found)

    with pytest.raises(RunError, match="the first has failed"):
        collect()
    assert sorted(given) == [(1, 1), (2, 2), (3, 3)]
    assert sorted(item for item, _ in client.in_parallel(lambda item: item, range(9))) == list(range(9))


# ------------------------------------------------------------------------------------------------------ what it writes


@pytest.mark.parametrize("ways", [("prompt_logprobs",), ("text",)])
def test_a_served_model_writes_what_it_would_write_here(ways: tuple[str, ...], model: Any, tmp_path: Path) -> None:
    prompts = [IDS[:5], IDS[:9], IDS[2:7], IDS[:5]]
    wanted = generate_tokens(model, TOKENIZER, prompts, list("abcd"), Decoding(12))
    with serving(model, TOKENIZER, ways=ways) as running:
        asking = endpoint(running, 0)
        asking.check(TOKENIZER, 100, needs_likelihoods=False)
        before = len(running.asked)
        writer = ServedWriter(asking, TOKENIZER, Journal(tmp_path / "answers-0.jsonl"))
        written = generate_tokens(writer, TOKENIZER, prompts, list("abcd"), Decoding(12))
        assert len(running.asked) - before == 3  # two prompts are the same
        again = ServedWriter(asking, TOKENIZER, Journal(tmp_path / "answers-0.jsonl"))
        assert generate_tokens(again, TOKENIZER, prompts, list("abcd"), Decoding(12)) == written
        assert len(running.asked) - before == 3
        generate_tokens(again, TOKENIZER, prompts[:1], ["a"], Decoding(12, 0.7, seed=3))
        assert len(running.asked) - before == 4
        # vLLM and SGLang take what is missing from the model's generation_config.json; others may refuse to be told.
        habits = {
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_k": -1,
            "min_p": 0.0,
        }
        body = running.asked[-1][1]
        assert {name: body.get(name) for name in habits} == (habits if ways != ("text",) else dict.fromkeys(habits))
    if ways == ("text",):  # special tokens, and bytes that are no letters, are lost on the way through a text
        texts = [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in wanted]
        wanted = [TOKENIZER.encode(text, add_special_tokens=False)[:12] for text in texts]
    assert written == wanted


def test_a_journal_outlives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "answers-0.jsonl"
    journal = Journal(path)
    journal.add("a", [1, 2])
    journal.add("b", [3])
    path.write_bytes(path.read_bytes()[:-4])
    journal = Journal(path)
    assert "a" in journal and "b" not in journal
    journal.add("b", [4])
    other = Journal(tmp_path / "answers-1.jsonl")  # of another process
    other.add("c", [5])
    journal = Journal(path)
    assert [journal[name] for name in "abc"] == [[1, 2], [4], [5]]
    journal.remove()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "http://me:secret-1@host/v1"}, "without name, password or parameters"),
        ({"endpoint": "https://host/v1?api_key=secret-1"}, "without name, password or parameters"),
        ({"endpoint": "http://host/v1", "api_key_env": "secret-1"}, "never the key itself"),
        ({"endpoint": "http://host/v1", "api_key_env": "sk_secret_1"}, "never the key itself"),
        ({"endpoint": "host:8000/v1"}, "must be a URL such as"),
        ({"endpoint": "http://host:x/v1"}, "must be a URL such as"),
        ({"endpoint": "http://host/v1", "dtype": "float16"}, "dtype says how a model is loaded.*Remove dtype"),
        ({"endpoint": "http://host/v1", "sft": {}}, "sft says how"),
        ({"parallel": 3}, "parallel is for a teacher behind a server"),
    ],
)
def test_settings_that_would_show_a_secret_or_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){message}") as refused:
        TeacherConfig.model_validate({"model": "tiny", **settings})
    assert all("secret" not in error["msg"] for error in refused.value.errors())
    assert not any(isinstance(error["input"], str) for error in refused.value.errors())  # which a message would show


def test_a_slash_at_the_end_of_an_address_is_none_of_it() -> None:
    config = TeacherConfig.model_validate({"model": "tiny", "endpoint": " https://host:8000/v1/ "})
    assert config.endpoint == "https://host:8000/v1"
