//! Attention over a paged cache: the same bits as without pages, over random problems and the shapes of serving; and
//! writing to the cache.

use flash_alibi::cpu::{self, KvCache, oracle};
use flash_alibi::{
    Attention, Error, Horizon, Inputs, Mask, PagedCache, SequenceId, Slopes, View, ViewMut,
};
use flash_alibi_testing::strategy::{case_with_offsets, config, fail};
use flash_alibi_testing::{Case, Lengths, Memory, SlopeKind, expect, uniform};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::sample::select;

const PAGE_SIZES: [usize; 7] = [8, 16, 24, 32, 64, 128, 256];

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn f16_pages_change_no_bit(case in case_with_offsets(400_000), page_size in select(&PAGE_SIZES)) {
        fail(case.check_paged::<f16>(page_size))?;
    }

    #[test]
    fn bf16_pages_change_no_bit(case in case_with_offsets(400_000), page_size in select(&PAGE_SIZES)) {
        fail(case.check_paged::<bf16>(page_size))?;
    }

    #[test]
    fn f32_pages_change_no_bit(case in case_with_offsets(400_000), page_size in select(&PAGE_SIZES)) {
        fail(case.check_paged::<f32>(page_size))?;
    }
}

/// Sequences of mixed lengths, some of them empty, that decode `q` tokens each.
fn mixed(batch: usize, q: usize, longest: usize) -> Vec<Lengths> {
    let parts: Vec<f32> = uniform(5).take(batch).collect();
    let k = |b: usize| match b % 5 {
        4 => 0,
        _ => q + (parts[b].abs() * (longest - q) as f32) as usize,
    };
    let lengths = |b| Lengths {
        q,
        k: k(b),
        ..Lengths::default()
    };
    (0..batch).map(lengths).collect()
}

#[test]
fn batches_of_mixed_lengths_decode() {
    let groups = [(1, 3), (4, 2), (8, 1), (71, 1)];
    for (turn, batch) in [1, 2, 3, 8, 17, 32].into_iter().enumerate() {
        for (group, heads_k) in groups {
            let page_size = PAGE_SIZES[(turn + group) % PAGE_SIZES.len()];
            let case = Case {
                sequences: mixed(batch, [1, 2, 16][turn % 3], 1500 / batch),
                seed: turn as u64,
                ..Case::dense(0, 0, 0, (group * heads_k, heads_k), [64, 80, 24][group % 3])
            };
            expect(&case, case.check_paged::<f32>(page_size));
            expect(&case, case.check_paged::<f16>(page_size));
        }
    }
    // BLOOM-176B.
    let case = Case {
        sequences: mixed(3, 1, 200),
        ..Case::dense(0, 0, 0, (112, 112), 128)
    };
    expect(&case, case.check_paged::<bf16>(16));
}

#[test]
fn a_long_cache_is_split_in_the_same_parts() {
    for (heads, q) in [((2, 2), 1), ((71, 1), 1), ((4, 1), 3)] {
        for window in [None, Some(1500)] {
            let case = Case {
                window: (window, None),
                ..Case::dense(1, q, 3001, heads, 64)
            };
            expect(&case, case.check_paged::<bf16>(16));
            expect(&case, case.check_paged::<f32>(256));
        }
    }
}

#[test]
fn prompts_come_in_chunks() {
    // Packed: a first chunk, one from the middle, a last token, a decoding sequence, and one that rests.
    let chunks = [(64, 64), (100, 333), (1, 257), (1, 40), (0, 99)];
    let sequences = chunks.map(|(q, k)| Lengths {
        q,
        k,
        ..Lengths::default()
    });
    for mask in [Mask::Causal, Mask::Bidirectional] {
        for (softcap, window) in [(None, (None, None)), (Some(20.0), (Some(70), Some(9)))] {
            let case = Case {
                sequences: sequences.to_vec(),
                packed: true,
                mask,
                softcap,
                window,
                slopes: SlopeKind::PerSequence(0.3),
                ..Case::dense(0, 0, 0, (4, 2), 64)
            };
            expect(&case, case.check_paged::<f32>(16));
            expect(&case, case.check_paged::<bf16>(64));
        }
    }
}

