import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from avfewshot import __version__
from avfewshot.cli.app import COMMANDS, _load, run
from avfewshot.cli.exit_status import status_of
from avfewshot.cli.logs import library_messages
from avfewshot.cli.terminal import say
from avfewshot.config import COMMANDS as TABLES
from avfewshot.config import settings_of
from avfewshot.errors import AvfsError, Faults, UsageError

HEAVY = ("torch", "transformers", "sklearn", "open_clip", "decord", "av", "numpy", "tqdm", "jinja2")
REPOSITORY = Path(__file__).resolve().parents[1]


def process(*arguments, cwd=None, code=None, **environment):
    """Run the program, or some code, in a process of its own."""
    program = ["-c", code] if code else [REPOSITORY / "cli.py"]
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=120)


HELPED = f"""
import contextlib, io, json, sys
from avfewshot.cli.app import COMMANDS, run
assert not any(module in sys.modules for module in ("avfewshot.cli.zeroshot", "avfewshot.cli.data"))
shown = {{}}
for arguments in ([], ["--version"], *([name, "--help"] for name in COMMANDS)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(arguments) == 0, arguments
    shown[" ".join(arguments)] = out.getvalue()
print(json.dumps([shown, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def test_help_texts_and_the_version_import_nothing_heavy():
    done = process(code=HELPED)
    assert done.returncode == 0, done.stderr
    shown, heavy = json.loads(done.stdout)
    assert heavy == []
    assert "Examples" in shown[""]
    assert all(name in shown[""] and summary.split(",")[0] in shown[""] for name, (_, summary) in COMMANDS.items())
    for name in COMMANDS:
        assert f"avfs {name}" in shown[f"{name} --help"]
        assert "install-completion" not in shown[f"{name} --help"]
    assert shown["--version"].strip() == f"avfs {__version__}"


MISUSE = "zeroshot --label a --topk 0 --backbone tinny nothing-*.mp4"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("from avfewshot.media.discover import find_media", {"torch", "av"}),
        ("from avfewshot.media import decoder_process", {"torch"}),
        ("import avfewshot.config", {"torch", "numpy", "av"}),
        (f"from avfewshot.cli.app import run; assert run({MISUSE.split()}) == 2", {"torch"}),
    ],
)
def test_what_can_do_without_heavy_libraries_imports_none(code, heavy, tmp_path):
    done = process(code=f"import sys; {code}; sys.exit(str({heavy!r} & set(sys.modules)))", cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("zeroshot --topk", "--topk"),
        ("pretrain vggsound40", "'vggsound40'. Did you mean 'vggsound40k'?"),
        ("train ave --root . --head cbms", "has no such head. Did you mean 'cmbs'?"),
        ("data toy --root x --only avee", "Did you mean 'ave'?"),
        ("data check avee --workers 0", "it should be greater than or equal to 1."),
        ("data check", "Missing argument 'TASK'"),
        (f"data prepare ave --out {__file__}", "is a file."),
        (f"data import x.json --clips . --root {__file__}", "is a file."),
        (f"export --backbone tiny --label a --onnx {__file__}/x", "is a file."),
        ("weights list --format jsn", "--format: 'jsn' is not one of table, json. Did you mean 'json'?"),
        ("eval x --split tst", "--split: 'tst' is not one of test, val. Did you mean 'test'?"),
        ("cache clear clip", "There is no cache 'clip'. Did you mean 'clips'?"),
        ("learn nowhere list", "nowhere: there is no such folder."),
        (f"embed . --store {__file__}", "is a file."),
        (f"data import {__file__} --clips . --root x", "is not JSON, by line 1."),
        ("config nothing", f"Valid: {', '.join(TABLES)}."),
    ],
)
def test_misuse_is_one_message_with_a_suggestion(arguments, message, avfs):
    out, err = avfs(*arguments.split(), status=2)
    assert out == ""
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Give an address of this machine."),
        (OSError(errno.EADDRINUSE, "Address already in use"), "`--port 0` takes any free one."),
    ],
)
def test_an_address_that_cannot_be_listened_at_is_told_from_a_port(error, hint, avfs, monkeypatch):
    def listen(*_):
        raise error

    monkeypatch.setattr("avfewshot.app.server.listen", listen)
    assert hint in avfs.refused("serve", "--host", "somewhere", "--label", "a")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("avfs zer", ["zeroshot"]),
        ("avfs zeroshot --prec", ["--precision"]),
        ("avfs zeroshot --precision b", ["bf16"]),
        ("avfs learn RUN ad", ["add"]),
    ],
)
def test_completion_offers_commands_options_and_values(words, offered):
    done = process(_AVFS_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert done.stdout.split() == offered


def parameters(name, command):
    for key, below in getattr(command, "commands", {}).items():
        yield from parameters(f"{name} {key}", below)
    yield from ((name, parameter) for parameter in command.params if not getattr(parameter, "is_flag", False))


FREE = {  # what anything may be said to, by metavar or, where there is none, by name
    *("PATH", "PATHS", "DIR", "FILE", "FILE.html", "TEXT", "QUERY", "CLIP[:START-END]", "CLASS", "USER/NAME", "I/N"),
    *("INTEGER", "INTEGER[,INTEGER...]", "NUMBER", "SIZE", "SECONDS", "DAYS", "ADDRESS", ""),
    *("root", "media", "list_file", "against", "workers", "missing", "out", "seconds", "quality", "shard_clips"),
    *("seed", "clips_per_class", "jobs"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_that_has_choices_completes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "folder" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "folder" / "one" / "run.json").touch()
    for command, parameter in parameters(name, _load(name)):
        where = f"avfs {command}: {parameter.name}"
        if parameter._custom_shell_complete is None:
            plain = parameter.name if parameter.metavar is None else parameter.metavar.strip("[].") or ""
            assert plain in FREE or parameter.metavar in FREE, f"{where} has no completion"
            continue
        values = [item.value for item in parameter.shell_complete(None, "")]
        assert values, where
        assert [item.value for item in parameter.shell_complete(None, values[-1])][-1:] == values[-1:], where
        if parameter.metavar in {"RUN", "[RUN]..."}:
            assert values == ["runs/folder/one"], where


def ended_by(error):
    def command():
        raise error

    return status_of(command)


NO_MEMORY = "error: There is not enough memory.\n  Try a smaller --batch-size"


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture
def heard():
    """SIGHUP as a terminal leaves it: where tests run under nohup it is ignored, which commands respect."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(
    ("stop", "command"),
    [
        ("cli.data_prepare.load_any", "prepare folder --out o"),
        ("toyworld.build.prepare", "toy"),
        ("data.importing.read_stretches", "import labels.json --clips ."),
    ],
)
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_work_that_goes_on_later_says_so_by_whichever_signal_it_ends(avfs, monkeypatch, stop, command, number, status):
    monkeypatch.setattr(f"avfewshot.{stop}", lambda *_, **__: signal.raise_signal(number))
    told = avfs.refused("data", *command.split(), "--root", "r", status=status)
    assert "goes on from here" in told


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("stop", ["find.open_store", "embed._embed"])
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_every_command_ends_tidily_at_a_signal(avfs, monkeypatch, stop, number, status):
    monkeypatch.setattr(f"avfewshot.cli.{stop}", lambda *_: signal.raise_signal(number))
    (avfs.folder / "a.mp4").touch()
    before = [signal.getsignal(each) for each, _ in SIGNALS]
    assert avfs.refused(stop.partition(".")[0], "a.mp4", "--store", "s", status=status) == "Interrupted.\n"
    assert [signal.getsignal(each) for each, _ in SIGNALS] == before


