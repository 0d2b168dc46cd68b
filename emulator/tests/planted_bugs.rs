//! Planted bugs: each is found, and named with its place.

mod support;

use ptx_emulator::{AccessKind, Fault, FaultKind, LaunchConfig, Memory, Params, Place, Space};
use support::{line_of, module};

/// Launches a kernel of `bugs.cu`; it must fail.
fn fault(kernel: &str, config: &LaunchConfig, mem: &Memory, params: &Params) -> Fault {
    match module("bugs").launch(mem, kernel, config, params.bytes()) {
        Ok(_) => panic!("{kernel}: the bug was not found"),
        Err(f) => {
            assert_eq!(f.kernel, kernel);
            println!("{f}\n");
            *f
        }
    }
}

/// The place must be the marked source line.
fn at(place: &Place, mark: &str) {
    let (file, line) = place.source.as_ref().expect("a source line");
    assert!(file.ends_with("bugs.cu"), "{file}");
    assert_eq!(*line, line_of("bugs", mark), "{place}");
    assert!(place.ptx_line > 0 && !place.instruction.is_empty());
}

#[test]
fn out_of_bounds() {
    let mem = Memory::new();
    let x = mem.alloc(100 * 4).unwrap();
    let params = Params::new().arg(x).arg(100);
    let f = fault("out_of_bounds", &LaunchConfig::new(2, 64), &mem, &params);
    assert!(
        matches!(f.kind, FaultKind::OutOfBounds { space: Space::Global, access: AccessKind::Write, address, bytes: 4, .. } if address == x.0 + 400),
        "{f}"
    );
    at(&f.place, "BUG out_of_bounds");
    assert_eq!(f.place.block, Some((1, 0, 0)));
    assert_eq!(f.place.thread, Some((36, 0, 0)));
}

#[test]
fn misaligned_vector_load() {
    let mem = Memory::new();
    let x = mem.alloc_zeroed(4096).unwrap();
    let out = mem.alloc(4096).unwrap();
    let params = Params::new().arg(x).arg(out);
    let f = fault("misaligned", &LaunchConfig::new(1, 32), &mem, &params);
    assert!(
        matches!(f.kind, FaultKind::Misaligned { align: 16, .. }),
        "{f}"
    );
    at(&f.place, "BUG misaligned");
}

#[test]
fn uninitialised_shared_memory() {
    let mem = Memory::new();
    let out = mem.alloc(4096).unwrap();
    let params = Params::new().arg(out);
    let f = fault("uninitialised", &LaunchConfig::new(1, 64), &mem, &params);
    assert!(
        matches!(
            f.kind,
            FaultKind::Uninitialised {
                space: Space::Shared,
                address: 252,
                bytes: 4
            }
        ),
        "{f}"
    );
    at(&f.place, "BUG uninitialised");
    assert_eq!(f.place.thread, Some((63, 0, 0)));
}

#[test]
fn missing_syncthreads() {
    for seed in 0..16 {
        let mem = Memory::new();
        let x = mem.alloc_zeroed(512).unwrap();
        let out = mem.alloc(512).unwrap();
        let params = Params::new().arg(x).arg(out);
        let config = LaunchConfig::new(1, 128).seed(seed);
        let f = fault("missing_sync", &config, &mem, &params);
        let FaultKind::Race {
            space: Space::Shared,
            access,
            other,
            ..
        } = &f.kind
        else {
            panic!("{f}");
        };
        // Whichever of the two came second found the race.
        if *access == AccessKind::Read {
            at(&f.place, "BUG missing_sync");
            at(other, "OTHER missing_sync");
        } else {
            at(&f.place, "OTHER missing_sync");
            at(other, "BUG missing_sync");
        }
        assert!(other.thread.is_some() && f.place.thread.is_some());
    }
}

#[test]
fn missing_copy_wait() {
    let mem = Memory::new();
    let x = mem.alloc_zeroed(512).unwrap();
    let out = mem.alloc(512).unwrap();
    let params = Params::new().arg(x).arg(out);
    let f = fault("missing_wait", &LaunchConfig::new(1, 128), &mem, &params);
    let FaultKind::PendingCopy { other, .. } = &f.kind else {
        panic!("{f}");
    };
    at(&f.place, "BUG missing_wait");
    at(other, "OTHER missing_wait");
}

