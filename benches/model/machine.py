"""A multiprocessor that runs a steady loop: how many cycles a tile takes.

Four sub-partitions issue one instruction a cycle each, in the order of each warp. What an instruction waits for: its stall
count, the scoreboards in its encoding, barriers, copies under way, and the unit that executes it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from sass import NONE, Instruction

ALU = set(
    "FMNMX LOP3 IADD3 ISETP SHF LEA SEL FSEL FSETP IMNMX PRMT MOV PLOP3 F2FP VIMNMX VIADD VIADDMNMX IABS VOTE P2R R2P SGXT "
    "CS2R".split()
)
FMA = {"FFMA", "FMUL", "FADD", "IMAD"}
SPECIAL = {"MUFU", "I2F", "F2I", "F2F", "I2FP", "FLO", "POPC", "BREV"}
# Those that go through the queue to what the sub-partitions share: shared memory, L1, shuffles.
SHARED = set("LDSM LDS STS LDGSTS SHFL LDG STG LDL STL S2R LDC RED ATOMG".split())

SUB_PARTITIONS = 4
SCOREBOARDS = 6
BYTES_OF_COPY = 512
"""Of an LDGSTS: 32 lanes of 16 bytes."""
FLOPS_OF_PRODUCT = 4096.0
"""Of an HMMA.16816: 16 * 8 * 16 multiply-adds."""

LATENCY = {"LDSM": 30, "LDS": 23, "SHFL": 23, "MUFU": 20, "I2F": 14, "LDG": 450, "LDL": 35, "S2R": 20, "LDC": 40}
OTHER_LATENCY = 20


@dataclass(frozen=True)
class Machine:
    """The numbers of a GPU. Cycles for which a unit is taken by a warp's instruction, unless they say otherwise."""

    name: str
    clock: float
    multiprocessors: int
    product: float = 8.0
    fma_units: int = 1
    fma: float = 2.0
    wide_fma: float = 4.0
    alu: float = 2.0
    special: float = 8.0
    uniform: float = 2.0
    l2_latency: float = 350.0
    l2_bytes: float = 48.0
    """A cycle and multiprocessor."""
    taken_branch: int = 8
    """Further cycles until the next instruction."""
    barrier: int = 20
    """Cycles from the last arrival on."""
    queue: int = 12
    """Instructions of a sub-partition that may wait for what it shares with the others."""


MACHINES = {
    "a100": Machine("A100", clock=1.41e9, multiprocessors=108),
    "h100": Machine("H100", clock=1.70e9, multiprocessors=132, product=6.5, fma_units=2, l2_bytes=56.0),
}


@dataclass
class Warp:
    """Where a warp is."""

    ready: float
    """The cycle from which its stall count lets it go on."""
    next: int = 0
    tile: int = 0
    at_barrier: bool = False
    scoreboards: list[list[float]] = field(default_factory=lambda: [[] for _ in range(SCOREBOARDS)])
    """When each of what they count is released, in order."""
    copies: list[float] = field(default_factory=list)
    """When each group of copies has arrived, in order."""
    last_copy: float = 0.0
    ends: list[float] = field(default_factory=list)
    """When each tile ended."""

    def is_waiting(self, instruction: Instruction, now: float) -> bool:
        """For a scoreboard."""
        for k in range(SCOREBOARDS):
            if instruction.waits_for >> k & 1:
                pending = self.scoreboards[k]
                while pending and pending[0] <= now:
                    pending.pop(0)
                if pending:
                    return True
        return False

    def is_waiting_for_copies(self, instruction: Instruction, now: float) -> bool:
        """For all groups of copies but the last ones that may still be under way."""
        under_way = int(instruction.operands[1], 16) if len(instruction.operands) > 1 else 0
        if "LE" not in instruction.opcode:
            return False
        while self.copies and self.copies[0] <= now:
            self.copies.pop(0)
        return len(self.copies) > under_way

    def release(self, scoreboard: int, when: float) -> None:
        """What an instruction that is issued now will release."""
        if scoreboard != NONE:
            self.scoreboards[scoreboard].append(when)
            self.scoreboards[scoreboard].sort()


@dataclass
class SubPartition:
    """Until when its units are taken."""

    fma: list[float]
    alu: float = 0.0
    special: float = 0.0
    tensor: float = 0.0
    uniform: float = 0.0
    queue: list[float] = field(default_factory=list)
    """When those in the queue leave it."""
    last: int | None = None
    """The warp that issued last."""


def shared_cycles(instruction: Instruction) -> float:
    """For how long an instruction takes what the sub-partitions share."""
    name, opcode = instruction.name, instruction.opcode
    if name == "STS" and instruction.predicate not in (None, "PT"):
        return 1.0
    if name == "LDSM":
        return 4.0 if ".4" in opcode else 2.0
    if name == "LDGSTS":
        return 4.0
    if name in ("LDS", "STS"):
        return 4.0 if "128" in opcode else 2.0 if ".64" in opcode else 1.0
    return 2.0