HELD = (
    "hold_streams(); log = open('log', 'w'); say('told'); print('a result'); os.write(2, b'of a library'); sys.exit(7)"
)


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path, streams):
    code = f"import os, sys; from avfewshot.cli.terminal import hold_streams, say; {HELD}"
    command = f'"{sys.executable}" -c "{code}" {streams}'
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (7, "")
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_what_a_full_disk_does_not_take_of_what_is_told_changes_no_status(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "avfewshot", "find", "x", "--store", "nope"]
        assert subprocess.run(command, cwd=tmp_path, stderr=full, check=False).returncode == 2


def test_nohup_is_heeded(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert status_of(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (AvfsError("it broke", hint="mend it"), 1, "error: it broke\n  mend it\n"),
        (UsageError("wrong"), 2, "error: wrong\n"),
        (Faults([UsageError("one", hint="do"), UsageError("two")]), 2, "error: one\n  do\nerror: two\n"),
        (AvfsError("bad\x1b[31m file [red]x[/red]"), 1, "error: bad\\x1b[31m file [red]x[/red]\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (MemoryError(), 1, NO_MEMORY),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, NO_MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"), 1, NO_MEMORY),
        (RuntimeError("can't start new thread"), 1, NO_MEMORY),
        (OSError(28, "No space left on device", "out.json"), 1, "error: out.json: No space left on device."),
        (
            OSError(30, "Read-only file system", "x"),
            1,
            "error: x: Read-only file system.\n  See that it may be",
        ),
        (ValueError("odd\nvalue"), 1, "error: Unexpected ValueError: odd\n"),
    ],
)
def test_errors_become_lines_and_a_status(error, status, said, capsys):
    assert ended_by(error) == status
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert "Traceback" not in err
    assert ("--debug" in err) == (said == NO_MEMORY or "Unexpected" in said)


