"""Machine code as `cuobjdump -sass` prints it, for sm_80 to sm_90."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FUNCTION = re.compile(r"\s+Function : (\S+)")
# An instruction, with the lower half of its encoding. The upper half stands alone on the next line.
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?);?\s*/\* 0x([0-9a-f]{16}) \*/")
UPPER_HALF = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
ADDRESS = re.compile(r"0x([0-9a-f]+)")

# Those whose operand is an address in the code.
WITH_TARGETS = {"BRA", "BSSY", "CALL", "JMP", "BRX", "BREAK", "WARPSYNC", "BSYNC", "RET"}

# No scoreboard.
NONE = 7

# What instructions are for, by their names.
KINDS = {
    "HMMA": "HMMA",
    "HGMMA": "HGMMA",
    "FFMA": "FFMA",
    "FMUL": "FMUL",
    "FADD": "FADD",
    "FMNMX": "FMNMX",
    "MUFU": "MUFU",
    "select": "FSETP FSEL FSET",
    "pack": "F2F F2FP",
    "convert": "I2F I2FP F2I",
    "LDSM": "LDSM",
    "LDGSTS": "LDGSTS",
    "STSM": "STSM",
    "UTMALDG": "UTMALDG",
    "LDS": "LDS",
    "STS": "STS",
    "global": "LDG STG LDC RED ATOMG LD ST LDL STL",
    "SHFL": "SHFL",
    "vote": "VOTE VOTEU REDUX",
    "barrier": "BAR LDGDEPBAR DEPBAR WARPGROUP SYNCS",
    "integer": (
        "IMAD IADD3 LOP3 LEA ISETP SHF IMNMX VIMNMX VIADD SEL PRMT PLOP3 IABS LOP IADD SGXT POPC FLO P2R R2P VIADDMNMX "
        "IMUL BREV"
    ),
    "uniform": (
        "ULDC UIADD3 USHF ULEA UMOV UIMAD ULOP3 USEL UISETP R2UR S2UR UPLOP3 UPRMT USGXT UP2UR UR2UP UFLO "
        "UPOPC USETMAXREG ELECT"
    ),
    "move": "MOV CS2R S2R",
    "branch": (
        "BRA BSSY BSYNC BREAK WARPSYNC CALL RET EXIT NOP YIELD BMOV ERRBAR MEMBAR CCTL NANOSLEEP"
    ),
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}

# What the maths needs, what the data needs; everything else is control. tests/kernel_budget.rs counts the same.
MATH = {"HMMA", "HGMMA", "FFMA", "FMUL", "FADD", "FMNMX", "MUFU", "select", "pack", "convert"}
MEMORY = {"LDSM", "LDGSTS", "STSM", "UTMALDG", "LDS", "STS", "global", "SHFL"}


@dataclass(slots=True)
class Instruction:
    """One instruction, with what its encoding tells the scheduler."""

    address: int
    text: str
    predicate: str | None
    """Without the `@`."""
    opcode: str
    """With its suffixes, such as `LDSM.16.M88.4`."""
    name: str
    """The first part of the opcode."""
    operands: list[str]
    target: int | None
    stall: int = 1
    """Cycles until the warp may issue its next instruction."""
    write_scoreboard: int = NONE
    """Which of six is released when the result is there."""
    read_scoreboard: int = NONE
    """Which of six is released when the operands have been read."""
    waits_for: int = 0
    """A bit for each scoreboard that must be released before."""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.name == "IMAD" and ".MOV" in self.opcode:
            return "move"
        return KIND_OF.get(self.name, "?" + self.name)

    @property
    def is_conditional(self) -> bool:
        """Of a branch: whether it may go on, too. A branch has its predicate before it, or as its first operand."""
        has_condition = len(self.operands) == 2 and re.match(r"!?U?P", self.operands[0])
        return self.predicate is not None or bool(has_condition)

    def take_upper_half(self, encoding: int) -> None:
        """The scheduling is in its highest bits."""
        control = encoding >> 41
        self.stall = control & 15
        self.write_scoreboard = control >> 5 & 7
        self.read_scoreboard = control >> 8 & 7
        self.waits_for = control >> 11 & 63


def parse_instruction(address: int, text: str) -> Instruction:
    """Of a line without its encoding."""
    text = text.strip().rstrip(";").strip()
    predicate, rest = None, text
    if text.startswith("@"):
        predicate, rest = text[1:].split(None, 1)
    opcode, *operands = rest.split(None, 1)
    name, target = opcode.split(".")[0], None
    if name in WITH_TARGETS and operands:
        found = ADDRESS.search(operands[0])
        target = int(found.group(1), 16) if found else None
    listed = [operand.strip() for operand in operands[0].split(",")] if operands else []
    return Instruction(address, text, predicate, opcode, name, listed, target)


def parse(lines: Iterable[str]) -> dict[str, list[Instruction]]:
    """The instructions of each kernel."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    last: Instruction | None = None
    for line in lines:
        if found := FUNCTION.match(line):
            current, last = kernels.setdefault(found.group(1), []), None
        elif current is None:
            continue
        elif found := INSTRUCTION.match(line):
            last = parse_instruction(int(found.group(1), 16), found.group(2))
            current.append(last)
        elif (found := UPPER_HALF.match(line)) and last is not None:
            last.take_upper_half(int(found.group(1), 16))
            last = None
    return kernels


def read(path: Path) -> dict[str, list[Instruction]]:
    """The kernels of a file, which holds one architecture."""
    with path.open() as lines:
        return parse(lines)


def counts(instructions: Iterable[Instruction]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(instruction.kind for instruction in instructions)


def classes(instructions: Iterable[Instruction]) -> dict[str, int]:
    """How many are for math, for memory, and for control."""
    kinds = counts(instructions)
    math = sum(n for kind, n in kinds.items() if kind in MATH)
    memory = sum(n for kind, n in kinds.items() if kind in MEMORY)
    return {"math": math, "memory": memory, "control": kinds.total() - math - memory}
