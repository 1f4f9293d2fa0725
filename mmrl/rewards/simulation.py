"""Are two circuits equal? Two Verilog modules get the same random inputs in Icarus Verilog; their outputs are compared.

    with Simulator() as same:
        same(golden, candidate).equal

The golden module's header says what goes in and out. Its inputs are driven by a testbench made by rule:

    without a clock     every input at once, random bits each time; all of them, too, where there are at most 2^10
    with a clock        inputs change while it is low, outputs are read before it rises and after it fell; the reset is
                        held for the first cycles, and given again by chance

Each module runs alone, in a sandbox (`mmrl.ground.sandbox`): neither sees the other, names inside them cannot clash,
and what a candidate prints is read as its outputs, nothing else. Where an output of the golden module is unknown (x or
z), the candidate's may be anything. Equal outputs are no proof, only very likely: two circuits that differ in rare
states may pass.

Ports: ANSI headers (`module m(input [3:0] a, output reg y);`) and older ones, with widths of numbers and parameters.
The clock is a one-bit input whose name is clk, clock or clk_i and the like, the reset one with rst or reset in it; it
is active low where its name ends so (rst_n, resetn, n_reset).
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Self

from mmrl.ground.require import require
from mmrl.ground.sandbox import Limits, run, say_what_is_missing
from mmrl.ground.seeds import philox

PROGRAMS = ("iverilog", "vvp")
INSTALL = "apt-get install iverilog, or brew install icarus-verilog"
KEPT = 4096
"""Modules whose outputs are remembered."""
CODE_LIMIT = 200_000
"""Characters of a module."""
EXHAUSTIVE = 10
"""Input bits up to which every input is tried as well."""
HELD = 3
"""Cycles that the reset is held at first."""
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_MODULE = re.compile(
    r"\bmodule\s+(\w+)\s*(?:#\s*\((.*?)\)\s*)?\((.*?)\)\s*;(.*?)\bendmodule\b", re.DOTALL
)
_DIRECTION = re.compile(r"\b(input|output|inout)\b")
_KIND = re.compile(r"\b(wire|reg|logic|bit|signed|unsigned|var|tri)\b")
_WIDTH = re.compile(r"\[([^\]:]+):([^\]]+)\]")
_PARAMETER = re.compile(r"\b(?:parameter|localparam)\b([^;)]*)")
_SETTING = re.compile(r"(\w+)\s*=\s*([^,;]+)")
_CLOCK = re.compile(r"(?:i_)?(?:clk|clock|aclk)(?:_i|_in|in)?", re.IGNORECASE)
_RESET = re.compile(
    r"(?:i_|a|async_|sync_|n_|n)*(?:rst|reset)(?:_?n|_i|_in|_b|_l)*", re.IGNORECASE
)
_LOW = re.compile(r"(?:_?n|_b|_l)(?:_i)?$|^n_?(?:rst|reset)", re.IGNORECASE)


class NoSimulator(RuntimeError):
    """Icarus Verilog is not installed."""


class NoPorts(ValueError):
    """A golden module whose header cannot be read, or that has no output."""


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: str
    direction: Literal["input", "output"]
    width: int
    """Bits."""


@dataclass(frozen=True)
class Stimulus:
    """How a circuit is tried."""

    cycles: int = 1000
    """Random inputs, or cycles of the clock."""
    seed: int = 0
    """Of the inputs; the same for all modules."""
    reset: float = 0.02
    """Chance per cycle that the reset is given again."""
    seconds: float = 10.0
    """For compiling and simulating one module."""
    memory_mb: int = 1024
    """MiB of each process."""

    def __post_init__(self) -> None:
        require(
            self,
            cycles=(1 <= self.cycles <= 100_000, "1 to 100,000"),
            seed=(0 <= self.seed < 2**63, "0 to 2^63 - 1"),
            reset=(0 <= self.reset <= 1, "in [0, 1]"),
            seconds=(0 < self.seconds <= 600, "more than 0, at most 600"),
            memory_mb=(64 <= self.memory_mb <= 1 << 20, "64 to 1,048,576"),
        )

    @property
    def limits(self) -> Limits:
        """Of the sandbox."""
        return Limits(self.seconds, self.memory_mb, processes=16, output_kb=8192, files_mb=32)


@dataclass(frozen=True)
class Trace:
    """What a module did."""

    outputs: tuple[str, ...] = ()
    """Its outputs each time, as bits 0, 1, x and z."""
    fault: str = ""
    """Why it is not all of them: "compile", "time", "output", "signal", "failed" or "short"."""
    detail: str = ""
    """What the compiler or simulator said."""


@dataclass(frozen=True)
class Verdict:
    """How a candidate compares with the golden module."""

    equal: bool
    fault: str = ""
    """Of the candidate: "mismatch", or that of its trace."""
    mismatches: float = 0.0
    """Share of the times at which an output differed."""
    detail: str = ""


def simulator_paths() -> dict[str, str]:
    """Name -> full path of compiler and simulator. Raises NoSimulator."""
    found = {name: shutil.which(name) for name in PROGRAMS}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise NoSimulator(
            f"Circuits are compared with Icarus Verilog, and there is no {' and no '.join(missing)} on this machine's "
            f"PATH: {INSTALL}."
        )
    return {name: os.path.realpath(path) for name, path in found.items() if path}


class Simulator:
    """Compares circuits, several at a time; each module runs once. `counts` holds what became of candidates."""

    def __init__(self, stimulus: Stimulus = Stimulus(), workers: int | None = None) -> None:
        """`workers`: simulations at one time; None: one for each core. Raises NoSimulator."""
        self.paths, self.stimulus = simulator_paths(), stimulus
        say_what_is_missing("Circuits")
        self.counts: Counter[str] = Counter()
        """Candidates that were "equal", and others by their fault."""
        self._threads = ThreadPoolExecutor(workers or os.cpu_count() or 1, "mmrl-simulation")
        self._known: OrderedDict[tuple[str, str], Future[Trace]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Simulator({self.stimulus})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def __call__(self, golden: str, candidate: str) -> Verdict:
        """Raises NoPorts for a golden module that cannot be tried, and ValueError for one that does not run."""
        name, ports = header(golden)
        bench = testbench(name, ports, self.stimulus)
        wanted = self.begin(golden, bench).result()
        if wanted.fault:
            raise ValueError(
                f"The golden module {name!r} fails ({wanted.fault}): {wanted.detail}"
            )
        found = self.begin(candidate, bench).result()
        verdict = compared(wanted.outputs, found)
        with self._lock:
            self.counts[verdict.fault or "equal"] += 1
        return verdict

    def begin(self, module: str, bench: Mapping[str, bytes]) -> Future[Trace]:
        """The outputs of a module, for callers that do not wait."""
        key = (module, bench["bench.v"].decode())
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
            running = self._threads.submit(self._traced, module, bench)
            self._known[key] = running
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return running

    def _traced(self, module: str, bench: Mapping[str, bytes]) -> Trace:
        if len(module) > CODE_LIMIT:
            return Trace(fault="compile", detail=f"{len(module)} characters")
        files = {**bench, "module.v": module.encode("utf-8", "replace")}
        compiler, simulator = (self.paths[name] for name in PROGRAMS)
        # Its own exit code says whether it was the compiler that refused.
        compile_ = f'"{compiler}" -g2012 -s bench -o bench.vvp bench.v module.v'
        script = f'{compile_} || exit 99; exec "{simulator}" -n bench.vvp'
        outcome = run(
            ["/bin/sh", "-c", script],
            files=files,
            limits=self.stimulus.limits,
            visible=[os.path.dirname(os.path.dirname(path)) for path in self.paths.values()],
        )
        said = (outcome.errors.strip() or outcome.text.strip())[-500:]
        if outcome.ended != "exit":
            return Trace(fault=outcome.ended, detail=said)
        if outcome.code == 99:
            return Trace(fault="compile", detail=said)
        lines = tuple(line[1:] for line in outcome.text.splitlines() if line.startswith("#"))
        complete = "#end" in outcome.text.splitlines()[-3:]
        return Trace(lines[:-1]) if complete else Trace(lines, "short", said)


def compared(wanted: Sequence[str], found: Trace) -> Verdict:
    """The verdict on a candidate's trace; what is unknown in `wanted` may be anything."""
    if found.fault:
        return Verdict(False, found.fault, 1.0, found.detail)
    if len(found.outputs) != len(wanted):
        return Verdict(
            False, "mismatch", 1.0, f"{len(found.outputs)} outputs, not {len(wanted)}"
        )
    wrong = [
        place
        for place, (one, other) in enumerate(zip(wanted, found.outputs, strict=True))
        if not agrees(one, other)
    ]
    if not wrong:
        return Verdict(True)
    first = wrong[0]
    detail = f"at {first}: {found.outputs[first]!r}, not {wanted[first]!r}"
    return Verdict(False, "mismatch", len(wrong) / len(wanted), detail)