@pytest.mark.parametrize(
    ("arguments", "variables", "toml", "named"),
    [
        ("export nope --onnx out", {}, "", "RUN nope:"),
        ("export --onnx out", {"AVFS_ADAPTER": "nope"}, "", "AVFS_ADAPTER nope:"),
        ("zeroshot --adapter nope", {}, "", "--adapter nope:"),
        ("zeroshot --label a", {}, 'roberta = "nope"', "roberta in avfs.toml nope:"),
        ("zeroshot --label a --clip-weights .", {"AVFS_WEIGHTS": "random"}, "", "and AVFS_WEIGHTS random"),
        ("fewshot", {"AVFS_CONFIG": "nope"}, "", "given with AVFS_CONFIG"),
        ("fewshot", {"AVFS_RUNS": "avfs.toml"}, "", "AVFS_RUNS avfs.toml: avfs.toml is not a folder"),
    ],
)
def test_messages_call_a_setting_as_it_was_given(arguments, variables, toml, named, avfs, tmp_path, monkeypatch):
    (tmp_path / "avfs.toml").write_text(toml)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = avfs.refused(*arguments.split())
    assert named in shown
    assert all(word in arguments for word in ("--adapter", "--config") if word in shown)


def test_labels_that_are_typed_come_before_the_file_that_is_set(avfs, tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("cat\n")
    monkeypatch.setenv("AVFS_LABELS", "labels.txt")
    shown = avfs.refused("zeroshot", "--label", "dog", "--label", "dog")
    assert "exclude" not in shown
    assert "'dog' repeats 'dog'" in shown
    shown = avfs.refused("zeroshot", "--label", "dog", "--labels", "labels.txt")
    assert "--label and --labels exclude each other" in shown


NOBODY = "~nobody-here/x"


@pytest.mark.parametrize(
    "arguments",
    [
        f"zeroshot --label a --output {NOBODY}.json",
        f"zeroshot --labels {NOBODY}",
        f"fewshot --resume {NOBODY}",
        f"compare {NOBODY} b",
        f"eval {NOBODY}",
        f"learn {NOBODY} list",
        f"--log-file {NOBODY} config",
    ],
)
def test_the_home_of_nobody_is_a_wrong_path(arguments, avfs):
    shown = avfs.refused(*arguments.split())
    assert NOBODY in shown
    assert "there is no home folder ~nobody-here here" in shown


@pytest.fixture
def told(monkeypatch, tmp_path):
    """A command that says, warns and fails, in the place of `avfs config`."""

    def config() -> None:
        with library_messages():
            say("a notice")
            logging.getLogger("avfewshot.x").info("a detail")
            logging.getLogger("avfewshot.x").debug("of a file: \x1b[31m")
            logging.getLogger("avfewshot.x").warning("a warning")
            typer.echo(f"a result, {os.environ.get('AVFS_TIMEOUT')}, {os.environ.get('AVFS_DEBUG')}")
        raise AvfsError("it broke")

    monkeypatch.setattr("avfewshot.cli.config.config", config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVFS_TIMEOUT", raising=False)


@pytest.mark.parametrize("place", [0, 1])  # before and behind the command's name
def test_quiet_verbose_and_debug(told, capsys, place):
    def shown(*options, debug=None):
        assert run(["config", *options] if place else [*options, "config"]) == 1
        captured = capsys.readouterr()
        assert captured.out == f"a result, None, {debug}\n"  # results are results
        return captured.err

    assert shown("-q") == shown("--quiet") == "error: it broke\n"
    assert shown() == "a notice\nwarning: a warning\nerror: it broke\n"
    assert shown("-v") == "a notice\na detail\nwarning: a warning\nerror: it broke\n"
    detailed = shown("-vv")
    assert "of a file: \\x1b[31m\n" in detailed
    assert detailed.count("a detail") == 1
    assert "Traceback" in shown("--debug", debug=1)
    assert shown() == "a notice\nwarning: a warning\nerror: it broke\n"  # nothing stays for the next command


def test_a_log_file_has_everything_even_of_a_quiet_run(told, capsys):
    for _ in range(2):  # appended
        assert run(["config", "--quiet", "--log-file", "run.log"]) == 1
    assert capsys.readouterr().err == 2 * "error: it broke\n"
    text = Path("run.log").read_text()
    for what in ("avfs config --quiet", "INFO avfs: a notice", "of a file: \\x1b[31m", "WARNING avfs: a warning",
                 "ERROR avfs: it broke", "Traceback", "exit status 1"):  # fmt: skip
        assert text.count(what) == 2, (what, text)
    assert "\x1b" not in text
    assert run(["config", "--log-file", "no/folder/run.log"]) == 2
    assert "--log-file no/folder/run.log: cannot be written" in capsys.readouterr().err
    for content in (b"\0\0\0 ftypisom", b"dog barking\n", b"2026 dogs\n"):
        Path("0.mp4").write_bytes(content)
        assert run(["config", "--log-file", "0.mp4"]) == 2
        assert "--log-file 0.mp4: is a file, but no log" in capsys.readouterr().err
        assert Path("0.mp4").read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_is_said_once(told, capsys):
    assert run(["config", "--log-file", "/dev/full"]) == 1
    err = capsys.readouterr().err
    assert err.count("cannot be written any more") == 1
    assert err.endswith("error: it broke\n")


def test_timeout_goes_before_the_environment(told, capsys, monkeypatch):
    monkeypatch.setenv("AVFS_TIMEOUT", "5")
    run(["config", "--timeout", "7.5"])
    assert capsys.readouterr().out == "a result, 7.5, None\n"
    assert os.environ["AVFS_TIMEOUT"] == "5"
    for value in ("0", "-1", "nan", "inf", "soon"):
        assert run(["config", "--timeout", value]) == 2
        assert f"--timeout: a number of seconds that is more than 0 is needed, not '{value}'" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly(tmp_path):
    code = "import sys; from avfewshot.cli.app import run; sys.exit(run(['config', '--format', 'json']))"
    done = subprocess.run(
        f'"{sys.executable}" -c "{code}" 2>err | head -c 1', shell=True, cwd=tmp_path, check=False, timeout=120
    )
    assert done.returncode == 0
    assert (tmp_path / "err").read_text() == ""


def test_the_shim_runs_the_same_program(tmp_path):
    done = process("config", "--format", "json", cwd=tmp_path, AVFS_BACKBONE="large")
    assert done.returncode == 0
    found = [row for row in json.loads(done.stdout) if row["name"] == "backbone"]
    assert {row["table"] for row in found} == {n for n, model in TABLES.items() if "backbone" in settings_of(model)}
    assert {(row["value"], row["source"]) for row in found} == {("large", "AVFS_BACKBONE")}


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
@pytest.mark.parametrize(("columns", "wide"), [(None, True), ("40", False)])
def test_a_bar_tells_rate_and_time_left_where_a_terminal_has_no_size_or_is_narrow(columns, wide):
    code = (
        "from time import sleep; from avfewshot.cli.progress import Display\n"
        "with Display() as display:\n"
        "    display.begin('a long description of the work', 50, 10, unit='step')\n"
        "    for _ in range(4): sleep(0.15); display.advance()\n"
    )
    ours, theirs = os.openpty()  # which says that it has no rows and no columns
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {} if columns is None else {"COLUMNS": columns}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, check=False)
        os.close(theirs)
        shown = terminal.read(1 << 16).decode()
    assert done.returncode == 0
    [*_, line, cleared] = shown.rstrip("\r").split("\r")
    assert ("14/50 [00:0" in line, "step/s]" in line, "description" in line) == (True, True, wide), shown
    assert len(line) < int(columns or 80)
    assert not cleared.strip()
    assert "\n" not in shown