#[test]
fn sequences_share_pages() {
    let same = Memory {
        broadcast: [true, false, false],
        ..Memory::default()
    };
    let case = Case {
        sequences: mixed(12, 1, 900),
        memory: [Memory::default(), same, same, Memory::default()],
        ..Case::dense(0, 0, 0, (4, 2), 64)
    };
    let paged = case.lay_out_paged::<f32>(32);
    let (first, second) = (paged.block_table[0], paged.block_table[paged.max_pages]);
    assert_eq!(first, second, "the case shares no page");
    expect(&case, case.check_paged::<f32>(32));
    expect(&case, case.check_paged::<f16>(8));
}

/// A small paged call: 2 sequences in 4 pages of 8, 2 heads of 8.
struct Call {
    q: Vec<usize>,
    k: Vec<usize>,
    v: Vec<usize>,
    block_table: Vec<i32>,
    seqused_k: Vec<i32>,
    cu_q: Option<Vec<i32>>,
    cu_k: Option<Vec<i32>>,
}

fn call(change: impl FnOnce(&mut Call)) -> Result<(), Error> {
    let mut call = Call {
        q: vec![2, 1, 2, 8],
        k: vec![4, 8, 2, 8],
        v: vec![4, 8, 2, 8],
        block_table: vec![3, 0, 1, i32::MIN],
        seqused_k: vec![16, 5],
        cu_q: None,
        cu_k: None,
    };
    change(&mut call);
    let data = vec![0.5f32; 4096];
    let view = |shape: &[usize]| View::new(&data, shape).unwrap();
    let mut inputs = Inputs::paged(
        view(&call.q),
        view(&call.k),
        view(&call.v),
        &call.block_table,
        &call.seqused_k,
    );
    if let Some(cu_q) = &call.cu_q {
        inputs = match &call.cu_k {
            Some(cu_k) => inputs.varlen(cu_q, cu_k),
            None => inputs.varlen_q(cu_q),
        };
    }
    let attention = Attention::new(2, 2, 8).build().unwrap();
    let (mut out, mut lse) = (vec![7.0f32; call.q.iter().product()], vec![7.0f32; 4]);
    let view = ViewMut::new(&mut out, &call.q).unwrap();
    let result = cpu::attend_into(&attention, &inputs, view, Some(&mut lse));
    assert_eq!(result, oracle::attend(&attention, &inputs).map(drop));
    if result.is_err() {
        assert!(out.iter().chain(&lse).all(|&x| x == 7.0), "written");
    }
    result
}

#[track_caller]
fn says(result: Result<(), Error>, message: &str) {
    assert_eq!(result.expect_err("an error").to_string(), message);
}

#[test]
fn errors_of_a_call() {
    call(|_| {}).unwrap();
    call(|c| (c.q, c.cu_q) = (vec![2, 2, 8], Some(vec![0, 1, 2]))).unwrap();
    // Entries that no query needs may be anything; a sequence without queries needs none.
    call(|c| (c.block_table, c.seqused_k) = (vec![9, -1, -2, 99], vec![0, 0])).unwrap();
    call(|c| {
        (c.q, c.cu_q) = (vec![2, 2, 8], Some(vec![0, 2, 2]));
        c.block_table = vec![0, 1, -1, -1];
    })
    .unwrap();

    type Change = fn(&mut Call);
    let errors: [(Change, &str); 15] = [
        (
            |c| c.block_table[1] = 4,
            "block_table: found 4 at index [0, 1], expected one of the 4 pages, from 0",
        ),
        (
            |c| c.block_table[2] = -1,
            "block_table: found -1 at index [1, 0], expected one of the 4 pages, from 0",
        ),
        (
            |c| c.block_table = vec![0; 3],
            "block_table: found 3 elements, expected a multiple of batch = 2",
        ),
        (
            |c| c.block_table = vec![],
            "seqused_k: found 16 at index 0, expected 0 to max_pages_per_sequence * page_size = 0",
        ),
        (
            |c| c.seqused_k = vec![17, 5],
            "seqused_k: found 17 at index 0, expected 0 to max_pages_per_sequence * page_size = 16",
        ),
        (
            |c| c.seqused_k = vec![16, -5],
            "seqused_k: found -5 at index 1, expected 0 to max_pages_per_sequence * page_size = 16",
        ),
        (
            |c| c.seqused_k = vec![16],
            "seqused_k: found 1 elements, expected batch = 2",
        ),
        (
            |c| (c.k, c.v) = (vec![4, 12, 2, 8], vec![4, 12, 2, 8]),
            "page_size: found 12, expected a positive multiple of 8",
        ),
        (
            |c| (c.k, c.v) = (vec![4, 0, 2, 8], vec![4, 0, 2, 8]),
            "page_size: found 0, expected a positive multiple of 8",
        ),
        (
            |c| c.k = vec![32, 2, 8],
            "k: found shape [32, 2, 8], expected [pages, page_size, 2, 8]",
        ),
        (
            |c| c.k = vec![4, 8, 1, 8],
            "k: found shape [4, 8, 1, 8], expected [pages, page_size, 2, 8]",
        ),
        (
            |c| c.v = vec![3, 8, 2, 8],
            "v: found shape [3, 8, 2, 8], expected [4, 8, 2, 8]",
        ),
        (
            |c| c.q = vec![2, 2, 8],
            "q: found shape [2, 2, 8], expected [batch, seqlen_q, 2, 8]",
        ),
        (
            |c| c.cu_q = Some(vec![0, 1, 2]),
            "q: found shape [2, 1, 2, 8], expected [total_q, 2, 8]",
        ),
        (
            |c| {
                (c.q, c.cu_q) = (vec![2, 2, 8], Some(vec![0, 1, 2]));
                c.cu_k = Some(vec![0, 1, 2]);
            },
            "cu_seqlens_k: found row indices, expected none: the lengths of a paged cache are seqused_k",
        ),
    ];
    for (change, message) in errors {
        says(call(change), message);
    }
}

