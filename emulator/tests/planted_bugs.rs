//! Kernels with one bug each: the emulator finds it and names its place.

mod common;

use common::module;
use ptx_emulator::{Access, Checks, Fault, FaultKind, LaunchConfig, Memory, Module, Params, Space};

/// Lines of `planted.cu` that hold the bug.
fn bug_lines(name: &str) -> Vec<String> {
    let text = include_str!("kernels/planted.cu");
    let mark = format!("// BUG {name}");
    let lines: Vec<String> = text
        .lines()
        .enumerate()
        .filter(|(_, l)| l.ends_with(&mark))
        .map(|(i, _)| format!("planted.cu:{}", i + 1))
        .collect();
    assert!(!lines.is_empty());
    lines
}

fn at(source: &Option<String>, name: &str) -> bool {
    source
        .as_ref()
        .is_some_and(|s| bug_lines(name).iter().any(|l| s.ends_with(l)))
}

/// Launches and checks what every fault must name.
fn fault(kernel: &str, bug: &str, config: LaunchConfig, memory: &Memory, params: Params) -> Fault {
    let f = *module("planted")
        .launch(memory, kernel, &config, params.as_bytes())
        .expect_err("the bug is found");
    println!("{f}\n");
    assert_eq!(f.kernel, kernel);
    assert!(f.place.ptx_line > 0 && !f.place.instruction.is_empty());
    assert!(
        at(&f.place.source, bug),
        "{:?} is not {:?}",
        f.place.source,
        bug_lines(bug)
    );
    assert!(f.place.thread.is_some());
    f
}

#[test]
fn out_of_bounds() {
    let memory = Memory::new();
    let x = memory.alloc(4 * 64).unwrap();
    let f = fault(
        "out_of_bounds",
        "out_of_bounds",
        LaunchConfig::new(1, 64),
        &memory,
        Params::new().arg(x).arg(40i32),
    );
    assert!(matches!(
        f.kind,
        FaultKind::OutOfBounds { space: Space::Global, access: Access::Write, address, len: 4, .. } if address == x.0 + 256
    ));
    assert_eq!(f.place.thread, Some((63, 0, 0)));
}

#[test]
fn misaligned_vector_load() {
    let memory = Memory::new();
    let (x, y) = (
        memory.alloc_zeroed(4096).unwrap(),
        memory.alloc(4096).unwrap(),
    );
    let f = fault(
        "misaligned",
        "misaligned",
        LaunchConfig::new(1, 32),
        &memory,
        Params::new().arg(x).arg(y),
    );
    assert!(
        matches!(f.kind, FaultKind::Misaligned { space: Space::Global, align: 16, address } if address == x.0 + 4)
    );
    assert_eq!(f.place.thread, Some((1, 0, 0)));
}

#[test]
fn uninitialised_shared() {
    let memory = Memory::new();
    let y = memory.alloc(256).unwrap();
    let f = fault(
        "uninitialised",
        "uninitialised",
        LaunchConfig::new(1, 64),
        &memory,
        Params::new().arg(y),
    );
    assert!(matches!(
        f.kind,
        FaultKind::Uninitialised {
            space: Space::Shared,
            address: 20,
            ..
        }
    ));
    assert_eq!(f.place.thread, Some((58, 0, 0)));
}

#[test]
fn missing_syncthreads() {
    for seed in 0..5 {
        let memory = Memory::new();
        let y = memory.alloc(512).unwrap();
        // The scheduler may run the reader first, which is an uninitialised read.
        let checks = Checks::all().uninit_shared(false);
        let config = LaunchConfig::new(1, 128).seed(seed).checks(checks);
        let f = fault(
            "missing_sync",
            "missing_sync",
            config,
            &memory,
            Params::new().arg(y),
        );
        let FaultKind::Race {
            space: Space::Shared,
            other,
            access,
            other_access,
            ..
        } = &f.kind
        else {
            panic!("{f}")
        };
        assert!(at(&other.source, "missing_sync"));
        assert_ne!(other.thread, f.place.thread);
        assert_ne!((access, other_access), (&Access::Read, &Access::Read));
    }
}

