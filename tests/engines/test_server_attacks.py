"""Servers that answer badly on purpose: none holds a request, fills memory, passes off a score, or gets a key shown."""

import asyncio
import gzip
import html
import io
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import BinaryIO
from urllib.parse import quote

import pytest
from tenacity import wait_none
from vllm_servers import API_KEY, Answer, Fault, FaultyProxy, Raw, VllmServer, impatient

from gated_engine import PATIENCE
from winnow import ConfigurationError, EngineError, EngineLoadError, Reranker, RerankerConfig
from winnow.engines.server import client as server_client
from winnow.engines.server import engine as server
from winnow.engines.server import replica_pool
from winnow.outside_text import SecretMask, shown, shown_address

pytestmark = pytest.mark.slow

QUERY = "what is the capital of China?"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.fixture
def proxy(proxies: list[FaultyProxy]) -> FaultyProxy:
    return proxies[0]


@pytest.fixture
def expected(tiny_model: str, servers: list[VllmServer], passages: list[str]) -> list[float]:
    """The scores of a call in which nothing goes wrong."""
    with Reranker(tiny_model, engine="server", url=servers[0].url, api_key=API_KEY) as reranker:
        return reranker.score(QUERY, passages)


def reranker_on(model: str, *proxies: FaultyProxy, api_key: str = API_KEY, **kwargs: object) -> Reranker:
    urls = [proxy.url for proxy in proxies]
    return Reranker(model, engine="server", url=urls, api_key=api_key, engine_kwargs=kwargs)


def raw(*pieces: bytes) -> Raw:
    """Bytes instead of an answer, and the end of the connection."""

    def write(out: BinaryIO, _: Callable[[], bytes]) -> None:
        out.writelines(pieces)

    return Raw(write)


def endless(beginning: bytes, piece: bytes, *, most: int, pause: float = 0.0) -> Raw:
    """Bytes until the client hangs up. Where it does not, they end after `most`, so that the test fails and ends."""

    def write(out: BinaryIO, _: Callable[[], bytes]) -> None:
        out.write(beginning)
        for _ in range(most // len(piece)):
            out.write(piece)
            time.sleep(pause)

    return Raw(write)


def with_row(**row: object) -> Callable[[bytes], bytes]:
    """A change of the first score in vLLM's answer."""

    def change(answer: bytes) -> bytes:
        content = json.loads(answer)
        content["data"][0] |= row
        return json.dumps(content).encode()

    return change


def with_field(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda answer: json.dumps(json.loads(answer) | {name: value}).encode()


# --- no request is held, and none fills memory ------------------------------------------------------------------------


def dripping() -> Raw:
    """An answer that comes byte by byte, for minutes: each byte soon after the last."""
    return endless(OK + b"content-length: 100000\r\n\r\n", b" ", most=1000, pause=0.1)


def test_a_server_that_drips_its_answer_is_left_for_an_idle_one(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], expected: list[float]
) -> None:
    drips = [dripping() for _ in range(50)]
    proxies[0].faults.extend(drips)
    with reranker_on(tiny_model, *proxies, timeout=10) as reranker:
        number = 0
        while len(proxies[0].faults) == len(drips):  # until a query prefers that server
            number += 1
            assert number < 100
            reranker.score(f"question {number}", passages)
        assert drips[0].hung_up.wait(PATIENCE)
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)


def test_a_server_that_hangs_at_the_start_does_not_hold_up_another(
    tiny_model: str,
    proxies: list[FaultyProxy],
    passages: list[str],
    expected: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_pool, "_START_SECONDS", 0.5)
    release, answered = threading.Event(), []
    proxies[0].request_filter = lambda _: answered.append(release.wait(PATIENCE))
    with reranker_on(tiny_model, *proxies, timeout=2 * PATIENCE).start() as reranker:
        assert not answered
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
        assert not answered
        release.set()
        while len(proxies[0].posts) == 0:  # it takes part when it is well
            reranker.score(f"question {len(proxies[1].posts)}", passages)


def test_the_error_says_that_only_a_part_came_in_time(tiny_model: str, proxy: FaultyProxy, passages: list[str]) -> None:
    with impatient(tiny_model, proxy, 5) as reranker:
        proxy.broken = dripping()
        with pytest.raises(
            EngineError, match=r"only a part of its answer within 5 seconds.*raise engine_kwargs timeout"
        ):
            reranker.score(QUERY, passages)


