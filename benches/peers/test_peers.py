"""What needs no GPU: `python -m unittest discover benches/peers`."""

import contextlib
import importlib
import importlib.util
import io
import json
import math
import re
import sys
import tempfile
import unittest
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend

# Also when the file is named: `python -m unittest benches/peers/test_peers.py`.
sys.path.insert(0, str(Path(__file__).parent))

import cpu
import peers
import tiles
from backends import (
    BACKENDS,
    Backend,
    Prepared,
    cudnn_graph,
    materialised_bias,
    prepare_cudnn,
    prepare_flex,
    prepare_sdpa,
)
from criterion import run_bench
from environment import git_commit, l2_state, output_of
from measurement import Absent, Budget, Timing, batch_differences
from reference import Inputs, alibi_slopes, make_inputs, reference
from report import ratio, table
from shapes import CONTEXTS, DECODE_BATCHES, DECODE_KEYS, DECODE_LAYERS, OURS, SUITES, Shape, prefill_shape

# A bench program of two benches, as criterion leaves their files.
FAKE_OURS = """\
#!{python}
import json, os, pathlib, re, sys
assert sys.argv[1] == "--bench"
for name, nanoseconds in {{"prefill/bf16/d64/causal/2048": 5e5, "prefill/bf16/d64/causal/20480": 9e9}}.items():
    if re.search(sys.argv[2], name):
        folder = pathlib.Path(os.environ["CRITERION_HOME"], name.replace("/", "_"), "new")
        folder.mkdir(parents=True)
        (folder / "benchmark.json").write_text(json.dumps({{"full_id": name}}))
        points = {{"median": nanoseconds, "mean": 2 * nanoseconds}}
        estimates = {{key: {{"point_estimate": value}} for key, value in points.items()}}
        (folder / "estimates.json").write_text(json.dumps(estimates))
"""


def executable(folder: str, text: str) -> Path:
    program = Path(folder) / "ours"
    program.write_text(text)
    program.chmod(0o755)
    return program


def small_shape(causal: bool, dtype: str = "bf16") -> Shape:
    return Shape(dtype, head_dim=16, causal=causal, seqlen=24, batch=2, heads=4, heads_k=4, queries=24)


def small_step(heads_k: int) -> Shape:
    return Shape("bf16", head_dim=16, causal=True, seqlen=24, batch=2, heads=6, heads_k=heads_k, queries=1)


SMALL_SHAPES = (small_shape(causal=False), small_shape(causal=True), small_step(heads_k=6), small_step(heads_k=2))


def double_inputs(shape: Shape) -> Inputs:
    inputs = make_inputs(shape, "cpu")
    return Inputs(inputs.shape, inputs.q.double(), inputs.k.double(), inputs.v.double())


def direct_loop(inputs: Inputs, alibi: bool) -> torch.Tensor:
    shape = inputs.shape
    out = torch.zeros(inputs.q.shape, dtype=torch.float64)
    slopes = alibi_slopes(shape.heads)
    for b in range(shape.batch):
        for h in range(shape.heads):
            slope, of_keys = slopes[h] if alibi else 0.0, h * shape.heads_k // shape.heads
            k, v = inputs.k[b, :, of_keys].double(), inputs.v[b, :, of_keys].double()
            for row in range(shape.queries):
                i = shape.seqlen - shape.queries + row
                keys = range(i + 1 if shape.causal else shape.seqlen)
                q = inputs.q[b, row, h].double()
                scores = [float(q @ k[j]) * inputs.scale - slope * abs(i - j) for j in keys]
                weights = [math.exp(score - max(scores)) for score in scores]
                for j, weight in zip(keys, weights):
                    out[b, row, h] += weight / sum(weights) * v[j]
    return out


