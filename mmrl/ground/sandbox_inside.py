"""The inner half of a sandbox: a program that locks itself up, then runs a command. See `sandbox.py`.

Three processes, each the parent of the next:

    outer    takes new namespaces, and builds a file system of what the command may see
    first    process 1 of the new process namespace: when it ends, the kernel ends whatever is left in there
    command  limits on itself, no privileges, then the command

Nothing but the standard library, and nothing of ours: it is run by a fresh interpreter that looks nowhere else.

Called with "serve" it stays, imports what it is told, and forks an outer process for each request: the command is then
a Python source that runs in the fork, which costs no start of an interpreter. It never runs a source itself, and holds
nothing that a source may not read. Requests come over a Unix socket, one after the other:

    b"r" + handles (specification, stdout, stderr, report)  ->  the id of the outer process
    b"e" + id                                               ->  its exit code, after it was killed
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

NEW_MOUNTS, NEW_NAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV = 2, 4
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, AT_RECURSIVE = 1, 2, 0x8000
MOUNT_SETATTR = 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NOBODY = 65534
SCRATCH = "/scratch"
"""Where the command works, inside."""
FRAME = struct.Struct(">iQ")
"""An exit code (negative: the signal), and the bytes of JSON that follow."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
NUMBER = struct.Struct(">q")
"""An id or an exit code on the socket of `serve`."""
REFUSED = 97
"""Exit code of the outer process if the system does not let it take what it needs."""

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A function of the C library that returns 0. Raises OSError with its name."""
    given = [x.encode() if isinstance(x, str) else x for x in arguments]
    if getattr(_libc, name)(*given) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def system_call(number: int, name: str, *arguments: Any) -> None:
    """The same for what the C library has no function for."""
    given = [x.encode() if isinstance(x, str) else x for x in arguments]
    if _libc.syscall(ctypes.c_long(number), *given) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def shut_in(root: str, visible: Sequence[str], scratch_bytes: int) -> None:
    """New namespaces, and a file system of `visible` paths, read only, and an empty scratch folder."""
    user, group = os.getuid(), os.getgid()
    kinds = NEW_MOUNTS | NEW_PROCESSES | NEW_NETWORK | NEW_IPC | NEW_NAME
    if user == 0:
        call("unshare", kinds)
    else:
        call("unshare", NEW_USER | kinds)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    # Nothing that is mounted from here on shows outside.
    call("mount", "none", "/", 0, MS_REC | MS_PRIVATE, 0)
    call("mount", "tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    for path in (*visible, *DEVICES):
        _show(path, root)
    scratch = root + SCRATCH
    os.mkdir(scratch)
    size = f"size={scratch_bytes},nr_inodes=10000,mode=777"
    call("mount", "tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.chdir(root)
    os.mkdir("old")
    system_call(PIVOT_ROOT[os.uname().machine], "pivot_root", ".", "old")
    os.chdir("/")
    # What was there before is gone, not hidden: no path and no handle leads back.
    call("umount2", "/old", DETACH)
    os.rmdir("/old")
    _read_only("/", recursive=False)
    _read_only("/dev", recursive=False, quietly=True)


def _show(path: str, root: str) -> None:
    """The same path inside, read only."""
    if not os.path.exists(path):
        return
    inside = root + path
    if os.path.islink(path):  # /bin is a link to /usr/bin on most systems
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(os.readlink(path), inside)
        return
    if os.path.exists(inside):  # inside of something that is shown already
        return
    if os.path.isdir(path):
        os.makedirs(inside, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        open(inside, "w").close()
    call("mount", path, inside, 0, MS_BIND | MS_REC, 0)
    _read_only(inside)


def _read_only(path: str, *, recursive: bool = True, quietly: bool = False) -> None:
    settings = struct.pack("=QQQQ", ATTR_RDONLY | ATTR_NOSUID, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    try:
        here = ctypes.c_int(-100)  # paths are taken from the current folder
        system_call(
            MOUNT_SETATTR, "mount_setattr", here, path, flags, settings, ctypes.c_size_t(32)
        )
    except OSError:
        if not quietly:
            raise


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    if sys.platform == "linux":
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def limit(limits: Mapping[str, int], *, shut: bool) -> None:
    """Bounds on the command and all that it starts."""
    bounds = {
        resource.RLIMIT_CPU: limits["cpu"],
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["files"],
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if shut or os.getuid():
        # In a namespace of its own only its own processes count, elsewhere all of this user.
        others = 0 if shut else _running()
        bounds[resource.RLIMIT_NPROC] = limits["processes"] + others
    for kind, bound in bounds.items():
        most = resource.getrlimit(kind)[1]
        bound = bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.setrlimit(kind, (bound, bound))


def _running() -> int:
    """Threads of this user."""
    found = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                found += len(os.listdir(f"/proc/{name}/task"))
    return found


def drop_privileges() -> None:
    """Become nobody, in a user namespace of its own, from which there is no way back."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # The kernel does not count processes of root, and counts those of one user together unless they are apart.
        call("unshare", NEW_USER)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def become(spec: Mapping[str, Any], folder: str, *, shut: bool) -> NoReturn:
    """Turn into the command. Never returns."""
    try:
        os.chdir(folder)
        end_with_parent()
        if shut:
            drop_privileges()
        limit(spec["limits"], shut=shut)
        if spec["forked"]:
            interpret(spec["command"][-1], spec["environment"])
        os.execve(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        os.write(2, f"{spec['command'][0]}: {error}\n".encode())
    os._exit(127)


def interpret(path: str, environment: Mapping[str, str]) -> NoReturn:
    """Run a Python file in this process, as the interpreter would, and end."""
    import runpy
    import traceback

    code = 1
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
        code = 0
    except SystemExit as wanted:
        code = _exit_code(wanted)
    except (
        BaseException
    ):  # whatever a program raises is its own business, and told on its own stderr
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _exit_code(wanted: SystemExit) -> int:
    """The code of a SystemExit, by the interpreter's rules."""
    if wanted.code is None:
        return 0
    if isinstance(wanted.code, int):
        return wanted.code & 0xFF
    sys.stderr.flush()
    os.write(2, f"{wanted.code}\n".encode())
    return 1


def fill(folder: str, files: Mapping[str, str]) -> None:
    """Write the given files, which travel as latin-1 text, one character per byte."""
    for name, content in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode("latin-1"))
    for where, _, names in os.walk(folder):
        os.chmod(where, 0o777)
        for name in names:
            os.chmod(os.path.join(where, name), 0o666)


