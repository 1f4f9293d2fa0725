"""Circuits against their references: real Icarus Verilog where it is installed; headers and traces everywhere."""

import asyncio
import shutil

import pytest
import torch

from mmrl.recipes.shared.circuit_data import (
    AFTER,
    BEFORE,
    EXPRESSIONS,
    CircuitLessons,
    CircuitWarmUp,
    TruthTables,
)
from mmrl.rewards import simulation
from mmrl.rewards.code_answers import tags_once
from mmrl.rewards.codev_r1 import CircuitReward
from mmrl.rewards.simulation import (
    NoPorts,
    NoSimulator,
    Port,
    Simulator,
    Stimulus,
    Trace,
    agrees,
    compared,
    header,
    inputs_of,
)
from mmrl.types import Prompt, Rollout

XOR = "module top(input a, input b, output y); assign y = a ^ b; endmodule"
SUM = """
module top(input clk, input rst_n, input [3:0] d, output reg [3:0] q);
  always @(posedge clk or negedge rst_n) if (!rst_n) q <= 0; else q <= q + d;
endmodule
"""
OLD = """
module adder(input [3:0] a, b, output [3:0] s); assign s = a + b; endmodule
module top(clk, rst_n, d, q); // q is the sum
  parameter WIDTH = 4;
  input clk, rst_n; input [WIDTH-1:0] d; output [WIDTH-1:0] q;
  reg [WIDTH-1:0] q; wire [3:0] s; adder one(q, d, s);
  always @(posedge clk or negedge rst_n) if (!rst_n) q <= 0; else q <= s;
endmodule
"""
PORTS = (
    Port("clk", "input", 1),
    Port("rst_n", "input", 1),
    Port("d", "input", 4),
    Port("q", "output", 4),
)
QUICK = Stimulus(cycles=200, seconds=3)


@pytest.fixture(scope="module")
def simulator():
    if not shutil.which("iverilog"):
        pytest.skip("Icarus Verilog is not installed")
    with Simulator(QUICK, workers=2) as found:
        yield found


@pytest.mark.parametrize("module", [SUM, OLD])
def test_both_forms_of_headers_are_read(module):
    assert header(module) == ("top", PORTS)


def test_widths_and_kinds_are_read():
    text = "module m #(parameter N = 8, M = N*2) (input wire signed [M-1:0] a, b, input logic [0:2] c, output reg y);"
    text += " endmodule"
    wanted = (
        Port("a", "input", 16),
        Port("b", "input", 16),
        Port("c", "input", 3),
        Port("y", "output", 1),
    )
    assert header(text) == ("m", wanted)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("assign y = a;", "no 'module"),
        ("module m(input a); endmodule", "no output"),
        ("module m(inout a, output y); endmodule", "inout"),
        ("module m(input [N-1:0] a, output y); endmodule", "no constant"),
        ("module m(input [2**64:0] a, output y); endmodule", "no constant"),
    ],
)
def test_what_cannot_be_tried_is_said(text, why):
    with pytest.raises(NoPorts, match=why):
        header(text)


def test_inputs_are_the_same_each_time_and_the_reset_is_held_first():
    driven = [port for port in PORTS[1:3]]
    rows = inputs_of(driven, Stimulus(cycles=400), clocked=True)
    assert rows == inputs_of(driven, Stimulus(cycles=400), clocked=True)
    assert rows != inputs_of(driven, Stimulus(cycles=400, seed=1), clocked=True)
    assert [row[0] for row in rows[:3]] == ["0"] * 3, "active low"
    assert 0 < [row[0] for row in rows[3:]].count("0") < 40
    assert {row[1:] for row in rows} == {format(value, "04b") for value in range(16)}
    every = inputs_of([Port("a", "input", 2)], Stimulus(cycles=1), clocked=False)
    assert every[1:] == ["00", "01", "10", "11"]


def test_unknown_bits_of_the_reference_may_be_anything():
    assert agrees("1x0z", "1100") and agrees("1x", "1x")
    assert not agrees("10", "1x") and not agrees("1x", "0x") and not agrees("1", "11")
    verdict = compared(("00", "01", "1x"), Trace(("00", "11", "10")))
    assert (verdict.equal, verdict.fault, verdict.mismatches) == (False, "mismatch", 1 / 3)
    assert compared(("0",), Trace(("0", "0"))).fault == "mismatch"
    assert compared(("0",), Trace(("0",))).equal