#[test]
fn packed_queries_need_the_lengths_of_keys() {
    let data = [0.5f32; 64];
    let x = View::new(&data, &[2, 2, 8]).unwrap();
    let attention = Attention::new(2, 2, 8).build().unwrap();
    let inputs = Inputs::new(x, x, x).varlen_q(&[0, 2]);
    says(
        cpu::attend(&attention, &inputs).map(drop),
        "cu_seqlens_k: found none, expected as many as cu_seqlens_q",
    );
}

/// Keys or values that say which token, head and element they are.
fn numbered(tokens: usize, sign: f32) -> Vec<f32> {
    (0..tokens * 16).map(|i| sign * (i + 1) as f32).collect()
}

#[test]
fn append_writes_each_token_to_its_slot_and_nothing_else() {
    let (k, v) = (numbered(5, 1.0), numbered(5, -1.0));
    let view = |data| View::new(data, &[5, 2, 8]).unwrap();
    let slots = [17i64, -1, 0, 23, i64::MIN];
    // Heads outside of rows, with gaps: as some engines keep them.
    let strides = [400, 9, 80, 1];
    let (mut k_pool, mut v_pool) = (vec![0f32; 1200], vec![0f32; 1200]);
    let pool = |data| ViewMut::strided(data, &[3, 8, 2, 8], &strides).unwrap();
    cpu::append(
        view(&k),
        view(&v),
        pool(&mut k_pool),
        pool(&mut v_pool),
        &slots,
    )
    .unwrap();
    for (from, to) in [(k, k_pool), (v, v_pool)] {
        let mut expected = vec![0f32; 1200];
        for (token, slot) in [(0, 17), (2, 0), (3, 23)] {
            for head in 0..2 {
                let at = slot / 8 * 400 + slot % 8 * 9 + head * 80;
                let row = &from[(token * 2 + head) * 8..][..8];
                expected[at..][..8].copy_from_slice(row);
            }
        }
        assert_eq!(to, expected);
    }
}

