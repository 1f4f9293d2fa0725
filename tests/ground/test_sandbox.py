"""A program that nobody has read: what it may use, what it cannot reach, and what comes back."""

import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mmrl.ground import sandbox
from mmrl.ground.sandbox import Isolation, Limits, isolation, run, run_python
from mmrl.ground.sandbox_warm import NotWarm, WarmPython
from mmrl.rewards.pay import Rewards
from mmrl.types import Prompt, Rollout

SHORT = Limits(seconds=3, memory_mb=512, processes=16, output_kb=16, files_mb=8)
shut_only = pytest.mark.skipif(
    sys.platform != "linux" or not isolation().shut, reason="no namespaces here"
)


@pytest.fixture(scope="module")
def warm():
    with WarmPython() as python:
        yield python


@pytest.fixture(params=["namespaces", "limits", "warm namespaces", "warm limits"])
def way(request, monkeypatch, warm):
    """All ways of running a program; those with namespaces only where the system allows it."""
    if request.param.endswith("limits"):
        monkeypatch.setattr(sandbox, "isolation", lambda: Isolation(False, "tried"))
    elif not isolation().shut:
        pytest.skip("no namespaces here")
    if request.param.startswith("warm"):
        monkeypatch.setitem(globals(), "run_python", warm.run)
    return request.param.split()[-1]


def test_what_it_prints_and_leaves_comes_back(way):
    source = "import sys\nprint(open('in.txt').read()[::-1])\nprint('mind', file=sys.stderr)\n"
    source += "import os; os.makedirs('a'); open('a/out.bin', 'wb').write(bytes(range(256)))"
    files = {"in.txt": b"abc"}
    found = run_python(source, files=files, wanted=["a/out.bin", "none"], limits=SHORT)
    assert (found.text, found.errors, found.ok) == ("cba\n", "mind\n", True)
    assert found.files == {"a/out.bin": bytes(range(256))}


def test_how_it_ended_is_told(way):
    left = run_python("raise SystemExit(7)", limits=SHORT)
    assert (left.ended, left.code, left.ok) == ("exit", 7, False)
    killed = run_python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", limits=SHORT)
    assert (killed.ended, killed.code, killed.ok) == ("signal", -9, False)
    assert run(["/no/such/program"], limits=SHORT).code == 127
    wrong = run_python("print('\\udc80')\nthis is no Python \udc80", limits=SHORT)
    assert wrong.code == 1 and "SyntaxError" in wrong.errors


def test_it_ends_when_its_time_is_over(way):
    brief = Limits(seconds=0.5)
    for source in ("while True: pass", "import time; time.sleep(100)"):
        found = run_python("print('here', flush=True)\n" + source, limits=brief)
        assert (found.ended, found.code, found.text) == ("time", None, "here\n")
        assert found.seconds < 0.5 + sandbox.UP


def test_ten_gibibytes_of_output_end_it(way):
    found = run_python("import sys\nwhile True: sys.stdout.write('x' * 100_000)", limits=SHORT)
    assert found.ended == "output" and len(found.text) == 16 * 1024


def test_its_memory_and_files_are_bounded(way):
    assert "MemoryError" in run_python("bytearray(10 << 30)", limits=SHORT).errors
    big = run_python("open('x', 'wb').write(bytes(64 << 20))", limits=SHORT)
    assert not big.ok
    many = "for n in range(64): open(str(n), 'wb').write(bytes(1 << 20))"
    if way == "namespaces":
        assert "No space left" in run_python(many, limits=SHORT).errors


def test_a_bomb_of_processes_goes_out(way):
    if way == "limits" and os.getuid() == 0:
        pytest.skip("nobody counts the processes of root")
    source = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        n += 1
except OSError:
    print(n)
