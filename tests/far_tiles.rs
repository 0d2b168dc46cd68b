//! The kernels past 256 tiles of keys, which is as many as a block of theirs looks at in one turn; executed by the emulator.

use flash_alibi::plan::{Addresses, Call, Dtype, Executor, Launch, Plan};
use flash_alibi::{Attention, Horizon, Layout, Mask, Slopes};
use flash_alibi_testing::emulator::{Emulator, SMALLEST};
use flash_alibi_testing::horizon::{Path, Probe, along};
use flash_alibi_testing::problem::Failure;
use flash_alibi_testing::{Case, SlopeKind, normal};
use half::{bf16, f16};

/// Carries out the launches of one kernel.
struct Only<'a>(&'a Emulator, &'static str);

impl Executor for Only<'_> {
    type Error = Failure;

    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<(), Failure> {
        match launch.kernel == self.1 {
            // SAFETY: the emulator checks every access itself.
            true => unsafe { self.0.launch(launch, params) },
            false => Ok(()),
        }
    }
}

/// The larger of two radii; NaN is the largest.
fn larger(x: f32, y: f32) -> f32 {
    match x > y || x.is_nan() {
        true => x,
        false => y,
    }
}

/// What `farther_radii` makes of the radii of each head's tiles: the maxima of a tile and all before it, and of a tile and
/// all after it.
fn farther_radii(head_dim: usize, tiles: usize, radii: &[Vec<f32>]) -> Vec<[Vec<f32>; 2]> {
    let (heads, keys) = (radii.len(), tiles * tile(head_dim));
    let attention = Attention::new(heads, heads, head_dim)
        .mask(Mask::Bidirectional)
        .slopes(Slopes::geometric(heads))
        .build()
        .unwrap();
    let of = |name, rows| Layout::contiguous(name, &[1, rows, heads, head_dim]).unwrap();
    let call = Call {
        dtype: Dtype::F16,
        q: of("q", 3),
        k: of("k", keys),
        v: of("v", keys),
        out: of("out", 3),
        packed: None,
        paged: None,
    };
    let plan = Plan::prefill(&attention, &call, &SMALLEST).unwrap();
    // The centres, three numbers a tile, and the order of the heads.
    let (centres, of_head) = (heads * head_dim, 3 * tiles);
    let mut workspace = vec![-1f32; plan.workspace_bytes() as usize / 4];
    for (h, radii) in radii.iter().enumerate() {
        workspace[centres + h * of_head..][..tiles].copy_from_slice(radii);
    }
    let emulator = Emulator::new(7);
    let memory = &emulator.memory;
    let at = memory.upload(&workspace).unwrap();
    let slopes = attention.slopes().as_slice();
    let addresses = Addresses {
        slopes: memory.upload(slopes).unwrap().0,
        workspace: at.0,
        ..Addresses::default()
    };
    // SAFETY: the emulator checks every access itself.
    unsafe { plan.run(&Only(&emulator, "farther_radii"), &addresses) }.unwrap();
    let found: Vec<f32> = memory.download(at, workspace.len()).unwrap();
    let of = |h: usize, n: usize| found[centres + h * of_head + n * tiles..][..tiles].to_vec();
    (0..heads)
        .map(|h| {
            assert_eq!(of(h, 0).len(), tiles);
            [of(h, 1), of(h, 2)]
        })
        .collect()
}

/// Keys of a tile of the prefill kernels.
fn tile(head_dim: usize) -> usize {
    if head_dim <= 32 { 128 } else { 64 }
}