#[test]
fn append_that_fails_writes_nothing() {
    let data = numbered(3, 1.0);
    let view = |tokens: usize, heads: usize| {
        View::new(&data[..tokens * heads * 8], &[tokens, heads, 8]).unwrap()
    };
    let (k, slots) = (view(3, 2), [0i64, 1, 2]);
    let check = |k, v, pools: [&[usize]; 2], slots: &[i64], message: &str| {
        let mut data = [vec![0f32; 1024], vec![0f32; 1024]];
        let [k_pool, v_pool] = &mut data;
        let k_pool = ViewMut::new(k_pool, pools[0]).unwrap();
        let v_pool = ViewMut::new(v_pool, pools[1]).unwrap();
        says(cpu::append(k, v, k_pool, v_pool, slots), message);
        assert!(data.concat().iter().all(|&x| x == 0.0), "written");
    };
    let pool = &[2usize, 8, 2, 8][..];
    for (slots, message) in [
        (
            &[0i64, 1, 16][..],
            "slot_mapping: found 16 at index 2, expected less than pages * page_size = 16",
        ),
        (
            &[i64::MAX, 1, 2],
            "slot_mapping: found 9223372036854775807 at index 0, expected less than pages * page_size = 16",
        ),
        (
            &[7, -1, 7],
            "slot_mapping: found 7 at index 2, expected another than at index 0",
        ),
        (
            &[1, 2],
            "slot_mapping: found 2 elements, expected 3, one a token",
        ),
    ] {
        check(k, k, [pool, pool], slots, message);
    }
    let message = "v: found shape [2, 2, 8], expected [3, 2, 8]";
    check(k, view(2, 2), [pool, pool], &slots, message);
    let message = "k: found shape [3, 1, 8], expected [tokens, 2, 8]";
    check(view(3, 1), k, [pool, pool], &slots, message);
    let message = "v_pages: found shape [3, 8, 2, 8], expected [2, 8, 2, 8], as k_pages";
    check(k, k, [pool, &[3, 8, 2, 8]], &slots, message);
    let message = "k_pages: found shape [16, 2, 8], expected [pages, page_size, heads_k, head_dim]";
    check(k, k, [&[16, 2, 8], pool], &slots, message);
    let message = "page_size: found 4, expected a positive multiple of 8";
    check(k, k, [&[4, 4, 2, 8], &[4, 4, 2, 8]], &slots, message);
}

