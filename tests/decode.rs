//! The decode kernels' PTX, executed on the CPU with every check on, against the f64 oracle.

use flash_alibi::plan::{Append, AppendAddresses, Call, Device, Plan};
use flash_alibi::{Attention, Layout, Mask};
use flash_alibi_testing::emulator::{Emulator, OnEmulator, Planner};
use flash_alibi_testing::strategy::{case_with_offsets, config, fail};
use flash_alibi_testing::{Case, Lengths, Memory, SlopeKind, expect};
use half::{bf16, f16};
use proptest::prelude::*;
use ptx_emulator::{Class, DevicePtr, Report};

/// How much work the emulator may have in one random case.
const WORK: usize = 1_000_000;

fn with_splits(splits: usize) -> impl Fn(&Attention, &Call, &Device) -> flash_alibi::Result<Plan> {
    move |attention, call, device| Plan::decode_with_splits(attention, call, device, splits)
}

fn check<T: OnEmulator>(case: &Case, splits: usize) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    let (rows, _) = laid_out.attend_on_emulator(&with_splits(splits))?;
    laid_out.check(&rows)
}

#[track_caller]
fn check_both(case: &Case, splits: usize) {
    let f16 = check::<f16>(case, splits).map_err(|why| format!("f16: {why}"));
    expect(case, f16);
    let bf16 = check::<bf16>(case, splits).map_err(|why| format!("bf16: {why}"));
    expect(case, bf16);
}

