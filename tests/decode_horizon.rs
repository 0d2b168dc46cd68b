//! The certified horizon of decoding: what is left out of a paged cache, and how little it changes.

mod support;

use flash_alibi::plan::{Append, AppendAddresses, Call, Device, Plan};
use flash_alibi::{Attention, Horizon, Layout, Mask};
use half::{bf16, f16};
use ptx_emulator::{Class, DevicePtr, Report};
use support::emulator::{Attended, Emulator, OnDevice, Problem};
use support::paged::Paged;
use support::{Case, Lengths, SlopeKind, UNTOUCHED, expect, random};

/// A case in pages, with keys and queries that a test may change, and the layer that attends to them.
struct Cache<T> {
    case: Case,
    attention: Attention,
    paged: Paged<T>,
    splits: usize,
}

/// What a call read of K and V, in parts of what they are.
#[derive(Debug)]
struct Read {
    dense: u64,
    kept: u64,
}

impl Read {
    fn part(&self) -> f64 {
        self.kept as f64 / self.dense as f64
    }
}

impl<T: OnDevice> Cache<T> {
    fn new(case: Case, page_size: usize, horizon: Horizon) -> Self {
        let of = case.attention();
        let mut builder = Attention::new(of.heads_q(), of.heads_k(), of.head_dim())
            .scale(of.scale())
            .slopes(of.slopes().clone())
            .mask(of.mask())
            .window(case.window.0, case.window.1)
            .horizon(horizon);
        if let Some(softcap) = of.softcap() {
            builder = builder.softcap(softcap);
        }
        Self {
            attention: builder.build().unwrap(),
            paged: case.lay_out_paged::<T>(page_size),
            case,
            splits: 3,
        }
    }

    fn tolerance(&self) -> f64 {
        match self.attention.horizon() {
            Horizon::Certified { tolerance } => tolerance.into(),
            _ => 0.0,
        }
    }

    /// Key `j` of a head of sequence `b`.
    fn set_key(&mut self, b: usize, j: usize, head: usize, value: impl Fn(usize) -> f32) {
        let at = self.paged.at(b, j, head);
        for c in 0..self.case.head_dim {
            self.paged.k.data[at + c] = T::from_f32(value(c));
        }
    }

    fn set_query(&mut self, b: usize, i: usize, head: usize, value: impl Fn(usize) -> f32) {
        let [b, row] = self.paged.dense.row_q(b, i);
        let at = self.paged.dense.q.at([b, row, head]);
        for c in 0..self.case.head_dim {
            self.paged.dense.q.data[at + c] = T::from_f32(value(c));
        }
    }

