//! How much workspace a layer needs for all of its calls.

use flash_alibi::plan::{Call, Device, Dtype, Paged, Plan};
use flash_alibi::{Attention, Horizon, Layout, Mask};
use proptest::prelude::*;

/// Sequences, queries of each, and keys of each.
type Sizes = [usize; 3];

fn device(shared_kib: u32, multiprocessors: u32) -> Device {
    Device {
        compute_capability: (9, 0),
        shared_bytes_per_block: shared_kib << 10,
        multiprocessors,
    }
}

/// As small as devices are that run the kernels.
fn smallest() -> Device {
    device(99, 2)
}

fn layer(heads: (usize, usize), head_dim: usize) -> Attention {
    Attention::new(heads.0, heads.1, head_dim).build().unwrap()
}

/// The most that a call of these sizes needs: prefill or decode, on keys in one piece or in pages that have radii.
fn needed(attention: &Attention, device: &Device, [batch, q, k]: Sizes) -> u64 {
    let (heads, head_dim) = (
        [attention.heads_q(), attention.heads_k()],
        attention.head_dim(),
    );
    let layout =
        |rows, heads| Layout::contiguous("tensor", &[batch, rows, heads, head_dim]).unwrap();
    let (q, keys) = (layout(q, heads[0]), layout(k, heads[1]));
    let dense = Call {
        dtype: Dtype::F16,
        q,
        k: keys,
        v: keys,
        out: q,
        packed: None,
        paged: None,
    };
    let pages = Layout::contiguous("k", &[1, 8, heads[1], head_dim]).unwrap();
    let in_pages = Call {
        k: pages,
        v: pages,
        paged: Some(Paged {
            columns: k.div_ceil(8).max(1),
            stride: k.div_ceil(8).max(1),
            max_seqlen_k: k,
            radii: true,
        }),
        ..dense
    };
    let bytes = |call: &Call| {
        [Plan::prefill, Plan::decode].map(|plan| plan(attention, call, device).unwrap())
    };
    let plans = [dense, in_pages].iter().flat_map(bytes).collect::<Vec<_>>();
    plans.iter().map(Plan::workspace_bytes).max().unwrap()
}

fn up_to(attention: &Attention, device: &Device, [batch, q, k]: Sizes) -> u64 {
    Plan::workspace_bytes_up_to(attention, device, batch, q, k)
}

/// Fewer sequences are divided into more parts: a batch of one needs more than a batch of two.
#[test]
fn the_largest_batch_does_not_need_the_most() {
    let attention = layer((1, 1), 64);
    let of = |batch| needed(&attention, &smallest(), [batch, 1, 1024]);
    assert_eq!((of(1), of(2)), (520, 0));
    assert_eq!(up_to(&attention, &smallest(), [2, 1, 1024]), 520);
}

/// Of one query a sequence, the bound is what the hungriest call needs.
#[test]
fn one_query_needs_no_less() {
    for (heads, head_dim, device, most) in [
        ((1, 1), 64, smallest(), [5, 1, 4096]),
        ((8, 8), 128, device(163, 108), [40, 1, 3000]),
        ((16, 2), 96, device(227, 132), [70, 1, 5000]),
    ] {
        let attention = layer(heads, head_dim);
        let batches = 1..=most[0];
        let keys = [128, 256, 640, 1024, 2048, most[2]];
        let all =
            batches.flat_map(|batch| keys.map(|k| needed(&attention, &device, [batch, 1, k])));
        let decode_alone = Plan::workspace_bytes_up_to(&attention, &device, most[0], 1, most[2]);
        // Parts and lists are largest in different calls.
        let hungriest = all.max().unwrap();
        assert!(hungriest <= decode_alone && decode_alone <= hungriest * 5 / 4);
    }
}

/// All calls of a small layer.
#[test]
fn every_smaller_call_fits() {
    let window = Attention::new(6, 2, 72)
        .window(Some(2500), Some(0))
        .build()
        .unwrap();
    for (attention, most) in [
        (layer((1, 1), 64), [3, 20, 3000]),
        (layer((4, 2), 256), [4, 33, 2600]),
        (layer((71, 1), 64), [3, 4, 2200]),
        (layer((6, 3), 8), [9, 3, 2100]),
        (window, [3, 9, 4000]),
    ] {
        for device in [smallest(), device(163, 3)] {
            let bound = up_to(&attention, &device, most);
            for batch in 0..=most[0] {
                for q in 0..=most[1] {
                    for k in (0..=most[2]).rev().step_by(50) {
                        let needed = needed(&attention, &device, [batch, q, k]);
                        assert!(needed <= bound, "{batch}, {q}, {k}: {needed}, not {bound}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any layer, any device, any sizes: every smaller call fits, and the bound of smaller sizes is no larger.
    #[test]
    fn the_bound_grows_with_every_size(
        heads in prop::sample::select(vec![(1, 1), (8, 8), (12, 4), (71, 1), (64, 8), (5, 5)]),
        head_dim in (1usize..=32).prop_map(|n| 8 * n),
        horizon in prop::sample::select(vec![Horizon::Off, Horizon::default(), Horizon::Bitwise]),
        window in (any::<bool>(), prop::option::of(0usize..5000), prop::option::of(0usize..5000)),
        shared in prop::sample::select(vec![99u32, 163, 227]),
        multiprocessors in 1u32..150,
        most in [1usize..60, 1usize..600, 1usize..20_000],
        parts in [0.0..=1.0, 0.0..=1.0, 0.0..=1.0],
        exact in [any::<bool>(), any::<bool>(), any::<bool>()],
    ) {
        let mask = if window.0 { Mask::Causal } else { Mask::Bidirectional };
        let attention = Attention::new(heads.0, heads.1, head_dim)
            .mask(mask)
            .window(window.1, window.2)
            .horizon(horizon)
            .build()
            .unwrap();
        let device = device(shared, multiprocessors);
        let smaller: Sizes = std::array::from_fn(|i| match exact[i] {
            true => most[i],
            false => (most[i] as f64 * parts[i]) as usize,
        });
        let bound = up_to(&attention, &device, most);
        let needed = needed(&attention, &device, smaller);
        prop_assert!(needed <= bound, "{smaller:?} of {most:?}: {needed}, not {bound}");
        prop_assert!(up_to(&attention, &device, smaller) <= bound);
    }
}

#[test]
fn a_device_without_kernels_needs_none() {
    let turing = Device {
        compute_capability: (7, 5),
        ..smallest()
    };
    assert_eq!(up_to(&layer((1, 1), 64), &turing, [9, 9, 9999]), 0);
}
