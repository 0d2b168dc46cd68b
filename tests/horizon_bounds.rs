//! What the horizon's bound is made of, where little of it is left over: distances of rows in left padding, and the slack for
//! rounding. On the CPU, and by the kernels under the emulator.

use flash_alibi::{Horizon, Mask};
use flash_alibi_testing::horizon::{Path, Probe};
use flash_alibi_testing::{Case, Lengths, SlopeKind};
use half::f16;

/// Runs a test on several paths.
macro_rules! on_paths {
    ($test:ident: $($name:ident $path:ident),*) => {
        mod $test {
            $(
                #[test]
                fn $name() {
                    super::$test(super::Path::$path);
                }
            )*
        }
    };
}

on_paths!(rows_in_padding: cpu Cpu, cpu_radii CpuRadii, prefill Prefill, decode Decode);
on_paths!(sums_that_cancel: cpu_few CpuFew, cpu Cpu, cpu_radii CpuRadii, prefill Prefill, decode Decode);

/// Rows that stand in the padding see all keys to their right, and count distances from the first. Nothing but the bias weighs,
/// and tiles are left out as soon as they may be.
fn rows_in_padding(path: Path) {
    const ROWS: usize = 2748;
    let case = Case {
        mask: Mask::Bidirectional,
        scale: Some(0.0),
        slopes: SlopeKind::All(0.02),
        horizon: Horizon::Certified { tolerance: 1e-3 },
        sequences: vec![Lengths {
            q: ROWS,
            k: ROWS,
            leftpad: 700,
            ..Lengths::default()
        }],
        ..Case::dense(0, 0, 0, (1, 1), 8)
    };
    let compared = Probe::<f16>::new(path, case, 64).certified();
    println!("{path:?}: {compared:?}");
    assert!(compared.part < 0.9, "{compared:?}");
}

/// Equal keys whose scores cancel to all but their last channel: the order of a sum decides whether that is seen, and the bound
/// must allow for every order.
fn cancelling(path: Path, large: [usize; 2], small: Option<usize>, softcap: Option<f32>) {
    let case = Case {
        slopes: SlopeKind::All(0.01),
        softcap,
        scale: Some(1.0),
        horizon: Horizon::Certified { tolerance: 1e-3 },
        ..Case::dense(1, 1, 2560, (path.group(), 1), 64)
    };
    let mut probe = Probe::<f16>::new(path, case, 64);
    // Without one channel, all others are small.
    let of = |[x, y, z]: [f32; 3]| {
        move |c| match large.iter().position(|&large| c == large) {
            Some(0) => x,
            Some(_) => y,
            None if small.is_none_or(|small| c == small) => z,
            None => 0.0,
        }
    };
    probe.set_queries(0, of([30000.0, 30000.0, 1.0]));
    let key = of([30000.0, -30000.0, 20.0]);
    probe.set_keys_of(0, 0, |_, c| key(c));
    probe
        .certify()
        .unwrap_or_else(|why| panic!("{path:?}, channels {large:?}, {small:?}: {why}"));
}

fn sums_that_cancel(path: Path) {
    let channels = [
        [15, 16, 63],
        [1, 2, 0],
        [0, 1, 2],
        [7, 8, 9],
        [0, 32, 33],
        [5, 36, 4],
        [62, 3, 61],
        [16, 48, 17],
    ];
    for [x, y, small] in channels {
        cancelling(path, [x, y], Some(small), None);
    }
    // Each of many is lost.
    cancelling(path, [0, 63], None, None);
    // Below a cap so loose that it changes no score.
    cancelling(path, [15, 16], Some(63), Some(1e4));
    cancelling(path, [1, 2], Some(0), Some(1e4));
}
