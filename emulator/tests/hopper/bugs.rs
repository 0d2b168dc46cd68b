//! Kernels with one bug each: found under every seed, named with both places; and the same without it.

use ptx_emulator::tensor_map::{ElementType, TensorMap, Tiled};
use ptx_emulator::{Access, Fault, FaultKind, LaunchConfig, Memory, Params, Place, Space, Swizzle};

use crate::common::module;

const SEEDS: u64 = 200;

/// Runs a kernel of `hopper_bugs.cu` whose first parameter may be a map of boxes of `rows` rows.
fn launch(kernel: &str, rows: u32, seed: u64) -> Result<Vec<f32>, Box<Fault>> {
    let memory = Memory::new();
    let tensor = memory.upload(&vec![half::f16::ONE; 64 * 256]).unwrap();
    let extents = [64, 256];
    let tiled = Tiled::dense(ElementType::F16, tensor.0, &extents, &[64, rows]);
    let map = TensorMap::new(tiled.swizzle(Swizzle::B128))
        .unwrap()
        .encode();
    let out = memory.alloc_zeroed(4 * 32 * 128).unwrap();
    let (threads, params) = match kernel.split_once('_').unwrap().0 {
        "own" => (128, Params::new().arg(out)),
        "ring" => (256, Params::new().arg_bytes(&map, 64).arg(out).arg(4i32)),
        _ => (128, Params::new().arg_bytes(&map, 64)),
    };
    let config = LaunchConfig::new(1, threads).seed(seed);
    module("hopper_bugs").launch(&memory, kernel, &config, params.as_bytes())?;
    Ok(memory.download(out, 32 * 128).unwrap())
}

/// The fault of a kernel under every seed; the first is printed.
fn faults(kernel: &str, rows: u32, judge: impl Fn(&Fault) -> bool) {
    for seed in 0..SEEDS {
        match launch(kernel, rows, seed) {
            Ok(_) => panic!("{kernel}, seed {seed}: no fault"),
            Err(f) => {
                if seed == 0 {
                    println!("{f}\n");
                }
                assert!(judge(&f), "{kernel}, seed {seed}: another fault: {f}");
                assert!(f.place.ptx_line > 0 && f.place.source.is_some(), "{f}");
            }
        }
    }
}

fn is(place: &Place, instruction: &str) -> bool {
    place
        .instruction
        .split_once(' ')
        .unwrap_or((&place.instruction, ""))
        .0
        .contains(instruction)
        && place.thread.is_some()
        && place.source.is_some()
}

/// A race of two instructions, whichever came second.
fn race(f: &Fault, one: &str, two: &str) -> bool {
    let other = match &f.kind {
        FaultKind::Race { other, .. } | FaultKind::AsyncPending { other, .. } => other,
        _ => return false,
    };
    is(&f.place, one) && is(other, two) || is(&f.place, two) && is(other, one)
}

#[test]
fn the_right_ones_run() {
    for seed in 0..SEEDS {
        let run = |kernel, expected: f32| {
            let out = launch(kernel, 64, seed).unwrap_or_else(|f| panic!("seed {seed}: {f}"));
            assert!(
                out.iter().all(|x| *x == expected),
                "{kernel} {seed}: {}",
                out[0]
            );
        };
        run("own_right", 16.0);
        run("ring_right", 4.0 * 16.0);
        run("stores_right", 0.0);
    }
}

#[test]
fn an_operand_is_overwritten_before_the_wait() {
    faults("own_overwrite", 64, |f| {
        race(f, "st.shared", "wgmma.mma_async")
    });
}

#[test]
fn an_accumulator_is_read_before_the_wait() {
    faults("own_early_read", 64, |f| {
        let FaultKind::RegisterHazard { detail, other } = &f.kind else {
            return false;
        };
        detail.contains("accumulator in flight")
            && is(other, "wgmma.mma_async")
            && is(&f.place, "st.global")
    });
}

#[test]
fn a_wgmma_fence_is_missing() {
    faults("own_no_wgmma_fence", 64, |f| {
        let FaultKind::RegisterHazard { detail, .. } = &f.kind else {
            return false;
        };
        detail.contains("missing wgmma.fence") && is(&f.place, "wgmma.mma_async")
    });
}

#[test]
fn a_proxy_fence_is_missing_before_wgmma() {
    faults("own_no_proxy_fence", 64, |f| {
        let FaultKind::MissingProxyFence {
            other,
            space,
            access,
            ..
        } = &f.kind
        else {
            return false;
        };
        (*space, *access) == (Space::Shared, Access::AsyncRead)
            && is(&f.place, "wgmma.mma_async")
            && is(other, "st.shared")
    });
}

#[test]
fn a_proxy_fence_is_missing_before_a_store() {
    faults("stores_no_fence", 64, |f| {
        let FaultKind::MissingProxyFence { other, .. } = &f.kind else {
            return false;
        };
        is(&f.place, "cp.async.bulk.tensor") && is(other, "st.shared")
    });
}

