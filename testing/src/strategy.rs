//! Random cases.

use flash_alibi::{Horizon, Mask};
use proptest::prelude::*;
use proptest::sample::select;

use crate::{Case, Lengths, Memory, SlopeKind};

/// As many cases as `PROPTEST_CASES` says, or else `cases`. Nothing is kept of a failure but the message, which holds the
/// whole case; make it a test below.
pub fn config(cases: u32) -> ProptestConfig {
    let set = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: set.unwrap_or(cases),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Short, odd, beside the tile sizes that kernels use, or anything up to 300.
pub fn length() -> impl Strategy<Value = usize> {
    let tiles = select(vec![8usize, 16, 32, 48, 64, 96, 128, 192, 256]);
    prop_oneof![
        2 => 0usize..=3,
        4 => (tiles, 0usize..=2).prop_map(|(tile, by)| tile + by - 1),
        4 => 0usize..=300,
    ]
}

/// Those of models, or any multiple of 8 up to 256.
pub fn head_dim() -> impl Strategy<Value = usize> {
    prop_oneof![
        2 => select(vec![64usize, 80, 96, 112, 128]),
        1 => (1usize..=32).prop_map(|n| 8 * n),
    ]
}

/// Key heads, and query heads per key head.
pub fn heads() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        4 => (1usize..=4, select(vec![1usize, 2, 4])),
        2 => (1usize..=2, select(vec![3usize, 8])),
        1 => Just((1, 71)),
    ]
}

/// Of every kind.
pub fn slopes() -> impl Strategy<Value = SlopeKind> {
    prop_oneof![
        3 => Just(SlopeKind::Geometric),
        1 => Just(SlopeKind::Zero),
        2 => (0.01f32..0.5).prop_map(SlopeKind::PerHead),
        2 => (0.01f32..0.5).prop_map(SlopeKind::PerSequence),
        1 => select(vec![-0.25f32, 1e-6, 8.0]).prop_map(SlopeKind::All),
    ]
}

/// How far a row sees to one side, if there is a limit.
pub fn window() -> impl Strategy<Value = Option<usize>> {
    let reach = prop_oneof![
        select(vec![0usize, 1, 15, 16, 63, 64, 127, usize::MAX]),
        0usize..200
    ];
    proptest::option::weighted(0.4, reach)
}

/// In any order, with gaps, and a few with a stride of 0 if `broadcast`.
pub fn memory(broadcast: bool) -> impl Strategy<Value = Memory> {
    let gap = || prop_oneof![3 => Just(0usize), 1 => 1usize..20];
    let zero = move || proptest::bool::weighted(if broadcast { 0.08 } else { 0.0 });
    (
        prop_oneof![2 => Just(0usize), 3 => 0usize..6],
        [gap(), gap(), gap()],
        0usize..9,
        [zero(), zero(), zero()],
    )
        .prop_map(|(order, gaps, offset, broadcast)| Memory {
            order,
            gaps,
            offset,
            broadcast,
        })
}

/// One to four, and whether they are packed.
pub fn sequences() -> impl Strategy<Value = (Vec<Lengths>, bool)> {
    let zero_or = |most: usize| prop_oneof![3 => Just(0usize), 2 => 0..=most];
    let one =
        (length(), length(), zero_or(100), zero_or(70)).prop_map(|(q, k, pad, unused)| Lengths {
            q,
            k,
            leftpad: k * pad / 100,
            unused,
        });
    (prop::collection::vec(one, 1..=4), any::<bool>()).prop_map(|(mut sequences, packed)| {
        let q = sequences[0].q;
        if !packed {
            sequences.iter_mut().for_each(|s| s.q = q);
        }
        (sequences, packed)
    })
}

/// A random case in which the reference has `work` multiplications or so at most.
///
/// Scores stay below 100 or so: in f32 the rounding of larger ones exceeds the limit's constant term, and whether an
/// implementation or `low` does better in a small case is then chance.
pub fn case(work: usize) -> impl Strategy<Value = Case> {
    let layer = (
        heads(),
        head_dim(),
        prop_oneof![
            3 => Just(None),
            1 => select(vec![0.0f32, -1.0, 0.3, 2.0]).prop_map(Some)
        ],
        prop_oneof![3 => Just(None), 1 => (0.5f32..60.0).prop_map(Some)],
        slopes(),
        select(vec![Mask::Causal, Mask::Bidirectional]),
        (window(), window()),
    );
    let call = (
        sequences(),
        [memory(true), memory(true), memory(true), memory(false)],
        prop_oneof![4 => Just(1.0f32), 1 => Just(3.0)],
        any::<u64>(),
    );
    (layer, call).prop_map(move |(layer, call)| {
        let ((heads_k, group), head_dim, scale, softcap, slopes, mask, window) = layer;
        let ((sequences, packed), memory, amplitude, seed) = call;
        let scale = scale.map(|scale| scale / (head_dim as f32).sqrt());
        Case {
            heads_k,
            group,
            head_dim,
            scale,
            softcap,
            slopes,
            mask,
            window,
            horizon: Horizon::default(),
            sequences,
            offsets: None,
            packed,
            memory,
            amplitude,
            seed,
        }
        .bounded(work)
    })
}

/// Likewise; half of them have offsets: queries before, among and behind the keys.
pub fn case_with_offsets(work: usize) -> impl Strategy<Value = Case> {
    let offsets = proptest::option::of(prop::collection::vec(-200i32..=500, 4));
    (case(work), offsets).prop_map(|(mut case, offsets)| {
        case.offsets = offsets.map(|mut offsets| {
            offsets.truncate(case.sequences.len());
            offsets
        });
        case
    })
}

/// One of `of` things, by a number from 0 to 1.
pub fn pick(fraction: f64, of: usize) -> usize {
    (fraction * of as f64) as usize
}

/// A failed check as a failed random case.
pub fn fail(result: Result<(), String>) -> Result<(), TestCaseError> {
    result.map_err(TestCaseError::fail)
}