#[test]
fn wrong_wait_count() {
    let mem = Memory::new();
    let x = mem.alloc_zeroed(1024).unwrap();
    let out = mem.alloc(512).unwrap();
    let params = Params::new().arg(x).arg(out);
    let f = fault("wrong_wait", &LaunchConfig::new(1, 128), &mem, &params);
    let FaultKind::PendingCopy { other, .. } = &f.kind else {
        panic!("{f}");
    };
    at(&f.place, "BUG wrong_wait");
    at(other, "OTHER wrong_wait");
}

#[test]
fn divergent_barrier() {
    let mem = Memory::new();
    let out = mem.alloc(512).unwrap();
    let params = Params::new().arg(out);
    let f = fault(
        "divergent_barrier",
        &LaunchConfig::new(1, 64),
        &mem,
        &params,
    );
    let FaultKind::DivergentBarrier { arrived, live, .. } = &f.kind else {
        panic!("{f}");
    };
    assert_eq!((*arrived, *live), (0x5555_5555, 0xffff_ffff));
    at(&f.place, "BUG divergent_barrier");
}

#[test]
fn deadlock() {
    let mem = Memory::new();
    let out = mem.alloc(512).unwrap();
    let params = Params::new().arg(out);
    let f = fault("deadlock", &LaunchConfig::new(1, 64), &mem, &params);
    let FaultKind::Deadlock { waiters } = &f.kind else {
        panic!("{f}");
    };
    assert_eq!(waiters.len(), 2);
    at(&waiters[0].place, "BUG deadlock");
    at(&waiters[1].place, "OTHER deadlock");
    assert!(waiters[0].waits_for.starts_with("barrier 1 (32 of 64"));
    assert!(waiters[1].waits_for.starts_with("barrier 2 (32 of 64"));
}

#[test]
fn race_between_blocks() {
    let mem = Memory::new();
    let x = mem.alloc_zeroed(64).unwrap();
    let out = mem.alloc(2048).unwrap();
    let params = Params::new().arg(x).arg(out);
    let f = fault("global_race", &LaunchConfig::new(8, 32), &mem, &params);
    let FaultKind::Race {
        space: Space::Global,
        address,
        other,
        access,
        ..
    } = &f.kind
    else {
        panic!("{f}");
    };
    assert_eq!(*address, x.0);
    assert_ne!(f.place.block, other.block);
    if *access == AccessKind::Read {
        at(&f.place, "OTHER global_race");
        at(other, "BUG global_race");
    } else {
        at(&f.place, "BUG global_race");
    }
}

#[test]
fn unknown_instruction() {
    let mem = Memory::new();
    let out = mem.alloc(2048).unwrap();
    let params = Params::new().arg(out);
    let f = fault("unknown", &LaunchConfig::new(1, 32), &mem, &params);
    let FaultKind::UnknownInstruction(text) = &f.kind else {
        panic!("{f}");
    };
    assert!(text.contains("vadd2.u32.u32.u32"), "{text}");
    at(&f.place, "BUG unknown");
}

#[test]
fn missing_fence_between_blocks() {
    let mem = Memory::new();
    let partial = mem.alloc(64 * 4).unwrap();
    let ticket = mem.alloc_zeroed(4).unwrap();
    let out = mem.alloc(4).unwrap();
    let params = Params::new().arg(partial).arg(ticket).arg(out);
    let f = fault("missing_fence", &LaunchConfig::new(64, 1), &mem, &params);
    assert!(matches!(f.kind, FaultKind::Race { .. }), "{f}");
    at(&f.place, "BUG missing_fence");
}

#[test]
fn wrong_barrier_count() {
    let mem = Memory::new();
    let out = mem.alloc(512).unwrap();
    let params = Params::new().arg(out);
    let f = fault("wrong_count", &LaunchConfig::new(1, 96), &mem, &params);
    assert!(matches!(f.kind, FaultKind::BarrierCount(_)), "{f}");
}

#[test]
fn shuffle_with_missing_lanes() {
    let mem = Memory::new();
    let out = mem.alloc(512).unwrap();
    let params = Params::new().arg(out);
    let f = fault("missing_lane", &LaunchConfig::new(1, 32), &mem, &params);
    assert!(
        matches!(
            f.kind,
            FaultKind::MemberMask { .. } | FaultKind::Deadlock { .. }
        ),
        "{f}"
    );
}
