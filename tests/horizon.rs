//! The certified horizon: what it leaves out, and how little that changes, whatever the input. Each test runs on every path
//! that computes attention; those of the GPU are executed by the emulator.

use std::cmp::Ordering;

use flash_alibi::{Horizon, Mask};
use flash_alibi_testing::emulator::OnEmulator;
use flash_alibi_testing::horizon::{Path, Probe, along, same_bits, sampled, whole_budget};
use flash_alibi_testing::{Case, Lengths, SlopeKind, expect, normal, random};
use half::{bf16, f16};

/// Runs tests on every path.
macro_rules! on_every_path {
    ($($test:ident),* $(,)?) => {
        on_every_path!(@ cpu_few, Path::CpuFew, $($test)*);
        on_every_path!(@ cpu, Path::Cpu, $($test)*);
        on_every_path!(@ cpu_radii, Path::CpuRadii, $($test)*);
        on_every_path!(@ prefill, Path::Prefill, $($test)*);
        on_every_path!(@ decode, Path::Decode, $($test)*);
    };
    (@ $module:ident, $path:expr, $($test:ident)*) => {
        mod $module {
            use super::Path;
            $(
                #[test]
                fn $test() {
                    super::$test($path);
                }
            )*
        }
    };
}

on_every_path!(
    models_follow_the_oracle,
    masks_lengths_and_tokens,
    equal_keys,
    a_far_key_of_great_norm,
    softcaps_bound_scores,
    norms_that_grow_with_the_distance,
    the_budget_is_spent_and_no_more,
    norms_that_rise_again,
    norms_that_rise_as_the_bias_falls,
    both_sides_share_the_budget,
    an_offset_of_every_channel,
    centres_and_radii_of_their_own,
    a_self_score_far_below_all_others,
    the_nearest_keys_of_each_row,
    what_is_not_finite,
    values_beyond_the_horizon,
    heads_without_a_slope,
    positions_at_a_million,
    bitwise_changes_no_bit,
    no_search_exceeds_the_bound,
);

// Of these kernels, what they do not share with those for prefill: who judges, and when.
on_every_path!(@ hopper, Path::Hopper,
    models_follow_the_oracle
    masks_lengths_and_tokens
    a_far_key_of_great_norm
    norms_that_grow_with_the_distance
    the_budget_is_spent_and_no_more
    norms_that_rise_again
    both_sides_share_the_budget
    centres_and_radii_of_their_own
    a_self_score_far_below_all_others
    the_nearest_keys_of_each_row
    what_is_not_finite
    heads_without_a_slope
    bitwise_changes_no_bit
    no_search_exceeds_the_bound
);

fn lengths(q: usize, k: usize, leftpad: usize) -> Lengths {
    Lengths {
        q,
        k,
        leftpad,
        ..Lengths::default()
    }
}

fn certified(tolerance: f32) -> Horizon {
    Horizon::Certified { tolerance }
}

/// Few tokens where a path is for few.
fn tokens(path: Path, most: usize) -> usize {
    match path {
        Path::CpuFew | Path::Decode => 1,
        Path::Cpu | Path::CpuRadii | Path::Prefill | Path::Hopper => most,
    }
}

