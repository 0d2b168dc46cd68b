//! Plans: geometry, limits and bad calls. Nothing is launched.

use flash_alibi::plan::{Addresses, Append, Call, Device, Dtype, Packed, Paged, Plan};
use flash_alibi::{Attention, Error, Horizon, Layout, Mask, Slopes};

const DEVICE: Device = Device {
    compute_capability: (8, 0),
    shared_bytes_per_block: 163 << 10,
    multiprocessors: 108,
};

fn layer(heads: (usize, usize), head_dim: usize) -> Attention {
    Attention::new(heads.0, heads.1, head_dim).build().unwrap()
}

fn dense(batch: usize, q: usize, k: usize, heads: (usize, usize), head_dim: usize) -> Call {
    let layout = |rows, heads| Layout::contiguous("tensor", &[batch, rows, heads, head_dim]);
    let (q, k) = (layout(q, heads.0).unwrap(), layout(k, heads.1).unwrap());
    Call {
        dtype: Dtype::F16,
        q,
        k,
        v: k,
        out: q,
        packed: None,
        paged: None,
    }
}

fn packed(total_q: usize, total_k: usize, packed: Packed) -> Call {
    let layout = |rows, heads| Layout::contiguous("tensor", &[rows, heads, 64]).unwrap();
    let (q, k) = (layout(total_q, 4), layout(total_k, 2));
    Call {
        dtype: Dtype::Bf16,
        q,
        k,
        v: k,
        out: q,
        packed: Some(packed),
        paged: None,
    }
}

#[track_caller]
fn expect_error(attention: &Attention, call: &Call, device: &Device, message: &str) {
    let error = Plan::prefill(attention, call, device).unwrap_err();
    assert_eq!(error.to_string(), message);
}

#[test]
fn every_row_of_every_head_and_sequence_has_a_block() {
    for (seqlen_q, head_dim, blocks) in [
        (1, 64, 1),
        (128, 64, 1),
        (129, 64, 2),
        (257, 128, 3),
        // Larger heads have blocks of 64 rows.
        (129, 136, 3),
        (129, 256, 3),
    ] {
        let call = dense(3, seqlen_q, 77, (4, 2), head_dim);
        let plan = Plan::prefill(&layer((4, 2), head_dim), &call, &DEVICE).unwrap();
        let [launch] = plan.launches() else {
            panic!("{:?}", plan.launches())
        };
        assert_eq!(launch.grid, blocks * 4 * 3, "{seqlen_q} rows, d {head_dim}");
    }
    // Packed sequences have the blocks of the longest.
    let lengths = Packed {
        batch: 5,
        max_seqlen_q: 300,
        max_seqlen_k: 10,
    };
    let plan = Plan::prefill(&layer((4, 2), 64), &packed(900, 50, lengths), &DEVICE).unwrap();
    assert_eq!(plan.launches()[0].grid, 3 * 4 * 5);
}

#[test]
fn a_head_dim_takes_the_kernel_of_the_next_that_there_is() {
    let kernel = |head_dim, dtype| {
        let call = Call {
            dtype,
            ..dense(1, 5, 5, (1, 1), head_dim)
        };
        let plan = Plan::prefill(&layer((1, 1), head_dim), &call, &DEVICE).unwrap();
        let launch = &plan.launches()[0];
        let text = format!(".entry {}(", launch.kernel);
        assert!(launch.file.ptx.contains(&text), "{}", launch.kernel);
        launch.kernel
    };
    assert_eq!(kernel(8, Dtype::F16), "prefill_f16_d32");
    assert_eq!(kernel(64, Dtype::F16), "prefill_f16_d64");
    assert_eq!(kernel(72, Dtype::Bf16), "prefill_bf16_d80");
    assert_eq!(kernel(112, Dtype::Bf16), "prefill_bf16_d112");
    assert_eq!(kernel(120, Dtype::F16), "prefill_f16_d128");
    assert_eq!(kernel(136, Dtype::F16), "prefill_f16_d192");
    assert_eq!(kernel(256, Dtype::Bf16), "prefill_bf16_d256");
}

#[test]
fn nothing_to_write_is_nothing_to_launch() {
    for (batch, q, k) in [(0, 5, 5), (2, 0, 5), (0, 0, 0)] {
        let plan = Plan::prefill(&layer((2, 2), 64), &dense(batch, q, k, (2, 2), 64), &DEVICE);
        assert!(plan.unwrap().launches().is_empty());
    }
    // Without keys there are zeros to write.
    let plan = Plan::prefill(&layer((2, 2), 64), &dense(2, 5, 0, (2, 2), 64), &DEVICE);
    assert_eq!(plan.unwrap().launches().len(), 1);
}