#[test]
fn missing_and_wrong_copy_waits() {
    let memory = Memory::new();
    let (x, y) = (
        memory.alloc_zeroed(4096).unwrap(),
        memory.alloc(4096).unwrap(),
    );
    let p = || Params::new().arg(x).arg(y);
    for kernel in ["missing_wait", "wrong_wait"] {
        let f = fault(kernel, "copy", LaunchConfig::new(1, 64), &memory, p());
        let FaultKind::AsyncPending {
            access: Access::Read,
            other,
            ..
        } = &f.kind
        else {
            panic!("{f}")
        };
        assert!(at(&other.source, "copy"));
        // Without the race detector the late copy is seen as memory nobody wrote.
        let config = LaunchConfig::new(1, 64).checks(Checks::all().shared_races(false));
        let f = fault(kernel, "copy", config, &memory, p());
        assert!(matches!(
            f.kind,
            FaultKind::Uninitialised {
                space: Space::Shared,
                ..
            }
        ));
    }
    module("planted")
        .launch(
            &memory,
            "right_wait",
            &LaunchConfig::new(1, 64),
            p().as_bytes(),
        )
        .unwrap_or_else(|f| panic!("{f}"));
}

#[test]
fn divergent_barrier() {
    let memory = Memory::new();
    let y = memory.alloc(1024).unwrap();
    let f = fault(
        "divergent",
        "divergent",
        LaunchConfig::new(1, 64),
        &memory,
        Params::new().arg(y),
    );
    let FaultKind::DivergentBarrier {
        barrier: 0,
        present: 0xffff,
        absent: 0xffff_0000,
        ..
    } = f.kind
    else {
        panic!("{f}")
    };
}

#[test]
fn deadlock_says_who_waits_where() {
    let memory = Memory::new();
    let y = memory.alloc(1024).unwrap();
    let f = fault(
        "deadlock",
        "deadlock",
        LaunchConfig::new(1, 64),
        &memory,
        Params::new().arg(y),
    );
    let FaultKind::Deadlock { waiters } = &f.kind else {
        panic!("{f}")
    };
    assert_eq!(waiters.len(), 2);
    for (w, id) in waiters.iter().zip(1..) {
        assert_eq!(
            w.waits_for,
            format!("barrier {id} (32 of 64 threads arrived)")
        );
        assert!(at(&w.place.source, "deadlock"));
    }
}

#[test]
fn wrong_barrier_counts() {
    let memory = Memory::new();
    let y = memory.alloc(1024).unwrap();
    let f = fault(
        "wrong_count",
        "wrong_count",
        LaunchConfig::new(1, 64),
        &memory,
        Params::new().arg(y),
    );
    assert!(
        matches!(&f.kind, FaultKind::BarrierMisuse { barrier: 1, detail } if detail.contains("multiple of 32"))
    );
    // If the smaller count comes first it completes alone, and the other waits for ever.
    let mut misuse = 0;
    for seed in 0..20 {
        let f = fault(
            "mixed_count",
            "mixed_count",
            LaunchConfig::new(1, 64).seed(seed),
            &memory,
            Params::new().arg(y),
        );
        misuse += usize::from(matches!(
            f.kind,
            FaultKind::BarrierMisuse { barrier: 1, .. }
        ));
        assert!(matches!(
            f.kind,
            FaultKind::BarrierMisuse { .. } | FaultKind::Deadlock { .. }
        ));
    }
    assert!(misuse > 0);
}

#[test]
fn races_between_blocks() {
    for threads in [1, 2] {
        let memory = Memory::new();
        let y = memory.alloc_zeroed(1024).unwrap();
        let config = LaunchConfig::new(2, 32).threads(threads);
        let f = fault(
            "global_race",
            "global_race",
            config.clone(),
            &memory,
            Params::new().arg(y),
        );
        let FaultKind::Race {
            space: Space::Global,
            other,
            access: Access::Write,
            other_access: Access::Write,
            ..
        } = &f.kind
        else {
            panic!("{f}")
        };
        assert_ne!(other.block, f.place.block);
        assert!(at(&other.source, "global_race"));
        for seed in 0..4 {
            let config = LaunchConfig::new(2, 64).threads(threads).seed(seed);
            let f = fault(
                "global_read_race",
                "global_read_race",
                config,
                &memory,
                Params::new().arg(y),
            );
            assert!(matches!(
                f.kind,
                FaultKind::Race {
                    space: Space::Global,
                    ..
                }
            ));
        }
    }
}