fn models_follow_the_oracle(path: Path) {
    fn check<T: OnEmulator>(path: Path, name: &str, case: &Case, page_size: usize) {
        let mut probe = Probe::<T>::new(path, case.clone(), page_size);
        let compared = probe.certified();
        expect(case, probe.follow_the_oracle());
        println!("{name}: {compared:?}");
        // Where heads share what is read, they need the union: with 71, the gentlest slope sees everything.
        let most = match (case.group, path) {
            (71, Path::Decode) => 1.0,
            _ => 0.6,
        };
        assert!(compared.part <= most, "{name}: {compared:?}");
    }
    let case = |k, heads, head_dim| Case::dense(1, tokens(path, 12), k, heads, head_dim);
    let models = [
        ("4K, 8 heads, d64", case(4096, (8, 8), 64), 16),
        ("8K, 8 heads, d64", case(8192, (8, 8), 64), 16),
        ("4K, GQA 8 over 2, d128", case(4096, (8, 2), 128), 32),
        ("4K, MQA 71, d64", case(4100, (71, 1), 64), 24),
    ];
    // Blocks of many rows take long to emulate.
    let few = [
        ("4K, 2 heads, d64", case(4096, (2, 2), 64), 16),
        ("4K, GQA 2 over 1, d128", case(4096, (2, 1), 128), 32),
    ];
    let models = match path {
        Path::Hopper => &few[..],
        _ => &models[..],
    };
    for (name, case, page_size) in models {
        if path == Path::Prefill && case.group == 71 {
            continue; // There, each head is computed for itself.
        }
        check::<f16>(path, name, case, *page_size);
    }
    let (name, case, page_size) = &models[0];
    check::<bf16>(path, name, case, *page_size);
}

/// Every mask, alone and together; loose tolerances, so that what is left out shows if it weighs too much.
fn masks_lengths_and_tokens(path: Path) {
    let of = |sequences: Vec<Lengths>| Case {
        sequences,
        slopes: SlopeKind::All(0.05),
        ..Case::dense(0, 0, 0, (4, 2), 64)
    };
    let one = || vec![lengths(1, 2500, 0)];
    let cases = [
        of(vec![lengths(1, 3200, 1100)]),
        // Padding beyond the horizon, and rows that stand before all keys.
        of(vec![lengths(3, 2300, 2299), lengths(3, 2100, 2000)]),
        Case {
            window: (Some(2100), Some(0)),
            ..of(one())
        },
        Case {
            window: (Some(2100), Some(3)),
            mask: Mask::Bidirectional,
            ..of(vec![lengths(2, 2500, 0)])
        },
        Case {
            mask: Mask::Bidirectional,
            ..of(vec![lengths(40, 2600, 7)])
        },
        Case {
            mask: Mask::Bidirectional,
            packed: true,
            ..of(vec![
                lengths(3, 2500, 0),
                lengths(0, 40, 0),
                lengths(2, 9, 3),
            ])
        },
        Case {
            packed: true,
            ..of(vec![
                lengths(2, 2500, 0),
                lengths(3, 2050, 0),
                lengths(1, 64, 0),
            ])
        },
        Case {
            softcap: Some(15.0),
            ..of(one())
        },
        Case {
            scale: Some(-0.1),
            slopes: SlopeKind::PerSequence(0.1),
            ..of(vec![lengths(3, 2500, 0), lengths(3, 2400, 0)])
        },
        Case {
            scale: Some(0.0),
            ..of(one())
        },
        Case {
            scale: Some(-0.1),
            ..of(one())
        },
        // Falcon-7B's heads.
        Case {
            group: 71,
            heads_k: 1,
            ..of(vec![lengths(1, 2500, 0), lengths(1, 70, 0)])
        },
        Case {
            group: 71,
            heads_k: 1,
            mask: Mask::Bidirectional,
            ..of(vec![lengths(2, 2500, 0)])
        },
        Case {
            head_dim: 256,
            group: 16,
            heads_k: 1,
            ..of(vec![lengths(3, 2100, 30)])
        },
        // A block of rows that stand in three tiles.
        Case {
            head_dim: 128,
            group: 1,
            ..of(vec![lengths(192, 2618, 0)])
        },
        // More queries than the kernels' tiles have, most of them far from the others' keys.
        Case {
            mask: Mask::Bidirectional,
            window: (Some(2300), Some(900)),
            ..of(vec![lengths(200, 2600, 0)])
        },
    ];
    for (turn, case) in cases.into_iter().enumerate() {
        if matches!(path, Path::Prefill | Path::Hopper) && case.group == 71 {
            continue; // There, each head is computed for itself.
        }
        let mut case = case;
        if path == Path::Hopper {
            // Blocks of many rows take long to emulate: one of each kind, and fewer heads.
            if ![0, 4, 6, 7, 13, 15].contains(&turn) {
                continue;
            }
            case.group = case.group.min(2);
            case.heads_k = 1;
        }
        let page_size = [8, 16, 24, 64, 256][turn % 5];
        let mut probe = Probe::<bf16>::new(path, case, page_size);
        if turn % 2 == 1 {
            probe.centre = Some(0.0);
        }
        for tolerance in [0.5f32.powi(24), 1e-3] {
            probe.case.horizon = certified(tolerance);
            let compared = probe.certified();
            println!("case {turn}, {tolerance:e}: {compared:?}");
            // With enough keys and positive slopes something is left out, though radii of pages nobody needs are NaN.
            let few_keys = turn == 1;
            let slopes_of_either_sign = matches!(probe.case.slopes, SlopeKind::PerSequence(_));
            assert!(few_keys || slopes_of_either_sign || compared.part < 0.5);
            if tolerance < 1e-6 {
                expect(&probe.case, probe.follow_the_oracle());
            }
        }
    }
}