def test_an_answer_without_end_is_cut_off(
    tiny_model: str, proxy: FaultyProxy, passages: list[str], expected: list[float]
) -> None:
    faults = [
        endless(OK + b"\r\n", b"[" * (1 << 16), most=200 << 20),
        endless(OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * (1 << 16) + b"\r\n", most=200 << 20),
        endless(OK, b"x-more: and more\r\n" * 100, most=20 << 20),
        endless(b"HTTP/1.1 500 ", b"x" * 1000, most=20 << 20),
        endless(b"HTTP/1.1 500 Oops\r\n\r\n", b"<" * (1 << 16), most=200 << 20),
    ]
    with reranker_on(tiny_model, proxy, max_retries=1) as reranker:
        for fault in faults:
            proxy.faults.append(fault)
            assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
            assert fault.hung_up.wait(PATIENCE)
    assert len(proxy.posts) == 2 * len(faults)


def test_informational_answers_without_end_are_over_with_the_deadline(
    tiny_model: str, proxy: FaultyProxy, passages: list[str]
) -> None:
    fault = endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n", most=100_000, pause=0.01)
    with impatient(tiny_model, proxy, 5) as reranker:
        proxy.broken = fault
        with pytest.raises(EngineError, match="no answer within 5 seconds"):
            reranker.score(QUERY, passages)
    assert fault.hung_up.wait(PATIENCE)


def test_a_packed_answer_is_not_unpacked(tiny_model: str, proxy: FaultyProxy, passages: list[str]) -> None:
    """Thirty megabytes that come as thirty kilobytes; in a real attack they are gigabytes."""
    small = io.BytesIO()
    with gzip.GzipFile(fileobj=small, mode="wb") as packed:
        packed.write(b" " * (30 << 20))
    body = small.getvalue()
    head = f"content-length: {len(body)}\r\ncontent-encoding: %s\r\n\r\n"
    for packing in ("gzip", "GZip, deflate", "br", "zstd"):
        with reranker_on(tiny_model, proxy, max_retries=0) as reranker:
            proxy.faults.append(raw(OK, (head % packing).encode(), body))
            with pytest.raises(EngineError, match=rf"/pooling does not answer .*packed as {packing}, which was not"):
                reranker.score(QUERY, passages)


# --- an answer that is none -------------------------------------------------------------------------------------------