#[test]
fn windows_that_reach_over_all_positions_are_none() {
    let window = |left, right, seqlen_q, seqlen_k| {
        let attention = Attention::new(1, 1, 8)
            .mask(Mask::Bidirectional)
            .window(left, right)
            .build()
            .unwrap();
        let call = dense(1, seqlen_q, seqlen_k, (1, 1), 8);
        let plan = Plan::prefill(&attention, &call, &DEVICE).unwrap();
        let params = plan.params(&Default::default());
        (params.window_left, params.window_right)
    };
    assert_eq!(window(Some(usize::MAX), Some(usize::MAX), 9, 7), (-1, -1));
    // A row may stand anywhere: what reaches over all keys from the last of them does not from farther behind.
    assert_eq!(window(Some(7), Some(9), 9, 7), (7, 9));
    let farthest = (1 << 33) - 1;
    let all = Some(farthest + 1);
    assert_eq!(window(Some(farthest), all, 9, 7), (farthest as i64, -1));
    assert_eq!(window(None, Some(0), 9, 7), (-1, 0));
}

#[test]
fn devices_that_cannot_run_it() {
    let (attention, call) = (layer((1, 1), 256), dense(1, 1, 1, (1, 1), 256));
    let turing = Device {
        compute_capability: (7, 5),
        ..DEVICE
    };
    let small = Device {
        shared_bytes_per_block: 48 << 10,
        ..DEVICE
    };
    expect_error(
        &attention,
        &call,
        &turing,
        "device: found compute capability 7.5, expected 8.0 or later",
    );
    expect_error(
        &attention,
        &call,
        &small,
        "device: found 49152 bytes of shared memory a block, expected at least 98304",
    );
}

#[test]
fn calls_that_do_not_fit() {
    let attention = layer((4, 2), 64);
    let good = dense(2, 5, 9, (4, 2), 64);
    let error = |call: &Call, message: &str| expect_error(&attention, call, &DEVICE, message);
    error(
        &Call { q: good.k, ..good },
        "q: found shape [2, 9, 2, 64], expected [batch, seqlen_q, 4, 64]",
    );
    error(
        &Call {
            v: dense(2, 5, 8, (4, 2), 64).v,
            ..good
        },
        "v: found shape [2, 8, 2, 64], expected [2, 9, 2, 64]",
    );
    error(
        &Call {
            out: dense(2, 6, 9, (4, 2), 64).out,
            ..good
        },
        "out: found shape [2, 6, 4, 64], expected [2, 5, 4, 64]",
    );
    let overlapping = Layout::new("out", &[2, 5, 4, 64], &[1280, 256, 32, 1]).unwrap();
    error(
        &Call {
            out: overlapping,
            ..good
        },
        "out: found strides [1280, 256, 32, 1], expected strides that keep the output's elements apart",
    );
    let lengths = Packed {
        batch: 1,
        max_seqlen_q: 5,
        max_seqlen_k: 9,
    };
    error(
        &Call {
            packed: Some(lengths),
            ..good
        },
        "q: found shape [2, 5, 4, 64], expected [total_q, 4, 64]",
    );

    let slopes = Slopes::per_batch_and_head(&[0.5; 12], 3, 4).unwrap();
    let attention = Attention::new(4, 2, 64).slopes(slopes).build().unwrap();
    expect_error(
        &attention,
        &good,
        &DEVICE,
        "slopes: found 3 sequences, expected batch = 2",
    );
}

#[test]
fn calls_beyond_the_limits() {
    let attention = layer((1, 1), 8);
    let repeated = |batch: usize, rows: usize| {
        Layout::new("tensor", &[batch, rows, 1, 8], &[0, 0, 0, 1]).unwrap()
    };
    let call = |k: Layout| Call {
        k,
        v: k,
        ..dense(1, 1, 1, (1, 1), 8)
    };
    assert!(Plan::prefill(&attention, &call(repeated(1, 1 << 30)), &DEVICE).is_ok());
    expect_error(
        &attention,
        &call(repeated(1, (1 << 30) + 1)),
        &DEVICE,
        "k: found shape [1, 1073741825, 1, 8], expected at most 1073741824 rows a sequence and 2147483647 in all",
    );
    let batch = 1 << 28;
    let many = dense(batch, 1024, 1, (1, 1), 8);
    let error = Plan::prefill(&attention, &many, &DEVICE).unwrap_err();
    assert!(
        matches!(error, Error::Shape { argument: "q", .. }),
        "{error}"
    );
}