#[test]
fn three_warps_of_a_warpgroup() {
    faults("own_three_warps", 64, |f| {
        let FaultKind::Deadlock { waiters } = &f.kind else {
            return false;
        };
        let text = "a tensor operation that warp 3 of its warpgroup has not issued";
        waiters.len() == 3
            && waiters
                .iter()
                .all(|w| w.waits_for.contains(text) && w.waits_for.contains("wgmma.mma_async"))
    });
}

#[test]
fn warps_have_different_descriptors() {
    faults("own_descriptors", 64, |f| {
        let FaultKind::WarpgroupMismatch { detail, other } = &f.kind else {
            return false;
        };
        detail.contains("descriptors of A")
            && is(other, "wgmma.mma_async")
            && is(&f.place, "wgmma.mma_async")
    });
}

#[test]
fn a_panel_begins_where_no_pattern_does() {
    faults(
        "own_panel",
        64,
        |f| matches!(&f.kind, FaultKind::AsyncMisuse(s) if s.contains("operand A") && s.contains("base offset")),
    );
}

#[test]
fn the_offsets_of_a_descriptor_are_exchanged() {
    faults(
        "own_offsets",
        64,
        |f| matches!(&f.kind, FaultKind::AsyncMisuse(s) if s.contains("operand A") && s.contains("stride byte offset is 16")),
    );
}

#[test]
fn registers_that_never_come() {
    // 128 threads start with as many registers as there are.
    let config = |seed| LaunchConfig::new(1, 128).seed(seed).registers(168);
    for seed in 0..SEEDS {
        let memory = Memory::new();
        let out = memory.alloc_zeroed(4 * 32 * 128).unwrap();
        let params = Params::new().arg(out);
        let f = module("hopper_bugs")
            .launch(&memory, "own_registers", &config(seed), params.as_bytes())
            .unwrap_err();
        let FaultKind::Deadlock { waiters } = &f.kind else {
            panic!("{f}")
        };
        let text =
            "setmaxnreg.inc from 168 to 256 registers a thread: 2816 for the warp, and 0 are free";
        assert!(waiters.iter().all(|w| w.waits_for.contains(text)), "{f}");
    }
}

#[test]
fn too_few_bytes_are_expected() {
    faults("ring_too_few", 64, |f| {
        let deadlock = match &f.kind {
            FaultKind::Deadlock { waiters } => waiters
                .iter()
                .any(|w| w.waits_for.contains("bytes missing")),
            _ => false,
        };
        deadlock || race(f, "wgmma.mma_async", "cp.async.bulk.tensor")
    });
}

#[test]
fn too_many_bytes_are_expected() {
    faults("ring_too_many", 64, |f| match &f.kind {
        FaultKind::Deadlock { waiters } => waiters.iter().any(|w| {
            w.waits_for
                .contains("with 0 of 1 arrivals and 16 bytes missing")
        }),
        _ => false,
    });
}

#[test]
fn a_consumer_waits_for_the_wrong_parity() {
    faults("ring_parity", 64, |f| {
        // The phase before the first is over: the consumer reads what is not there yet.
        let early = matches!(
            f.kind,
            FaultKind::Uninitialised {
                space: Space::Shared,
                ..
            }
        );
        let stuck = matches!(&f.kind, FaultKind::Deadlock { waiters }
            if waiters.iter().any(|w| w.waits_for.contains("a phase of parity")));
        (early && is(&f.place, "wgmma.mma_async"))
            || stuck
            || race(f, "wgmma.mma_async", "cp.async.bulk.tensor")
    });
}

#[test]
fn a_stage_is_filled_again_while_it_is_read() {
    faults("ring_refill", 64, |f| {
        race(f, "cp.async.bulk.tensor", "wgmma.mma_async")
    });
}

#[test]
fn mbarriers_are_initialised_without_a_fence() {
    faults("ring_no_init_fence", 64, |f| {
        let FaultKind::MissingProxyFence { other, .. } = &f.kind else {
            return false;
        };
        is(&f.place, "cp.async.bulk.tensor") && is(other, "mbarrier.init")
    });
}

#[test]
fn a_box_is_larger_than_its_buffer() {
    // 128 rows into a stage of 64: it reaches the other stage, or the mbarriers, or the end.
    faults("ring_right", 128, |f| {
        let outside = match &f.kind {
            FaultKind::OutOfBounds {
                space: Space::Shared,
                ..
            } => true,
            FaultKind::MbarrierMisuse(s) => s.contains("a store into the mbarrier"),
            _ => false,
        };
        let misses = matches!(
            &f.kind,
            FaultKind::Deadlock { .. } | FaultKind::MbarrierMisuse(_)
        );
        outside
            || misses
            || race(f, "cp.async.bulk.tensor", "cp.async.bulk.tensor")
            || race(f, "cp.async.bulk.tensor", "wgmma.mma_async")
    });
}

#[test]
fn the_source_of_a_store_is_used_again() {
    faults("stores_reuse", 64, |f| {
        race(f, "st.shared", "cp.async.bulk.tensor")
    });
}