/// The prefill kernels find keys in pages as they do in one piece, for their bounds too.
#[test]
fn pages_change_no_bit_of_a_prefill() {
    for (path, page_size) in [(Path::Prefill, 16), (Path::Prefill, 24), (Path::Hopper, 24)] {
        let case = Case {
            slopes: SlopeKind::All(0.05),
            sequences: vec![lengths(30, 2600, 7), lengths(3, 2300, 100)],
            ..Case::dense(0, 0, 0, (2, 1), 64)
        };
        let probe = Probe::<f16>::new(path, case, page_size);
        for horizon in [certified(1e-3), Horizon::Bitwise] {
            let [dense, paged] = [false, true].map(|paged| probe.prefill(horizon, paged));
            assert!(paged.kernels.iter().any(|kernel| kernel == "radii_f16"));
            same_bits(dense, paged);
        }
    }
}

fn equal_keys(path: Path) {
    let mut probe = Probe::<f16>::along_an_axis(path, 4096, 0.05, 1e-3);
    // Left out by their distance alone.
    let compared = probe.certified();
    assert!(compared.part < 0.13, "{compared:?}");
    // No query: every score is the bias.
    probe.set_queries(0, |_| 0.0);
    let compared = probe.certified();
    assert!(compared.part < 0.13, "{compared:?}");
}

fn a_far_key_of_great_norm(path: Path) {
    const KEYS: usize = 4096;
    // The last of its tile too.
    for (scale, far) in [(1.0, 701), (-1.0, 701), (1.0, 767)] {
        assert!(!sampled(KEYS, far));
        let mut probe = Probe::<f16>::along_an_axis(path, KEYS, 0.05, 1e-3);
        probe.case.scale = Some(scale);
        probe.set_key(far, along(300.0 * scale));
        let compared = probe.certified();
        // Its tile, and no other far one.
        assert!(compared.part < 0.16, "{compared:?}");
        let found = probe.attend(probe.case.horizon).lse[0];
        let expected = 300.0 - 0.05 * (KEYS - 1 - far) as f32;
        assert!((found - expected).abs() < 0.01, "{found}, {expected}");

        // In another direction it weighs little, but its norm cannot tell.
        probe.set_key(far, |c| random(3, 3, [c, 0, 0, 0]) * 300.0);
        probe.certified();
    }
}

/// However long a key is, its score stays below the cap: it is left out when even that is little.
fn softcaps_bound_scores(path: Path) {
    for (cap, weighs) in [(42.0, true), (5.0, false)] {
        let mut probe = Probe::<f16>::along_an_axis(path, 4096, 0.05, 1e-3);
        probe.case.softcap = Some(cap);
        let far = 3395;
        assert!(!sampled(4096, far));
        probe.set_key(far, along(500.0));
        let compared = probe.certified();
        let found = probe.attend(probe.case.horizon).lse[0];
        let score = cap - 0.05 * 700.0;
        assert_eq!((found - score).abs() < 0.05, weighs, "{cap}: {found}");
        // Of its tile a path that knows no scores keeps what the cap allows, and nothing else.
        let most = if weighs { 0.2 } else { 0.14 };
        assert!(compared.part < most, "{cap}: {compared:?}");
    }
}