    fn attend(&self, with_radii: bool) -> Attended<T> {
        let out = self.paged.dense.out.like(T::from_f32(UNTOUCHED));
        let lse = vec![UNTOUCHED; self.paged.dense.lse_len()];
        let problem = self.paged.dense.problem(&out, Some(&lse));
        let problem = self.paged.of_pages(&problem);
        let problem = Problem {
            attention: &self.attention,
            radii: problem.radii.filter(|_| with_radii),
            ..problem
        };
        let splits = self.splits;
        let planner = move |attention: &Attention, call: &Call, device: &Device| {
            Plan::decode_with_splits(attention, call, device, splits)
        };
        problem
            .attend(&planner, 1)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// The largest value that is finite.
    fn largest_value(&self) -> f64 {
        let values = self
            .paged
            .v
            .data
            .iter()
            .map(|x| f64::from(x.to_f32().abs()));
        values.filter(|x| x.is_finite()).fold(0.0, f64::max)
    }

    /// Compares the call with that which reads everything: they differ by what the horizon certifies, and by rounding.
    fn certify(&self) -> Result<Read, String> {
        let (dense, kept) = (self.attend(false), self.attend(true));
        let (tolerance, largest) = (self.tolerance(), self.largest_value());
        let ulp = f64::from(T::from_f32(1.0 + 0.75 * epsilon::<T>()).to_f32()) - 1.0;
        for (i, (dense, kept)) in dense.out.iter().zip(&kept.out).enumerate() {
            let (dense, kept) = (f64::from(dense.to_f32()), f64::from(kept.to_f32()));
            let limit = 2.0 * tolerance * largest + ulp * dense.abs().max(kept.abs()) + 2e-6;
            if !(dense == kept || dense.is_nan() && kept.is_nan() || (dense - kept).abs() <= limit)
            {
                return Err(format!("element {i} of out: {kept}, dense {dense}"));
            }
        }
        for (row, (dense, kept)) in dense.lse.iter().zip(&kept.lse).enumerate() {
            let missing = f64::from(dense - kept);
            let rounding = 1e-6 * f64::from(dense.abs()).max(1.0);
            let same = dense == kept || dense.is_nan() && kept.is_nan();
            if !(same || missing >= -rounding && missing <= tolerance + rounding) {
                return Err(format!("lse of row {row}: {kept}, dense {dense}"));
            }
        }
        let read = |attended: &Attended<T>, launch: usize| copied(&attended.reports[launch]);
        Ok(Read {
            dense: read(&dense, 0),
            kept: match kept.reports[0].kernel.starts_with("live") {
                true => read(&kept, 1),
                false => read(&kept, 0),
            },
        })
    }

    #[track_caller]
    fn certified(&self) -> Read {
        self.certify()
            .unwrap_or_else(|why| panic!("{why}\n{:?}", self.case))
    }

    /// Compares the call with the oracle, to the contract's tolerance.
    fn follow_the_oracle(&self) -> Result<(), String> {
        let attended = self.attend(true);
        self.paged.dense.check(&self.paged.dense.rows(&attended)?)
    }
}

fn epsilon<T: OnDevice>() -> f32 {
    let bits = (1..).find(|&bits| T::from_f32(1.0 + 0.5f32.powi(bits)).to_f32() == 1.0);
    0.5f32.powi(bits.unwrap() - 1)
}

/// The bytes of K, V and Q that were copied to shared memory.
fn copied(report: &Report) -> u64 {
    let copies = (report.lines.iter()).filter(|line| line.class == Class::AsyncCopy);
    copies.map(|line| line.counters.global_bytes).sum()
}

fn certified(tolerance: f32) -> Horizon {
    Horizon::Certified { tolerance }
}

/// What a model has.
fn models() -> Vec<(&'static str, Case, usize)> {
    let case = |k, heads, head_dim| Case::dense(1, 1, k, heads, head_dim);
    vec![
        ("4K, 8 heads, d64", case(4096, (8, 8), 64), 16),
        ("8K, 8 heads, d64", case(8192, (8, 8), 64), 16),
        ("4K, GQA 8 over 2, d128", case(4096, (8, 2), 128), 32),
        ("8K, GQA 8 over 2, d128", case(8192, (8, 2), 128), 256),
        ("4K, MQA 71, d64", case(4100, (71, 1), 64), 24),
    ]
}

#[test]
fn results_follow_the_oracle_and_less_is_read() {
    fn check<T: OnDevice>(name: &str, case: &Case, page_size: usize) {
        let mut cache = Cache::<T>::new(case.clone(), page_size, Horizon::default());
        cache.paged.keep_radii(true);
        let read = cache.certified();
        expect(case, cache.follow_the_oracle());
        println!(
            "{name}: {:.1}% of {} bytes",
            100.0 * read.part(),
            read.dense
        );
        // Heads that share keys need the union: with 71, the gentlest slope sees all of them.
        let most = match case.group {
            1 => 0.4,
            71 => 1.0,
            _ => 0.6,
        };
        assert!(read.part() <= most, "{name}: {read:?}");
    }
    for (name, case, page_size) in models() {
        check::<f16>(name, &case, page_size);
        check::<bf16>(name, &case, page_size);
    }
}

/// Every mask, alone and together; loose tolerances, so that what is left out shows if it weighs too much.
#[test]
fn masks_lengths_and_tokens() {
    let lengths = |q, k, leftpad| Lengths {
        q,
        k,
        leftpad,
        ..Lengths::default()
    };
    let of = |sequences: Vec<Lengths>| Case {
        sequences,
        slopes: SlopeKind::All(0.05),
        ..Case::dense(0, 0, 0, (4, 2), 64)
    };
    let one = || vec![lengths(1, 2500, 0)];
    let cases = [
        of(vec![lengths(1, 3000, 1100)]),
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
    ];
    for (turn, case) in cases.into_iter().enumerate() {
        for tolerance in [0.5f32.powi(24), 1e-3] {
            let page_size = [8, 16, 24, 64, 256][turn % 5];
            let mut cache = Cache::<bf16>::new(case.clone(), page_size, certified(tolerance));
            cache.paged.keep_radii(turn % 2 == 0);
            let read = cache.certified();
            println!("case {turn}, {tolerance:e}: {:.1}%", 100.0 * read.part());
            // Without these, there are keys to leave out, though radii of pages that nobody needs are NaN.
            let few_keys = turn == 1;
            let slopes_of_either_sign = matches!(cache.case.slopes, SlopeKind::PerSequence(_));
            assert!(few_keys || slopes_of_either_sign || read.part() < 0.45);
            if tolerance < 1e-6 {
                expect(&cache.case, cache.follow_the_oracle());
            }
        }
    }
}

/// One head of slope `slope` over `k` keys that are all zero, with a query along the first axis.
fn along_an_axis(k: usize, slope: f32, tolerance: f32) -> Cache<f16> {
    let case = Case {
        slopes: SlopeKind::All(slope),
        scale: Some(1.0),
        ..Case::dense(1, 1, k, (1, 1), 64)
    };
    let mut cache = Cache::new(case, 16, certified(tolerance));
    cache.set_query(0, 0, 0, |c| if c == 0 { 1.0 } else { 0.0 });
    for j in 0..k {
        cache.set_key(0, j, 0, |_| 0.0);
    }
    cache
}

#[test]
fn equal_keys_are_left_out_by_their_distance() {
    let mut cache = along_an_axis(4096, 0.05, 1e-3);
    cache.paged.keep_radii(false);
    let read = cache.certified();
    assert!(read.part() < 0.12, "{read:?}");
    // No query: every score is the bias.
    cache.set_query(0, 0, 0, |_| 0.0);
    let read = cache.certified();
    assert!(read.part() < 0.12, "{read:?}");
}

#[test]
fn a_far_key_of_great_norm_is_kept() {
    let mut cache = along_an_axis(4096, 0.05, 1e-3);
    cache.set_key(0, 700, 0, |c| if c == 0 { 300.0 } else { 0.0 });
    cache.paged.keep_radii(false);
    let read = cache.certified();
    // Its tile, and no other.
    assert!(read.part() < 0.15, "{read:?}");
    let found = cache.attend(true).lse[0];
    assert!((found - (300.0 - 0.05 * 3395.0)).abs() < 0.01, "{found}");

    // In another direction it says nothing, but its norm cannot tell.
    cache.set_key(0, 700, 0, |c| random(3, 3, [c, 0, 0, 0]) * 300.0);
    cache.paged.keep_radii(false);
    cache.certified();
}

/// Every key has the score that its norm allows, and every tile as much weight as one alone may be left out with: together
/// they weigh many times what the tolerance allows.
#[test]
fn norms_that_grow_with_the_distance() {
    const KEYS: usize = 4096;
    for (tolerance, slope) in [(1e-2f32, 0.02f32), (1e-2, 0.2), (1e-4, 0.005)] {
        // No tile is to be left out with its share; those that are nearly heavy enough come first.
        for margin in [0.05f32, 0.3, 1.0] {
            let mut cache = along_an_axis(KEYS, slope, tolerance);
            let geometric = (1.0 / -(-slope).exp_m1()).min(64.0);
            let limit = -(2.0 * geometric / tolerance).ln() - margin;
            for j in 0..KEYS - 64 {
                let distance = (KEYS - 1 - (j / 64 * 64 + 63)) as f32;
                let norm = (limit + slope * distance).max(0.0);
                cache.set_key(0, j, 0, |c| if c == 0 { norm } else { 0.0 });
            }
            cache.paged.keep_radii(false);
            let read = cache.certified();
            println!("{tolerance:e}, {slope}: {:.1}%", 100.0 * read.part());
        }
    }
}

/// Scores with which a tile may just be left out: those of the nearest `shared` tiles each with their share of half of the
/// tolerance, and what is farther together with the other half.
fn whole_budget(
    tolerance: f32,
    slope: f32,
    keys: usize,
    sides: f32,
    shared: usize,
) -> impl Fn(usize, f32) -> f32 {
    let geometric = 1.0 / -(-slope).exp_m1();
    let limit = move |geometric: f32| -(2.0 * sides * geometric / tolerance).ln() - 0.02;
    let tile = geometric.min(keys as f32);
    move |t, distance| {
        let t_f32 = t as f32;
        let norm = match t < shared {
            true => limit(tile) - (t_f32 * (t_f32 + 1.0)).ln() + slope * distance,
            false => limit(geometric) + slope * (distance - ((t - shared) * keys) as f32),
        };
        // Rounded down, and what rounding up makes of it fits too.
        let norm = norm - (norm.abs() + 60.0) * 0.5f32.powi(11);
        let rounded = f16::from_f32(norm);
        match rounded.to_f32() > norm {
            true if norm < 0.0 => f16::from_bits(rounded.to_bits() + 1).to_f32(),
            true => f16::from_bits(rounded.to_bits() - 1).to_f32(),
            false => rounded.to_f32(),
        }
    }
}

#[test]
fn the_budget_is_spent_and_no_more() {
    let (tolerance, slope) = (1e-2, 0.5);
    let mut cache = along_an_axis(2048, slope, tolerance);
    // Only the nearest key weighs anything.
    for j in 2048 - 64..2047 {
        cache.set_key(0, j, 0, |c| if c == 0 { -60.0 } else { 0.0 });
    }
    let norm = whole_budget(tolerance, slope, 64, 1.0, 8);
    for j in 0..2048 - 64 {
        let t = (2047 - j) / 64;
        let norm = norm(t, (2047 - (j / 64 * 64 + 63)) as f32);
        cache.set_key(0, j, 0, |c| if c == 0 { norm } else { 0.0 });
    }
    cache.paged.keep_radii(false);
    let read = cache.certified();
    assert!(read.part() < 0.05, "{read:?}");
    let missing = cache.attend(false).lse[0] - cache.attend(true).lse[0];
    assert!(missing > 0.7 * tolerance, "{missing}");
}

/// Norms that fall and then rise again, farther than the threads of a block look at once: two tails, of half of the
/// tolerance each, beside what the nearest tiles have of it.
#[test]
fn norms_that_rise_again() {
    const KEYS: usize = 32768;
    let (tolerance, slope) = (1e-2, 0.05);
    for rise in [40, 256, 300] {
        let mut cache = along_an_axis(KEYS, slope, tolerance);
        for j in KEYS - 64..KEYS - 1 {
            cache.set_key(0, j, 0, |c| if c == 0 { -60.0 } else { 0.0 });
        }
        let near = whole_budget(tolerance, slope, 64, 1.0, 8);
        let far = whole_budget(tolerance, slope, 64, 1.0, rise);
        for j in 0..KEYS - 64 {
            let (t, distance) = ((KEYS - 1 - j) / 64, (KEYS - 1 - (j / 64 * 64 + 63)) as f32);
            let norm = if t < rise {
                near(t, distance)
            } else {
                far(t, distance)
            };
            cache.set_key(0, j, 0, |c| if c == 0 { norm } else { 0.0 });
        }
        cache.paged.keep_radii(false);
        cache.certified();
    }
}

/// As many heads as a block has rows, so that each block has one token; the first has keys on both sides.
#[test]
fn both_sides_share_the_budget() {
    let (tolerance, slope, heads, tokens, keys) = (1e-2, 0.5, 128, 40, 32 * 66 + 7);
    let case = Case {
        slopes: SlopeKind::All(slope),
        scale: Some(1.0),
        mask: Mask::Bidirectional,
        ..Case::dense(1, tokens, keys, (heads, 1), 16)
    };
    let mut cache = Cache::<f16>::new(case, 16, certified(tolerance));
    let unit = |value: f32| move |c: usize| if c == 0 { value } else { 0.0 };
    for i in 0..tokens {
        for head in 0..heads {
            cache.set_query(0, i, head, unit(if i == 0 { 1.0 } else { 0.0 }));
        }
    }
    // The last key of a tile.
    let at = keys - tokens;
    assert_eq!(at % 32, 31);
    let norm = whole_budget(tolerance, slope, 32, 2.0, 8);
    let right = whole_budget(tolerance, slope, 32, 2.0, 2);
    for j in 0..keys {
        let value = match (j / 32).cmp(&(at / 32)) {
            _ if j == at => 0.0,
            std::cmp::Ordering::Equal => -60.0,
            std::cmp::Ordering::Less => norm(at / 32 - j / 32, (at - (j / 32 * 32 + 31)) as f32),
            std::cmp::Ordering::Greater => right(j / 32 - at / 32, (j / 32 * 32 - at) as f32),
        };
        cache.set_key(0, j, 0, unit(value));
    }
    // So that bounds can be below zero.
    cache
        .paged
        .keep_radii_around((0..16).map(unit(-60.0)).collect());
    cache.certified();
    let missing = cache.attend(false).lse[0] - cache.attend(true).lse[0];
    assert!(missing > 0.6 * tolerance, "{missing}");
}

/// An offset of all keys counts for those that are kept and those that are not: bounds are as tight around the mean.
#[test]
fn an_offset_of_all_keys() {
    for offset in [-30.0, 30.0] {
        let mut cache = along_an_axis(4096, 0.05, 1e-3);
        for j in 0..4096 {
            let noise = random(6, 6, [j, 0, 0, 0]) / 4.0;
            cache.set_key(0, j, 0, |c| if c == 0 { offset + noise } else { 0.0 });
        }
        cache.paged.keep_radii(true);
        let read = cache.certified();
        assert!(read.part() < 0.12, "{offset}: {read:?}");
        // Around zero it is sound too.
        cache.paged.keep_radii(false);
        cache.certified();
    }
}

#[test]
fn a_self_score_far_below_all_others() {
    let mut cache = along_an_axis(4096, 0.05, 1e-3);
    for j in 4096 - 64..4096 {
        cache.set_key(0, j, 0, |c| if c == 0 { -200.0 } else { 0.0 });
    }
    cache.paged.keep_radii(false);
    let read = cache.certified();
    assert!(read.part() > 0.5, "{read:?}");
}

/// NaN and infinities in keys reach what they would, however far.
#[test]
fn keys_that_are_not_finite_are_kept() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65504.0] {
        for j in [5, 2000, 4090] {
            let mut cache = along_an_axis(4096, 0.05, 1e-3);
            cache.set_key(0, j, 0, |c| if c == 0 { value } else { 0.0 });
            cache.paged.keep_radii(false);
            cache.certified();
            let out = cache.attend(true).out;
            let reaches = value.is_nan() || value == f32::INFINITY;
            assert_eq!(out.iter().any(|x| x.is_nan()), reaches, "{value} at {j}");
        }
    }
    // Nor is anything left out for a query that is not finite.
    for value in [f32::NAN, f32::INFINITY] {
        let mut cache = along_an_axis(4096, 0.05, 1e-3);
        cache.set_query(0, 0, 0, |c| if c == 1 { value } else { 1.0 });
        cache.paged.keep_radii(false);
        assert_eq!(cache.certified().part(), 1.0);
    }
}