/// From pages, and with both kinds of kernels.
fn check_pages<T: OnEmulator>(case: &Case, page_size: usize, splits: usize) -> Result<(), String> {
    let paged = case.lay_out_paged::<T>(page_size);
    for (kind, planner) in [
        ("decode", &with_splits(splits) as &Planner),
        ("prefill", &Plan::prefill),
    ] {
        let checked = paged
            .attend_on_emulator(planner)
            .and_then(|(rows, _)| paged.dense.check(&rows));
        checked.map_err(|why| format!("{kind}: {why}"))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn f16_follows_the_oracle(case in case_with_offsets(WORK), splits in 1usize..5) {
        fail(check::<f16>(&case, splits))?;
    }

    #[test]
    fn bf16_follows_the_oracle(case in case_with_offsets(WORK), splits in 1usize..5) {
        fail(check::<bf16>(&case, splits))?;
    }

    #[test]
    fn pages_follow_the_oracle(
        case in case_with_offsets(WORK / 2),
        page_size in prop::sample::select(vec![8usize, 16, 24, 32, 64, 128, 256]),
        splits in 1usize..5,
    ) {
        fail(check_pages::<bf16>(&case, page_size, splits))?;
    }
}

#[test]
fn head_dims() {
    for head_dim in (8..=256).step_by(8) {
        check_both(&Case::dense(1, 1, 131, (2, 1), head_dim), 2);
        check_both(&Case::dense(1, 9, 131, (2, 1), head_dim), 1);
    }
    let case = Case {
        mask: Mask::Bidirectional,
        ..Case::dense(2, 3, 300, (4, 2), 64)
    };
    check_both(&case, 3);
}

/// What serving sees: sequences of every length at once, some of them empty, and heads that share keys in every way.
#[test]
fn batches_of_mixed_lengths() {
    for (batch, heads, head_dim, queries, splits) in [
        (32, (4, 4), 64, 1, 4),
        (7, (8, 2), 128, 1, 3),
        (5, (32, 4), 64, 2, 2),
        // Falcon-7B: one key head for 71.
        (3, (71, 1), 64, 1, 2),
        (2, (71, 1), 64, 3, 1),
        // BLOOM-176B.
        (1, (112, 112), 128, 1, 1),
        (2, (8, 1), 256, 16, 2),
    ] {
        let lengths = |b: usize| match b % 4 {
            1 => 0,
            2 => 64 * b,
            n => 37 * b + n,
        };
        let sequences = (0..batch)
            .map(|b| Lengths {
                q: queries.min(lengths(b).max(1)),
                k: lengths(b),
                ..Lengths::default()
            })
            .collect();
        let case = Case {
            sequences,
            packed: true,
            seed: batch as u64,
            ..Case::dense(0, 0, 0, heads, head_dim)
        };
        check_both(&case, splits);
        let pages = check_pages::<f16>(&case, 16, splits);
        expect(&case, pages.map_err(|why| format!("pages: {why}")));
    }
}

/// The same result within the contract, and the same lse but for rounding, in however many parts.
#[test]
fn any_number_of_splits() {
    let case = Case {
        sequences: [(1, 700), (3, 4100), (0, 9), (2, 2)]
            .map(|(q, k)| Lengths {
                q,
                k,
                ..Lengths::default()
            })
            .to_vec(),
        packed: true,
        slopes: SlopeKind::PerHead(0.02),
        ..Case::dense(0, 0, 0, (4, 2), 64)
    };
    let laid_out = case.lay_out::<f16>();
    let lse = |splits| -> Vec<f32> {
        let (rows, _) = laid_out
            .attend_on_emulator(&with_splits(splits))
            .expect("it runs");
        expect(&case, laid_out.check(&rows));
        let lse = rows.iter().flat_map(|rows| rows.lse.iter());
        lse.map(|&bits| f32::from_bits(bits)).collect()
    };
    let whole = lse(1);
    for splits in [2, 3, 7, 16, 64] {
        for (a, b) in whole.iter().zip(lse(splits)) {
            let same = a == &b || (a - b).abs() <= 1e-6 * a.abs().max(1.0);
            assert!(same, "{splits} splits: {b}, whole {a}");
        }
    }
}

/// All sequences have the same pages.
#[test]
fn sequences_share_pages() {
    let shared = Memory {
        broadcast: [true, false, false],
        ..Memory::default()
    };
    let case = Case {
        memory: [Memory::default(), shared, shared, Memory::default()],
        ..Case::dense(3, 2, 200, (4, 2), 64)
    };
    expect(&case, check_pages::<bf16>(&case, 32, 2));
}

/// Pages that do not exist are cut off: no access leaves the pools, which the emulator checks.
#[test]
fn page_numbers_are_clamped() {
    let case = Case::dense(2, 1, 300, (2, 1), 64);
    let [mut wild, mut clamped] = [(); 2].map(|()| case.lay_out_paged::<f16>(32));
    let last = clamped.k.shape[0] as i32 - 1;
    for (at, page, instead) in [(3, -7, 0), (wild.max_pages + 2, i32::MAX, last)] {
        wild.block_table[at] = page;
        clamped.block_table[at] = instead;
    }
    for planner in [&with_splits(2) as &Planner, &Plan::prefill] {
        let [wild, clamped] = [&wild, &clamped].map(|paged| paged.attend_on_emulator(planner));
        assert!(wild.unwrap().0 == clamped.unwrap().0);
    }
}

/// Keys and values are read once for all heads that share them, however they are split, and not a byte more than 2%.
#[test]
fn keys_and_values_are_read_once() {
    for (heads, head_dim, queries, page_size) in [
        ((8, 8), 64, 1, None),
        ((8, 1), 64, 1, Some(16)),
        ((16, 2), 128, 4, Some(32)),
        ((71, 1), 64, 1, Some(256)),
        ((4, 1), 256, 1, None),
        ((2, 2), 80, 1, Some(16)),
    ] {
        let case = Case::dense(2, queries, 2048, heads, head_dim);
        let laid_out = case.lay_out::<f16>();
        let planner = with_splits(4);
        let attended = match page_size {
            Some(page_size) => case
                .lay_out_paged::<f16>(page_size)
                .attend_on_emulator(&planner),
            None => laid_out.attend_on_emulator(&planner),
        };
        let report = &attended.unwrap().1[0];
        let least = (2 * 2 * 2048 * heads.1 * head_dim * 2) as u64;
        let q = (2 * queries * heads.0 * head_dim * 2 * 4) as u64;
        let copies = (report.lines.iter()).filter(|line| line.class == Class::AsyncCopy);
        let (copied, sectors) = copies.fold((0, 0), |(bytes, sectors), line| {
            let counters = &line.counters;
            (
                bytes + counters.global_bytes,
                sectors + counters.global_sectors,
            )
        });
        println!("{heads:?} d{head_dim}: {copied} bytes, at least {least} + Q {q}");
        assert!(copied as f64 <= 1.02 * (least + q) as f64, "{report}");
        assert!(copied >= least);
        // Of the sectors of 32 bytes that were fetched, all is used.
        assert_eq!(32 * sectors, copied, "{report}");
        assert_eq!(report.total().bank_conflicts, 0, "{report}");
    }
}

#[test]
fn appended_keys_are_where_their_slots_say() {
    let (tokens, heads, head_dim, page_size, pages) = (37, 3, 24, 8, 6);
    for (gap, offset) in [(0, 0), (8, 0), (3, 1)] {
        let emulator = Emulator::new(4);
        let memory = &emulator.memory;
        let row = heads * head_dim + gap;
        let new = Layout::new("k", &[tokens, heads, head_dim], &[row, head_dim, 1]).unwrap();
        let pool = Layout::new(
            "k_pages",
            &[pages, page_size, heads, head_dim],
            &[page_size * row, row, head_dim, 1],
        )
        .unwrap();
        let values =
            |tag: u16, n: usize| -> Vec<u16> { (0..n as u16).map(|i| i * 2 + tag).collect() };
        let (k, v) = (
            values(0, offset + new.span()),
            values(1, offset + new.span()),
        );
        let marks = vec![u16::MAX; offset + pool.span()];
        // Backwards, and some are left out.
        let slots: Vec<i64> = (0..tokens as i64)
            .map(|i| match i % 9 {
                3 => -1,
                5 => (pages * page_size) as i64,
                7 => i64::MIN,
                _ => (pages * page_size) as i64 - 1 - i,
            })
            .collect();
        let upload = |data: &[u16]| memory.upload(data).unwrap().0;
        let first = |buffer: u64| buffer + 2 * offset as u64;
        let (k_pages, v_pages) = (upload(&marks), upload(&marks));
        let addresses = AppendAddresses {
            k: first(upload(&k)),
            v: first(upload(&v)),
            k_pages: first(k_pages),
            v_pages: first(v_pages),
            slot_mapping: memory.upload(&slots).unwrap().0,
            ..AppendAddresses::default()
        };
        let append = Append::new(&new, &new, &pool, &pool).unwrap();
        // SAFETY: the emulator checks every access itself.
        unsafe { append.run(&emulator, &addresses) }.unwrap();

        for (buffer, new) in [(k_pages, k), (v_pages, v)] {
            let mut expected = marks.clone();
            for (token, &slot) in slots.iter().enumerate() {
                if (0..(pages * page_size) as i64).contains(&slot) {
                    let (to, from) = (offset + slot as usize * row, offset + token * row);
                    let n = heads * head_dim;
                    expected[to..][..n].copy_from_slice(&new[from..][..n]);
                }
            }
            let found: Vec<u16> = memory.download(DevicePtr(buffer), marks.len()).unwrap();
            assert_eq!(found, expected);
        }
    }
}

/// What a warp executes for each tile of 64 keys that all of its rows see, and how many bytes it brings.
#[test]
fn instructions_of_a_tile() {
    const TILES: usize = 4;
    for head_dim in [64, 128, 256] {
        let report = |k| {
            let case = Case {
                slopes: SlopeKind::All(1.0),
                ..Case::dense(1, 1, k, (8, 1), head_dim)
            };
            let laid_out = case.lay_out::<bf16>();
            let attended = laid_out.attend_on_emulator(&with_splits(1));
            attended.unwrap().1.remove(0)
        };
        let (few, many) = (report(1024), report(1024 + TILES * 64));
        let each = |of: &dyn Fn(Class) -> bool| -> u64 {
            let sum = |report: &Report| -> u64 {
                let lines = report.lines.iter().filter(|line| of(line.class));
                lines.map(|line| line.counters.warp_instructions).sum()
            };
            (sum(&many) - sum(&few)) / (4 * TILES as u64)
        };
        println!(
            "d{head_dim}: {} PTX instructions a warp for {} bytes a block, moves left out",
            each(&|class| class != Class::Move),
            2 * 64 * head_dim * 2
        );
        for class in Class::ALL {
            println!("    {class:?}: {}", each(&|other| other == class));
        }
        // A warp has 16 keys of the tile: S = Q K^T in 2 D / 16 products, O += P V in D / 8; 8 scores a lane. Its two rows need a
        // factor only where a maximum grows, which it does not here, away from the row.
        assert_eq!(each(&|class| class == Class::Tensor), head_dim as u64 / 4);
        assert_eq!(each(&|class| class == Class::Special), 8);
    }
}
