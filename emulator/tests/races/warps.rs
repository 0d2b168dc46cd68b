//! Races between the warps of a block.

use ptx_emulator::{Access, Fault, FaultKind, Space};

use super::common::Rng;
use super::program::{GLOBAL, Kind, Program, SHARED, is_race};

const SEEDS: u64 = 16;

fn kinds(space: Space) -> &'static [Kind] {
    match space {
        Space::Shared => &SHARED,
        _ => &GLOBAL,
    }
}

/// Every seed reports the access of `second` against that of `first`.
fn found(p: &Program, first: (usize, Kind), second: (usize, Kind)) {
    assert!(p.races(), "{p:?}");
    for (seed, r) in p.run(SEEDS).into_iter().enumerate() {
        let Err(f) = r else {
            panic!("nothing found on seed {seed}: {p:?}")
        };
        names(&f, first, second, p.space);
    }
}

fn names(f: &Fault, first: (usize, Kind), second: (usize, Kind), space: Space) {
    let (access, other) = match &f.kind {
        FaultKind::Race {
            space: s,
            access,
            other,
            other_access,
            ..
        } => {
            assert_eq!(*s, space, "{f}");
            let as_read = !first.1.writes(space);
            assert_eq!(*other_access == Access::Read, as_read, "{f}");
            (access, other)
        }
        FaultKind::AsyncPending { access, other, .. } => (access, other),
        _ => panic!("{f}"),
    };
    let warp = |t: Option<(u32, u32, u32)>| t.map(|t| t.0 as usize / 32);
    assert_eq!(warp(f.place.thread), Some(second.0), "{f}");
    assert_eq!(warp(other.thread), Some(first.0), "{f}");
    assert!(f.place.instruction.starts_with(second.1.mnemonic()), "{f}");
    assert!(other.instruction.starts_with(first.1.mnemonic()), "{f}");
    assert_eq!(*access == Access::Read, !second.1.writes(space), "{f}");
}

fn silent(p: &Program) {
    assert!(!p.races(), "{p:?}");
    for (seed, r) in p.run(4).into_iter().enumerate() {
        if let Err(f) = r {
            panic!("seed {seed}: {f}\n{p:?}");
        }
    }
}

