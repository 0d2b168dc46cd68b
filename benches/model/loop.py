"""The steady loop of a kernel: the way round that most tiles take."""

from dataclasses import dataclass

from sass import Instruction, counts

# The way is the cheapest: with all products and copies, and without the paths that few tiles take.
WANTED = -1000
FEW_TAKE = {"LDG": 50_000, "STG": 50_000, "CALL": 500_000}
BLOCK_WIDE_VOTE = 3_000
END = 10**7
NO_WAY = 10**8
LEAST_NO_WAY = NO_WAY // 2

# A loop with fewer products is not the one.
FEWEST_PRODUCTS = 64


def is_wait(instruction: Instruction) -> bool:
    """For an mbarrier."""
    return instruction.name == "SYNCS" and "TRYWAIT" in instruction.opcode


def cost(instruction: Instruction) -> int:
    """How little a way wants to pass an instruction."""
    name, always = instruction.name, instruction.predicate is None
    if name in ("LDGSTS", "HMMA", "HGMMA") or is_wait(instruction):
        return WANTED
    if name in FEW_TAKE and always:
        return FEW_TAKE[name]
    if instruction.opcode.startswith("BAR.RED"):
        return BLOCK_WIDE_VOTE
    if name == "EXIT" and always:
        return END
    return 1


@dataclass
class Way:
    """The cheapest way from an instruction to the loop's head."""

    cost: int
    last: int
    """The last instruction of the straight part."""
    onwards: int | None
    """Where it goes on: `None` where no way leads to the head."""


class Kernel:
    """Instructions by their addresses."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.instructions = instructions
        self.at = {instruction.address: n for n, instruction in enumerate(instructions)}

    def straight(self, start: int, head: int) -> tuple[int, int, list[int]]:
        """Follows the code to its next branch: what that costs, where it ends, and what may follow."""
        total, n = 0, start
        while True:
            instruction = self.instructions[n]
            total += cost(instruction)
            if instruction.name == "BRA" and instruction.opcode != "BRA.DIV":
                onwards = [self.at[instruction.target]] if instruction.target in self.at else []
                if instruction.is_conditional and n + 1 < len(self.instructions):
                    onwards.append(n + 1)
                # A wait passes at once.
                if n > 0 and is_wait(self.instructions[n - 1]) and instruction.predicate is not None:
                    onwards = onwards[-1:] if instruction.predicate.startswith("!") else onwards[:1]
                return total, n, onwards
            if instruction.name == "BSYNC":
                return total, n, [n + 1]
            if instruction.name in ("EXIT", "RET") and instruction.predicate is None:
                return total, n, []
            n += 1
            if n >= len(self.instructions):
                return total, n - 1, []
            if n == head:
                return total, n - 1, [head]

    def way_round(self, head: int) -> list[Instruction] | None:
        """The cheapest way from `head` to itself."""
        ways: dict[int, Way] = {}
        # Depth first: a place is entered, and left once the places after it have been.
        pending: list[tuple[int, bool]] = [(head, False)]
        parts: dict[int, tuple[int, int, list[int]]] = {}
        while pending:
            start, entered = pending.pop()
            if not entered:
                if start in ways:
                    continue
                # On the way here: a way through it is no cheapest one.
                ways[start] = Way(NO_WAY, start, None)
                parts[start] = self.straight(start, head)
                pending.append((start, True))
                pending += [(n, False) for n in reversed(parts[start][2]) if n != head]
                continue
            total, last, onwards = parts[start]
            best = Way(NO_WAY, last, None)
            for n in onwards:
                further = 0 if n == head else ways[n].cost
                if further < LEAST_NO_WAY and further + total < best.cost:
                    best = Way(further + total, last, n)
            ways[start] = best
        path: list[Instruction] = []
        n = head
        while True:
            way = ways[n]
            path += self.instructions[n : way.last + 1]
            if way.onwards is None:
                return None
            if way.onwards == head:
                return path
            n = way.onwards


def steady_loop(instructions: list[Instruction], products: int, copies: int) -> list[Instruction] | None:
    """The shortest way round any loop with so many HMMA and LDGSTS of a warp."""
    kernel = Kernel(instructions)
    of_products = [i.address for i in instructions if i.name == "HMMA"]
    heads = {
        branch.target
        for branch in instructions
        if branch.name == "BRA"
        and branch.target is not None
        and branch.target < branch.address
        and sum(branch.target <= a <= branch.address for a in of_products) >= FEWEST_PRODUCTS
    }
    shortest = None
    for head in sorted(heads):
        path = kernel.way_round(kernel.at[head])
        if path is None:
            continue
        found = counts(path)
        fits = found["HMMA"] == products and found["LDGSTS"] == copies
        if fits and (shortest is None or len(path) < len(shortest)):
            shortest = path
    return shortest


def steady_wgmma_loop(instructions: list[Instruction]) -> list[Instruction] | None:
    """The shortest way round any loop with products of warpgroups: that of tiles which need no mask."""
    ways = []
    for branch in instructions:
        if branch.name != "BRA" or branch.target is None or branch.target >= branch.address:
            continue
        # What lies elsewhere is the way to other tiles, or of waits that do not pass at once.
        span = [i for i in instructions if branch.target <= i.address <= branch.address]
        if any(i.name == "HGMMA" for i in span):
            ways.append(Kernel(span).way_round(0))
    found = [way for way in ways if way is not None]
    return min(found, key=len, default=None)