def agrees(wanted: str, found: str) -> bool:
    """Equal bits wherever the wanted ones are known?"""
    if len(wanted) != len(found):
        return False
    return all(one == other or one in "xz" for one, other in zip(wanted, found, strict=True))


def header(module: str) -> tuple[str, tuple[Port, ...]]:
    """Name and ports of the last module of a text, in their order. Raises NoPorts."""
    plain = _COMMENT.sub(" ", module)
    modules = _MODULE.findall(plain)
    if not modules:
        raise NoPorts("There is no 'module NAME (…); … endmodule' in the golden module.")
    used = {name for _, _, _, body in modules for name in re.findall(r"\b(\w+)\b", body)}
    # The top is what no other module uses; where there are several of these, the last.
    tops = [module for module in modules if module[0] not in used]
    name, parameters, listed, body = (tops or modules)[-1]
    values = _values(parameters if "parameter" in parameters else f"parameter {parameters}")
    values |= _values(body)
    declared = _declared(listed, values)
    if not declared:  # the older form: names here, directions in the body
        for statement in body.split(";"):
            if _DIRECTION.match(statement.strip()):
                declared += _declared(statement, values)
    if not any(port.direction == "output" for port in declared):
        raise NoPorts(
            f"The golden module {name!r} has no output that can be read off its header."
        )
    return name, tuple(declared)