#[test]
fn a_value_far_beyond_the_horizon_is_not_read() {
    let mut cache = along_an_axis(4096, 0.05, 1e-3);
    cache.paged.keep_radii(false);
    let at = cache.paged.at(0, 100, 0);
    cache.paged.v.data[at] = f16::NAN;
    assert!(cache.attend(true).out.iter().all(|x| x.is_finite()));
    // One within is, by rows that see it, and an infinity is computed again from the keys that are kept.
    let at = cache.paged.at(0, 4090, 0);
    cache.paged.v.data[at] = f16::INFINITY;
    let out = cache.attend(true).out;
    assert_eq!(out[0], f16::INFINITY);
    assert!(out[1..].iter().all(|x| x.is_finite()));
}

#[test]
fn heads_without_a_slope_keep_everything() {
    for slope in [0.0, -0.01] {
        let case = Case {
            slopes: SlopeKind::All(slope),
            ..Case::dense(1, 1, 2500, (2, 1), 64)
        };
        let mut cache = Cache::<f16>::new(case, 16, certified(1e-3));
        cache.paged.keep_radii(true);
        assert_eq!(cache.certified().part(), 1.0);
    }
}

/// With nothing left out, the kernel that reads a list has the result of the other, bit by bit.
#[test]
fn a_list_of_all_tiles_changes_nothing() {
    let case = Case {
        slopes: SlopeKind::Zero,
        ..Case::dense(2, 2, 2500, (4, 2), 64)
    };
    let mut cache = Cache::<bf16>::new(case, 16, certified(1e-3));
    cache.paged.keep_radii(true);
    let (dense, kept) = (cache.attend(false), cache.attend(true));
    assert!(kept.reports[0].kernel.starts_with("live"));
    assert_eq!((dense.out, dense.lse), (kept.out, kept.lse));
}

