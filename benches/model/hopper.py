"""A multiprocessor of Hopper that runs the steady loop of a kernel with TMA and wgmma.

Its four sub-partitions are alike, each with one warp of every warpgroup that multiplies, so one is simulated. Beside what
`machine.py` knows: products of a warpgroup are issued and go on by themselves, in one tensor unit that takes them in turns; waits
for their groups; named barriers by which warpgroups take turns. Copies are assumed to have arrived, and mbarriers to let pass.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from machine import ALU, FMA, SCOREBOARDS, SHARED, SPECIAL
from sass import NONE, Instruction

PRODUCT = re.compile(r"HGMMA\.64x(\d+)x16")
REGISTER = re.compile(r"\bR(\d+)\b(\.reuse)?")
HEX = re.compile(r"0x([0-9a-f]+)")

ROWS = 64
"""Of a product. It multiplies 16 columns of them."""
WARPGROUP = 128
"""Threads."""

# Their first operand is read too.
STORES = {"STS", "STSM", "ST", "STG", "RED", "ATOMS"}


@dataclass(frozen=True)
class Hopper:
    """The numbers of a GPU, in cycles where they do not say otherwise."""

    name: str = "H100"
    clock: float = 1.54e9
    multiprocessors: int = 132
    column: float = 0.5
    """Of a product, for each column of the result."""
    shared_bytes: float = 128.0
    """A cycle, of operands in shared memory."""
    product_start: float = 8.0
    """From issue on, at the earliest."""
    product_end: float = 32.0
    """From the end of a group until the warp that waits for it goes on."""
    product_queue: int = 4
    """Products of a warp that may be issued and not have begun."""
    turn: float = 75.0
    """Until the tensor unit has changed to another warpgroup."""
    stolen: float = 0.5
    """What a product loses for each register that another instruction reads."""
    operands_behind: float = 2.0
    """How far reads of registers may be behind: of each parity, one is read a cycle."""
    fma_units: int = 2
    fma: float = 2.0
    alu: float = 2.0
    special: float = 8.0
    special_queue: int = 2
    uniform: float = 1.0
    barrier: float = 24.0
    """From the last arrival on."""
    taken_branch: float = 6.0
    jitter: float = 60.0
    """At most, of each round: warps that start alike do not stay in step."""


LATENCY = {"SHFL": 24.0, "LDS": 28.0, "LDSM": 28.0, "LDC": 40.0, "SYNCS": 24.0, "S2R": 30.0, "LDL": 35.0}
OTHER_LATENCY = 20.0
# What the four sub-partitions share is taken by the others as often.
SHARED_CYCLES = {"LDSM": 16.0, "STSM": 16.0, "LDS": 4.0, "STS": 4.0, "SHFL": 8.0}
OTHER_SHARED_CYCLES = 2.0


def kind(instruction: Instruction) -> str:
    """What executes it."""
    name = instruction.name
    if instruction.predicate == "!PT":
        return "none"
    if name in ("HGMMA", "WARPGROUP", "BAR"):
        return name
    if name in SPECIAL:
        return "special"
    if name in SHARED or name in ("STSM", "SYNCS", "UTMALDG", "ATOMS"):
        return "shared"
    if name.startswith("U") or name in ("R2UR", "S2UR"):
        return "uniform"
    return "fma" if name in FMA else "alu" if name in ALU else "none"


def columns(instruction: Instruction) -> int:
    """Of a product's result."""
    found = PRODUCT.match(instruction.opcode)
    assert found, instruction.text
    return int(found.group(1))


@dataclass
class Step:
    """An instruction of the loop, and what is known of it beforehand."""

    instruction: Instruction
    kind: str
    reads: list[int]
    """How many registers it reads, of each parity."""
    taken: float = 0.0
    """For how long a product takes the tensor unit, or others what sub-partitions share."""
    ends_group: bool = False
    adds: bool = True
    """Of a product: whether it adds to what the registers hold."""
    under_way: int | None = None
    """Of a wait: how many groups may be."""
    arrives_at: int = 0
    """Of a named barrier: that of the so-manieth warpgroup after this one; 0 for one that waits."""
    threads: int = 0
    """Of a barrier; 0 for all."""