/// Every key has the score that its norm allows, and every tile as much weight as one alone may be left out with: together
/// they weigh many times what the tolerance allows. A budget of one tail would leave out all of them.
fn norms_that_grow_with_the_distance(path: Path) {
    const KEYS: usize = 4096;
    for (tolerance, slope) in [(1e-2f32, 0.02f32), (1e-2, 0.2), (1e-4, 0.005)] {
        // No tile is to be left out with its share; those that are nearly heavy enough come first.
        let margins = match path {
            Path::Hopper => &[0.05f32][..],
            _ => &[0.05, 0.3, 1.0][..],
        };
        for &margin in margins {
            let mut probe = Probe::<f16>::along_an_axis(path, KEYS, slope, tolerance);
            let tile = path.tile();
            let geometric = (1.0 / -(-slope).exp_m1()).min(tile as f32);
            let limit = -(2.0 * geometric / tolerance).ln() - margin;
            for j in (0..KEYS - tile).filter(|&j| !sampled(KEYS, j)) {
                let distance = (KEYS - 1 - (j / tile * tile + tile - 1)) as f32;
                probe.set_key(j, along((limit + slope * distance).max(0.0)));
            }
            let compared = probe.certified();
            println!("{tolerance:e}, {slope}, {margin}: {compared:?}");
        }
        // All as heavy as the nearest may be, beside one key, so that their weight shows.
        let budget = whole_budget(tolerance, slope, path.tile(), 1.0, 8);
        let score = |_, distance, _| budget(1, distance);
        let compared = beside_one_key(path, KEYS, (tolerance, slope), score).certified();
        println!("{tolerance:e}, {slope}, shares of the nearest: {compared:?}");
    }
}

/// Beside the last key, on the last row of which all others weigh nothing, far ones have scores of `score`, by their
/// tile's place and its distance, and how much farther they are.
fn beside_one_key(
    path: Path,
    keys: usize,
    (tolerance, slope): (f32, f32),
    score: impl Fn(usize, f32, f32) -> f32,
) -> Probe<f16> {
    const NOTHING: f32 = -60.0;
    let mut probe = Probe::along_an_axis(path, keys, slope, tolerance);
    let tile = path.tile();
    assert!(keys.is_multiple_of(tile) && !sampled(keys, keys - 1));
    // The centre is where a bound is the score itself.
    probe.centre = Some(NOTHING);
    for j in 0..keys - 1 {
        let (t, last) = ((keys - 1 - j) / tile, j / tile * tile + tile - 1);
        let value = match sampled(keys, j) || t == 0 {
            true => NOTHING,
            false => score(t, (keys - 1 - last) as f32, (last - j) as f32),
        };
        probe.set_key(j, along(value));
    }
    probe
}

fn the_budget_is_spent_and_no_more(path: Path) {
    let (tolerance, slope) = (1e-2, 0.5);
    let compare = |slope, times: f32| {
        let budget = whole_budget(times * tolerance, slope, path.tile(), 1.0, 8);
        let score = |t, distance, _| budget(t, distance);
        beside_one_key(path, 2048, (tolerance, slope), score).certified()
    };
    let compared = compare(slope, 1.0);
    println!("{compared:?}");
    let least = match path {
        // Scores that have been computed do not say how many keys have them.
        Path::CpuFew => None,
        // When the second tile is chosen, no score is known.
        Path::Prefill | Path::Hopper => Some(0.4),
        Path::Cpu | Path::CpuRadii | Path::Decode => Some(0.6),
    };
    if let Some(least) = least {
        assert!(
            compared.part < 0.15 && compared.spent > least,
            "{compared:?}"
        );
    }
    // Scores that may be left out with twice the tolerance; with ten times, where a tail sums up to twenty of its first key.
    compare(slope, 2.0);
    compare(0.05, 10.0);
}