#[test]
fn races_between_warps_on_global_memory() {
    let memory = Memory::new();
    let y = memory.alloc_zeroed(1024).unwrap();
    let params = || Params::new().arg(y);
    for seed in 0..4 {
        let config = LaunchConfig::new(1, 64).seed(seed);
        let f = fault(
            "warps_race",
            "warps_race",
            config.clone(),
            &memory,
            params(),
        );
        let FaultKind::Race {
            space: Space::Global,
            other,
            ..
        } = &f.kind
        else {
            panic!("{f}")
        };
        assert!(at(&other.source, "warps_race"));
        module("planted")
            .launch(&memory, "warps_ordered", &config, params().as_bytes())
            .unwrap_or_else(|f| panic!("{f}"));
    }
}

#[test]
fn unknown_instruction() {
    let ptx = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n.reg .b32 %r<3>;\n\
               mov.u32 %r1, 5;\nfrobnicate.u32 %r2, %r1;\nret;\n}\n";
    let m = Module::parse(ptx).expect("the text is well formed");
    let params = Params::new().arg(0u64);
    let f = m
        .launch(
            &Memory::new(),
            "k",
            &LaunchConfig::new(1, 1),
            params.as_bytes(),
        )
        .unwrap_err();
    assert!(
        matches!(&f.kind, FaultKind::UnknownInstruction(t) if t.contains("frobnicate.u32")),
        "{f}"
    );
    assert_eq!(f.place.ptx_line, 8);
}

#[test]
fn more_bugs() {
    let memory = Memory::new();
    let y = memory.alloc(1024).unwrap();
    let gone = memory.alloc(1024).unwrap();
    memory.free(gone).unwrap();
    let f = fault(
        "freed",
        "freed",
        LaunchConfig::new(1, 32),
        &memory,
        Params::new().arg(gone),
    );
    assert!(matches!(f.kind, FaultKind::UseAfterFree { .. }));
    let x = memory.alloc(1024).unwrap();
    let f = fault(
        "uninitialised_global",
        "uninitialised_global",
        LaunchConfig::new(1, 32),
        &memory,
        Params::new().arg(x).arg(y),
    );
    assert!(matches!(
        f.kind,
        FaultKind::Uninitialised {
            space: Space::Global,
            ..
        }
    ));
    let f = fault(
        "lanes_collide",
        "lanes_collide",
        LaunchConfig::new(1, 32),
        &memory,
        Params::new().arg(y),
    );
    assert!(matches!(
        f.kind,
        FaultKind::Race {
            space: Space::Shared,
            ..
        }
    ));
}

#[test]
fn mbarrier_deadlock_and_missing_wait() {
    let m = module("mbarrier");
    let memory = Memory::new();
    let (x, y) = (
        memory.alloc_zeroed(1024).unwrap(),
        memory.alloc(1024).unwrap(),
    );
    let f = m
        .launch(
            &memory,
            "nobody",
            &LaunchConfig::new(1, 64),
            Params::new().arg(y).as_bytes(),
        )
        .unwrap_err();
    println!("{f}");
    let FaultKind::Deadlock { waiters } = &f.kind else {
        panic!("{f}")
    };
    assert!(waiters.iter().all(|w| {
        w.waits_for
            .contains("phase 0 of the mbarrier at 0x0, which is in phase 0 with 1 of 65 arrivals")
    }));
    let p = Params::new().arg(x).arg(y).arg(0i32);
    let f = m
        .launch(
            &memory,
            "async_ring",
            &LaunchConfig::new(1, 32),
            p.as_bytes(),
        )
        .unwrap_err();
    assert!(matches!(f.kind, FaultKind::AsyncPending { .. }), "{f}");
}