def _declared(text: str, values: Mapping[str, int]) -> list[Port]:
    """The ports that a list declares; a direction and a width hold until the next direction."""
    ports: list[Port] = []
    direction, width = "", 1
    for item in text.split(","):
        if found := _DIRECTION.search(item):
            direction, width = found[1], 1
        if not direction:
            return []
        if direction == "inout":
            raise NoPorts(
                "The golden module has an inout port, which no testbench here can drive."
            )
        if bits := _WIDTH.search(item):
            width = abs(number(bits[1], values) - number(bits[2], values)) + 1
        plain = item.split("=")[0]
        for known in (_DIRECTION, _KIND, _WIDTH):
            plain = known.sub(" ", plain)
        names = re.findall(r"\b[A-Za-z_]\w*", plain)
        if len(names) != 1:
            raise NoPorts(f"The port {item.strip()!r} of the golden module cannot be read.")
        ports.append(Port(names[0], "input" if direction == "input" else "output", width))
    return ports


def _values(text: str) -> dict[str, int]:
    """Parameters with numbers as their values."""
    values: dict[str, int] = {}
    for settings in _PARAMETER.findall(text):
        for name, value in _SETTING.findall(_WIDTH.sub(" ", settings)):
            try:
                values[name] = number(value, values)
            except NoPorts:  # not a number: no width can use it
                continue
    return values


def number(text: str, values: Mapping[str, int]) -> int:
    """A constant of numbers, parameters, + - * / and brackets. Raises NoPorts for what is none."""
    plain = re.sub(r"\d*'[dD](\d+)", r"\1", text.strip())
    try:
        return _number(ast.parse(plain, mode="eval").body, values)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise NoPorts(f"{text.strip()!r} is no constant that can be read here") from error


def _number(node: ast.expr, values: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_number(inner, values)
        case ast.BinOp(left=left, op=operation, right=right):
            one, other = _number(left, values), _number(right, values)
            match operation:
                case ast.Add():
                    return one + other
                case ast.Sub():
                    return one - other
                case ast.Mult():
                    return one * other
                case ast.Div():
                    return one // other
    raise ValueError("no constant")


def testbench(name: str, ports: Sequence[Port], stimulus: Stimulus) -> dict[str, bytes]:
    """The testbench of a module called `name`, and the file of its inputs."""
    inputs = [port for port in ports if port.direction == "input"]
    outputs = [port for port in ports if port.direction == "output"]
    clock = next(
        (port for port in inputs if port.width == 1 and _CLOCK.fullmatch(port.name)), None
    )
    driven = [port for port in inputs if port is not clock]
    rows = inputs_of(driven, stimulus, clocked=clock is not None)
    width = max(1, sum(port.width for port in driven))
    wires = [f"  reg [{port.width - 1}:0] {port.name} = 0;" for port in inputs]
    wires += [f"  wire [{port.width - 1}:0] {port.name};" for port in outputs]
    tied = ", ".join(f".{port.name}({port.name})" for port in ports)
    drive = "{" + ", ".join(port.name for port in driven) + "} = rows_[n_];" if driven else ""
    shown = ", ".join(port.name for port in outputs)
    show = f'$display("#%b", {{{shown}}});'
    # Before the edge what the inputs do at once, after it what the state does.
    tick = (
        f"#1 {show} {clock.name} = 1; #1 {clock.name} = 0; #1 {show}" if clock else f"#1 {show}"
    )
    lines = [
        "`timescale 1ns/1ps",
        "module bench;",
        *wires,
        f"  reg [{width - 1}:0] rows_ [0:{len(rows) - 1}];",
        "  integer n_;",
        f"  {name} dut_({tied});",
        "  initial begin",
        '    $readmemb("inputs.txt", rows_);',
        f"    for (n_ = 0; n_ < {len(rows)}; n_ = n_ + 1) begin",
        f"      {drive} {tick}",
        "    end",
        '    $display("#end");',
        "    $finish;",
        "  end",
        "endmodule",
    ]
    return {"bench.v": "\n".join(lines).encode(), "inputs.txt": "\n".join(rows).encode()}


def inputs_of(ports: Sequence[Port], stimulus: Stimulus, *, clocked: bool) -> list[str]:
    """Rows of bits for the driven inputs, the first port first."""
    rng = philox("stimulus", stimulus.seed)
    rows: list[str] = []
    for cycle in range(stimulus.cycles):
        bits: list[str] = []
        for port in ports:
            if port.width == 1 and _RESET.fullmatch(port.name):
                given = rng.random() < stimulus.reset or (clocked and cycle < HELD)
                bits.append(str(int(given != bool(_LOW.search(port.name)))))
            else:
                bits.append("".join(map(str, rng.integers(0, 2, port.width))))
        rows.append("".join(bits) or "0")
    total = sum(port.width for port in ports)
    if not clocked and 0 < total <= EXHAUSTIVE:
        rows += [format(value, f"0{total}b") for value in range(2**total)]
    return rows