NO_ANSWERS: list[Fault] = [
    Answer(200, "[" * 100_000),
    Answer(200, '{"data":' * 5_000 + "0" + "}" * 5_000),
    Answer(200, "null"),
    Answer(200, '{"data": [' + "1" * 5_000 + "]}"),
    Answer(200, '"\\ud800"'),
    lambda answer: answer + b"garbage",
    lambda answer: b"\xef\xbb\xbf\xff" + answer,
    with_row(data=[10**400]),
    with_row(data=["0.5"]),
    with_row(data=[True]),
    with_row(data={"0": 1}),
    with_row(data=0.5),
    with_row(data=None),
    with_row(data="AAA="),
    with_row(index="0"),
    with_row(index=False),
    with_row(index=-1),
    with_row(index=10**400),
    with_field("usage", {"prompt_tokens": 1}),
    with_field("usage", {"prompt_tokens": "1"}),
    with_field("data", []),
    with_field("data", {"0": 1}),
    with_field("id", "pool-winnow-00000000000000000000000000000000"),
    Answer(204),
    Answer(304),
    Answer(302, "", headers={"location": "/pooling"}),
    Answer(307, "", headers={"location": "http://[::bad"}),
    Answer(599, "no"),
    Answer(999, "no"),
    raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello"),
    raw(b"hello\r\n\r\n"),
    raw(b"HTTP/1.1 200 OK"),
    raw(b"HTTP/1.1 \xff\xfe OK\r\n\r\n"),
    raw(OK, b"content-length: 1000\r\n\r\n", b'{"data": ['),
    raw(OK, b"content-length: -5\r\n\r\n", b"{}"),
    raw(OK, b"content-length: 2\r\ncontent-length: 3\r\n\r\n", b"{}"),
    raw(OK, b"transfer-encoding: chunked\r\n\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
    raw(OK, b"bad header\x00: \x01\r\n\r\n", b"{}"),
]


def test_an_answer_that_is_none_is_asked_for_again(
    tiny_model: str, proxy: FaultyProxy, passages: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_BACKOFF", wait_none())
    with reranker_on(tiny_model, proxy, max_retries=1).start() as reranker:
        for number, fault in enumerate(NO_ANSWERS):
            before = len(proxy.posts)
            proxy.faults.append(fault)
            assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6), number
            assert len(proxy.posts) == before + 2, number


@pytest.mark.parametrize("fault", [Answer(200, "[" * 100_000), with_row(data=[10**400])], ids=["deep", "huge"])
def test_a_fallback_ranks_where_all_answers_are_none(
    tiny_model: str, proxy: FaultyProxy, passages: list[str], fault: Fault
) -> None:
    kwargs = {"max_retries": 0}
    with Reranker(
        tiny_model, engine="server", url=proxy.url, api_key=API_KEY, engine_kwargs=kwargs, fallback="retrieval order"
    ) as reranker:
        proxy.faults.append(fault)
        ranking = reranker.rank(QUERY, passages)
    assert [hit.index for hit in ranking] == list(range(len(passages)))
    assert "does not answer as vLLM does" in str(ranking.stats.error)


def test_an_answer_that_a_server_sends_ahead_is_not_taken_for_the_next_one(
    tiny_model: str, proxy: FaultyProxy, passages: list[str], expected: list[float]
) -> None:
    """A server, or a proxy that mixes up answers, sends one too many; it waits where the next answer is looked for."""
    old: list[bytes] = []

    def write(out: BinaryIO, ask: Callable[[], bytes]) -> None:
        body = ask()
        old.append(body)
        out.write(b"".join(OK + b"content-length: %d\r\n\r\n" % len(one) + one for one in (body, old[0])))

    with reranker_on(tiny_model, proxy, concurrency=1) as reranker:
        reversed_scores = reranker.score(QUERY, passages[::-1])  # as long, other scores
        assert reversed_scores == pytest.approx(expected[::-1], abs=1e-6)
        proxy.faults.extend([Raw(write, keep=True), Raw(write, keep=True)])
        assert reranker.score(QUERY, passages[::-1]) == pytest.approx(reversed_scores, abs=1e-6)
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
    assert old


def test_a_redirect_is_not_followed(tiny_model: str, proxies: list[FaultyProxy], passages: list[str]) -> None:
    """Where it leads, the key must not come."""
    elsewhere = f"{proxies[1].url}/pooling"
    with reranker_on(tiny_model, proxies[0], max_retries=1).start() as reranker:
        proxies[0].broken = Answer(307, "", headers={"location": elsewhere, "set-cookie": "a=b"})
        with pytest.raises(EngineError, match=r"answered 307: .*Redirects are not followed: give the address"):
            reranker.score(QUERY, passages)
    assert not proxies[1].posts
    with pytest.raises(EngineLoadError, match="/v1/models answered 307"):
        reranker_on(tiny_model, proxies[0]).start()


@pytest.mark.parametrize("length", [-5, 0.5, "4096", True, [4096], float("nan")])
def test_a_length_that_is_none_is_an_error_at_the_start(tiny_model: str, proxy: FaultyProxy, length: object) -> None:
    proxy.models_filter = lambda models: models["data"][0].update(max_model_len=length)
    with pytest.raises(EngineLoadError, match=r"/v1/models does not answer as vLLM does \(ValueError: a whole number"):
        reranker_on(tiny_model, proxy).start()


def test_a_server_with_all_the_room_of_the_world_is_taken(tiny_model: str, proxy: FaultyProxy) -> None:
    proxy.models_filter = lambda models: models["data"][0].update(max_model_len=2**50)
    with reranker_on(tiny_model, proxy).start() as reranker:
        assert len(reranker.score(QUERY, ["a", "b"])) == 2


@pytest.mark.parametrize("card", [5, [], {"id": 5}, {"id": ["x"]}, {"id": "x", "root": {}}, {}])
def test_a_list_of_models_that_is_none_is_an_error_at_the_start(
    tiny_model: str, proxy: FaultyProxy, card: object
) -> None:
    proxy.models_filter = lambda models: models.update(data=[card])
    with pytest.raises(EngineLoadError, match="/v1/models does not answer as vLLM does"):
        reranker_on(tiny_model, proxy).start()


def test_a_bad_server_beside_a_good_one_is_left_alone_from_the_start(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], expected: list[float]
) -> None:
    proxies[0].broken = Answer(200, "[" * 100_000)
    with reranker_on(tiny_model, *proxies).start() as reranker:
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
    assert not proxies[0].posts


# --- what a server may ask for ----------------------------------------------------------------------------------------


