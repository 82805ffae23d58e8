"""Compiled programs as text: what runs, and how often."""

import jax
import jax.numpy as jnp
import pytest

from jaxformer.planning.hlo import Program, array_bytes

TPU = """HloModule jit_step, is_scheduled=true

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%state), index=1, frontend_attributes={kernel="{
}}", more={1}}
  ROOT %next = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) tuple(%number, /*index=1*/%x)
}

%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%condition (state.1: (s32[], f32[8], s32[])) -> pred[] {
  %state.1 = (s32[], f32[8], s32[]) parameter(0)
  %number.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] get-tuple-element(%state.1), index=2
  ROOT %fusion = pred[] fusion(%number.1, %limit), kind=kLoop, calls=%compared
}

%plain (state.2: (s32[], f32[8])) -> pred[] {
  %state.2 = (s32[], f32[8]) parameter(0)
  %constant.1 = s32[] constant(12)
  %number.2 = s32[] get-tuple-element(%state.2), index=0
  ROOT %gt = pred[] compare(%constant.1, %number.2), direction=GT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %seven = s32[] constant(7)
  %copied = s32[] copy(%seven)
  %first = (s32[], f32[8], s32[]) tuple(%zero, %p, %copied)
  %while.1 = (s32[], f32[8], s32[]) while(%first), condition=%condition, body=%body
  %while.2 = (s32[], f32[8]) while(%while.1), condition=%plain, body=%body
  %open = (s32[], f32[8]) while(%while.2), condition=%unknown, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%open), index=1
}

%unknown (state.3: (s32[], f32[8])) -> pred[] {
  ROOT %state.3 = pred[] parameter(0)
}
"""


def test_bytes_of_types():
    assert array_bytes("bf16[4,2048]{1,0:T(8,128)(2,1)S(1)}") == 2 * 4 * 2048
    assert array_bytes("(f32[2,3]{1,0}, pred[], s4[8]{0}, token[])") == 24 + 1 + 4
    assert array_bytes("(f32[2]{0:T(128)S(1)}, f8e4m3fn[3]{0})", memory=True) == 3
    assert array_bytes("c64[2]") == 16


def test_loops_of_a_tpu_are_counted_by_their_conditions():
    program = Program.parse(TPU)
    runs = [(computation.name, times) for computation, times in program.runs()]
    assert runs == [("main", 1), ("body", 7), ("body", 12), ("body", 1)]
    assert program.unknown_loops() == 1
    body = program.computations["body"]
    assert body.root.opcode == "tuple" and body.root.operands == ("number", "x")
    assert list(body.parameters) == [0]


def test_loops_in_loops_and_choices_are_counted():
    def inner(x, _):
        return jnp.sin(x) @ x, None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, None, length=5)
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x), None

    compiled = jax.jit(lambda x: jax.lax.scan(outer, x, None, length=3)[0]).lower(jnp.ones((32, 32))).compile()
    program = Program.parse(compiled.as_text())
    counted = [times for computation, times in program.runs() if computation.name != program.entry]
    assert program.unknown_loops() == 0
    assert {3.0, 15.0} == set(counted) and counted.count(3.0) == 3, "the loop, and both branches of the choice"


def test_a_program_without_loops_is_its_entry():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(4)).compile()
    ((entry, times),) = Program.parse(compiled.as_text()).runs()
    assert times == 1 and entry.root.type.startswith("f32[4]")
    with pytest.raises(KeyError):
        list(Program.parse("nothing").runs())
