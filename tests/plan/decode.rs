//! Few queries a sequence.

use flash_alibi::plan::{Addresses, Call, Device, Paged, Plan};
use flash_alibi::{Attention, Horizon, Layout};

use super::{DEVICE, dense, in_pages, layer};

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
