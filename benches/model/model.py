"""Kernels' speed without a GPU: `python benches/model/model.py FILE.sass KERNEL --gpu a100`; see README.md."""

import argparse
import csv
import sys
from pathlib import Path

import hopper
import loop
import machine
import sass

PEERS = Path(__file__).with_name("peers.csv")


def report(name: str, path: list[sass.Instruction], gpu: machine.Machine, blocks: int) -> str:
    """What the loop holds, and what the model says of it."""
    result = machine.model(path, gpu, blocks)
    stalls = sum(max(1, instruction.stall) for instruction in path)
    classes = ", ".join(f"{n} {what}" for what, n in sass.classes(path).items())
    kinds = " ".join(f"{kind} {n}" for kind, n in sass.counts(path).most_common())
    return (
        f"{name} on {gpu.name}: {len(path)} instructions ({classes}), stalls {stalls}; a tile of each of {blocks} blocks in "
        f"{result.cycles:.0f} +- {result.error:.0f} cycles, {result.tflops:.0f} TFLOP/s modelled, tensor cores "
        f"{result.tensor_busy:.0%} busy\n  {kinds}"
    )


def wgmma_report(name: str, path: list[sass.Instruction], warpgroups: int) -> str:
    """The same of a kernel with TMA and wgmma."""
    gpu = hopper.Hopper()
    result = hopper.model(path, warpgroups, gpu)
    before, all_of_them = result.exponentials
    kinds = " ".join(f"{kind} {n}" for kind, n in sass.counts(path).most_common())
    return (
        f"{name} on {gpu.name}: {len(path)} instructions, a round of {warpgroups} warpgroups in {result.cycles:.0f} cycles, "
        f"{result.tflops:.0f} TFLOP/s modelled, tensor cores {result.tensor_busy:.0%} busy, {before} of {all_of_them} MUFU "
        f"before the last wait for products\n  {kinds}"
    )


def peers(gpu: str, head_dim: int | None) -> list[str]:
    """The lines of the table of peers for this GPU."""
    with PEERS.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["gpu"] == gpu]
    return [
        f"  {row['kernel']}: {row['modelled']} modelled, {row['published'] or 'none'} published"
        for row in rows
        if head_dim is None or int(row["head_dim"]) == head_dim
    ]


def main() -> int:
    """Prints a report for each kernel whose name has KERNEL in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="what `cuobjdump -sass` prints, of one architecture")
    parser.add_argument("kernel", help="a part of the kernel's name")
    parser.add_argument("--gpu", choices=machine.MACHINES, required=True)
    parser.add_argument("--products", type=int, default=256, help="HMMA of a warp and tile")
    parser.add_argument("--copies", type=int, default=16, help="LDGSTS of a warp and tile")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of four warps on a multiprocessor")
    parser.add_argument("--warpgroups", type=int, default=2, help="those that multiply, of a kernel with wgmma")
    parser.add_argument("--head-dim", type=int, help="prints the peers of this head dimension too")
    arguments = parser.parse_args()
    kernels = {name: code for name, code in sass.read(arguments.file).items() if arguments.kernel in name}
    if not kernels:
        print(f"{arguments.file}: no kernel has {arguments.kernel!r} in its name", file=sys.stderr)
        return 1
    for name, code in kernels.items():
        if any(instruction.name == "HGMMA" for instruction in code):
            way = loop.steady_wgmma_loop(code)
            if way is None or arguments.gpu != "h100":
                print(f"{name}: no loop of wgmma that a {arguments.gpu} runs", file=sys.stderr)
                return 1
            print(wgmma_report(name, way, arguments.warpgroups))
            continue
        path = loop.steady_loop(code, arguments.products, arguments.copies)
        if path is None:
            needed = f"{arguments.products} HMMA and {arguments.copies} LDGSTS"
            print(f"{name}: no loop with {needed}", file=sys.stderr)
            return 1
        print(report(name, path, machine.MACHINES[arguments.gpu], arguments.blocks))
    if arguments.head_dim is not None:
        print("\n".join(peers(arguments.gpu, arguments.head_dim)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