#[test]
fn what_launches_a_list() {
    let kernels = |case: &Case, horizon| {
        let mut cache = Cache::<f16>::new(case.clone(), 64, horizon);
        cache.paged.keep_radii(false);
        let reports = cache.attend(true).reports;
        reports
            .into_iter()
            .map(|report| report.kernel)
            .collect::<Vec<_>>()
    };
    let long = Case::dense(1, 1, 2048, (2, 2), 64);
    let with_list = ["live_f16_r16", "decode_f16_d64_r16", "combine_f16"];
    assert_eq!(kernels(&long, Horizon::default()), with_list);
    assert_eq!(kernels(&long, Horizon::Off), with_list[1..]);
    assert_eq!(kernels(&long, Horizon::Bitwise), with_list[1..]);
    // The table has a column more than the keys need.
    let short = Case::dense(1, 1, 1920, (2, 2), 64);
    assert_eq!(kernels(&short, Horizon::default()), with_list[1..]);
    let window = Case {
        window: (Some(1000), Some(0)),
        ..long
    };
    assert_eq!(kernels(&window, Horizon::default()), with_list[1..]);
}

/// Pages of a cache that appends fill, and what its radii must be at least.
struct Filled<T> {
    emulator: Emulator,
    heads: usize,
    head_dim: usize,
    page_size: usize,
    pools: [DevicePtr; 2],
    centres: Vec<f32>,
    centres_at: DevicePtr,
    radii: DevicePtr,
    /// The keys of each page, by row.
    pages: Vec<Vec<Option<Vec<T>>>>,
}