def test_a_connection_that_was_closed_meanwhile_is_no_fault(
    tiny_model: str, proxy: FaultyProxy, passages: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_client, "_KEEP_ALIVE_SECONDS", 600.0)  # however slow the machine is
    with reranker_on(tiny_model, proxy, max_retries=0).start() as reranker:
        proxy.faults.append("drop")
        assert reranker.score(QUERY, passages) == pytest.approx(expected, abs=1e-6)
        assert len(proxy.posts) == 2
        proxy.faults.extend(["drop", "drop"])  # the second comes on a new connection, and is one
        with pytest.raises(EngineError, match="Server disconnected without sending a response"):
            reranker.score(QUERY, passages)


def test_a_server_cannot_ask_to_be_left_alone_for_ever(
    tiny_model: str, proxies: list[FaultyProxy], passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with reranker_on(tiny_model, *proxies) as reranker:
        proxies[0].faults.extend([Answer(503, "later", headers={"retry-after": str(10**30)})] * 50)
        number = 0
        while "A server gets no prompts" not in caplog.text:
            number += 1
            assert number < 100
            reranker.score(f"question {number}", passages)
    assert "A server gets no prompts for 300 s" in caplog.text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2),
        ("1" + "0" * 30, 300),
        ("9" * 5000, 300),
        (format_datetime(datetime(2099, 1, 1, tzinfo=UTC), usegmt=True), 300),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("Thu, 01 Jan 0001 00:00:00 -0000", None),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("Thu, 01 Jan 2099 00:00:00 +999999999999999999", None),
        ("0", None),
        ("-5", None),
        ("1.5", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("²", None),
        ("soon", None),
        ("", None),
    ],
)
def test_seconds_of_retry_after(value: str, seconds: float | None) -> None:
    assert server_client._retry_after(value) == seconds


def test_a_date_in_retry_after() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 0 < (server_client._retry_after(soon) or 0) <= 100


# --- what is shown ----------------------------------------------------------------------------------------------------


