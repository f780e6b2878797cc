"""Templates that came with a model: rendered in a process of its own, as in this one, and within limits."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_folders import model_folder
from published_templates import PUBLISHED
from winnow import Reranker
from winnow.errors import ModelError, TemplateError
from winnow.models import bind_template, open_checkpoint
from winnow.templates import jinja_sandbox
from winnow.templates import worker as template_worker
from winnow.templates.jinja_sandbox import RenderError
from winnow.templates.rendering import LARGEST_SOURCE, TemplateLimitError
from winnow.templates.score_template import ScoreTemplate, built_in, built_in_names

PLACES = "{{ query }}{{ document }}"
NESTED = "{% set ns = namespace(x=[]) %}{% for i in range(REPEAT) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


def worker_pids() -> set[int]:
    return {worker.pid for worker in template_worker._workers}


@pytest.fixture
def no_worker() -> None:
    """Workers that other tests have left are gone."""
    template_worker._end_all()
    template_worker._idle.clear()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates may take little time, so that those that take more than they may do not take long."""
    monkeypatch.setattr("winnow.templates.rendering._RENDER_SECONDS", 0.2)


# --- what it renders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED, *built_in_names()])
def test_the_same_segments_in_the_worker_and_in_this_process(name: str) -> None:
    source = PUBLISHED[name][0] if name in PUBLISHED else built_in(name).source
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for with_instruction in (False, True):
        apart, here = (
            ScoreTemplate(source, "test", trusted=trusted).segments(
                with_instruction=with_instruction,
                template_kwargs={"style": ["é", 1, 2.5, None]},
                special_tokens=special,
            )
            for trusted in (False, True)
        )
        assert apart == here


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.text() | st.text(st.characters(categories=["Cs", "Cc", "Zl"]))))
def test_any_text_reaches_a_template_and_comes_back_as_it_is(variables: dict[str, str]) -> None:
    source = "{{ a }}|{{ b }}|{{ c }}|\ud800"
    assert template_worker.render(source, variables, 2.0) == jinja_sandbox.render(source, variables, 2.0)


def test_errors_are_those_of_this_process(no_worker: None) -> None:
    for source in (
        "{% if %}",
        "\n{{ ''.__class__ }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ 'a' | nope }}",
    ):
        with pytest.raises(TemplateError) as here:
            ScoreTemplate(source, "test", trusted=True).segments(with_instruction=False)
        with pytest.raises(TemplateError) as apart:
            ScoreTemplate(source, "test").segments(with_instruction=False)
        assert str(apart.value) == str(here.value)
    assert len(worker_pids()) == 1  # errors of templates end no worker


def test_a_template_of_the_user_is_rendered_in_this_process(no_worker: None, tiny_model: str) -> None:
    opened = open_checkpoint(tiny_model, hf_overrides={"score_template": "{{ lipsum and cycler }}" + PLACES})
    bind_template(opened, None, None, with_instruction=False)
    bind_template(opened, PLACES + "{{ 'a' | center(3) }}", {"x": object()}, with_instruction=False)
    assert not worker_pids()


def test_errors_show_nothing_that_a_terminal_obeys() -> None:
    with pytest.raises(TemplateError, match=r"\\x1b\[2J") as caught:
        ScoreTemplate("{{ raise_exception('\x1b[2J') }}", "test").segments(with_instruction=False)
    assert "\x1b" not in str(caught.value)


# --- attacks ----------------------------------------------------------------------------------------------------------