def prepare(loop: Sequence[Instruction], gpu: Hopper) -> list[Step]:
    """The steps of a round."""
    steps: list[Step] = []
    kept: set[str] = set()
    arrivals = 0
    for instruction in loop:
        name, text = instruction.name, instruction.text
        operands = instruction.operands if name in STORES else instruction.operands[1:]
        found = [match for operand in operands for match in REGISTER.findall(operand)]
        # What the instruction before has kept of its operands is not read again.
        read = {number for number, _ in found} - kept if name != "HGMMA" else set()
        kept = {number for number, reuse in found if reuse}
        odd = sum(int(number) % 2 for number in read)
        step = Step(instruction, kind(instruction), [len(read) - odd, odd])
        numbers = [int(number, 16) for number in HEX.findall(text)]
        if step.kind == "HGMMA":
            n = columns(instruction)
            from_registers = REGISTER.match(instruction.operands[1])
            operand_bytes = n * 32 + (0 if from_registers else ROWS * 32)
            step.taken = max(n * gpu.column, operand_bytes / gpu.shared_bytes)
            step.ends_group = "gsb" in text
            step.adds = "!UPT" not in text
        elif step.kind == "WARPGROUP" and "DEPBAR" in instruction.opcode:
            step.under_way = numbers[-1]
        elif step.kind == "BAR":
            step.threads = numbers[-1] if numbers else 0
            if "ARV" in instruction.opcode:
                arrivals += 1
                step.arrives_at = arrivals
        elif step.kind == "shared":
            always = instruction.predicate in (None, "PT")
            step.taken = SHARED_CYCLES.get(name, OTHER_SHARED_CYCLES) if always else 1.0
        steps.append(step)
    return steps


@dataclass
class Warp:
    """Where a warp is."""

    ready: float
    next: int = 0
    round: int = 0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * SCOREBOARDS)
    """When each is released."""
    unfinished: int = 0
    """Groups of products that are issued and not done."""
    groups: list[float] = field(default_factory=list)
    """When those that are done are known to be."""
    turns: int = 0
    """Arrivals at its barrier that it has not used."""
    awaits_turn: bool = False
    ends: list[float] = field(default_factory=list)
    """Of its rounds."""


@dataclass
class Product:
    """One that is issued."""

    warp: int
    step: Step
    start: float
    """At the earliest."""
    end: float = 0.0


class SubPartition:
    """Warps of as many warpgroups that go round the same loop."""

    def __init__(self, loop: Sequence[Instruction], gpu: Hopper, warpgroups: int, offset: float) -> None:
        self.gpu = gpu
        self.steps = prepare(loop, gpu)
        self.warps = [Warp(ready=w * offset) for w in range(warpgroups)]
        self.warps[0].turns = 1
        self.takes_turns = any(step.arrives_at for step in self.steps)
        self.random = random.Random(int(offset))
        self.last = 0
        self.queue: list[Product] = []
        self.product: Product | None = None
        self.last_product: int | None = None
        self.tensor = 0.0
        self.fma = [0.0] * gpu.fma_units
        self.alu = self.special = self.uniform = self.shared = 0.0
        self.registers = [0.0, 0.0]

    def go_on(self, now: float) -> None:
        """Ends products and begins others."""
        while True:
            if self.product is not None:
                if self.product.end > now:
                    return
                ended, self.product = self.product, None
                self.tensor = ended.end
                if ended.step.ends_group:
                    warp = self.warps[ended.warp]
                    warp.groups.append(ended.end + self.gpu.product_end)
                    warp.unfinished -= 1
            if not self.queue:
                return
            start = max(self.tensor, min(product.start for product in self.queue))
            if start > now:
                return
            ready = [product for product in self.queue if product.start <= start]
            # A warpgroup goes on while it has some; among others the oldest is first.
            product = next((p for p in ready if p.warp == self.last_product), ready[0])
            self.queue.remove(product)
            if self.last_product not in (None, product.warp):
                start += self.gpu.turn
            self.last_product = product.warp
            product.end = start + product.step.taken
            self.product = product

    def must_wait(self, w: int, step: Step, now: float) -> bool:
        """For results, for products or for registers."""
        warp = self.warps[w]
        if any(step.instruction.waits_for >> k & 1 and warp.scoreboards[k] > now for k in range(SCOREBOARDS)):
            return True
        if step.under_way is not None:
            warp.groups = [end for end in warp.groups if end > now]
            if warp.unfinished + len(warp.groups) > step.under_way:
                return True
        if step.kind == "HGMMA" and sum(product.warp == w for product in self.queue) >= self.gpu.product_queue:
            return True
        late = now + self.gpu.operands_behind
        return any(n and behind > late for n, behind in zip(step.reads, self.registers, strict=True))

    def execute(self, step: Step, now: float) -> tuple[float, float] | None:
        """Takes the unit: when the result is there and when operands have been read; `None` where it is taken."""
        gpu, name = self.gpu, step.instruction.name
        latency = LATENCY.get(name, OTHER_LATENCY)
        finished, read = now + 6, now + 8
        if step.kind == "fma":
            # Integers have the first unit alone.
            unit = 0 if name == "IMAD" else min(range(gpu.fma_units), key=lambda u: (self.fma[u], -u))
            if self.fma[unit] > now:
                return None
            self.fma[unit] = now + gpu.fma
        elif step.kind == "alu":
            if self.alu > now:
                return None
            self.alu = now + gpu.alu
        elif step.kind == "special":
            if self.special > now + (gpu.special_queue - 1) * gpu.special:
                return None
            start = max(self.special, now)
            self.special = start + gpu.special
            finished, read = start + latency, start + 4
        elif step.kind == "uniform":
            if self.uniform > now:
                return None
            self.uniform = now + gpu.uniform
            finished = now + 12
        elif step.kind == "shared":
            start = max(self.shared, now + 2)
            self.shared = start + step.taken
            finished, read = start + latency, start + 4
        return finished, read

    def read_registers(self, step: Step, now: float) -> None:
        """Takes their ports, from a product that is under way too."""
        for parity, n in enumerate(step.reads):
            if n:
                self.registers[parity] = max(self.registers[parity], now) + n
        if self.product is not None:
            share = 1.0 if self.product.step.adds else 0.5
            self.product.end += self.gpu.stolen * sum(step.reads) * share

    def meet(self, w: int, step: Step, now: float) -> None:
        """At a barrier."""
        warp, after = self.warps[w], now + self.gpu.barrier
        if step.arrives_at:
            other = self.warps[(w + step.arrives_at) % len(self.warps)]
            if other.awaits_turn:
                other.awaits_turn = False
                other.ready = max(other.ready, after)
            else:
                other.turns += 1
        elif not self.takes_turns or 0 < step.threads <= WARPGROUP:
            warp.ready = max(warp.ready, after)
        elif warp.turns > 0:
            warp.turns -= 1
            warp.ready = max(warp.ready, after)
        else:
            warp.awaits_turn = True

    def issue(self, w: int, now: float) -> bool:
        """The next instruction of a warp, if it can be."""
        warp = self.warps[w]
        if warp.ready > now or warp.awaits_turn:
            return False
        step = self.steps[warp.next]
        if self.must_wait(w, step, now):
            return False
        done = self.execute(step, now)
        if done is None:
            return False
        self.read_registers(step, now)
        instruction = step.instruction
        if step.kind == "HGMMA":
            self.queue.append(Product(w, step, now + self.gpu.product_start))
            warp.unfinished += step.ends_group
        for scoreboard, when in zip((instruction.write_scoreboard, instruction.read_scoreboard), done, strict=True):
            if scoreboard != NONE:
                warp.scoreboards[scoreboard] = max(warp.scoreboards[scoreboard], when)
        stall = max(1, instruction.stall)
        warp.ready = now + stall
        if step.kind == "BAR":
            self.meet(w, step, now)
        warp.next += 1
        if warp.next == len(self.steps):
            warp.next = 0
            warp.round += 1
            warp.ends.append(now)
            warp.ready += self.random.random() * self.gpu.jitter
        if self.steps[warp.next].instruction.address != instruction.address + 16:
            warp.ready = max(warp.ready, now + stall + self.gpu.taken_branch)
        self.last = w
        return True

    def run(self, rounds: int = 24, skip: int = 8) -> float:
        """Cycles of a round of all warps, in the mean, once `skip` have gone by."""
        now = 0.0
        while any(warp.round < rounds for warp in self.warps):
            self.go_on(now)
            # The one after the last that issued is first.
            for k in range(len(self.warps)):
                w = (self.last + 1 + k) % len(self.warps)
                if self.warps[w].round < rounds and self.issue(w, now):
                    break
            now += 1
            if now > MOST_CYCLES:
                raise RuntimeError("no warp goes on: a barrier or a group of products is never done")
        return sum((warp.ends[-1] - warp.ends[skip - 1]) / (rounds - skip) for warp in self.warps) / len(self.warps)


