"""`python -m unittest discover benches/model`."""

import contextlib
import csv
import io
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

# Also when the file is named: `python -m unittest benches/model/test_model.py`.
sys.path.insert(0, str(Path(__file__).parent))

import hopper
import loop
import machine
import model
import sass


def listing(lines: list[str], first: int = 0x100) -> str:
    """As cuobjdump prints it: `stall/write/read/waits TEXT`, each instruction at the next multiple of 16."""
    text = "\t\tFunction : kernel_d64\n"
    for n, line in enumerate(lines):
        control, _, instruction = line.partition(" ")
        stall, write, read, waits = (int(part, 16) for part in control.split("/"))
        upper = (stall | write << 5 | read << 8 | waits << 11) << 41
        text += f"        /*{first + 16 * n:04x}*/                   {instruction} ;     /* 0x{n:016x} */\n"
        text += f"                                                        /* 0x{upper:016x} */\n"
    return text


# A loop at 0x110: a tile's copies and products, and a path at 0x350 that few tiles take, with a load from global memory.
BODY = [
    "1/7/7/0 MOV R1, c[0x0][0x28]",
    "4/7/7/0 DEPBAR.LE SB0, 0x0",
    "6/7/7/0 BAR.SYNC 0x0",
    "1/7/1/0 LDGSTS.E.BYPASS.128 [R77], [R60.64], P0",
    "1/0/7/0 LDGDEPBAR",
    "1/1/7/0 LDSM.16.M88.4 R4, [R2]",
    "1/2/7/0 LDSM.16.M88.4 R8, [R2+0x800]",
    "2/7/7/0 ISETP.GE.AND P1, PT, R0, R3, PT",
    "5/7/7/0 @P1 BRA 0x350",
    *["1/7/7/2 HMMA.16816.F32 R12, R4, R8, R12"] * 4,
    *["2/7/7/4 HMMA.16816.F32 R16, R8, R4, R16"] * 4,
    "5/7/7/0 FMNMX R20, R12, R13, !PT",
    "1/1/7/0 SHFL.BFLY PT, R21, R20, 0x1, 0x1f",
    "4/7/7/2 FFMA R22, R20, R21, -R23",
    "1/2/7/0 MUFU.EX2 R22, R22",
    "4/7/7/4 FADD R24, R24, R22",
    "1/7/7/0 F2FP.PACK_AB R25, R22, R22",
    "5/7/7/0 IMAD.MOV.U32 R26, RZ, RZ, R25",
    "1/1/7/0 LDS R5, [0x6c]",
    "4/7/7/2 IADD3 R0, R0, 0x1, RZ",
    "2/7/7/0 ISETP.NE.AND P2, PT, R0, R3, PT",
    *["1/7/7/0 HMMA.16816.F32 R28, R8, R4, R28"] * 8,
    "5/7/7/0 @P2 BRA 0x110",
    "5/7/7/0 EXIT",
    "1/1/7/0 UMOV UR4, 0x0",
    "1/1/7/0 LDG.E R9, [R2.64]",
    "5/7/7/2 BRA 0x190",
]


# GPU, blocks, offset between them, cycles of a tile.
EXPECTED = [
    ("a100", 2, 37, 412.9),
    ("a100", 3, 150, 444.866667),
    ("h100", 2, 37, 411.15),
    ("h100", 3, 150, 416.266667),
]


def body_path() -> list[sass.Instruction]:
    """The steady loop of `BODY`."""
    with mock.patch.object(loop, "FEWEST_PRODUCTS", 8):
        path = loop.steady_loop(sass.parse(listing(BODY).splitlines())["kernel_d64"], 16, 1)
    assert path is not None
    return path