#[test]
fn bad_launches() {
    let m = module("planted");
    let memory = Memory::new();
    let p = Params::new().arg(0u64);
    for config in [
        LaunchConfig::new(0, 32),
        LaunchConfig::new(1, 2048),
        LaunchConfig::new(1, 32).shared_bytes(1 << 20),
    ] {
        let f = m
            .launch(&memory, "freed", &config, p.as_bytes())
            .unwrap_err();
        assert!(matches!(f.kind, FaultKind::BadLaunch(_)));
    }
    for (kernel, params) in [
        ("nothing", Params::new()),
        ("freed", Params::new()),
        ("freed", Params::new().arg(0u64).arg(0u64)),
    ] {
        let f = m
            .launch(
                &memory,
                kernel,
                &LaunchConfig::new(1, 32),
                params.as_bytes(),
            )
            .unwrap_err();
        assert!(matches!(f.kind, FaultKind::BadLaunch(_)), "{f}");
    }
}

/// Takes the barriers and waits out of a correct kernel, one at a time: each is needed, and each loss
/// is found whatever the schedule.
#[test]
fn every_barrier_and_wait_of_a_kernel_is_needed() {
    let text = common::ptx("fused");
    let run = |text: &str, seed: u64| {
        let memory = Memory::new();
        let n = 192;
        let t = vec![half::f16::ONE; n * 64];
        let [q, k, v] = [0; 3].map(|_| memory.upload(&t).unwrap());
        let o = memory.alloc(4 * t.len() as u64).unwrap();
        let p = Params::new()
            .arg(q)
            .arg(k)
            .arg(v)
            .arg(o)
            .arg(n as i32)
            .arg(0.1f32);
        let config = LaunchConfig::new(n as u32 / 64, 128)
            .shared_bytes(3 * 64 * 128)
            .seed(seed);
        Module::parse(text)
            .unwrap()
            .launch(&memory, "fused", &config, p.as_bytes())
    };
    run(&text, 0).unwrap_or_else(|f| panic!("{f}"));
    let mut tried = 0;
    for (what, instead) in [
        ("bar.sync \t0;", ""),
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;"),
        ("cp.async.wait_group 1;", ""),
    ] {
        let places: Vec<usize> = text.match_indices(what).map(|(i, _)| i).collect();
        assert!(places.len() >= 2, "{what}: {places:?}");
        for at in places {
            let mutant = format!("{}{}{}", &text[..at], instead, &text[at + what.len()..]);
            for seed in 0..4 {
                let Err(f) = run(&mutant, seed) else {
                    panic!(
                        "without `{what}` at line {} nothing is found",
                        text[..at].lines().count()
                    )
                };
                assert!(
                    matches!(
                        f.kind,
                        FaultKind::Race { .. }
                            | FaultKind::AsyncPending { .. }
                            | FaultKind::Uninitialised { .. }
                    ),
                    "{f}"
                );
            }
            tried += 1;
        }
    }
    println!("{tried} mutants found");
}

/// The grain of the race check follows the smallest access, so neighbours do not race.
#[test]
fn neighbours_do_not_race() {
    let ptx = |width: u32, ty: &str| {
        format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.shared .align 16 .b8 s[256];\n\
             .reg .b32 %r<9>; .reg .b64 %rd<9>;\nld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x;\n\
             mad.lo.u32 %r3, %r2, 64, %r1; mul.wide.u32 %rd2, %r3, {width}; add.s64 %rd3, %rd1, %rd2;\n\
             st.global.{ty} [%rd3], %r1; mul.lo.u32 %r4, %r1, {width}; mov.u32 %r5, s; add.u32 %r6, %r5, %r4;\n\
             st.shared.{ty} [%r6], %r1;\nret;\n}}\n"
        )
    };
    for (width, ty) in [(1, "b8"), (2, "b16"), (4, "b32")] {
        let memory = Memory::new();
        // Blocks and warps meet in the middle of a word.
        let p = memory.alloc(4096).unwrap();
        let params = Params::new().arg(p.offset(u64::from(width)));
        let config = LaunchConfig::new(3, 64);
        Module::parse(&ptx(width, ty))
            .unwrap()
            .launch(&memory, "k", &config, params.as_bytes())
            .unwrap_or_else(|f| panic!("{f}"));
    }
}