TIME = r"ran for more than 0\.2 s"
ATTACKS = {
    "lipsum": ("{{ lipsum(n=100000000) }}", "'lipsum' is undefined"),
    "tojson": (NESTED.replace("REPEAT", "28") + "{{ ns.x | tojson }}", TIME + "|too much memory"),
    "pprint": ("{{ query | pprint }}", "No filter named 'pprint'"),
    "indent": (r"{{ ('a\n' * 499999) | indent(2000) | length }}", "too much memory"),
    "ljust": ("{{ 'a'.ljust(7 * 10**9) }}", "too much memory"),
    "format": ("{{ '%999999999d' % 1 }}", "too much memory|renders more than"),
    "format filter": ("{{ '%9999999999s' | format('a') }}", "too much memory|OverflowError|ValueError"),
    "format method": ("{{ '{:>3000000000}'.format('a') }}", "too much memory"),
    "replace": ("{{ ('a' * 999999) | replace('a', 'b' * 9999) | length }}", "too much memory"),
    "doubling": (
        "{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "too much memory|" + TIME,
    ),
    "products": ("{{ (('a' * 999999) ~ 'b') * 999999 }}", "the result of . is too large"),
    "long text": ("{% for i in range(2000) %}{{ 'a' * 1000 }}{% endfor %}", "renders more than 1,000,000 characters"),
    "loops": ("{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4, TIME),
    "a sum of lists": ("{{ ([[0] * 99] * 9999) | sum(start=[]) | length }}", TIME),
    "a long range": ("{{ range(10**9) | list | length }}", "Range too big"),
    "powers": (
        "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "the result of . is too large",
    ),
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        TIME,
    ),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    "parentheses": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nests brackets more than 100 deep"),
    "lists": ("{{ " + "[" * 3000 + "]" * 3000 + " }}", "nests brackets more than 100 deep"),
    "signs": ("{{ " + "not " * 3000 + "1 }}", "is nested too deeply"),
    "sums": ("{{ " + "1 + " * 9000 + "1 }}", "is nested too deeply|failed to render"),
    "blocks": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "is nested too deeply|failed to render"),
    "source": ("a" * LARGEST_SOURCE, "is longer than 100,000 characters"),
    "places": (
        "{% for i in range(9000) %}{{ query }}{% endfor %}",
        "places query, document and instruction 9002 times",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_an_error_and_costs_this_process_nothing(name: str, request: pytest.FixtureRequest) -> None:
    source, message = ATTACKS[name]
    if TIME in message:  # the others meet another limit first, on a busy machine after some time
        request.getfixturevalue("short")
    me = psutil.Process()
    before = me.memory_info().rss, sum(me.cpu_times()[:2])
    with pytest.raises(TemplateError, match=message) as caught:
        ScoreTemplate(PLACES + source, "the model").segments(with_instruction=False)
    assert str(caught.value).startswith("The template from the model ")
    if isinstance(caught.value, TemplateLimitError) and name != "places":
        assert 'pass it as hf_overrides={"score_template": ...}' in str(caught.value)
    assert me.memory_info().rss - before[0] < 100e6
    assert sum(me.cpu_times()[:2]) - before[1] < 5
    assert ScoreTemplate(PLACES, "the model").segments(with_instruction=False)  # and the next is rendered


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("files", ["score_template.jinja", "chat_template.jinja", "tokenizer_config.json"])
def test_a_model_with_a_hostile_template_is_an_error_and_can_be_used_with_another(
    files: str, tiny_model: str, tmp_path: Path
) -> None:
    hostile = PLACES + "{{ messages }}{{ ([[0] * 99] * 9999) | sum(start=[]) | length }}"
    given: dict[str, Any] = {"files": {files: hostile}}
    if files == "tokenizer_config.json":
        given = {"tokenizer_config": {"chat_template": [{"name": "default", "template": hostile}]}}
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, **given)
    with pytest.raises(TemplateLimitError, match=rf"{files} {TIME}"):
        bind_template(open_checkpoint(folder), None, None, with_instruction=False)
    opened = open_checkpoint(folder, hf_overrides={"score_template": "qwen3_reranker"})
    assert bind_template(opened, None, None, with_instruction=False)