impl<T: OnDevice> Filled<T> {
    fn new(pages: usize, page_size: usize, heads: usize, head_dim: usize) -> Self {
        let emulator = Emulator::new(9);
        let memory = &emulator.memory;
        let marks = vec![T::from_f32(f32::NAN); pages * page_size * heads * head_dim];
        let centres: Vec<f32> = (0..heads * head_dim)
            .map(|c| random(2, 5, [c, 0, 0, 0]))
            .collect();
        Self {
            heads,
            head_dim,
            page_size,
            pools: [(); 2].map(|()| memory.upload(&marks).unwrap()),
            centres_at: memory.upload(&centres).unwrap(),
            centres,
            radii: memory.upload(&vec![f32::NAN; pages * heads]).unwrap(),
            pages: vec![vec![None; page_size]; pages],
            emulator,
        }
    }

    /// Appends a token to each slot, with keys that begin with `first`.
    fn append(&mut self, slots: &[i64], first: impl Fn(usize) -> f32) {
        let (heads, d, page_size) = (self.heads, self.head_dim, self.page_size);
        let key = |token: usize| -> Vec<T> {
            let value = |c| random(slots[0] as u64, 1, [token, c, 0, 0]);
            let mut key: Vec<T> = (0..heads * d).map(|c| T::from_f32(value(c))).collect();
            key[0] = T::from_f32(first(token));
            key
        };
        let keys: Vec<Vec<T>> = (0..slots.len()).map(key).collect();
        let new = Layout::contiguous("k", &[slots.len(), heads, d]).unwrap();
        let shape = [self.pages.len(), page_size, heads, d];
        let pool = Layout::contiguous("k_pages", &shape).unwrap();
        let append = Append::with_radii(T::DTYPE, &new, &new, &pool, &pool).unwrap();
        let memory = &self.emulator.memory;
        let uploaded = memory.upload(&keys.concat()).unwrap().0;
        let addresses = AppendAddresses {
            k: uploaded,
            v: uploaded,
            k_pages: self.pools[0].0,
            v_pages: self.pools[1].0,
            slot_mapping: memory.upload(slots).unwrap().0,
            centres: self.centres_at.0,
            radii: self.radii.0,
        };
        // SAFETY: the emulator checks every access itself.
        unsafe { append.run(&self.emulator, &addresses) }.unwrap();
        let place = |slot: i64| {
            let slot = usize::try_from(slot).ok()?;
            let page = slot / page_size;
            (page < shape[0]).then_some((page, slot % page_size))
        };
        // All pages that begin anew do so before any key comes.
        for (page, row) in slots.iter().filter_map(|&slot| place(slot)) {
            if row == 0 {
                self.pages[page].fill(None);
            }
        }
        for (&slot, key) in slots.iter().zip(&keys) {
            if let Some((page, row)) = place(slot) {
                self.pages[page][row] = Some(key.clone());
            }
        }
    }