/// The blocks of a decode plan, and its splits.
fn decoded(attention: &Attention, call: &Call, device: &Device) -> (u32, i32) {
    let plan = Plan::decode(attention, call, device).unwrap();
    let params = plan.params(&Default::default());
    let launches = plan.launches().len();
    assert_eq!(launches, if params.splits > 1 { 2 } else { 1 });
    assert_eq!(plan.workspace_bytes() > 0, params.splits > 1);
    (plan.launches()[0].grid, params.splits)
}

#[test]
fn decoding_splits_keys_until_the_device_is_full() {
    // Two blocks of 66 KiB fit a multiprocessor of this device, so 216 run at once.
    let splits = |batch, keys, heads| {
        decoded(
            &layer(heads, 64),
            &dense(batch, 1, keys, heads, 64),
            &DEVICE,
        )
    };
    // Nothing to gain: enough blocks, or too few keys.
    assert_eq!(splits(27, 65536, (8, 8)), (216, 1));
    assert_eq!(splits(1, 255, (8, 8)), (8, 1));
    // A wave and a bit takes as long as two: parts make more waves, the last of them fuller.
    assert_eq!(splits(28, 65536, (8, 8)), (28 * 8 * 5, 5));
    // Few heads have many parts, of 128 keys or more.
    let (blocks, parts) = splits(1, 65536, (8, 8));
    assert!((183..=216).contains(&blocks) && parts == blocks as i32 / 8);
    assert_eq!(splits(1, 1024, (8, 8)).1, 7);
    // All heads that share keys are rows of one block.
    assert_eq!(splits(216, 1024, (16, 1)), (216, 1));
    let (blocks, parts) = splits(1, 65536, (71, 1));
    assert_eq!((blocks, parts > 50), (parts as u32, true));
    // A window bounds what there is to split.
    let attention = Attention::new(8, 8, 64)
        .window(Some(255), Some(0))
        .build()
        .unwrap();
    assert_eq!(
        decoded(&attention, &dense(1, 1, 65536, (8, 8), 64), &DEVICE).1,
        2
    );
}

#[test]
fn a_decode_plan_depends_on_the_bounds_alone() {
    let pages = |columns, max_seqlen_k| {
        let pool = Layout::contiguous("k", &[1000, 16, 2, 64]).unwrap();
        let call = Call {
            k: pool,
            v: pool,
            paged: Some(Paged {
                columns,
                stride: columns,
                max_seqlen_k,
                radii: false,
            }),
            ..dense(4, 1, 0, (4, 2), 64)
        };
        let plan = Plan::decode(&layer((4, 2), 64), &call, &DEVICE).unwrap();
        let params = plan.params(&Default::default());
        (
            params.seqlen_k,
            params.page_size,
            params.pages,
            params.splits,
        )
    };
    // What the table holds and what the caller says bound the lengths.
    assert_eq!(pages(128, 100_000), (2048, 16, 1000, 14));
    assert_eq!(pages(8192, 2048), pages(128, 100_000));
}

/// Of three sequences: 4 query heads, 2 key heads and pages of 16 keys.
fn in_pages(seqlen_q: usize, columns: usize, radii: bool) -> Call {
    let pool = Layout::contiguous("k", &[1000, 16, 2, 64]).unwrap();
    Call {
        k: pool,
        v: pool,
        paged: Some(Paged {
            columns,
            stride: columns,
            max_seqlen_k: usize::MAX,
            radii,
        }),
        ..dense(3, seqlen_q, 0, (4, 2), 64)
    }
}