/// Norms that fall and then rise again, farther than what is decided at once: two tails, of half of the tolerance each,
/// beside what the nearest tiles have of it.
fn norms_that_rise_again(path: Path) {
    const KEYS: usize = 32768;
    let (tolerance, slope) = (1e-2, 0.05);
    let rises = match path {
        Path::Hopper => &[16384][..],
        _ => &[2560, 16384, 19200][..],
    };
    for &rise in rises {
        let rise = rise / path.tile();
        let near = whole_budget(tolerance, slope, path.tile(), 1.0, 8);
        let far = whole_budget(tolerance, slope, path.tile(), 1.0, rise);
        let score = |t, distance, _| match t < rise {
            true => near(t, distance),
            false => far(t, distance),
        };
        let compared = beside_one_key(path, KEYS, (tolerance, slope), score).certified();
        println!("{rise}: {compared:?}");
    }
}

/// All keys of a tile weigh the same, whatever their distances: as much as one alone might, if the others followed the bias;
/// and as much as all may.
fn norms_that_rise_as_the_bias_falls(path: Path) {
    const KEYS: usize = 2176;
    let (tolerance, slope, tile) = (1e-2f32, 0.5f32, path.tile());
    let geometric = 1.0 / -(-slope).exp_m1();
    for keys in [geometric, tile as f32] {
        let mut probe = Probe::<f16>::along_an_axis(path, KEYS, slope, tolerance);
        for j in (0..KEYS - 1).filter(|&j| !sampled(KEYS, j)) {
            let (t, distance) = ((KEYS - 1 - j) / tile, (KEYS - 1 - j) as f32);
            let weight = tolerance / (2.0 * keys * (t * (t + 1)) as f32);
            // Numbers that f16 has, with the bias; where it has not, keys weigh nothing.
            let score = (4.0 * (weight.ln() - 0.01)).floor() / 4.0;
            let value = match t > 0 && distance < 400.0 {
                true => score + slope * distance,
                false => -60.0,
            };
            probe.set_key(j, along(value));
        }
        let compared = probe.certified();
        println!("{keys}: {compared:?}");
        if path == Path::CpuFew && keys > geometric {
            assert!(compared.part < 0.1 && compared.spent > 0.2, "{compared:?}");
        }
    }
}

/// The last row of a tile, whose neighbours in the block cannot need what is farther: for them one axis counts in which
/// the nearest tile has great keys, and no other has any.
fn both_sides_share_the_budget(path: Path) {
    let (tolerance, slope) = (1e-2, 0.5);
    // The row is the last of a tile and of the first block.
    let (heads, tile, row) = match path {
        // A row sees no more keys after it than there are tokens.
        Path::CpuFew => return,
        Path::Cpu | Path::CpuRadii => (8, 128, 23),
        Path::Prefill => (1, 128, 127),
        Path::Hopper => (1, 128, 191),
        // As many heads as a block has rows.
        Path::Decode => (128, 32, 0),
    };
    let (keys, tokens) = (17 * 128 + 3 * tile, row + 1 + 3 * tile);
    let at = keys - tokens + row;
    assert_eq!(at % tile, tile - 1);
    let case = Case {
        slopes: SlopeKind::All(slope),
        scale: Some(1.0),
        mask: Mask::Bidirectional,
        horizon: certified(tolerance),
        ..Case::dense(1, tokens, keys, (heads, 1), 16)
    };
    let mut probe = Probe::<f16>::new(path, case, 16);
    probe.centre = Some(-60.0);
    for i in 0..tokens {
        match i == row {
            true => probe.set_queries(i, along(1.0)),
            false => probe.set_queries(i, |c| if c == 1 { 0.1 } else { 0.0 }),
        }
    }
    // As much as each side may lose; and as much as one alone might.
    for sides in [2.0, 1.0] {
        let left = whole_budget(tolerance, slope, tile, sides, 8);
        let right = whole_budget(tolerance, slope, tile, sides, 2);
        for j in 0..keys {
            let value = match (j / tile).cmp(&(at / tile)) {
                _ if sampled(keys, j) => -60.0,
                _ if j == at => 0.0,
                Ordering::Equal => -60.0,
                Ordering::Less => left(
                    at / tile - j / tile,
                    (at - (j / tile * tile + tile - 1)) as f32,
                ),
                Ordering::Greater => right(j / tile - at / tile, (j / tile * tile - at) as f32),
            };
            let great = j / tile == at / tile && !sampled(keys, j);
            probe.set_key(j, |c| match c {
                0 => value,
                1 if great => 800.0,
                _ => 0.0,
            });
        }
        let compared = probe.certified();
        println!("{compared:?}");
        assert!(sides == 1.0 || compared.spent > 0.5, "{compared:?}");
    }
}