def gathered(folder: str, wanted: Sequence[str], most: int) -> dict[str, str]:
    """Wanted files that are there: plain ones of the folder, never what a link points to."""
    found: dict[str, str] = {}
    for name in wanted:
        with contextlib.suppress(OSError):
            handle = _opened(folder, name)
            with open(handle, "rb") as file:
                plain = stat.S_ISREG(os.fstat(handle).st_mode)
                content = file.read(most + 1) if plain else b""
            if plain and len(content) <= most:
                most -= len(content)
                found[name] = content.decode("latin-1")
    return found


def _opened(folder: str, name: str) -> int:
    """A handle on a file of the folder. No part of its path may be a link."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    parts = name.split("/")
    try:
        for number, part in enumerate(parts):
            if part in ("", ".", ".."):
                raise OSError(errno.EINVAL, name)
            last = number == len(parts) - 1
            # A pipe without a writer would be waited for.
            kind = os.O_NONBLOCK if last else os.O_DIRECTORY
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=handle)
            os.close(handle)
            handle = inner
    except OSError:
        os.close(handle)
        raise
    return handle


def report(descriptor: int, code: int, files: Mapping[str, str]) -> None:
    """Tell the parent how the command ended."""
    body = json.dumps(files).encode()
    with open(descriptor, "wb") as stream:
        stream.write(FRAME.pack(code, len(body)) + body)


def first(spec: Mapping[str, Any], folder: str, *, shut: bool) -> NoReturn:
    """Start the command, wait for it, and report. Never returns."""
    fill(folder, spec["files"])
    command = os.fork()
    if command == 0:
        os.close(spec["report"])
        become(spec, folder, shut=shut)
    # Orphans of the command come here; only its own end is waited for.
    while True:
        ended, status = os.wait()
        if ended == command:
            break
    if shut:
        # Whatever still runs would change files under our hands.
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    found = gathered(folder, spec["wanted"], spec["limits"]["files"])
    report(spec["report"], os.waitstatus_to_exitcode(status), found)
    os._exit(0)


def locked(spec: Mapping[str, Any]) -> NoReturn:
    """The outer process: lock up, and have the command run. Never returns."""
    os.umask(0)
    if not spec["shut"]:
        first(spec, spec["root"], shut=False)
    try:
        shut_in(spec["root"], spec["visible"], spec["limits"]["files"])
    except (OSError, KeyError) as error:
        os.write(2, f"{error}\n".encode())
        os._exit(REFUSED)
    inner = os.fork()
    if inner == 0:
        end_with_parent()
        first(spec, SCRATCH, shut=True)
    os.close(spec["report"])
    os.waitpid(inner, 0)
    os._exit(0)


def serve(channel: socket.socket, preload: Sequence[str]) -> NoReturn:
    """Fork an outer process for each request until the other side is gone."""
    import importlib
    import runpy  # noqa: F401  (forks find it read)
    import traceback  # noqa: F401

    for module in preload:
        importlib.import_module(module)
    channel.sendall(NUMBER.pack(os.getpid()))  # ready
    parent = os.getppid()
    while True:
        # A stray copy of the socket, in a fork of the parent, would hide that the parent is gone.
        while not select.select([channel], [], [], 1.0)[0]:
            if os.getppid() != parent:
                os._exit(0)
        request, handles, _, _ = socket.recv_fds(channel, 1 + NUMBER.size, 4)
        if not request:
            os._exit(0)
        if request[:1] == b"e":
            answer = _ended(NUMBER.unpack(request[1:])[0])
        else:
            answer = _forked(channel, handles)
        channel.sendall(NUMBER.pack(answer))


def _forked(channel: socket.socket, handles: Sequence[int]) -> int:
    """The id of a fork that does what the specification says, with a session and streams of its own."""
    outer = os.fork()
    if outer:
        for handle in handles:
            os.close(handle)
        return outer
    try:
        end_with_parent()
        channel.close()
        os.setsid()
        told, out, errors, report_to = handles
        os.dup2(out, 1)
        os.dup2(errors, 2)
        os.close(out)
        os.close(errors)
        with open(told, "rb") as stream:
            spec = json.loads(stream.read())
        locked({**spec, "report": report_to})
    finally:  # a fork must never go on as a second server
        os._exit(REFUSED)


def _ended(outer: int) -> int:
    """Kill an outer process with all that is in it; its exit code."""
    # Not reaped before, so the id cannot be another's by now.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(outer, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(outer, 0)[1])


def main() -> NoReturn:
    """Read what to do from the handle that the first argument names, and do it; or "serve", a socket, and modules."""
    if sys.argv[1] == "serve":
        # Not ended with its parent: that would be the thread that started it, and others use it.
        serve(socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
    end_with_parent()
    with open(int(sys.argv[1]), "rb") as stream:
        spec = json.loads(stream.read())
    if os.getppid() != spec["parent"]:  # it died before we asked to be told
        os._exit(REFUSED)
    locked(spec)


if __name__ == "__main__":
    main()