@pytest.mark.parametrize(
    ("golden", "candidate", "fault"),
    [
        (XOR, XOR.replace("a ^ b", "(a & ~b) | (~a & b)"), ""),
        (XOR, XOR.replace("^", "|"), "mismatch"),
        (XOR, XOR.replace("top", "other"), "compile"),
        (XOR, "module top(", "compile"),
        (XOR, "", "compile"),
        (XOR, XOR.replace("input b, ", ""), "compile"),
        (SUM, OLD, ""),
        (OLD, SUM, ""),
        (SUM, SUM.replace("q + d", "q - d"), "mismatch"),
        (SUM, SUM.replace(" or negedge rst_n", ""), "mismatch"),
        (
            XOR,
            XOR.replace("assign", 'initial begin $display("#end"); $finish; end assign'),
            "mismatch",
        ),
        (XOR, XOR.replace("assign", "initial $finish; assign"), "short"),
        (XOR, XOR.replace("assign", "initial while (1) #0; assign"), "time"),
    ],
)
def test_candidates_are_judged_by_what_they_do(simulator, golden, candidate, fault):
    verdict = simulator(golden, candidate)
    assert (verdict.equal, verdict.fault) == (not fault, fault), verdict
    assert simulator.counts[fault or "equal"] >= 1


def test_expressions_of_the_miniature_are_right_for_their_tables(simulator):
    """Each expression equals the reference of its table; one of another table does not."""
    modules = {
        table: [f"{BEFORE}{one}{AFTER}" for one in known]
        for table, known in EXPRESSIONS.items()
    }
    for known in modules.values():
        for module in known[1:]:
            assert simulator(known[0], module).equal, module
    first, *others = (known[0] for known in modules.values())
    assert not any(simulator(first, module).equal for module in others[:3])
    prompts = [TruthTables(seed=1)[index] for index in range(40)]
    assert len({prompt.extra["table"] for prompt in prompts}) > 8
    lessons = [CircuitLessons(CircuitWarmUp())[index] for index in range(60)]
    right = [
        lesson.extra["target"][9:-10] in EXPRESSIONS[lesson.extra["table"]]
        for lesson in lessons
    ]
    assert 20 < sum(right) < 45


def answer(text, reference, **row):
    one = torch.tensor([1])
    prompt = Prompt("q", [{"role": "user", "content": "q"}], answer=reference, extra=row)
    return Rollout(prompt, 0, one, one, one.to(torch.uint8), text, "eos")


def test_the_reward_asks_for_the_tags_and_takes_any_reference(simulator):
    good, wrong = f"```verilog\n{XOR}\n```", f"```verilog\n{XOR.replace('^', '&')}\n```"
    tagged = "<think> x </think>\n<answer>\n{}\n</answer>"
    reward = CircuitReward(simulator)

    def paid(text, reference=XOR, **row):
        return asyncio.run(reward(answer(text, reference, **row)))

    simulator.counts.clear()
    assert paid(tagged.format(good)) == 1.0 and paid(tagged.format(wrong)) == 0.0
    assert paid(tagged.format(wrong), [XOR, XOR.replace("^", "&")]) == 1.0
    assert paid(f"<answer>{good}</answer>") == 0.0 and paid(tagged.format(good) * 2) == 0.0
    assert paid(tagged.format("a ^ b"), before=BEFORE, after=AFTER) == 1.0
    assert paid(tagged.format(good), "no module") is None
    assert paid(tagged.format(good), XOR.replace("a ^ b", "c")) is None, (
        "a reference that does not run"
    )
    counted = reward.metrics()
    assert (counted["simulation/form"], counted["simulation/no_reference"]) == (2, 2)
    assert reward.metrics() == {"simulation/equal": 0.0}
    assert tags_once("<answer></answer>", think=False) and not tags_once(
        "</answer><answer>", think=False
    )


def test_without_a_simulator_it_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(simulation.shutil, "which", lambda name: None)
    with pytest.raises(NoSimulator, match=r"no iverilog and no vvp .*apt-get install iverilog"):
        Simulator()