/// An offset of all keys counts alike for those that are kept and those that are not: bounds are relative to the mean.
fn an_offset_of_every_channel(path: Path) {
    let part = |offset: f32| {
        let case = Case {
            slopes: SlopeKind::All(0.05),
            horizon: certified(1e-3),
            ..Case::dense(1, tokens(path, 100), 4096, (path.group(), 1), 64)
        };
        let mut probe = Probe::<f16>::new(path, case, 16);
        for j in 0..4096 {
            let key: Vec<f32> = normal(6, 6, [j, 0, 0, 0]).take(64).collect();
            probe.set_key(j, |c| key[c] + offset);
        }
        probe.certified().part
    };
    let parts = [0.0, 5.0, -20.0].map(part);
    println!("{parts:?}");
    assert!(parts[0] < 0.3 && parts.iter().all(|part| part - parts[0] < 0.05));
}

/// With the centre of another head scores would seem small, and with its radii, or another sequence's, a far key.
fn centres_and_radii_of_their_own(path: Path) {
    let case = Case {
        slopes: SlopeKind::All(0.01),
        scale: Some(1.0),
        horizon: certified(1e-3),
        ..Case::dense(2, 1, 4096, (2 * path.group(), 2), 64)
    };
    let mut probe = Probe::<f16>::new(path, case, 16);
    probe.set_queries(0, along(1.0));
    // The head of large scores, and the sequence that has a far key of still more there, if any.
    let cases = [(0, None), (1, Some(1)), (1, None), (0, Some(0))];
    let count = if path == Path::Hopper { 2 } else { 4 };
    for (large, far) in cases.into_iter().take(count) {
        for (sequence, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            probe.set_keys_of(sequence, head, |j, c| match (c, head == large, j) {
                (0, true, 701) if far == Some(sequence) => 300.0,
                (0, true, _) => 10.0,
                (0, false, _) => -10.0,
                _ => 0.0,
            });
        }
        let compared = probe.certified();
        assert!(compared.part < 0.5, "{compared:?}");
    }
}

fn a_self_score_far_below_all_others(path: Path) {
    let mut probe = Probe::<f16>::along_an_axis(path, 4096, 0.05, 1e-3);
    for j in 4096 - path.tile()..4096 {
        probe.set_key(j, along(-200.0));
    }
    let compared = probe.certified();
    println!("{compared:?}");
    if path == Path::Decode {
        // Only the nearest tile says what is kept.
        assert!(compared.part > 0.5, "{compared:?}");
    }
}