def everything_of(error: BaseException) -> str:
    """All that a log, or a tool that collects errors, may show of an error and of those behind it."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        todo += [one.__cause__, one.__context__]
    texts = [text for one in seen for text in (str(one), repr(one), repr(vars(one)), *traceback.format_exception(one))]
    requests = [getattr(one, name, None) for one in seen for name in ("_request", "response")]
    assert not any(requests), "an error of httpx holds the request, and the key"
    return "\n".join(texts)


KEY = 'sk-"secret"/of<the>&tests'
ECHO = KEY.encode()


ECHOES: list[Fault] = [
    Answer(500, json.dumps({"error": {"message": f"bad Authorization: Bearer {KEY}"}})),
    Answer(500, json.dumps({"headers": {"authorization": f"Bearer {KEY}"}})),
    Answer(500, f"<html><h1>Authorization: Bearer {KEY}</h1></html>", "text/html"),
    Answer(500, "<p>Bearer sk-&quot;secret&quot;/of&lt;the&gt;&amp;tests</p>", "text/html"),
    Answer(500, f"/login?key={KEY.replace('/', '%2F').replace('<', '%3C').replace('>', '%3E')}"),
    Answer(401, f"no such key: {KEY}", "text/plain"),
    Answer(400, json.dumps({"detail": [KEY]})),
    Answer(404, json.dumps({"detail": KEY})),
    Answer(307, "", headers={"location": f"http://[{KEY}"}),
    Answer(200, json.dumps({"data": KEY})),
    Answer(200, json.dumps({"data": {KEY: KEY}})),
    Answer(200, json.dumps({"data": [{"index": 0, "data": [KEY]}], "id": KEY, "usage": {"prompt_tokens": KEY}})),
    Answer(200, json.dumps([KEY]).replace("/", "\\/")),
    Answer(200, KEY),
    Answer(200, "{}", headers={"content-encoding": KEY}),
    raw(b"HTTP/1.1 500 Bearer ", ECHO, b"\r\ncontent-length: 0\r\n\r\n"),
    raw(b"HTTP/1.1 200 Bearer ", ECHO, b"\r\nx-echo: ", ECHO, b"\r\ncontent-length: 2\r\n\r\n{}"),
    raw(ECHO, b"\r\n\r\n"),
    raw(OK, ECHO, b"\r\n\r\n"),
    raw(OK, b"transfer-encoding: chunked\r\n\r\n", ECHO, b"\r\n"),
]


def test_the_key_is_in_nothing_that_is_shown(
    tiny_model: str, proxy: FaultyProxy, passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    proxy.api_key = KEY
    with caplog.at_level(logging.DEBUG), reranker_on(tiny_model, proxy, api_key=KEY, max_retries=0) as reranker:
        for number, fault in enumerate(ECHOES):
            proxy.broken = None
            reranker.score(QUERY, passages)  # so that no fault is the third in a row
            proxy.broken = fault
            with pytest.raises(EngineError) as in_use:
                reranker.score(QUERY, passages)
            with pytest.raises(EngineLoadError) as at_start:
                reranker_on(tiny_model, proxy, api_key=KEY, timeout=7).start()
            seen = "\n".join([everything_of(in_use.value), everything_of(at_start.value), caplog.text, repr(reranker)])
            for spelling in ("secret", "of<the>", "of&lt;the", "of%3Cthe"):
                assert spelling not in seen, number
            assert "***" in seen, number
            caplog.clear()


def test_the_name_of_another_model_hides_the_key(tiny_model: str, proxy: FaultyProxy) -> None:
    proxy.models_filter = lambda models: models["data"][0].update(id=f"{API_KEY}\x1b[2J", root=API_KEY * 1000)
    with pytest.raises(EngineLoadError, match=r"serves \*\*\*\\x1b\[2J \(from \*\*\*") as error:
        reranker_on(tiny_model, proxy).start()
    assert API_KEY not in everything_of(error.value)
    assert len(str(error.value)) < 3000


def test_a_long_message_is_not_cut_within_the_key() -> None:
    async def shown_by_client(text: str) -> str:
        client = server_client.ServerClient(KEY, 1)
        try:
            return client.shown(text)
        finally:
            await client.aclose()

    for tail in range(len(KEY) + 2):
        blank = " " * (server_client._MOST_OF_A_MESSAGE - 6 - tail)
        text = asyncio.run(shown_by_client(f"Bearer{blank}{KEY}"))
        assert text in ("Bearer", "Bearer ***")


def test_what_a_server_says_cannot_move_the_cursor_or_fill_the_screen(
    tiny_model: str, proxy: FaultyProxy, passages: list[str]
) -> None:
    said = "\x1b]0;title\x07\x1b[31mred\r\n\u202eright\u200b to left\x9b2J \ud800" + "x" * 100_000
    with reranker_on(tiny_model, proxy, max_retries=0).start() as reranker:
        for body in (json.dumps({"error": {"message": said}}), said.encode(errors="replace").decode()):
            proxy.broken = Answer(500, body)
            with pytest.raises(EngineError) as error:
                reranker.score(QUERY, passages)
            text = str(error.value)
            assert text.isprintable()
            assert r"\x1b]0;title\x07\x1b[31mred \u202eright\u200b to left\x9b2J" in text
            assert len(text) < 1000


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@gpu-1:8000",
        "http://me:secret@gpu 1:8000",
        "http://gpu-1:8000?key=secret",
        "http://gpu-1:8000/#secret",
        "ftp://me:secret@gpu-1",
        "me:secret@gpu-1:8000",
        "http://127.0.0.1:9/x?secret",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_shown(
    tiny_model: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, so that no repr and no saved pipeline has it."""
    with pytest.raises(ConfigurationError, match="url must") as error:
        RerankerConfig(tiny_model, engine="server", url=[url])
    assert "secret" not in everything_of(error.value)
    monkeypatch.setenv("WINNOW_URL", url)
    with pytest.raises(ConfigurationError, match="url must") as error:
        Reranker(tiny_model, engine="server").start()
    assert "secret" not in everything_of(error.value)


def test_text_from_outside_is_shown_on_one_line_escaped_and_cut() -> None:
    assert shown("a\n b\tc") == "a b c"
    assert shown("\x00\x7f\u2028\U000e0041é日本") == r"\x00\x7f \U000e0041é日本".replace("\U000e0041", r"\U000e0041")
    assert shown("x" * 20, 10) == "x" * 10 + "…"
    assert shown_address("https://me:pw@host/path?key=1#2") == "https://***@host/path"
    assert shown_address("https://host:80/path") == "https://host:80/path"
    assert SecretMask(None)("nothing") == "nothing"
    assert SecretMask("a.b")("a.b A.B axb") == "*** *** axb"
    for spelling in (KEY, json.dumps(KEY), html.escape(KEY), quote(KEY), quote(KEY, safe=""), repr(KEY + "'")):
        assert SecretMask(KEY)(f"<{spelling}>").strip("<>\"'\\") == "***"
    assert SecretMask('a"\\')(json.dumps('a"\\')) == '"***"'