class ShapesTest(unittest.TestCase):
    def test_follow_the_rules_of_the_benches(self) -> None:
        shape = prefill_shape("bf16", 64, True, 2048)
        self.assertEqual((shape.batch, shape.heads), (8, 32))
        self.assertEqual(shape.id, "prefill/bf16/d64/causal/2048")
        self.assertEqual(shape.benches["ours horizon"], "prefill/bf16/d64/causal/horizon/2048")
        self.assertEqual(prefill_shape("f16", 128, False, 32768).batch, 1)
        self.assertEqual(prefill_shape("f16", 128, False, 32768).id, "prefill/f16/d128/full/32768")
        step = Shape("bf16", 128, True, 16384, 8, heads=32, heads_k=8, queries=1)
        self.assertEqual(step.id, "decode/bf16/32q8k/d128/contiguous/8x16384")
        self.assertEqual(step.benches["copy"], "decode/bf16/32q8k/d128/copy/8x16384")

    def test_flops_and_bytes(self) -> None:
        full = prefill_shape("bf16", 128, False, 16384)
        self.assertEqual(full.flops, 4 * 1 * 16 * 16384 * 16384 * 128)
        self.assertEqual(2 * prefill_shape("bf16", 128, True, 16384).flops, full.flops)
        self.assertAlmostEqual(full.rate(full.flops / 1e12 * 1e3), 1.0)
        step = Shape("bf16", 128, True, 16384, 8, heads=32, heads_k=8, queries=1)
        self.assertEqual(step.cache_bytes, 2 * 8 * 16384 * 8 * 128 * 2)
        self.assertAlmostEqual(step.rate(step.cache_bytes / 1e9 * 1e3), 1.0)

    def test_default_and_quick(self) -> None:
        for name, suite in SUITES.items():
            shapes, quick = (suite.timed("bf16", quick) for quick in (False, True))
            self.assertEqual(len({shape.id for shape in shapes}), len(shapes), name)
            self.assertLess(len(quick), len(shapes))
            self.assertLessEqual(set(quick), set(shapes))
        self.assertEqual(len(SUITES["prefill"].timed("bf16", False)), 2 * 2 * 4)

    def test_our_benches_have_the_rows(self) -> None:
        sources = [Path(__file__).parents[2] / "testing/src/bench" / name for name in ("prefill.rs", "decode.rs")]
        if not all(source.exists() for source in sources):
            self.skipTest("the benches are not beside the peers")
        prefill, decode = (source.read_text() for source in sources)
        layers = re.search(r"LAYERS: .* = \[(.*)\];", decode)[1]
        for heads, heads_k, head_dim in DECODE_LAYERS:
            self.assertIn(f"({heads}, {heads_k}, {head_dim})", layers)
        self.assertIn("for batch in [1, 8, 64]", decode)
        self.assertEqual(DECODE_BATCHES, (1, 8, 64))
        self.assertIn("[1, 4, 16, 64, 128].map(|k| k << 10)", decode)
        self.assertEqual([keys >> 10 for keys in DECODE_KEYS], [1, 4, 16, 64, 128])
        for name in ("contiguous", "paged", "horizon", "copy"):
            self.assertIn(f'"{name}"', decode)
        self.assertIn(f"=> {CONTEXTS[-1].bit_length() - 1},", prefill)