"""
    found = run_python(source, limits=SHORT)
    assert found.ok and int(found.text) < 16
    assert found.seconds < 3, "what it left behind is not waited for"


def test_nothing_of_it_lives_on():
    if not isolation().shut:
        pytest.skip("no namespaces here")
    mark = f"left-behind-{time.time_ns()}"
    source = f"""
import os
if os.fork() == 0:
    os.setsid()
    os.execv({sys.executable!r}, ["python", "-c", "import time; time.sleep(60)", {mark!r}])
"""
    assert run_python(source, limits=SHORT).ok
    time.sleep(0.2)
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(p)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@shut_only
def test_it_reaches_no_network_and_no_neighbour():
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard: list[object] = []
        server.settimeout(0.5)
        thread = threading.Thread(target=lambda: heard.append(_accepted(server)), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        source = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        found = run_python(source, limits=SHORT)
        assert found.code == 1 and ("refused" in found.errors or "unreachable" in found.errors)
    thread.join()
    assert heard == [None]


def _accepted(server):
    try:
        return server.accept()
    except OSError:
        return None


@shut_only
def test_it_sees_no_file_of_ours(tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("key")
    monkeypatch.setenv("API_KEY", "key")
    source = f"""
import os
for path in ({str(secret)!r}, {str(Path.home())!r} + '/.ssh', {os.getcwd()!r} + '/pyproject.toml', '/proc/1/environ',
             '/etc/passwd', '/old', '/sys'):
    print(os.path.exists(path))
print(sorted(os.environ))
print(os.getuid() != 0 or os.environ)
"""
    found = run_python(source, limits=SHORT)
    lines = found.text.splitlines()
    assert lines[:7] == ["False"] * 7 and "API_KEY" not in lines[7] and lines[8] == "True"


@shut_only
@pytest.mark.parametrize("path", ["/usr/x", "/x", "/dev/x", "/etc/x", sys.prefix + "/x"])
def test_it_writes_nowhere_but_into_its_folder(path):
    found = run_python(f"open({path!r}, 'w')", limits=SHORT)
    assert found.code == 1 and ("Read-only" in found.errors or "denied" in found.errors)


@shut_only
def test_it_gains_nothing_by_namespaces_of_its_own():
    source = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000 | 0x00020000)
print(libc.mount(b'none', b'/usr', b'tmpfs', 0, None), libc.umount2(b'/scratch', 2), libc.chroot(b'/scratch'))
try:
    open('/usr/x', 'w')
except OSError:
    print('still shut')
"""
    assert run_python(source, limits=SHORT).text.endswith("still shut\n")


def test_links_lead_nowhere(way, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("key")
    source = f"""
import os
os.symlink({str(secret)!r}, 'a.txt')
os.symlink({str(tmp_path)!r}, 'folder')
os.mkfifo('pipe')
os.mkdir('real')
os.symlink('/dev/zero', 'real/zero')
"""
    wanted = ["a.txt", "folder/secret.txt", "pipe", "real", "real/zero", "/dev/null"[1:]]
    found = run_python(source, wanted=wanted, limits=SHORT)
    assert found.ok and found.files == {}
    for name in ("../x", "/etc/passwd", "a/../../x", ""):
        with pytest.raises(ValueError, match="no name of a file in the sandbox"):
            run_python("", wanted=[name])
        with pytest.raises(ValueError, match="no name of a file in the sandbox"):
            run_python("", files={name: b""})


def test_files_that_are_too_large_are_not_handed_back(way):
    source = (
        "for name in 'abc': open(name, 'wb').write(bytes(6 << 20 if name == 'b' else 3 << 20))"
    )
    found = run_python(source, wanted=["a", "b", "c"], limits=SHORT)
    assert sum(map(len, found.files.values())) <= 8 << 20 and "a" in found.files


ATTACKS = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "network": "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)",
    "home folder": f"open({str(Path.home() / '.profile')!r}).read()",
    "ten gibibytes": "import sys\nfor _ in range(10 << 10): sys.stdout.write('x' * (1 << 20))",
    "endless loop": "while True: pass",
    "link to the outside": "import os\nos.symlink('/etc', 'out')\nopen('out/passwd').read()",
}