/// What prefill knows of the keys of 3 sequences and 2 heads: from the keys themselves, or from the radii of their pages.
#[test]
fn prefill_takes_radii_from_a_cache_that_has_them() {
    let launches = |horizon, columns, radii| -> Vec<(&str, u32)> {
        let attention = Attention::new(4, 2, 64).horizon(horizon).build().unwrap();
        let plan = Plan::prefill(&attention, &in_pages(128, columns, radii), &DEVICE).unwrap();
        let launches = plan.launches().iter();
        launches
            .map(|launch| (launch.kernel, launch.grid))
            .collect()
    };
    let (farther, prefill) = (("farther_radii", 6), ("prefill_f16_d64", 12));
    for horizon in [Horizon::default(), Horizon::Bitwise] {
        // Of 257 tiles: a block each, or a thread.
        let keys = [("centres_f16", 6), ("radii_f16", 6 * 257), farther, prefill];
        assert_eq!(launches(horizon, 257 * 8, false), keys);
        let pages = [("radii_of_pages", 12), farther, prefill];
        assert_eq!(launches(horizon, 257 * 8, true), pages);
    }
    // Too few keys, and no horizon.
    assert_eq!(launches(Horizon::default(), 127, true), [prefill]);
    assert_eq!(launches(Horizon::Off, 257 * 8, true), [prefill]);
}

/// A cache that has radii has a list of tiles for each block of rows, where a certified horizon has enough keys.
#[test]
fn lists_of_live_tiles() {
    let call = in_pages;
    let attention = |horizon, window| {
        let builder = Attention::new(4, 2, 64).horizon(horizon);
        builder.window(window, Some(0)).build().unwrap()
    };
    let listed = |attention: &Attention, call: &Call, splits| {
        let plan = Plan::decode_with_splits(attention, call, &DEVICE, splits).unwrap();
        let addresses = Addresses {
            workspace: 1 << 20,
            centres: 1,
            radii: 2,
            ..Addresses::default()
        };
        let params = plan.params(&addresses);
        let first = &plan.launches()[0];
        let live = first.file.name == "sm80/live";
        let of_cache = (params.cache_centres, params.page_radii);
        assert_eq!((params.live > 0, of_cache), (live, (1, 2)));
        live.then(|| {
            (
                first.kernel,
                first.grid,
                params.tiles,
                plan.workspace_bytes(),
            )
        })
    };
    let certified = attention(Horizon::default(), None);
    // [batch, heads_k, blocks, 1 + tiles], behind what the parts leave: out and lse.
    let list = |blocks: u64, tiles: u64| 3 * 2 * blocks * (1 + tiles) * 4;
    assert_eq!(
        listed(&certified, &call(1, 128, true), 1),
        Some(("live_f16_r16", 6, 32, list(1, 32)))
    );
    assert_eq!(
        listed(&certified, &call(1, 128, true), 5),
        Some((
            "live_f16_r16",
            6,
            32,
            list(1, 32) + 5 * 3 * 4 * (64 + 1) * 4
        ))
    );
    // Of more rows, blocks have smaller tiles.
    assert_eq!(
        listed(&certified, &call(65, 130, true), 1),
        Some(("live_f16_r128", 12, 65, list(2, 65)))
    );
    // No radii, too few keys, too narrow a window, and other horizons.
    assert_eq!(listed(&certified, &call(1, 128, false), 1), None);
    assert_eq!(listed(&certified, &call(1, 127, true), 1), None);
    let window = |left| attention(Horizon::default(), Some(left));
    assert_eq!(listed(&window(2046), &call(1, 200, true), 1), None);
    assert!(listed(&window(2047), &call(1, 200, true), 1).is_some());
    for horizon in [Horizon::Off, Horizon::Bitwise] {
        let attention = attention(horizon, None);
        assert_eq!(listed(&attention, &call(1, 128, true), 1), None);
    }
    // What a caller allocates is enough.
    for seqlen_q in [1, 9, 65] {
        let most = Plan::workspace_bytes_up_to(&certified, &DEVICE, 3, seqlen_q, 130 * 16);
        let call = call(seqlen_q, 130, true);
        let plan = Plan::decode(&certified, &call, &DEVICE).unwrap();
        assert!(plan.workspace_bytes() <= most);
    }
}