/// Each ordered pair of accesses by two warps, in both orders of their ranks: without a barrier between
/// them, with one behind them or one that only the earlier waits at, a race on every seed; with a
/// barrier between them, none.
fn pairs(space: Space) {
    for &a in kinds(space) {
        for &b in kinds(space) {
            for (x, y) in [(0, 1), (1, 0)] {
                for word in [0, 3] {
                    let base = || Program::new(space, 2).does(x, a, word);
                    let landed = || match a.is_copy() {
                        true => base().wait(x),
                        false => base(),
                    };
                    silent(&landed().sync(&[0, 1]).does(y, b, word));
                    silent(&landed().arrive(x, y).does(y, b, word));
                    let unordered = [
                        base().delay(y).does(y, b, word).sync(&[0, 1]),
                        landed().delay(y).does(y, b, word),
                        landed().arrive(y, x).delay(y).does(y, b, word),
                    ];
                    for p in unordered {
                        match a.conflicts(b, space) {
                            true => found(&p, (x, a), (y, b)),
                            false => silent(&p),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn pairs_on_shared_memory() {
    pairs(Space::Shared);
}

#[test]
fn pairs_on_global_memory() {
    pairs(Space::Global);
}

/// A copy that nobody waited for stays in the way of every access, its own warp's too, whatever
/// barriers are passed.
#[test]
fn pending_copies() {
    for copy in [Kind::Copy, Kind::CopyAll] {
        for b in SHARED {
            for (x, y) in [(0, 0), (0, 1), (1, 0)] {
                let p = Program::new(Space::Shared, 2)
                    .does(x, copy, 2)
                    .sync(&[0, 1])
                    .does(y, b, 2);
                found(&p, (x, copy), (y, b));
                // The wait is behind the barrier: what landed is not ordered before the access.
                if x != y {
                    let p = Program::new(Space::Shared, 2)
                        .does(x, copy, 2)
                        .sync(&[0, 1])
                        .wait(x)
                        .delay(y)
                        .does(y, b, 2);
                    found(&p, (x, copy), (y, b));
                }
            }
        }
    }
}

/// Of three warps one is ordered and the other is not: neither hides the other, whichever came last.
#[test]
fn an_ordered_access_does_not_hide_another() {
    for space in [Space::Shared, Space::Global] {
        let permutations = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        for &a in kinds(space) {
            for &b in kinds(space) {
                // `x` and `z` are free to be unordered; `y` must see the one that it did not meet.
                if a.conflicts(a, space) || !a.conflicts(b, space) {
                    continue;
                }
                for [x, y, z] in permutations {
                    let base = || Program::new(space, 3);
                    found(
                        &base()
                            .does(x, a, 1)
                            .delay(z)
                            .does(z, a, 1)
                            .sync(&[y, z])
                            .does(y, b, 1),
                        (x, a),
                        (y, b),
                    );
                    found(
                        &base()
                            .does(x, a, 1)
                            .sync(&[x, y])
                            .delay(z)
                            .does(z, a, 1)
                            .delay(y)
                            .delay(y)
                            .does(y, b, 1),
                        (z, a),
                        (y, b),
                    );
                    silent(
                        &base()
                            .does(x, a, 1)
                            .sync(&[x, z])
                            .does(z, a, 1)
                            .sync(&[y, z])
                            .does(y, b, 1),
                    );
                }
            }
        }
    }
}

/// A warp's later access does not stand for its earlier one, nor the earlier for the later.
#[test]
fn each_access_of_a_warp_counts() {
    for space in [Space::Shared, Space::Global] {
        for &a in kinds(space) {
            for &b in kinds(space) {
                for (x, y) in [(0, 1), (1, 0)] {
                    let landed = |p: Program| match a.is_copy() {
                        true => p.wait(x),
                        false => p,
                    };
                    if a.conflicts(b, space) {
                        // Seen, met, seen again.
                        let p = landed(Program::new(space, 2).does(x, a, 0)).sync(&[0, 1]);
                        let p = landed(p.does(x, a, 0)).delay(y).does(y, b, 0);
                        found(&p, (x, a), (y, b));
                    }
                    // The same warp goes on to an access that does not conflict.
                    for &c in kinds(space) {
                        if !a.conflicts(b, space) || c.conflicts(b, space) || c.is_copy() {
                            continue;
                        }
                        let p = landed(Program::new(space, 2).does(x, a, 0)).does(x, c, 0);
                        found(&p.delay(y).does(y, b, 0), (x, a), (y, b));
                    }
                }
            }
        }
    }
}

/// What was released at a barrier is not acquired by those who use it next.
#[test]
fn a_barrier_used_again_forgets() {
    for space in [Space::Shared, Space::Global] {
        for [w, x, y, z] in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]] {
            let p = Program::new(space, 4)
                .one_barrier()
                .does(w, Kind::Write, 1)
                .arrive(w, x)
                .delay(y)
                .delay(z)
                .arrive(y, z)
                .does(z, Kind::Read, 1);
            found(&p, (w, Kind::Write), (z, Kind::Read));
        }
    }
}

/// A reader beside one that it has no order to reads again, after the writer has met its first read.
#[test]
fn the_last_read_beside_another_reader_counts() {
    for space in [Space::Shared, Space::Global] {
        for [x, y, z] in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let read = Kind::Read;
            let p = Program::new(space, 3)
                .does(z, read, 0)
                .delay(x)
                .does(x, read, 0)
                .sync(&[x, y])
                .does(x, read, 0)
                .delay(y)
                .sync(&[z, y])
                .does(y, Kind::Write, 0);
            found(&p, (x, read), (y, Kind::Write));
        }
    }
}

/// Random programs: reported on every seed if two conflicting accesses have no order, else on none.
fn random(space: Space) {
    let mut rng = Rng(2022);
    let mut below = |n: usize| rng.next() as usize % n;
    let (mut racy, mut clean) = (0, 0);
    while racy < 300 || clean < 150 {
        let warps = 2 + below(3);
        let mut p = Program::new(space, warps);
        for _ in 0..3 + below(8) {
            let x = below(warps);
            let y = (x + 1 + below(warps - 1)) % warps;
            p = match below(9) {
                0 => p.sync(&(0..warps).collect::<Vec<_>>()),
                1 | 2 => p.sync(&[x.min(y), x.max(y)]),
                3 => p.arrive(x, y),
                _ => {
                    let kind = kinds(space)[below(kinds(space).len())];
                    let p = p.does(x, kind, below(2));
                    // Most copies are waited for.
                    match kind.is_copy() && below(4) > 0 {
                        true => p.wait(x),
                        false => p,
                    }
                }
            };
        }
        if !p.fits() {
            continue;
        }
        let (seen, enough) = match p.races() {
            true => (&mut racy, 300),
            false => (&mut clean, 150),
        };
        if *seen == enough {
            continue;
        }
        *seen += 1;
        for (seed, r) in p.run(3).into_iter().enumerate() {
            match r {
                Ok(()) => assert!(!p.races(), "nothing found on seed {seed}: {p:?}"),
                Err(f) => assert!(p.races() && is_race(&f), "seed {seed}: {f}\n{p:?}"),
            }
        }
    }
}

#[test]
fn random_programs_on_shared_memory() {
    random(Space::Shared);
}

#[test]
fn random_programs_on_global_memory() {
    random(Space::Global);
}