@shut_only
def test_attacks_are_survived_and_counted(warm):
    """Whatever a program tries: it ends within its limits, is counted by how, and the next program is well."""
    warm.counts.clear()
    brief = Limits(seconds=1, memory_mb=512, processes=16, output_kb=16, files_mb=8)
    ended = {}
    for name, source in ATTACKS.items():
        outcome = warm.run(source, limits=brief)
        assert not outcome.ok and outcome.seconds < 3, (name, outcome)
        ended[name] = outcome.ended
    assert warm.run("print('well')").text == "well\n"
    assert (ended["ten gibibytes"], ended["endless loop"]) == ("output", "time")
    assert warm.counts["runs"] == len(ATTACKS) + 1 and warm.counts["output"] == 1
    assert sum(warm.counts[how] for how in ("exit", "signal", "time", "output")) == 7


def test_programs_share_packages_and_nothing_else(warm):
    """What one program changes, the next does not see; a program costs a fork and not a start of Python."""
    left = (
        "import json, os\njson.left = 1\nopen('file', 'w').write('x')\nos.environ['LEFT'] = '1'"
    )
    assert warm.run(left).ok
    found = warm.run(
        "import json, os\nprint(hasattr(json, 'left'), os.listdir(), 'LEFT' in os.environ)"
    )
    assert found.text == "False ['main.py'] False\n"
    began = time.monotonic()
    outcomes = list(ThreadPoolExecutor(4).map(lambda n: warm.run(f"print({n})"), range(8)))
    assert [outcome.text for outcome in outcomes] == [f"{n}\n" for n in range(8)]
    assert time.monotonic() - began < 8


def test_a_warm_interpreter_comes_again_and_says_why_it_does_not():
    with WarmPython(("json",)) as python:
        assert python.run("print(1)").ok
        python._server.kill()
        python._server.wait()
        assert python.run("print(1)").ok
    assert python._server is None
    with (
        WarmPython(("no_such_package",)) as python,
        pytest.raises(NotWarm, match="no_such_package"),
    ):
        python.run("")


def paid_by_program(rollout):
    return float(run_python(rollout.text, limits=SHORT).text or 0)


def test_rewards_in_workers_run_programs():
    one = torch.tensor([1])
    prompt = Prompt("q", [{"role": "user", "content": "q"}])
    answers = [
        Rollout(prompt, 0, one, one, torch.tensor([0], dtype=torch.uint8), text, "eos")
        for text in ("print(0.25)", "while True: pass", "print(0.5)")
    ]
    with Rewards(program=paid_by_program, workers=1) as rewards:
        paid = rewards(answers)
    assert [rollout.reward for rollout in paid] == [0.25, 0.0, 0.5]


def test_where_it_is_not_shut_in_it_is_said(monkeypatch, caplog):
    sandbox.isolation.cache_clear()
    monkeypatch.setattr(sandbox, "INSIDE", Path(__file__).with_name("no_such_program.py"))
    found = isolation()
    sandbox.isolation.cache_clear()
    assert not found.shut
    with caplog.at_level("WARNING"):
        monkeypatch.setattr(sandbox, "isolation", lambda: found)
        for _ in range(2):
            sandbox.say_what_is_missing("Tests")
    assert (
        caplog.text.count("Tests run programs that a model writes, and there are no name") == 1
    )
    for part in ("network", "read what this user can read", "Run in a container"):
        assert part in found.missing


@pytest.mark.parametrize(
    "wrong",
    [{"seconds": 0}, {"memory_mb": 1}, {"processes": 0}, {"output_kb": 0}, {"files_mb": 0}],
)
def test_absurd_limits_are_refused(wrong):
    with pytest.raises(ValueError, match="Limits"):
        Limits(**wrong)