class ReferenceTest(unittest.TestCase):
    def test_slopes(self) -> None:
        self.assertEqual(alibi_slopes(8), [2.0**-k for k in range(1, 9)])
        self.assertAlmostEqual(alibi_slopes(32)[0], 2**-0.25)
        self.assertEqual(alibi_slopes(6), [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
        self.assertEqual(len(alibi_slopes(71)), 71)
        self.assertEqual(alibi_slopes(6, 16.0), [slope**2 for slope in alibi_slopes(6)])
        with self.assertRaises(ValueError):
            alibi_slopes(0)

    def test_is_the_direct_loop(self) -> None:
        for shape in SMALL_SHAPES:
            for alibi in (False, True):
                inputs = make_inputs(shape, "cpu")
                torch.testing.assert_close(reference(inputs, alibi), direct_loop(inputs, alibi))


class BackendsTest(unittest.TestCase):
    def test_flex_computes_alibi(self) -> None:
        for shape in SMALL_SHAPES:
            inputs = double_inputs(shape)
            uncompiled = mock.patch("backends.torch.compile", lambda function, **_: function)
            with warnings.catch_warnings(), uncompiled:
                warnings.simplefilter("ignore")  # That it is not compiled here.
                prepared = prepare_flex(inputs)
                out = prepared.output(prepared.run())
            # The slopes are in f32.
            torch.testing.assert_close(out, reference(inputs, alibi=True), rtol=1e-6, atol=1e-6)

    def test_sdpa_computes_alibi_by_a_materialised_bias(self) -> None:
        for shape in SMALL_SHAPES:
            inputs = double_inputs(shape)
            prepared = prepare_sdpa(SDPBackend.MATH, inputs, materialised_bias(inputs))
            torch.testing.assert_close(prepared.output(prepared.run()), reference(inputs, alibi=True))

    def test_sdpa_without_bias(self) -> None:
        for shape in SMALL_SHAPES:
            inputs = double_inputs(shape)
            prepared = prepare_sdpa(SDPBackend.MATH, inputs)
            torch.testing.assert_close(prepared.output(prepared.run()), reference(inputs, alibi=False))

    def test_several_queries_at_the_end_are_not_taken_for_the_first(self) -> None:
        inputs = make_inputs(replace(small_step(heads_k=6), queries=3), "cpu")
        with self.assertRaisesRegex(Absent, "several queries"):
            prepare_sdpa(SDPBackend.MATH, inputs)

    def test_cudnn_declines_decoding(self) -> None:
        with self.assertRaisesRegex(Absent, "from the first query"):
            prepare_cudnn(make_inputs(small_step(heads_k=6), "cpu"))

    def test_cudnn_declines_alibi_without_a_causal_mask(self) -> None:
        with self.assertRaisesRegex(Absent, "causal mask only"):
            prepare_cudnn(make_inputs(small_shape(causal=False), "cpu"))

    @unittest.skipUnless(importlib.util.find_spec("cudnn"), "nvidia-cudnn-frontend is not installed")
    def test_cudnn_takes_the_graph(self) -> None:
        import cudnn

        for dtype in ("bf16", "f16"):
            inputs = make_inputs(small_shape(causal=True, dtype=dtype), "cpu")
            output = torch.empty_like(inputs.q).transpose(1, 2)
            graph, tensors = cudnn_graph(cudnn, None, inputs, output)
            graph.validate()
            self.assertEqual(len(tensors), 4)

    def test_names_are_distinct(self) -> None:
        names = [backend.name for backend in BACKENDS]
        self.assertEqual(len(set(names)), len(names))
        self.assertNotIn(peers.OURS, names)


class MeasurementTest(unittest.TestCase):
    def test_timing(self) -> None:
        self.assertEqual(Timing.of([3.0, 1.0, 2.0]), Timing(2.0, 1.0, 3))

    def test_batch_differences_cancels_the_cost_of_waiting(self) -> None:
        now = 0.0

        def run() -> None:
            nonlocal now
            now += 0.002

        def wait(_: None) -> None:
            nonlocal now
            now += 0.5

        with mock.patch("measurement.time.perf_counter", lambda: now):
            timing = batch_differences(run, wait, Budget(1.0, 1.0))
        self.assertAlmostEqual(timing.median_ms, 2.0)


class CriterionTest(unittest.TestCase):
    def test_reads_the_named_bench_alone(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            program = executable(folder, FAKE_OURS.format(python=sys.executable))
            estimate = run_bench(program, "prefill/bf16/d64/causal/2048")
            self.assertEqual((estimate.median_ns, estimate.mean_ns), (5e5, 1e6))
            with self.assertRaisesRegex(Absent, "ours has no bench of this name"):
                run_bench(program, "prefill/bf16/d64/full/2048")

    def test_a_failure_is_absent_with_its_reason(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(Absent, "No such file"):
                run_bench(Path(folder) / "missing", "prefill")
            program = executable(folder, f"#!{sys.executable}\nimport sys\nsys.exit('no device')\n")
            with self.assertRaisesRegex(Absent, "ours exited with 1: no device"):
                run_bench(program, "prefill")


class CpuTest(unittest.TestCase):
    def test_ratios_are_of_the_peer_to_ours(self) -> None:
        benches = {f"horizon/8/sd 1/{horizon}/64": seconds * 1e9 for horizon, seconds in (("dense", 0.5), ("certified", 0.25))}
        fake = FAKE_OURS.format(python=sys.executable)
        first, last = fake.index("in {") + 3, fake.index("}.items()") + 1
        with tempfile.TemporaryDirectory() as folder, mock.patch("cpu.sdpa_seconds", return_value=1.0):
            program = executable(folder, fake[:first] + repr(benches) + fake[last:])
            _, row = cpu.rows(program, (64,))
        self.assertEqual(row.split(), ["64", "1.000", "0.500", "2.00x", "0.250", "4.00x"])

    def test_sdpa_takes_some_time(self) -> None:
        self.assertGreater(cpu.sdpa_seconds(16, 2), 0.0)


class TilesTest(unittest.TestCase):
    def weight_left_out(self, q: torch.Tensor, k: torch.Tensor, slope: float, of_tile: int) -> tuple[float, int]:
        """The largest of a row, and the tiles kept."""
        first = len(k) - tiles.ROWS
        kept = tiles.kept_tiles(q, tiles.Keys(k, of_tile), first, slope)
        distance = first + torch.arange(tiles.ROWS)[:, None] - torch.arange(len(k))[None, :]
        scores = q.shape[1] ** -0.5 * (q.double() @ k.double().T) - slope * distance
        weights = scores.masked_fill(distance < 0, -math.inf).softmax(1)
        for tile in kept:
            weights[:, tile * of_tile : (tile + 1) * of_tile] = 0
        return weights.sum(1).max().item(), len(kept)

    def test_what_is_left_out_weighs_less_than_the_tolerance(self) -> None:
        for of_tile in (64, 128):
            torch.manual_seed(1)
            q, k = torch.randn(tiles.ROWS, 8), torch.randn(4096, 8)
            weight, kept = self.weight_left_out(q, k, 1 / 16, of_tile)
            self.assertLess(weight, tiles.TOLERANCE)
            self.assertIn(kept * of_tile, range(256, 896))
            # A far key that weighs much is kept, and what lies between is not.
            q[:, 0], k[:, 0] = 1.0, 0.0
            k[300] = torch.tensor([800.0] + [0.0] * 7)
            weight, kept_with_it = self.weight_left_out(q, k, 1 / 16, of_tile)
            self.assertLess(weight, tiles.TOLERANCE)
            self.assertIn(kept_with_it, range(kept, kept + 2))

    def test_all_is_kept_where_keys_are_few_for_the_slope(self) -> None:
        self.assertEqual(tiles.saved(heads=1, bias_max=16.0, head_dim=8, sd=1.0, tokens=1024, samples=2), 1.0)


class AttemptTest(unittest.TestCase):
    def test_a_peer_that_fails_says_why(self) -> None:
        def fail() -> dict[str, Any]:
            warnings.warn("head_dim is odd")
            raise RuntimeError("No available kernel.\nAborting")

        expected = {"absent": "RuntimeError: No available kernel.; head_dim is odd"}
        self.assertEqual(peers.attempt(fail), expected)

    def test_a_missing_package_is_named(self) -> None:
        absent = peers.attempt(lambda: {"module": importlib.import_module("no_such_package")})["absent"]
        self.assertIn("no_such_package", absent)

    def test_nan_is_an_error(self) -> None:
        inputs = make_inputs(small_shape(causal=False), "cpu")
        expected = reference(inputs, alibi=False)
        prepared = Prepared(lambda: torch.full_like(expected, math.nan), lambda out: out)
        result = peers.check(mock.Mock(prepare=lambda _: prepared), inputs, expected)
        self.assertEqual(result["max_error"], math.inf)

    def test_ours_needs_a_program(self) -> None:
        with self.assertRaisesRegex(Absent, "no --ours"):
            peers.time_ours(None, small_shape(causal=True).id)

    def test_ours_is_the_mean_of_before_and_after(self) -> None:
        shape = prefill_shape("bf16", 64, True, 2048)
        runs = [{"median_ns": 1e6, "mean_ns": 1e6}, {"median_ns": 3e6, "mean_ns": 1e6}]
        summary = peers.summarise_ours(runs, shape)
        self.assertEqual(summary["median_ms"], 2.0)
        self.assertEqual(summary["rate"], shape.rate(2.0))


def made_up_results(suite: str) -> dict[str, Any]:
    """By a run whose GPU, peers and bench program are all made up."""
    shape_count = len(SUITES[suite].timed("bf16", quick=True))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        path = Path(folder) / "results.json"
        made_up_environment = dict.fromkeys(("driver", "cuda", "cudnn", "pytorch", "commit"), "made up")
        replaced = {
            "environment": lambda _, least: {"gpu": "Made-up GPU", "l2": l2_state(2**20, least), **made_up_environment},
            "clocks": dict,
            "memory_released": contextlib.nullcontext,
            "make_inputs": lambda shape, _: make_inputs(small_shape(shape.causal), "cpu"),
            "check": made_up_check,
            "time_peer": made_up_timing,
        }
        for name, value in replaced.items():
            patches.enter_context(mock.patch.object(peers, name, value))
        patches.enter_context(contextlib.redirect_stderr(io.StringIO()))
        program = executable(folder, FAKE_OURS.format(python=sys.executable))
        parsed = ["run", suite, "--quick", "--ours", str(program), "--json", str(path)]
        peers.measure(peers.parser().parse_args(parsed))
        results = json.loads(path.read_text())
    assert len(results["shapes"]) == shape_count
    return results


def made_up_check(backend: Backend, inputs: Inputs, expected: torch.Tensor) -> dict[str, Any]:
    if backend.name == "Flex":
        raise ValueError("made to fail")
    return {"max_error": 0.25, "tolerance": 0.5}


def made_up_timing(backend: Backend, inputs: Inputs, budget: Budget) -> dict[str, Any]:
    if backend.name == "Flex":
        raise ValueError("made to fail")
    return {"rate": 100.0, **Timing(1.0, 1.0, 10).__dict__}


class ResultsTest(unittest.TestCase):
    results: dict[str, Any]

    @classmethod
    def setUpClass(cls) -> None:
        cls.results = made_up_results("prefill")

    def test_hold_every_contender_or_its_reason(self) -> None:
        names = [contender["name"] for contender in self.results["contenders"]]
        for shape in self.results["shapes"]:
            self.assertEqual(list(shape["results"]), names)
            for result in shape["results"].values():
                self.assertTrue("rate" in result or result["absent"])
            self.assertEqual(shape["results"]["Flex"]["absent"], "ValueError: made to fail")

    def test_hold_ours_before_and_after(self) -> None:
        first, second = self.results["shapes"][:2]
        self.assertEqual([run["median_ns"] for run in first["results"]["ours"]["runs"]], [5e5, 5e5])
        self.assertIn("has no bench", second["results"]["ours"]["absent"])

    def test_ratio_is_over_ours(self) -> None:
        self.assertEqual(ratio({"rate": 300.0}, {"rate": 200.0}), 1.5)
        self.assertIsNone(ratio({"rate": 300.0}, {"absent": "no"}))

    def test_table(self) -> None:
        text = table(self.results)
        self.assertIn("Made-up GPU", text)
        ours = prefill_shape("bf16", 64, True, 2048).rate(0.5)
        row = next(line for line in text.splitlines() if line.startswith("prefill/bf16/d64/causal/2048 "))
        self.assertIn(f"{ours:.1f} (1.00)", row)
        self.assertIn(f"100.0 ({100 / ours:.2f})", row)
        self.assertIn("2.5e-01", text)
        self.assertIn("[1] ValueError: made to fail", text)

    def test_table_shows_a_wrong_peer(self) -> None:
        wrong = {"max_error": 0.5, "tolerance": 0.05}
        checks = [{"id": "prefill/x", "results": {backend.name: wrong for backend in BACKENDS}}]
        self.assertIn("5.0e-01 WRONG", table({**self.results, "checks": checks}))

    def test_other_suites(self) -> None:
        for suite, unit in (("contexts", "TFLOP/s"), ("decode", "GB/s")):
            results = made_up_results(suite)
            text = table(results)
            self.assertIn(f"{unit} of the median call", text)
            self.assertEqual(results["contenders"][0]["name"], OURS)
            for shape in results["shapes"]:
                self.assertIn(shape["id"], text)

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    def test_plot(self) -> None:
        for suite in SUITES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "results.json"
                path.write_text(json.dumps(made_up_results(suite)))
                for name in ("plot.svg", "plot.png"):
                    peers.main(["plot", str(path), str(Path(folder) / name)])
                    self.assertGreater((Path(folder) / name).stat().st_size, 1000)


class CommandLineTest(unittest.TestCase):
    def test_defaults(self) -> None:
        parsed = peers.parser().parse_args(["run"])
        self.assertEqual((parsed.ours, parsed.json, parsed.plot), (None, None, None))
        self.assertEqual((parsed.suite, parsed.dtype, parsed.quick), ("prefill", "bf16", False))

    def test_unknown_arguments_are_refused(self) -> None:
        for arguments in ([], ["run", "--dtype", "f32"], ["run", "training"], ["plot", "results.json"]):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                peers.parser().parse_args(arguments)

    def test_without_a_gpu_says_so_and_fails(self) -> None:
        no_gpu = mock.patch("torch.cuda.is_available", return_value=False)
        with no_gpu, self.assertRaises(SystemExit) as stopped:
            peers.main(["run"])
        self.assertIn("no CUDA GPU", str(stopped.exception.code))
        self.assertNotIn("\n", str(stopped.exception.code))


class EnvironmentTest(unittest.TestCase):
    def test_a_missing_command_is_said(self) -> None:
        self.assertIn("no-such-command", output_of("no-such-command"))

    def test_commit(self) -> None:
        self.assertTrue(git_commit())


if __name__ == "__main__":
    unittest.main()