#[test]
fn pools_copy_pages_in_order() {
    let mut pools = KvCache::<f32>::new(3, 8, 1, 8).unwrap();
    let k = numbered(4, 1.0);
    let k = View::new(&k, &[8, 1, 8]).unwrap();
    pools.append(k, k, &[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    pools.copy_pages(&[(0, 1), (1, 2)]).unwrap();
    let pages: Vec<&[f32]> = pools.k().data().chunks(64).collect();
    assert!(pages.iter().all(|page| *page == k.data()));
    assert_eq!(pools.v().data(), pools.k().data());
    for copies in [[(0, 1), (0, 3)], [(0, 1), (-1, 0)]] {
        let page = if copies[1].1 == 3 { 3 } else { -1 };
        let message =
            format!("copies: found page {page} at index 1, expected one of the 3 pages, from 0");
        says(pools.copy_pages(&copies), &message);
    }
    let message = "page_size: found 9, expected a positive multiple of 8";
    says(KvCache::<f32>::new(1, 9, 1, 8).map(drop), message);
    let huge = KvCache::<f32>::new(1 << 50, 8, 1, 8).map(drop);
    says(
        huge,
        "cache: found shape [1125899906842624, 8, 1, 8], expected a shape that fits in memory",
    );
}

const TOKENS: usize = 8;

/// One head of dimension 8, whose keys lie along the first axis, in pages of 16.
struct Axis {
    cache: PagedCache,
    pools: KvCache<f32>,
}

impl Axis {
    fn new(pages: usize) -> Self {
        Self {
            cache: PagedCache::new(pages, 16).unwrap(),
            pools: KvCache::new(pages, 16, 1, 8).unwrap(),
        }
    }

    fn append(&mut self, sequence: SequenceId, keys: &[f32]) {
        let appended = self.cache.append(sequence, keys.len()).unwrap();
        self.pools.copy_pages(&appended.copies).unwrap();
        let keys: Vec<f32> = keys
            .iter()
            .flat_map(|&x| [x, 0., 0., 0., 0., 0., 0., 0.])
            .collect();
        let keys = View::new(&keys, &[appended.slot_mapping.len(), 1, 8]).unwrap();
        self.pools
            .append(keys, keys, &appended.slot_mapping)
            .unwrap();
    }

    /// For the last tokens, with queries of 1 along the axis and more across: with the horizon, and every key. Enough tokens
    /// that their scores are not looked at.
    fn attend(&self, sequence: SequenceId) -> [cpu::Output<f32>; 2] {
        let batch = self.cache.batch(&[sequence]).unwrap();
        let q = [1., 10., 0., 0., 0., 0., 0., 0.].repeat(TOKENS);
        let q = View::new(&q, &[1, TOKENS, 1, 8]).unwrap();
        let inputs = self.pools.inputs(q, &batch.block_table, &batch.seqused_k);
        [Horizon::default(), Horizon::Off].map(|horizon| {
            let layer = Attention::new(1, 1, 8)
                .scale(1.0)
                .slopes(Slopes::per_head(&[0.05]))
                .horizon(horizon)
                .build()
                .unwrap();
            cpu::attend(&layer, &inputs).unwrap()
        })
    }
}

#[test]
fn pools_keep_the_radii_of_copied_pages() {
    let mut axis = Axis::new(512);
    // Pages that are used again, with radii of keys that are gone.
    let gone = axis.cache.create();
    axis.append(gone, &vec![0.01; 512 * 16]);
    axis.cache.free(gone).unwrap();
    let first = axis.cache.create();
    let mut keys = vec![0.0; 1000];
    keys[997] = 300.0;
    axis.append(first, &keys);
    let second = axis.cache.fork(first).unwrap();
    axis.append(second, &vec![0.0; 3096]);
    let [found, whole] = axis.attend(second);
    assert_eq!((found.out, found.lse), (whole.out, whole.lse.clone()));
    assert!((whole.lse[TOKENS - 1] - (300.0 - 0.05 * 3098.0)).abs() < 1e-3);
    // The page of the key, one that shares its tile of 128 keys or some near, and no other.
    let (kept, all) = (found.report.kept(), whole.report.kept());
    assert!(kept < all / 4, "{kept} of {all}");
}

#[test]
fn centres_are_where_the_keys_are() {
    let keys = vec![50.0; 4096];
    let kept = |centre: Option<f32>| {
        let mut axis = Axis::new(256);
        if let Some(centre) = centre {
            axis.pools = axis
                .pools
                .with_centres(&[centre, 0., 0., 0., 0., 0., 0., 0.])
                .unwrap();
        }
        let sequence = axis.cache.create();
        axis.append(sequence, &keys);
        let [found, whole] = axis.attend(sequence);
        let difference = (found.out[0] - whole.out[0]).abs();
        assert!(difference <= 100.0 * 0.5f32.powi(24) + 1e-4, "{difference}");
        (found.report.kept() as usize, TOKENS * 32)
    };
    // A distance of 50 might be one along the query, and then weigh 500.
    for centre in [None, Some(0.0)] {
        let (kept, all) = kept(centre);
        assert_eq!(kept, all);
    }
    let (kept, all) = kept(Some(50.0));
    assert!(kept < all / 4, "{kept}");

    // Pages that were written before are read whole.
    let mut axis = Axis::new(256);
    let sequence = axis.cache.create();
    axis.append(sequence, &keys);
    axis.pools = axis
        .pools
        .with_centres(&[50., 0., 0., 0., 0., 0., 0., 0.])
        .unwrap();
    let [found, whole] = axis.attend(sequence);
    assert_eq!(found.report.kept(), whole.report.kept());
    assert_eq!(
        axis.pools.with_centres(&[0.0; 7]).unwrap_err().to_string(),
        "centres: found 7 elements, expected heads_k * head_dim = 8"
    );
}

#[test]
fn errors_of_radii() {
    let data = [0.5f32; 256];
    let attention = Attention::new(2, 2, 8).build().unwrap();
    let q = View::new(&data[..16], &[1, 1, 2, 8]).unwrap();
    let pages = View::new(&data, &[2, 8, 2, 8]).unwrap();
    let attend = |centres: usize, radii: usize| {
        let (centres, radii) = (vec![0.0; centres], vec![0.0; radii]);
        let inputs = Inputs::paged(q, pages, pages, &[0, 1], &[16]).radii(&centres, &radii);
        cpu::attend(&attention, &inputs).map(drop)
    };
    attend(16, 4).unwrap();
    says(
        attend(8, 4),
        "centres: found 8 elements, expected heads_k * head_dim = 16",
    );
    says(
        attend(16, 2),
        "radii: found 2 elements, expected pages * heads_k = 4",
    );
    let k = View::new(&data, &[1, 16, 2, 8]).unwrap();
    let inputs = Inputs::new(q, k, k).radii(&[0.0; 16], &[0.0; 4]);
    says(
        cpu::attend(&attention, &inputs).map(drop),
        "radii: found those of keys that are not in pages, expected a block_table",
    );

    let k = View::new(&data[..16], &[1, 2, 8]).unwrap();
    let append = |slot: i64, centres: usize, radii: usize, message: &str| {
        let mut written = [vec![7f32; 256], vec![7f32; 256], vec![7f32; radii]];
        let [k_pool, v_pool, radii] = &mut written;
        let [k_pool, v_pool] =
            [k_pool, v_pool].map(|pool| ViewMut::new(pool, &[2, 8, 2, 8]).unwrap());
        let centres = vec![0.0; centres];
        says(
            cpu::append_with_radii(k, k, k_pool, v_pool, &[slot], &centres, radii),
            message,
        );
        assert!(written.concat().iter().all(|&x| x == 7.0), "written");
    };
    append(
        0,
        15,
        4,
        "centres: found 15 elements, expected heads_k * head_dim = 16",
    );
    append(
        0,
        16,
        5,
        "radii: found 5 elements, expected pages * heads_k = 4",
    );
    append(
        16,
        16,
        4,
        "slot_mapping: found 16 at index 0, expected less than pages * page_size = 16",
    );
}

fn number() -> impl Strategy<Value = i32> {
    prop_oneof![5 => 0i32..5, 1 => select(vec![i32::MIN, i32::MAX, -1, 16, 1 << 28])]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_arguments_panic(
        shape in (0usize..3, select(vec![0usize, 1, 8, 12, 16]), 0usize..3),
        table in prop::collection::vec(number(), 0..7),
        used in prop::collection::vec(number().prop_map(|n| n.saturating_mul(4)), 0..4),
        cu_q in proptest::option::of(prop::collection::vec(number(), 0..4)),
        strides in proptest::option::of([0usize..40, 0usize..20, 0usize..20]),
        q in (0usize..4, 0usize..3),
        slots in prop::collection::vec(prop_oneof![-2i64..40, select(vec![i64::MIN, i64::MAX])], 0..4),
        radii in proptest::option::of((select(vec![0usize, 8, 16, 7]), 0usize..7)),
        head_dim in select(vec![8usize, 8, 8, 0]),
    ) {
        let mut data = vec![0.5f32; 4096];
        let attention = Attention::new(2, 1, 8).build().unwrap();
        let shape = [shape.0, shape.1, shape.2, 8];
        {
            let strides = strides.map(|[a, b, c]| [a, b, c, 1]);
            let pool = match strides {
                Some(strides) => View::strided(&data, &shape, &strides).unwrap(),
                None => View::new(&data, &shape).unwrap(),
            };
            let shape_q = match &cu_q {
                Some(_) => vec![q.0, 2, 8],
                None => vec![q.0, q.1, 2, 8],
            };
            let mut inputs = Inputs::paged(View::new(&data, &shape_q).unwrap(), pool, pool, &table, &used);
            if let Some(cu_q) = &cu_q {
                inputs = inputs.varlen_q(cu_q);
            }
            if let Some((centres, radii)) = radii {
                inputs = inputs.radii(&data[..centres], &data[..radii]);
            }
            let fast = cpu::attend(&attention, &inputs);
            prop_assert_eq!(fast.is_ok(), oracle::attend(&attention, &inputs).is_ok());
        }
        let tokens = vec![0.25f32; slots.len() * 16];
        let shape = [shape[0], shape[1], shape[2], head_dim];
        let k = View::new(&tokens, &[slots.len(), shape[2], head_dim]).unwrap();
        let (mut other, centres) = (data.clone(), data.clone());
        let k_pool = ViewMut::new(&mut data, &shape).unwrap();
        let v_pool = ViewMut::new(&mut other, &shape).unwrap();
        let _ = match radii {
            None => cpu::append(k, k, k_pool, v_pool, &slots),
            Some((n, m)) => cpu::append_with_radii(k, k, k_pool, v_pool, &slots, &centres[..n], &mut vec![0.0; m]),
        };
    }
}