@pytest.mark.parametrize(
    "value",
    [
        "{query}{document}" + "x" * LARGEST_SOURCE,
        {"prefix": "x" * LARGEST_SOURCE + "y"},
        {"prefix": 3},
        {"suffix": None},
        "x" * 5000,
        "x\0y",
    ],
)
def test_other_score_templates_of_a_config_are_bounded_too(value: Any, tiny_model: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, config={"score_template": value})
    with pytest.raises(TemplateError) as caught:
        bind_template(open_checkpoint(folder), None, None, with_instruction=False)
    assert len(str(caught.value)) < 1000


def test_only_so_much_of_a_template_file_is_read(tiny_model: str, tmp_path: Path) -> None:
    folder = Path(model_folder(tmp_path / "qwen3-reranker-x", tiny_model))
    with (folder / "score_template.jinja").open("wb") as file:
        file.truncate(2 * 10**9)
    before = psutil.Process().memory_info().rss
    opened = open_checkpoint(str(folder))
    with pytest.raises(TemplateLimitError, match="is longer than 100,000 characters"):
        bind_template(opened, None, None, with_instruction=False)
    assert psutil.Process().memory_info().rss - before < 500e6


def test_variables_that_no_json_holds_are_refused_by_a_template_of_the_model(tiny_model: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, files={"score_template.jinja": PLACES + "{{ x }}"})
    opened = open_checkpoint(folder)
    for value in (object(), {1: "a"}, b"x"):
        with pytest.raises(TemplateError, match="takes template_kwargs of texts, numbers"):
            bind_template(opened, None, {"x": value}, with_instruction=False)
    with pytest.raises(TemplateError, match="more than 4,000,000 bytes"):
        bind_template(opened, None, {"x": "y" * 4_000_000}, with_instruction=False)
    assert bind_template(opened, None, {"x": (1, [None, 2.5])}, with_instruction=False) is not None


def test_loading_a_model_does_not_wait_for_the_template_of_another(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "qwen3-reranker-x", tiny_model, files={"chat_template.jinja": PLACES})
    began, go_on = threading.Event(), threading.Event()
    render = template_worker.render

    def slow(*arguments: Any) -> str:
        began.set()
        assert go_on.wait(60)
        return render(*arguments)

    monkeypatch.setattr(template_worker, "render", slow)
    errors: list[BaseException] = []

    def load() -> None:
        try:
            Reranker(folder, engine="transformers").start()
        except ModelError as error:  # the folder has no weights
            errors.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    try:
        assert began.wait(60)
        with Reranker(tiny_model, engine="transformers") as other:
            other.start()
        assert loading.is_alive()
    finally:
        go_on.set()
        loading.join(60)
    assert "no weights" in str(errors[0])


# --- the process ------------------------------------------------------------------------------------------------------


def test_one_worker_is_started_and_used_again(no_worker: None) -> None:
    for _ in range(3):
        ScoreTemplate(PLACES, "test").segments(with_instruction=False)
    [pid] = worker_pids()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ScoreTemplate(PLACES, "test").segments(with_instruction=False)
    assert worker_pids()
    assert worker_pids() != {pid}