class Multiprocessor:
    """Blocks of warps that go round the same loop."""

    def __init__(self, loop: Sequence[Instruction], machine: Machine, blocks: int, warps: int, offset: int) -> None:
        self.loop, self.machine, self.warps_a_block = loop, machine, warps
        self.warps = [Warp(ready=w // warps * float(offset)) for w in range(blocks * warps)]
        self.arrived: list[list[int]] = [[] for _ in range(blocks)]
        self.parts = [SubPartition([0.0] * machine.fma_units) for _ in range(SUB_PARTITIONS)]
        self.of_part = [
            [w for w in range(blocks * warps) if w % SUB_PARTITIONS == q] for q in range(SUB_PARTITIONS)
        ]
        self.shared = self.l2 = 0.0
        self.random = random.Random(offset)

    def execute(self, part: SubPartition, warp: Warp, instruction: Instruction, now: float) -> tuple[float, float] | None:
        """Takes the units: when the result is there and when operands have been read; `None` where a unit is taken."""
        machine, name = self.machine, instruction.name
        finished, read = now + 20, now + 10
        if name == "HMMA":
            if part.tensor > now:
                return None
            part.tensor = max(part.tensor, now - 1) + machine.product
        elif name in FMA:
            # Integers have the first unit alone.
            unit = 0 if name == "IMAD" else min(range(machine.fma_units), key=lambda u: (part.fma[u], -u))
            if part.fma[unit] > now:
                return None
            part.fma[unit] = now + (machine.wide_fma if "WIDE" in instruction.opcode else machine.fma)
        elif name in ALU:
            if part.alu > now:
                return None
            part.alu = now + machine.alu
        elif name in SPECIAL:
            if part.special > now + machine.special:
                return None
            start = max(part.special, now)
            part.special = start + machine.special
            finished = start + LATENCY.get(name, OTHER_LATENCY)
        elif name in SHARED:
            # Some loads are there for their scoreboard alone.
            if instruction.predicate == "!PT":
                return now + 4, read
            while part.queue and part.queue[0] <= now:
                part.queue.pop(0)
            if len(part.queue) >= machine.queue:
                return None
            start = max(self.shared, now + 2.0)
            self.shared = start + shared_cycles(instruction)
            part.queue.append(start)
            finished, read = start + LATENCY.get(name, OTHER_LATENCY), start + 8
            if name == "LDGSTS":
                self.l2 = max(self.l2, now) + BYTES_OF_COPY / machine.l2_bytes
                finished = max(now + machine.l2_latency, self.l2 + machine.l2_latency)
                warp.last_copy = max(warp.last_copy, finished)
        elif name.startswith("U") or name == "R2UR":
            if part.uniform > now:
                return None
            part.uniform = now + machine.uniform
        return finished, read

    def arrive(self, w: int, now: float) -> None:
        """At the barrier of its block."""
        block = w // self.warps_a_block
        self.arrived[block].append(w)
        self.warps[w].at_barrier = True
        if len(self.arrived[block]) == self.warps_a_block:
            for other in self.arrived[block]:
                waiting = self.warps[other]
                waiting.at_barrier = False
                waiting.ready = max(waiting.ready, now + self.machine.barrier)
            self.arrived[block] = []

    def issue(self, part: SubPartition, w: int, now: float) -> bool:
        """The next instruction of a warp, if it can be."""
        warp = self.warps[w]
        if warp.ready > now or warp.at_barrier:
            return False
        instruction = self.loop[warp.next]
        if warp.is_waiting(instruction, now):
            return False
        if instruction.name == "DEPBAR" and warp.is_waiting_for_copies(instruction, now):
            return False
        done = self.execute(part, warp, instruction, now)
        if done is None:
            return False
        warp.release(instruction.write_scoreboard, done[0])
        warp.release(instruction.read_scoreboard, done[1])
        if instruction.name == "LDGDEPBAR":
            warp.copies.append(warp.last_copy)
            warp.copies.sort()
        stall = max(1, instruction.stall)
        warp.ready = now + stall
        if instruction.name == "BAR":
            self.arrive(w, now)
        warp.next += 1
        if warp.next == len(self.loop):
            warp.next = 0
            warp.tile += 1
            warp.ends.append(now)
        if self.loop[warp.next].address != instruction.address + 16:
            warp.ready = max(warp.ready, now + stall + self.machine.taken_branch)
        part.last = w
        return True

    def run(self, tiles: int, skip: int) -> float:
        """Cycles of a tile of each block, in the mean over all warps, once `skip` tiles have gone by."""
        now = 0
        while any(warp.tile < tiles for warp in self.warps):
            for q, part in enumerate(self.parts):
                order = self.of_part[q]
                if part.last is not None:
                    # The warp that issued last goes first, and half of the time it goes last.
                    order = [part.last] + [w for w in order if w != part.last]
                if self.random.random() < 0.5:
                    order = order[1:] + order[:1]
                for w in order:
                    if self.warps[w].tile < tiles and self.issue(part, w, now):
                        break
            now += 1
        spans = [(warp.ends[-2] - warp.ends[skip - 1]) / (tiles - 1 - skip) for warp in self.warps]
        return sum(spans) / len(spans)


@dataclass(frozen=True)
class Result:
    """What the model says of a loop."""

    cycles: float
    """Of a tile of each block."""
    error: float
    """The standard error of the mean over the offsets."""
    tflops: float
    tensor_busy: float


def model(loop: Sequence[Instruction], machine: Machine, blocks: int = 2, warps: int = 4, offsets: int = 24) -> Result:
    """The mean over offsets by which the blocks follow each other."""
    cycles = [
        Multiprocessor(loop, machine, blocks, warps, offset=37 + 113 * k).run(tiles=8, skip=2) for k in range(offsets)
    ]
    mean = sum(cycles) / offsets
    error = sum((x - mean) ** 2 for x in cycles) ** 0.5 / offsets
    products = sum(instruction.name == "HMMA" for instruction in loop)
    flops = blocks * warps * products * FLOPS_OF_PRODUCT
    tflops = flops / mean * machine.clock * machine.multiprocessors / 1e12
    # Each sub-partition has a part of each block's warps.
    busy = blocks * warps / SUB_PARTITIONS * products * machine.product / mean
    return Result(mean, error, tflops, busy)