/// Rows of one block whose nearest keys lie in three tiles: the last rows need nothing of the first tile, whose own rows do.
fn the_nearest_keys_of_each_row(path: Path) {
    const KEYS: usize = 2048 + 288;
    let case = Case {
        slopes: SlopeKind::All(1.0),
        scale: Some(1.0),
        mask: Mask::Bidirectional,
        ..Case::dense(1, tokens(path, 128), KEYS, (path.group(), 1), 128)
    };
    let mut probe = Probe::<f16>::new(path, case, 64);
    for i in 0..probe.case.sequences[0].q {
        probe.set_queries(i, along(1.0));
    }
    // 64 to 128 steps away, as much as a key beside a row or less.
    for j in 0..KEYS {
        probe.set_key(j, along(if j < KEYS - 32 { 0.0 } else { 98.0 }));
    }
    let compared = probe.certified();
    assert!(compared.part < 0.5, "{compared:?}");
}

/// NaN and infinities in keys reach what they would, however far.
fn what_is_not_finite(path: Path) {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65504.0] {
        let places = match path {
            Path::Hopper => &[1200][..],
            _ => &[0, 5, 1200, 2290][..],
        };
        for &j in places {
            let mut probe = Probe::<f16>::along_an_axis(path, 2304, 0.05, 1e-3);
            probe.set_key(j, along(value));
            probe.certified();
            let out = probe.attend(probe.case.horizon).out;
            let reaches = value.is_nan() || value == f32::INFINITY;
            assert_eq!(out.iter().any(|x| x.is_nan()), reaches, "{value} at {j}");
        }
    }
    // Nor is anything left out for a query that is not finite.
    for value in [f32::NAN, f32::INFINITY] {
        let mut probe = Probe::<f16>::along_an_axis(path, 4096, 0.05, 1e-3);
        probe.set_queries(0, |c| if c == 1 { value } else { 1.0 });
        assert_eq!(probe.certified().part, 1.0);
    }
}

fn values_beyond_the_horizon(path: Path) {
    let mut probe = Probe::<f16>::along_an_axis(path, 4096, 0.05, 1e-3);
    // As large as they can be, they change what the certificate says.
    for j in 0..2000 {
        probe.set_value(j, |_| 60000.0);
    }
    probe.certified();
    // What is not read does not spread.
    probe.set_value(100, |_| f32::NAN);
    let out = probe.attend(probe.case.horizon).out;
    assert!(out.iter().all(|x| x.is_finite()));
    // What is read does.
    probe.set_value(100, |_| 0.0);
    probe.set_value(4090, |c| if c == 0 { f32::INFINITY } else { 0.0 });
    let out = probe.attend(probe.case.horizon).out;
    let of_first_head = &out[..64];
    assert_eq!(of_first_head[0], f16::INFINITY);
    assert!(of_first_head[1..].iter().all(|x| x.is_finite()));
}

fn heads_without_a_slope(path: Path) {
    for slope in [0.0, -0.01] {
        let case = Case {
            slopes: SlopeKind::All(slope),
            horizon: certified(1e-3),
            ..Case::dense(1, tokens(path, 40), 2500, (2, 1), 64)
        };
        let compared = Probe::<f16>::new(path, case, 16).certified();
        assert_eq!((compared.part, compared.differ), (1.0, 0));
    }
}

fn positions_at_a_million(path: Path) {
    let case = Case {
        slopes: SlopeKind::All(0.02),
        window: (Some(4000), Some(0)),
        ..Case::dense(1, tokens(path, 9), 1_000_003, (1, 1), 16)
    };
    let mut probe = Probe::<bf16>::new(path, case, 64);
    let compared = probe.certified();
    println!("{compared:?}");
    assert!(compared.part < 0.5, "{compared:?}");
    expect(&probe.case, probe.follow_the_oracle());
}