def test_a_program_without_a_python_to_start_says_so(no_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Python is embedded, which knows of no executable."""
    monkeypatch.setattr("multiprocessing.spawn._python_exe", None)
    with pytest.raises(TemplateError, match="a frozen or embedded Python cannot be started"):
        ScoreTemplate(PLACES, "the model").segments(with_instruction=False)
    assert ScoreTemplate(PLACES, "mine", trusted=True).segments(with_instruction=False)


def test_a_worker_that_ends_while_it_is_idle_fails_no_template(
    no_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    template_worker.render(PLACES, {}, 2.0)
    [pid] = worker_pids()
    # Killed, as when memory is short, after it was seen alive.
    monkeypatch.setattr(template_worker.Worker, "lives", property(lambda _: True))
    os.kill(pid, signal.SIGKILL)
    assert template_worker.render("{{ a }}", {"a": "x"}, 2.0) == "x"
    assert worker_pids().isdisjoint({pid})


def test_a_worker_that_a_template_took_to_a_limit_renders_no_other(no_worker: None) -> None:
    with pytest.raises(RenderError, match="too much memory"):
        template_worker.render("{{ 'a'.ljust(7 * 10**9) }}", {}, 2.0)
    assert not worker_pids()


def test_who_finds_all_workers_busy_gets_another_and_few_are_kept(no_worker: None) -> None:
    all_render = threading.Barrier(4)
    take, errors = template_worker._take, []

    def together() -> template_worker.Worker:
        worker = take()
        all_render.wait(60)
        return worker

    def bind() -> None:
        try:
            assert template_worker.render("{{ a }}", {"a": "x"}, 2.0) == "x"
        except BaseException as error:  # noqa: BLE001 - pytest does not notice errors of threads
            errors.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_worker, "_take", together)
        threads = [threading.Thread(target=bind) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not errors
    assert len(worker_pids()) == template_worker._IDLE_WORKERS


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.write(1, b'no json\\n')",
        "import os; os.write(1, b'[' * 200000 + b'\\n')",
        "import os; os.write(1, b'{}\\n')",
        "while 1: print(end='x' * 9999)",
        "import os; os.close(1); os.close(0); input()",
        "raise SystemExit(3)",
    ],
)
def test_a_worker_that_a_template_took_over_is_ended(
    program: str, no_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_worker, "_PROGRAM", program)
    with pytest.raises(RenderError):
        template_worker.render("{{ a }}" + " " * 100_000, {}, 2.0)
    assert not worker_pids()


def test_a_worker_that_does_not_answer_is_ended(no_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_worker, "_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(template_worker, "_WALL_SECONDS", 0.2)
    with pytest.raises(RenderError, match=r"did not end within 0\.2 s"):
        template_worker.render("{{ a }}" + " " * 100_000, {}, 2.0)
    assert not worker_pids()


HOST = """
import os, signal, sys, threading
from winnow.templates import worker as template_worker

def render(text):
    assert template_worker.render("{{ a }}", {"a": text}, 2.0) == text
    [worker] = template_worker._workers
    return worker.pid

mine = render("x")
to, back = os.pipe()
forked = os.fork()
if not forked:
    os.write(back, str(render("y")).encode() + b"\\n")
    signal.pause() if "wait" in sys.argv else sys.exit()
print(mine, forked, os.read(to, 99).decode().strip(), flush=True)
assert render("z") == mine
if "wait" in sys.argv:
    slow = "{{ ([[0] * 99] * 9999) | sum(start=[]) | length }}"
    threading.Thread(target=template_worker.render, args=(slow, {}, 1.0), daemon=True).start()
    signal.pause()
os.waitpid(forked, 0)
"""


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A program that renders, and renders in a forked child of it."""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", HOST, request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_TOKEN": "hf_secret"},
    )
    with process:
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["wait"], indirect=True)
def test_no_worker_outlives_a_killed_host_and_none_knows_its_secrets(host: subprocess.Popen[str]) -> None:
    assert host.stdout is not None
    assert host.stderr is not None
    line = host.stdout.readline()
    assert line, host.stderr.read()
    own, forked, of_forked = (psutil.Process(int(pid)) for pid in line.split())
    try:
        assert not any("secret" in value for value in own.environ().values())
        assert own.ppid() == host.pid
        assert of_forked.ppid() == forked.pid
        host.kill()  # perhaps while its worker renders
        own.wait(30)
        assert forked.is_running()
        assert of_forked.is_running()
    finally:
        forked.kill()
    of_forked.wait(30)


@pytest.mark.parametrize("host", ["exit"], indirect=True)
def test_no_worker_outlives_a_host_that_ends(host: subprocess.Popen[str]) -> None:
    output, errors = host.communicate(timeout=60)
    assert (host.returncode, errors) == (0, "")
    assert not any(psutil.pid_exists(int(pid)) for pid in output.split())