MOST_CYCLES = 5_000_000
OFFSETS = (150, 400, 700, 1000)
"""Cycles by which warpgroups follow each other."""


@dataclass(frozen=True)
class Result:
    """What the model says of a loop."""

    cycles: float
    """Of a round of all warpgroups."""
    spread: tuple[float, float]
    """The least and the most, over the offsets."""
    tflops: float
    tensor_busy: float
    exponentials: tuple[int, int]
    """Those before the last wait for products, and all: what is made while a product is under way."""


def exponentials(loop: Sequence[Instruction]) -> tuple[int, int]:
    """From a product on: how many are made before the last wait of the round, and all."""
    start = next(n for n, instruction in enumerate(loop) if instruction.name == "HGMMA")
    before = made = 0
    for instruction in [*loop[start:], *loop[:start]]:
        made += instruction.name == "MUFU"
        if instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            before = made
    return before, made


def model(loop: Sequence[Instruction], warpgroups: int, gpu: Hopper | None = None) -> Result:
    """The mean over offsets by which the warpgroups follow each other."""
    gpu = gpu or Hopper()
    cycles = [SubPartition(loop, gpu, warpgroups, offset).run() for offset in OFFSETS]
    mean = sum(cycles) / len(cycles)
    products = [instruction for instruction in loop if instruction.name == "HGMMA"]
    flops = warpgroups * sum(2 * ROWS * 16 * columns(product) for product in products)
    busy = warpgroups * sum(step.taken for step in prepare(products, gpu)) / mean
    tflops = flops / mean * gpu.clock * gpu.multiprocessors / 1e12
    return Result(mean, (min(cycles), max(cycles)), tflops, busy, exponentials(loop))