    /// The radii are the largest distances, rounded up by little, and the pools hold the keys.
    fn check(&self) {
        let (heads, d) = (self.heads, self.head_dim);
        let memory = &self.emulator.memory;
        let radii: Vec<f32> = memory
            .download(self.radii, self.pages.len() * heads)
            .unwrap();
        let elements = self.pages.len() * self.page_size * heads * d;
        let pools = self
            .pools
            .map(|pool| memory.download::<T>(pool, elements).unwrap());
        for (number, page) in self.pages.iter().enumerate() {
            for (row, key) in page.iter().enumerate() {
                let Some(key) = key else { continue };
                let at = (number * self.page_size + row) * heads * d;
                for pool in &pools {
                    let same = |(a, b): (&T, &T)| a.to_f32().to_bits() == b.to_f32().to_bits();
                    assert!(
                        pool[at..].iter().zip(key).all(same),
                        "page {number}, row {row}"
                    );
                }
            }
            for head in 0..heads {
                let norm = |key: &Vec<T>| -> f64 {
                    let of_head = key[head * d..][..d].iter().zip(&self.centres[head * d..]);
                    let squares =
                        of_head.map(|(x, &c)| (f64::from(x.to_f32()) - f64::from(c)).powi(2));
                    squares.sum::<f64>().sqrt()
                };
                let norms: Vec<f64> = page.iter().flatten().map(norm).collect();
                let found = f64::from(radii[number * heads + head]);
                if norms.is_empty() || norms.iter().any(|x| x.is_nan()) {
                    assert!(found.is_nan(), "page {number}, head {head}: {found}");
                    continue;
                }
                let largest = norms.into_iter().fold(0.0, f64::max);
                let bounds = found == largest || found > largest && found <= 1.001 * largest;
                assert!(
                    bounds,
                    "page {number}, head {head}: {found}, norm {largest}"
                );
            }
        }
    }
}