class Parsing(unittest.TestCase):
    def test_an_instruction_has_its_schedule(self) -> None:
        text = listing(["3/2/5/2a @!P0 LDS.64 R4, [R2.X8+0x10]"])
        [found] = sass.parse(text.splitlines())["kernel_d64"]
        self.assertEqual((found.address, found.predicate, found.opcode), (0x100, "!P0", "LDS.64"))
        self.assertEqual((found.name, found.operands), ("LDS", ["R4", "[R2.X8+0x10]"]))
        self.assertEqual((found.stall, found.write_scoreboard, found.read_scoreboard), (3, 2, 5))
        self.assertEqual(found.waits_for, 0x2A)
        self.assertIsNone(found.target)

    def test_branches_have_targets_and_conditions(self) -> None:
        always = sass.parse_instruction(0, "BRA 0x1f0")
        self.assertEqual((always.target, always.is_conditional), (0x1F0, False))
        for text in ("@P1 BRA 0x1f0", "BRA !P1, 0x1f0", "BRA UP0, 0x1f0"):
            with self.subTest(text):
                branch = sass.parse_instruction(0, text)
                self.assertEqual((branch.target, branch.is_conditional), (0x1F0, True))

    def test_every_instruction_is_of_one_class(self) -> None:
        moved = sass.parse_instruction(0, "IMAD.MOV.U32 R26, RZ, RZ, R25")
        self.assertEqual(moved.kind, "move")
        self.assertEqual(sass.parse_instruction(0, "IMAD.WIDE R2, R3, 0x8, R4").kind, "integer")
        self.assertEqual(sass.parse_instruction(0, "WONDER R2").kind, "?WONDER")
        path = body_path()
        classes = sass.classes(path)
        self.assertEqual(classes, {"math": 21, "memory": 5, "control": 9})
        self.assertEqual(sum(classes.values()), len(path))


class Loop(unittest.TestCase):
    def test_the_way_round_leaves_out_what_few_tiles_take(self) -> None:
        path = body_path()
        self.assertEqual([path[0].address, path[-1].address], [0x110, 0x330])
        self.assertNotIn("LDG", [instruction.name for instruction in path])
        self.assertEqual(len(path), len(BODY) - 5)

    def test_a_loop_with_other_products_is_not_taken(self) -> None:
        code = sass.parse(listing(BODY).splitlines())["kernel_d64"]
        with mock.patch.object(loop, "FEWEST_PRODUCTS", 8):
            self.assertIsNone(loop.steady_loop(code, 15, 1))
            self.assertIsNone(loop.steady_loop(code, 16, 2))
        self.assertIsNone(loop.steady_loop(code, 16, 1))


class Machine(unittest.TestCase):
    def test_cycles_are_those_of_the_validated_instrument(self) -> None:
        """The figures of peers.csv hold for the instrument that gives these numbers."""
        path = body_path()
        for gpu, blocks, offset, cycles in EXPECTED:
            with self.subTest(gpu=gpu, blocks=blocks, offset=offset):
                found = machine.Multiprocessor(path, machine.MACHINES[gpu], blocks, 4, offset).run(tiles=8, skip=2)
                self.assertAlmostEqual(found, cycles, places=5)

    def test_no_warp_is_faster_than_the_tensor_cores(self) -> None:
        path = body_path()
        for gpu in machine.MACHINES.values():
            result = machine.model(path, gpu, blocks=2, offsets=2)
            self.assertGreater(result.cycles, 2 * 16 * gpu.product)
            self.assertAlmostEqual(result.tensor_busy, 2 * 16 * gpu.product / result.cycles)
            flops = 2 * 4 * 16 * 4096 / result.cycles * gpu.clock * gpu.multiprocessors
            self.assertAlmostEqual(result.tflops, flops / 1e12)

    def test_slower_memory_costs_cycles(self) -> None:
        path = body_path()
        near = machine.MACHINES["a100"]
        far = machine.Machine("far", near.clock, near.multiprocessors, l2_latency=2000.0)
        self.assertGreater(machine.model(path, far, offsets=2).cycles, 1500 + machine.model(path, near, offsets=2).cycles)