#[test]
fn pages_that_do_not_fit() {
    let expect = |shape: &[usize], columns, message: &str| {
        let pool = Layout::contiguous("k", shape).unwrap();
        let call = Call {
            k: pool,
            v: pool,
            paged: Some(Paged {
                columns,
                stride: columns,
                max_seqlen_k: 100,
                radii: false,
            }),
            ..dense(4, 1, 0, (4, 2), 64)
        };
        for plan in [Plan::prefill, Plan::decode] {
            let error = plan(&layer((4, 2), 64), &call, &DEVICE).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    };
    expect(
        &[10, 12, 2, 64],
        3,
        "page_size: found 12, expected a positive multiple of 8",
    );
    expect(
        &[160, 2, 64],
        3,
        "k: found shape [160, 2, 64], expected [pages, page_size, 2, 64]",
    );
    expect(
        &[10, 16, 4, 64],
        3,
        "k: found shape [10, 16, 4, 64], expected [pages, page_size, 2, 64]",
    );
    expect(
        &[10, 16, 2, 64],
        0,
        "block_table: found 0 columns, expected 1 to 2147483647",
    );
}

#[test]
fn no_parts_are_none() {
    let call = dense(1, 1, 10, (1, 1), 64);
    let error = Plan::decode_with_splits(&layer((1, 1), 64), &call, &DEVICE, 0).unwrap_err();
    assert_eq!(error.to_string(), "splits: found 0, expected at least 1");
}

#[test]
fn rows_of_all_heads_are_counted() {
    // Rows and keys that share memory, so that their number is the only limit.
    let rows = |rows, heads| Layout::new("q", &[1, rows, heads, 8], &[0, 0, 0, 1]).unwrap();
    let call = Call {
        q: rows(1 << 24, 71),
        out: Layout::contiguous("out", &[1, 1 << 24, 71, 8]).unwrap(),
        k: rows(10, 1),
        v: rows(10, 1),
        ..dense(1, 1, 10, (1, 1), 8)
    };
    let error = Plan::decode(&layer((71, 1), 8), &call, &DEVICE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "q: found shape [1, 16777216, 71, 8], expected at most 1073741824 rows of the heads that share keys"
    );
}

#[test]
fn radii_are_begun_before_they_are_raised() {
    let new = |shape: &[usize]| Layout::contiguous("k", shape).unwrap();
    let (k, pages) = (new(&[500, 3, 24]), new(&[10, 16, 3, 24]));
    let launches = |append: Append| -> Vec<_> {
        let launches = append.launches().iter();
        launches
            .map(|launch| (launch.kernel, launch.grid))
            .collect()
    };
    let plain = Append::new(&k, &k, &pages, &pages).unwrap();
    assert_eq!(
        launches(plain),
        [("append", (500u32 * 3 * 3).div_ceil(256))]
    );
    let kept = Append::with_radii(Dtype::Bf16, &k, &k, &pages, &pages).unwrap();
    // The 3 chunks of a head have 4 threads.
    assert_eq!(
        launches(kept),
        [
            ("restart_radii", (500u32 * 3).div_ceil(256)),
            ("append_bf16", (500u32 * 3 * 4).div_ceil(256)),
        ]
    );
    let none = new(&[0, 3, 24]);
    let none = Append::with_radii(Dtype::F16, &none, &none, &pages, &pages).unwrap();
    assert_eq!(launches(none), []);
}

#[test]
fn new_keys_that_do_not_fit_the_pages() {
    let new = |shape: &[usize]| Layout::contiguous("k", shape).unwrap();
    let pages = new(&[10, 16, 2, 64]);
    let append = |k: &Layout, v: &Layout, k_pages: &Layout, v_pages: &Layout| {
        Append::new(k, v, k_pages, v_pages).unwrap_err().to_string()
    };
    let k = new(&[5, 2, 64]);
    assert_eq!(
        append(&new(&[5, 2, 60]), &k, &pages, &pages),
        "k: found shape [5, 2, 60], expected [tokens, heads_k, a multiple of 8], up to 2147483647 tokens"
    );
    assert_eq!(
        append(&k, &new(&[4, 2, 64]), &pages, &pages),
        "v: found shape [4, 2, 64], expected [5, 2, 64], as k"
    );
    assert_eq!(
        append(&k, &k, &new(&[10, 16, 4, 64]), &pages),
        "k_pages: found shape [10, 16, 4, 64], expected [pages, page_size, 2, 64]"
    );
    assert_eq!(
        append(&k, &k, &pages, &new(&[10, 8, 2, 64])),
        "v_pages: found shape [10, 8, 2, 64], expected [10, 16, 2, 64], as k_pages"
    );
    let overlapping = Layout::new("k", &[10, 16, 2, 64], &[0, 128, 64, 1]).unwrap();
    assert!(
        append(&k, &k, &overlapping, &pages).starts_with("k_pages: found strides [0, 128, 64, 1]")
    );
    assert!(Append::new(&k, &k, &pages, &pages).is_ok());
}