#[test]
fn appended_keys_raise_the_radii_of_their_pages() {
    fn check<T: OnDevice>(heads: usize, head_dim: usize) {
        const PAGES: usize = 5;
        let mut cache = Filled::<T>::new(PAGES, 16, heads, head_dim);
        let slots = |page: usize, rows: std::ops::Range<usize>| {
            rows.map(move |row| (page * 16 + row) as i64)
        };
        let plain = |token| random(4, 4, [token, 0, 0, 0]);
        // Two pages at once, one of them whole; and what is left out.
        let far = (PAGES * 16) as i64;
        cache.append(
            &slots(3, 0..16)
                .chain([-1, far])
                .chain(slots(1, 0..5))
                .collect::<Vec<_>>(),
            plain,
        );
        cache.check();
        // One at a time, with a large key first, and small ones later.
        for row in 5..9 {
            cache.append(&slots(1, row..row + 1).collect::<Vec<_>>(), |_| {
                if row == 5 { 90.0 } else { 0.5 }
            });
            cache.check();
        }
        // Used again, from the first row on, which comes last.
        cache.append(&slots(1, 0..7).rev().collect::<Vec<_>>(), plain);
        cache.check();
        // Not finite, and then used again.
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            cache.append(&slots(0, 0..3).collect::<Vec<_>>(), |token| {
                if token == 1 { value } else { 1.0 }
            });
            cache.check();
        }
        cache.append(&slots(0, 0..1).collect::<Vec<_>>(), plain);
        cache.check();
        cache.append(&[-1, i64::MIN], plain);
        cache.check();
    }
    for (heads, head_dim) in [(1, 8), (3, 24), (2, 64), (5, 80), (2, 128), (2, 256)] {
        check::<f16>(heads, head_dim);
        check::<bf16>(heads, head_dim);
    }
}