/// One peak a head, among radii that fall, that rise and that are random, with some that are not numbers.
#[test]
fn the_maxima_of_either_side() {
    let cases: [(usize, usize); 9] = [
        (64, 33),
        (8, 255),
        (8, 256),
        (8, 257),
        (72, 300),
        (72, 512),
        (256, 513),
        (8, 800),
        (8, 1025),
    ];
    for (head_dim, tiles) in cases {
        let peaks = [0, 1, 31, 32, 33, 100, 127, 128, 223, 224, 254, 255];
        let peaks = peaks
            .iter()
            .flat_map(|&p| [p, tiles.wrapping_sub(p + 1), p + 256, p + 512]);
        let mut radii: Vec<Vec<f32>> = peaks
            .filter(|&p| p < tiles)
            .map(|p| {
                let of = |t| if t == p { 9.0 } else { 0.25 };
                (0..tiles).map(of).collect()
            })
            .collect();
        radii.push((0..tiles).map(|t| t as f32).collect());
        radii.push((0..tiles).map(|t| (tiles - t) as f32).collect());
        let normal = normal(1, 1, [tiles, 0, 0, 0]);
        radii.push(normal.map(f32::abs).take(tiles).collect());
        let mut with_nan = radii[radii.len() - 1].clone();
        with_nan[tiles / 3] = f32::NAN;
        with_nan[2 * tiles / 3] = f32::INFINITY;
        radii.push(with_nan);
        for (h, found) in farther_radii(head_dim, tiles, &radii)
            .into_iter()
            .enumerate()
        {
            let running = |radii: &mut dyn Iterator<Item = &f32>| -> Vec<f32> {
                let mut largest = 0.0;
                radii
                    .map(|&x| {
                        largest = larger(largest, x);
                        largest
                    })
                    .collect()
            };
            let before = running(&mut radii[h].iter());
            let mut after = running(&mut radii[h].iter().rev());
            after.reverse();
            for (side, (found, expected)) in found.iter().zip([before, after]).enumerate() {
                for t in 0..tiles {
                    let (found, expected) = (found[t], expected[t]);
                    assert!(
                        found == expected || found.is_nan() && expected.is_nan(),
                        "side {side} of {tiles} tiles, head {h}, tile {t}: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// One row whose heads each have a single long key, in the tiles of another warp of those that look at tiles. What is nearer
/// than that key is left out by its distance.
fn a_long_key_for_each_head(path: Path, heads: usize, keys_of_tile: usize) {
    let tiles = 260;
    let keys = tiles * keys_of_tile - 3;
    let case = Case {
        slopes: SlopeKind::All(0.05),
        scale: Some(1.0),
        horizon: Horizon::Certified { tolerance: 1e-3 },
        ..Case::dense(1, 1, keys, (heads, heads), 8)
    };
    let mut probe = Probe::<f16>::new(path, case, 64);
    probe.centre = Some(0.0);
    probe.set_queries(0, along(1.0));
    let place = |head: usize| match head {
        // Everything is near, and everything is far.
        0 => keys - 2,
        1 => 3,
        // Of warp after warp, from the second on.
        _ => (tiles - 257 + 31 * head) * keys_of_tile + 5,
    };
    for head in 0..heads {
        let of = |j, c| along(if j == place(head) { 2000.0 } else { 0.0 })(c);
        probe.set_keys_of(0, head, of);
    }
    let compared = probe.certified();
    println!("{path:?}: {compared:?}");
    assert!(compared.part < 0.1, "{compared:?}");
    let found = probe.attend(probe.case.horizon).lse;
    for (head, lse) in found.into_iter().enumerate() {
        let expected = 2000.0 - 0.05 * (keys - 1 - place(head)) as f32;
        assert!(
            (lse - expected).abs() < 0.01,
            "head {head}: {lse}, {expected}"
        );
    }
}

#[test]
fn a_long_key_in_a_far_tile_of_prefill() {
    a_long_key_for_each_head(Path::Prefill, 3, 128);
}

#[test]
fn a_long_key_in_a_far_tile_of_a_live_list() {
    a_long_key_for_each_head(Path::Decode, 9, 64);
}

/// Every third tile has a key that counts: what is between is left out, and lists are compressed.
#[test]
fn some_of_many_tiles() {
    for (path, head_dim, tiles) in [(Path::Decode, 8, 530), (Path::Prefill, 72, 280)] {
        let keys_of_tile = match path {
            Path::Decode => 64,
            _ => tile(head_dim),
        };
        let keys = tiles * keys_of_tile;
        let slope = 1.0 / 256.0;
        let case = Case {
            slopes: SlopeKind::All(slope),
            scale: Some(1.0),
            horizon: Horizon::Certified { tolerance: 1e-2 },
            ..Case::dense(1, 1, keys, (1, 1), head_dim)
        };
        let mut probe = Probe::<f16>::new(path, case, 64);
        probe.centre = Some(0.0);
        probe.set_queries(0, along(1.0));
        // As much as the bias takes.
        let of = |j: usize, c: usize| match j % (3 * keys_of_tile) == 7 {
            true => along((keys - 1 - j) as f32 * slope)(c),
            false => along(0.0)(c),
        };
        probe.set_keys_of(0, 0, of);
        let compared = probe.certified();
        println!("{path:?}, {head_dim}: {compared:?}");
        assert!((0.3..0.6).contains(&compared.part), "{compared:?}");
    }
}

/// With nothing left out, kernels that read lists, or that test tiles, have the result of those that do not, bit by bit.
fn everything_is_live(path: Path, slope: f32, heads: usize, head_dim: usize, keys: usize) {
    let case = Case {
        slopes: SlopeKind::All(slope),
        ..Case::dense(1, 1, keys, (heads, 1), head_dim)
    };
    let mut probe = Probe::<bf16>::new(path, case, 64);
    let whole = probe.attend(Horizon::Off);
    let found = probe.attend(Horizon::default());
    let launched = match path {
        Path::Decode => "live",
        _ => "centres",
    };
    assert!(found.kernels.iter().any(|name| name.starts_with(launched)));
    let same = found.out == whole.out && found.lse == whole.lse;
    assert!(same, "{path:?}, {keys} keys of {head_dim}, slope {slope}");
}

#[test]
fn lists_of_all_of_many_tiles_change_no_bit() {
    everything_is_live(Path::Decode, 0.0, 1, 8, 257 * 64);
    everything_is_live(Path::Decode, 1e-9, 2, 8, 512 * 64 + 1);
}

/// More than 16 rows, whose tiles have 32 keys up to a head dimension of 128.
#[test]
fn lists_of_many_rows_change_no_bit() {
    everything_is_live(Path::Decode, 1e-9, 17, 8, 257 * 32);
    everything_is_live(Path::Decode, 0.0, 17, 136, 257 * 64 - 5);
}

#[test]
fn tests_of_many_tiles_change_no_bit() {
    everything_is_live(Path::Prefill, 1e-9, 1, 8, 257 * 128);
    everything_is_live(Path::Prefill, 1e-9, 1, 72, 257 * 64 + 9);
}

/// Groups of tiles that weigh as much as all that is farther than some place may weigh together: they are kept, since a key that
/// is farther has a norm with which they may weigh more, though it weighs nothing itself. They are the last that a warp looks at.
fn tiles_before_a_long_key(to_the_right: bool) {
    const TILES: usize = 1900;
    const KEYS: usize = TILES * 64;
    let (slope, tail) = (1.0f32 / 256.0, -9.12f32);
    let tolerance = 2.0 * tail.exp() / -(-slope).exp_m1();
    let case = Case {
        slopes: SlopeKind::All(slope),
        scale: Some(1.0),
        mask: Mask::Bidirectional,
        offsets: Some(vec![if to_the_right { 0 } else { KEYS as i32 - 1 }]),
        horizon: Horizon::Certified { tolerance },
        ..Case::dense(1, 1, KEYS, (1, 1), 8)
    };
    let mut probe = Probe::<f16>::new(Path::Decode, case, 64);
    probe.centre = Some(0.0);
    probe.set_queries(0, along(1.0));
    // Of every warp but the first, so that nothing of that one stands for the others.
    let group = |t: usize| (TILES - 1 - t) % 32 >= 24 && !((TILES - 1 - t) / 32).is_multiple_of(8);
    // Of the nearest keys one alone weighs. The long key is for the second warp.
    let score = |distance: usize| match (distance, distance / 64) {
        (0, _) => 0.0,
        (1..2560, _) => -30.0,
        (_, 1859) => 455.0,
        (_, t @ 100..1830) if group(t) => {
            let nearest = t + (TILES - 1 - t) % 32 - 31;
            // A little below the tail, for what a bound is rounded up by.
            tail - 0.13 + nearest as f32 / 4.0
        }
        _ => 0.0,
    };
    let of = |j: usize, c: usize| {
        let distance = if to_the_right { j } else { KEYS - 1 - j };
        along(score(distance))(c)
    };
    probe.set_keys_of(0, 0, of);
    let compared = probe.certified();
    println!("to the right: {to_the_right}, {compared:?}");
    assert!(compared.part < 0.4, "{compared:?}");
}

#[test]
fn tiles_to_the_left_before_a_long_key() {
    tiles_before_a_long_key(false);
}

#[test]
fn tiles_to_the_right_before_a_long_key() {
    tiles_before_a_long_key(true);
}