fn bitwise_changes_no_bit(path: Path) {
    let case = Case {
        slopes: SlopeKind::All(0.3),
        horizon: Horizon::Bitwise,
        ..Case::dense(1, tokens(path, 140), 4100, (path.group(), 1), 64)
    };
    let compared = Probe::<f16>::new(path, case.clone(), 16).certified();
    println!("{compared:?}");
    // A list of live tiles is made before anything is computed: it has no weights to compare with.
    assert!(path == Path::Decode || compared.part < 0.45, "{compared:?}");
    // Maxima that move late, in tiles far from the nearest.
    let mut probe = Probe::<bf16>::new(path, case, 16);
    for j in (0..4100).step_by(177) {
        probe.set_key(j, |c| random(4, 4, [j, c, 0, 0]) * 6.0);
    }
    probe.certified();
    // All that there is weighs 2^-111 and less. Where few rows are split into parts of 512 keys, it is of the last part.
    let mut probe = Probe::<bf16>::along_an_axis(path, 2560, 0.3, 1e-3);
    probe.case.horizon = Horizon::Bitwise;
    for j in 2560 - 256..2560 {
        probe.set_value(j, |_| 0.0);
    }
    probe.certified();
    let out = probe.attend(Horizon::Off).out;
    assert!(out.iter().any(|&x| x != bf16::ZERO));

    // Weights of 2^-126 to the nearest key, and not to those of their own part of the keys.
    let mut probe = Probe::<bf16>::along_an_axis(path, 2560, 0.137, 1e-3);
    probe.case.horizon = Horizon::Bitwise;
    for j in 2560 - 640..2560 {
        probe.set_value(j, |_| 0.0);
    }
    probe.certified();
    let out = probe.attend(Horizon::Off).out;
    let in_parts = matches!(path, Path::CpuFew | Path::Cpu | Path::CpuRadii);
    assert!(!in_parts || out.iter().any(|&x| x != bf16::ZERO));

    // All that is near underflows to -0, which a weight of 0 would make +0.
    let case = Case {
        slopes: SlopeKind::All(0.3),
        horizon: Horizon::Bitwise,
        ..Case::dense(1, tokens(path, 140), 2560, (path.group(), 1), 64)
    };
    let mut probe = Probe::<bf16>::new(path, case, 16);
    let smallest = -f32::from_bits(1 << 16);
    for j in 0..2560 {
        probe.set_key(j, |_| 0.0);
        let value = match 2559 - j {
            0..128 => -0.0,
            128..384 => smallest,
            _ => 1.0,
        };
        probe.set_value(j, |_| value);
    }
    probe.certified();
}

/// Searches for scores of which more is left out than the tolerance allows: tiles as heavy as they may be, some heavier, in
/// every order; what spends most is varied further.
fn no_search_exceeds_the_bound(path: Path) {
    const KEYS: usize = 2176;
    let rounds = if path == Path::Hopper { 15 } else { 60 };
    let tiles = KEYS / path.tile();
    let chance = |round: usize, i: usize| random(11, 5, [round, i, path.tile(), 0]);
    let mut best = (0.0, vec![0.0; tiles], 0.0f32);
    for round in 0..rounds {
        let tolerance = [1e-2f32, 0.3, 1e-3][round % 3];
        let slope = match round < rounds / 2 {
            true => (chance(round, 1000) - 3.5).exp(),
            false => best.2 * (0.1 * chance(round, 1000)).exp(),
        };
        // How much heavier a tile is than its share.
        let margins: Vec<f32> = (0..tiles)
            .map(|t| match round < rounds / 2 {
                true => chance(round, t) - 0.5,
                false => best.1[t] + 0.3 * chance(round, t),
            })
            .collect();
        let budget = whole_budget(tolerance, slope, path.tile(), 1.0, tiles);
        // How much of the bias within a tile the scores make up for: nothing, in half of the rounds.
        let rises: Vec<f32> = (0..tiles)
            .map(|t| match round % 2 {
                0 => 0.0,
                _ => chance(round, 2000 + t).max(0.0),
            })
            .collect();
        let score = |t: usize, distance, farther: f32| {
            budget(t, distance) + margins[t] + rises[t] * slope * farther
        };
        let compared = beside_one_key(path, KEYS, (tolerance, slope), score).certified();
        if compared.spent > best.0 {
            best = (compared.spent, margins, slope);
        }
    }
    println!("at most {:.3} of the bound", best.0);
    assert!(best.0 > 0.1 && best.0 < 1.0, "{}", best.0);
}