# A loop at 0x110 of a kernel with wgmma: waits that pass, turns, two products and what is made of them.
WGMMA_BODY = [
    "1/7/7/0 MOV R1, c[0x0][0x28]",
    "2/0/7/0 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R7",
    "5/7/7/1 @!P0 BRA 0x250",
    "4/7/7/0 BAR.SYNC.DEFER_BLOCKING R10, 0x100",
    "1/7/7/0 WARPGROUP.ARRIVE",
    "1/7/7/0 HGMMA.64x128x16.F32 R24, gdesc[UR8], RZ, !UPT, gsb0",
    "1/7/7/0 HGMMA.64x64x16.F32 R88, R20, gdesc[UR12], R88, gsb0",
    "4/7/7/0 BAR.ARV R14, 0x100",
    "1/7/7/0 WARPGROUP.DEPBAR.LE gsb0, 0x1",
    *["4/7/7/0 FFMA R24, R24, R21, -R23"] * 4,
    *["1/1/7/0 MUFU.EX2 R24, R24"] * 3,
    "1/7/7/2 WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "1/1/7/0 MUFU.EX2 R25, R25",
    "5/7/7/2 @P1 BRA 0x110",
    "5/7/7/0 EXIT",
    "1/0/7/0 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R7",
    "5/7/7/1 @!P0 BRA 0x250",
    "5/7/7/0 BRA 0x130",
]


class Wgmma(unittest.TestCase):
    def path(self) -> list[sass.Instruction]:
        path = loop.steady_wgmma_loop(sass.parse(listing(WGMMA_BODY).splitlines())["kernel_d64"])
        assert path is not None
        return path

    def test_the_way_round_goes_through_waits_that_pass(self) -> None:
        path = self.path()
        self.assertEqual([path[0].address, path[-1].address, len(path)], [0x110, 0x220, 18])

    def test_exponentials_before_the_last_wait(self) -> None:
        self.assertEqual(hopper.exponentials(self.path()), (3, 4))

    def test_no_round_is_faster_than_the_tensor_cores_and_slower_ones_cost_cycles(self) -> None:
        gpu, slow = hopper.Hopper(), hopper.Hopper(column=5.0)
        for warpgroups in (1, 2, 3):
            cycles = hopper.SubPartition(self.path(), gpu, warpgroups, 150).run()
            self.assertGreater(cycles, warpgroups * (128 + 64) / 2)
            slower = hopper.SubPartition(self.path(), slow, warpgroups, 150).run()
            self.assertGreater(slower, warpgroups * 5 * (128 + 64))
            self.assertGreater(slower, cycles)

    def test_a_turn_that_nobody_passes_is_an_error(self) -> None:
        path = self.path()
        waits_twice = [*path[:3], *path[2:]]
        with mock.patch.object(hopper, "MOST_CYCLES", 20_000), self.assertRaisesRegex(RuntimeError, "no warp goes on"):
            hopper.SubPartition(waits_twice, hopper.Hopper(), 2, 150).run()


class Program(unittest.TestCase):
    def run_main(self, *arguments: str) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(loop, "FEWEST_PRODUCTS", 8):
            file = Path(folder) / "kernels.sass"
            file.write_text(listing(BODY))
            with mock.patch.object(sys, "argv", ["model.py", str(file), *arguments]):
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                    return model.main(), out.getvalue(), errors.getvalue()

    def test_a_report_says_that_it_is_modelled(self) -> None:
        code, out, _ = self.run_main("d64", "--gpu", "h100", "--products", "16", "--copies", "1", "--head-dim", "64")
        self.assertEqual(code, 0)
        self.assertIn("kernel_d64 on H100: 35 instructions (21 math, 5 memory, 9 control)", out)
        self.assertIn("TFLOP/s modelled", out)
        self.assertIn("FlashAttention-2 full: 350 modelled, 324 published", out)

    def test_what_is_not_there_is_said(self) -> None:
        code, _, errors = self.run_main("d128", "--gpu", "a100")
        self.assertEqual(code, 1)
        self.assertIn("no kernel has 'd128' in its name", errors)
        code, _, errors = self.run_main("d64", "--gpu", "a100", "--products", "15", "--copies", "1")
        self.assertEqual(code, 1)
        self.assertIn("kernel_d64: no loop with 15 HMMA and 1 LDGSTS", errors)

    def test_the_table_of_peers_names_machines(self) -> None:
        with model.PEERS.open() as lines:
            rows = list(csv.DictReader(lines))
        self.assertEqual({row["gpu"] for row in rows}, set(machine.MACHINES))
        for row in rows:
            self.assertGreater(int(row["modelled"]), 0)


if __name__ == "__main__":
    unittest.main()
