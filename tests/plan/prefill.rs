//! Many queries a sequence, and what every call must be.

use std::cell::RefCell;
use std::convert::Infallible;

use flash_alibi::plan::{Addresses, Call, Device, Dtype, Executor, Launch, Packed, Plan};
use flash_alibi::{Attention, Error, Horizon, Layout, Mask, Slopes};

use super::{DEVICE, dense, in_pages, layer};

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
    assert_eq!(kernel(8, Dtype::F16), "prefill_dense_f16_d32");
    assert_eq!(kernel(64, Dtype::F16), "prefill_dense_f16_d64");
    assert_eq!(kernel(72, Dtype::Bf16), "prefill_dense_bf16_d80");
    assert_eq!(kernel(112, Dtype::Bf16), "prefill_dense_bf16_d112");
    assert_eq!(kernel(120, Dtype::F16), "prefill_dense_f16_d128");
    assert_eq!(kernel(136, Dtype::F16), "prefill_dense_f16_d192");
    assert_eq!(kernel(256, Dtype::Bf16), "prefill_dense_bf16_d256");
}

/// Takes the names of the kernels that a plan launches.
struct Names(RefCell<Vec<&'static str>>);

impl Executor for Names {
    type Error = Infallible;

    unsafe fn launch(&self, launch: &Launch, _: &[u8]) -> Result<(), Infallible> {
        self.0.borrow_mut().push(launch.kernel);
        Ok(())
    }
}

/// The kernels that copy 16 bytes without a look at where they begin are for tensors in one piece, whose rows begin at multiples
/// of 16 bytes.
#[test]
fn a_kernel_is_chosen_by_what_is_known_of_keys_and_values() {
    let last = |horizon, call: &Call, addresses: Addresses| {
        let attention = Attention::new(4, 2, 64).horizon(horizon).build().unwrap();
        let plan = Plan::prefill(&attention, call, &DEVICE).unwrap();
        let names = Names(RefCell::default());
        // SAFETY: nothing is launched.
        unsafe { plan.run(&names, &addresses) }.unwrap();
        *names.0.borrow().last().unwrap()
    };
    let (dense_kernel, any) = ("prefill_dense_f16_d64", "prefill_any_f16_d64");
    let nowhere = Addresses::default();
    let good = dense(2, 5, 4096, (4, 2), 64);
    assert_eq!(last(Horizon::Off, &good, nowhere), dense_kernel);
    assert_eq!(
        last(Horizon::default(), &good, nowhere),
        "prefill_horizon_f16_d64"
    );
    // Too few keys for a horizon.
    let few = dense(2, 5, 2047, (4, 2), 64);
    assert_eq!(last(Horizon::default(), &few, nowhere), dense_kernel);
    assert_eq!(last(Horizon::Off, &in_pages(5, 9, false), nowhere), any);
    assert_eq!(
        last(Horizon::default(), &in_pages(5, 999, false), nowhere),
        any
    );

    let strides = |strides: [usize; 3]| {
        let [batch, row, head] = strides;
        Layout::new("tensor", &[2, 4096, 2, 64], &[batch, row, head, 1]).unwrap()
    };
    for (found, kernel) in [
        ([1 << 40, 72, 1 << 20], dense_kernel),
        ([0, 64, 0], dense_kernel),
        ([1 << 40, 68, 1 << 20], any),
        ([1 << 40, 72, (1 << 20) + 4], any),
        ([(1 << 40) + 4, 72, 1 << 20], any),
        // In bytes, what an i32 counts, and more.
        ([0, (1 << 30) - 8, 64], dense_kernel),
        ([0, 1 << 30, 64], any),
    ] {
        let k = Call {
            k: strides(found),
            ..good
        };
        assert_eq!(last(Horizon::Off, &k, nowhere), kernel, "k {found:?}");
        let v = Call {
            v: strides(found),
            ..good
        };
        assert_eq!(last(Horizon::Off, &v, nowhere), kernel, "v {found:?}");
    }
    // Where they begin is known at last; queries and results may begin anywhere.
    let at = |k, v| Addresses {
        q: 2,
        k,
        v,
        out: 2,
        ..nowhere
    };
    for horizon in [Horizon::Off, Horizon::default()] {
        assert_ne!(last(horizon, &good, at(16, 32)), any);
        assert_eq!(last(horizon, &good, at(8, 32)), any);
        assert_eq!(last(horizon, &good, at(16, 2)), any);
    }
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
    let (farther, prefill) = (("farther_radii", 6), ("prefill_any_f16_d64", 12));
    for horizon in [Horizon::default(), Horizon::Bitwise] {
        // Of 514 tiles: a block each, or a thread.
        let keys = [("centres_f16", 6), ("radii_f16", 6 * 514), farther, prefill];
        assert_eq!(launches(horizon, 257 * 8, false), keys);
        let pages = [("radii_of_pages", 18), farther, prefill];
        assert_eq!(launches(horizon, 257 * 8, true), pages);
    }
    // Too few keys, and no horizon.
    assert_eq!(launches(Horizon::default(), 127, true), [prefill]);
    assert_eq!(launches(Horizon::Off, 257 * 8, true), [prefill]);
}
