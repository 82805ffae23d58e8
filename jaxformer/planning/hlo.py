"""Parses the HLO text of a compiled program: its computations, their instructions, and how often each computation runs.
HLO is the compiler's intermediate representation.

Parses only what planning needs. The text comes from `jax.stages.Compiled.as_text()`. At this point the compiler has
partitioned the program, so all shapes are per device.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Number of bits per element of the HLO types whose names do not contain this number."""
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|body|to_apply|called_computations|branch_computations)=(?:\{([^}]*)\}|%?([\w.-]+))")
BRANCHES = re.compile(r"(?:true|false)_computation=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
COMMENT = re.compile(r"/\*.*?\*/")
FOLLOWED = ("copy", "bitcast", "convert", "copy-done", "copy-start")
"""Names of HLO operations whose result has the same value as their operand. `Program.trips` follows them to their
operand when it looks for the constant that limits a loop.
"""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Instruction of an HLO program."""

    name: str
    type: str
    """Type and layout of the result, as HLO text such as `bf16[4,8]{1,0}`."""
    opcode: str
    operands: tuple[str, ...]
    """Names of the operands. For a constant, the only entry is its value; for a parameter of the computation, its
    number.
    """
    attributes: str
    """Rest of the HLO text of the instruction, after its operands."""

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that the instruction calls. The condition of a `while` loop is not included."""
        found = [name for several, one in CALLED.findall(self.attributes) for name in (several or one).split(",")]
        return tuple(name.strip().lstrip("%") for name in found) + tuple(BRANCHES.findall(self.attributes))

    def attribute(self, pattern: str) -> str | None:
        """Searches for a regular expression in the attributes. Returns the text of its first group, or None if there is
        no match.
        """
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Named computation (function) of an HLO program. `instructions` maps names to instructions, in program order,
    except that the last one is the result.
    """

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """Instruction whose value is the result of the computation."""
        return list(self.instructions.values())[-1]

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Maps the number of each parameter of the computation to the name of the instruction that represents it."""
        found = self.instructions.values()
        return {int(one.operands[0]): one.name for one in found if one.opcode == "parameter"}


def array_bytes(text: str, memory: bool = False) -> float:
    """Returns the total size in bytes of the arrays of an HLO type.

    Args:
      text: HLO type, such as `bf16[4,2048]{1,0:T(8,128)(2,1)S(1)}`, or a tuple of types.
      memory: whether to count only arrays in device memory. Arrays in on-chip memory are marked `S(1)`.
    """
    total = 0.0
    for dtype, sizes, layout in ARRAY.findall(text):
        if memory and "S(" in layout:
            continue
        elements = 1
        for size in sizes.split(",") if sizes else ():
            elements *= int(size)
        total += elements * _bits(dtype) / 8
    return total


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Program:
    """Parsed HLO program. `computations` maps names to computations, and `entry` is the name of the computation that
    runs first.
    """

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Parses the HLO text of a whole program."""
        computations, entry, name = {}, "", ""
        instructions: dict[str, Instruction] = {}
        for line in text.splitlines():
            if not line.startswith(" "):
                if header := HEADER.match(line):
                    name, instructions = header[2], {}
                    entry = name if header[1] else entry
                elif line == "}" and name:  # Other such lines belong to strings in attributes, which may be multi-line.
                    computations[name], name = Computation(name, instructions), ""
            elif name and (found := INSTRUCTION.match(line)):
                instruction = _instruction(found[1], COMMENT.sub("", found[2]))
                instructions[instruction.name] = instruction
                if line.lstrip().startswith("ROOT ") and name:
                    instructions[instruction.name] = instructions.pop(instruction.name)
        return cls(computations, entry)

    def runs(self) -> Iterator[tuple[Computation, float]]:
        """Yields the computations that a step runs, each with the number of times that it runs. Computations inside
        fusions are not included. A computation that is called at several places is yielded several times.
        """
        yield from self._runs(self.entry, 1.0)

    def _runs(self, name: str, times: float) -> Iterator[tuple[Computation, float]]:
        computation = self.computations[name]
        yield computation, times
        for instruction in computation.instructions.values():
            inside = times * (self.trips(computation, instruction) or 1) if instruction.opcode == "while" else times
            if instruction.opcode in ("while", "call", "conditional"):
                for called in instruction.called:
                    yield from self._runs(called, inside)

    def unknown_loops(self) -> int:
        """Returns the number of loops whose number of iterations is unknown. `runs` counts their bodies as if they ran
        once.
        """
        return sum(
            instruction.opcode == "while" and self.trips(computation, instruction) is None
            for computation, _ in self.runs()
            for instruction in computation.instructions.values()
        )

    def trips(self, computation: Computation, loop: Instruction) -> int | None:
        """Returns the number of iterations of a loop, or None if it is unknown.

        The CPU and GPU compilers write this number into the HLO text. The TPU compiler does not, so it is derived from
        the condition of the loop: JAX's loops count from 0 to a constant.

        Args:
          computation: computation that contains the loop.
          loop: instruction of the loop.
        """
        if found := TRIPS.search(loop.attributes):
            return int(found[1])
        condition = self.computations[loop.attribute(r"condition=%?([\w.-]+)") or ""]
        before = computation.instructions.get(loop.operands[0])
        return self._limit(condition, before, computation)

    def _limit(self, condition: Computation, before: Instruction | None, outside: Computation) -> int | None:
        """Returns the constant with which the condition of a loop compares the loop counter, which is the number of
        iterations. Returns None if the condition has another form.

        Args:
          condition: computation of the condition.
          before: initial state of the loop, a tuple instruction.
          outside: computation that contains the loop.
        """
        compare, values = condition.root, dict[str, int | None]()
        operands = list(compare.operands)
        inner = condition
        if compare.opcode == "fusion":
            inner = self.computations[compare.called[0]]
            values = {
                inner.parameters[number]: self._constant(condition, name, before, outside)
                for number, name in enumerate(operands)
            }
            compare = inner.root
            operands = list(compare.operands)
        if compare.opcode != "compare" or len(operands) != 2:
            return None
        found = [values[name] if name in values else self._constant(inner, name, before, outside) for name in operands]
        if "direction=LT" in compare.attributes:
            return found[1]
        return found[0] if "direction=GT" in compare.attributes else None

    def _constant(
        self, computation: Computation, name: str, before: Instruction | None, outside: Computation
    ) -> int | None:
        """Returns the value of an instruction that is an integer constant, or None if it is not.

        Args:
          computation: computation that contains the instruction.
          name: name of the instruction. It may select an element of the loop state; then the value of this element in
            the initial state is used.
          before: initial state of the loop, a tuple instruction.
          outside: computation that contains the loop.
        """
        instruction = computation.instructions.get(name)
        while instruction is not None and instruction.opcode in FOLLOWED:
            instruction = computation.instructions.get(instruction.operands[0])
        if instruction is None:
            return None
        if instruction.opcode == "constant":
            found = re.fullmatch(r"-?\d+", instruction.operands[0])
            return int(found[0]) if found else None
        number = instruction.attribute(r"index=(\d+)")
        if instruction.opcode == "get-tuple-element" and before is not None and before.opcode == "tuple" and number:
            if computation is outside:
                return None
            return self._constant(outside, before.operands[int(number)], None, outside)
        return None


def _instruction(name: str, rest: str) -> Instruction:
    """Parses an instruction. `rest` is its HLO text after the name and the equals sign:
    `TYPE OPCODE(OPERANDS), ATTRIBUTES`.
    """
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(inside)) if inside else ()
    return Instruction(name, rest[:end], rest[end:opening].strip(), operands, rest[closing + 1 :])


def _split(text: str) -> list[str]:
    """Splits a comma-separated list in HLO text, such as the operands of an instruction. Commas inside brackets, braces
    or parentheses do not separate.
    """
    if "[" not in text and "{" not in text and "(" not in text:
        return [part for part in text.split(",") if part.strip()]
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part for part in [*parts, text[start:]] if part.strip()]


def _closing(text: str, opening: int) -> int:
    """Returns the index in `text` of the parenthesis that closes the one at index `opening`. Raises ValueError if there
    is none.
    """
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return opening + found.start()
    raise ValueError(f"no closing parenthesis: {text[:80]}")
