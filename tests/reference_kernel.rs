//! The reference kernel's PTX, executed on the CPU with every check on, against the f64 oracle.

use flash_alibi::cpu::{self, Element};
use flash_alibi::kernels::{self, AttentionParams, Params as _, TensorStrides};
use flash_alibi::{Attention, Inputs, Mask, Slopes, View};
use flash_alibi_testing::uniform;
use half::{bf16, f16};
use ptx_emulator::{DevicePtr, LaunchConfig, Memory, Module, Scalar};

/// A problem: sequences of (query rows, key rows, used key rows, left padding) in packed or dense tensors.
#[derive(Clone)]
struct Case {
    attention: Attention,
    sequences: Vec<[usize; 4]>,
    packed: bool,
}

fn random<T: Element>(n: usize, seed: u64) -> Vec<T> {
    let numbers = uniform(seed).map(|x| T::from_f32(2.0 * x));
    numbers.take(n).collect()
}

fn run<T: Element + Scalar>(name: &str, case: &Case, tolerance: f64) {
    let (attention, batch) = (&case.attention, case.sequences.len());
    let (heads_q, heads_k, d) = (
        attention.heads_q(),
        attention.heads_k(),
        attention.head_dim(),
    );
    let longest = |of: fn(&[usize; 4]) -> usize| case.sequences.iter().map(of).max().unwrap();
    let (max_q, max_k) = (longest(|s| s[0]), longest(|s| s[1]));
    let cumulative = |of: fn(&[usize; 4]) -> usize| -> Vec<i32> {
        let ends = case.sequences.iter().scan(0, |sum, s| {
            *sum += of(s) as i32;
            Some(*sum)
        });
        [0].into_iter().chain(ends).collect()
    };
    let (cu_q, cu_k) = (cumulative(|s| s[0]), cumulative(|s| s[1]));
    let used: Vec<i32> = case.sequences.iter().map(|s| s[2] as i32).collect();
    let leftpad: Vec<i32> = case.sequences.iter().map(|s| s[3] as i32).collect();
    let rows_q = if case.packed {
        cu_q[batch] as usize
    } else {
        batch * max_q
    };
    let rows_k = if case.packed {
        cu_k[batch] as usize
    } else {
        batch * max_k
    };

    let q: Vec<T> = random(rows_q * heads_q * d, 1);
    let (mut k, mut v): (Vec<T>, Vec<T>) = (
        random(rows_k * heads_k * d, 2),
        random(rows_k * heads_k * d, 3),
    );
    // What no query may see is poison.
    for (b, &[_, n, used, leftpad]) in case.sequences.iter().enumerate() {
        let start = if case.packed {
            cu_k[b] as usize
        } else {
            b * max_k
        };
        for j in (0..leftpad).chain(used..n) {
            let row = (start + j) * heads_k * d..(start + j + 1) * heads_k * d;
            k[row.clone()].fill(T::from_f32(f32::NAN));
            v[row].fill(T::from_f32(f32::NAN));
        }
    }
    let shape = |rows: usize, heads: usize| match case.packed {
        true => vec![rows, heads, d],
        false => vec![batch, rows / batch, heads, d],
    };
    let view = |data, shape: &[usize]| View::new(data, shape).unwrap();
    let mut inputs = Inputs::new(
        view(&q, &shape(rows_q, heads_q)),
        view(&k, &shape(rows_k, heads_k)),
        view(&v, &shape(rows_k, heads_k)),
    )
    .seqused_k(&used)
    .leftpad_k(&leftpad);
    if case.packed {
        inputs = inputs.varlen(&cu_q, &cu_k);
    }
    let expected = cpu::oracle::attend(attention, &inputs).unwrap();

    let memory = Memory::new();
    fn put<P: Scalar>(memory: &Memory, data: &[P]) -> DevicePtr {
        memory.upload(data).unwrap()
    }
    let out = memory.alloc((q.len() * size_of::<T>()) as u64).unwrap();
    let lse = memory.alloc((expected.lse.len() * 4) as u64).unwrap();
    let strides = |rows: usize, heads: usize| TensorStrides {
        batch: if case.packed {
            0
        } else {
            (rows / batch * heads * d) as i64
        },
        row: (heads * d) as i64,
        head: d as i64,
    };
    let window = |side: Option<usize>| side.map_or(-1, |n| n as i64);
    let params = AttentionParams {
        q: put(&memory, &q).0,
        k: put(&memory, &k).0,
        v: put(&memory, &v).0,
        out: out.0,
        lse: lse.0,
        slopes: put(&memory, attention.slopes().as_slice()).0,
        cu_seqlens_q: if case.packed {
            put(&memory, &cu_q).0
        } else {
            0
        },
        cu_seqlens_k: if case.packed {
            put(&memory, &cu_k).0
        } else {
            0
        },
        seqused_k: put(&memory, &used).0,
        leftpad_k: put(&memory, &leftpad).0,
        q_strides: strides(rows_q, heads_q),
        k_strides: strides(rows_k, heads_k),
        v_strides: strides(rows_k, heads_k),
        out_strides: strides(rows_q, heads_q),
        lse_batch_stride: if case.packed {
            0
        } else {
            (heads_q * max_q) as i64
        },
        lse_head_stride: if case.packed {
            rows_q as i64
        } else {
            max_q as i64
        },
        slopes_batch_stride: attention.slopes().batch().map_or(0, |_| heads_q as i64),
        seqlen_q: max_q as i32,
        seqlen_k: max_k as i32,
        rows_q: if case.packed { rows_q } else { max_q } as i32,
        rows_k: if case.packed { rows_k } else { max_k } as i32,
        batch: batch as i32,
        heads_q: heads_q as i32,
        group: attention.group() as i32,
        head_dim: d as i32,
        window_left: window(attention.window_left()),
        window_right: window(attention.window_right()),
        scale: attention.scale(),
        softcap: attention.softcap().unwrap_or(0.0),
        splits: 1,
        ..AttentionParams::default()
    };
    let module = Module::parse(kernels::named("tests/reference").unwrap().ptx).unwrap();
    let grid = (max_q.div_ceil(4) as u32, heads_q as u32, batch as u32);
    let config = LaunchConfig::new(grid, (128, 1, 1)).seed(7);
    if let Err(fault) = module.launch(&memory, name, &config, params.bytes()) {
        panic!("{name}: {fault}");
    }

    let out: Vec<T> = memory.download(out, q.len()).unwrap();
    let lse: Vec<f32> = memory.download(lse, expected.lse.len()).unwrap();
    let largest = expected.out.iter().fold(0f64, |max, x| max.max(x.abs()));
    for (i, (found, expected)) in out.iter().zip(&expected.out).enumerate() {
        let error = (f64::from(found.to_f32()) - expected).abs();
        assert!(
            error <= tolerance * largest,
            "{name}, out[{i}]: {found:?}, {expected}"
        );
    }
    for (i, (found, expected)) in lse.iter().zip(&expected.lse).enumerate() {
        let same = f64::from(*found) == *expected || (f64::from(*found) - expected).abs() <= 1e-4;
        assert!(same, "{name}, lse[{i}]: {found}, {expected}");
    }
}

fn cases() -> Vec<Case> {
    let layer = |heads_q, heads_k, d| Attention::new(heads_q, heads_k, d);
    let case = |attention: flash_alibi::AttentionBuilder, sequences: &[[usize; 4]], packed| Case {
        attention: attention.build().unwrap(),
        sequences: sequences.to_vec(),
        packed,
    };
    vec![
        case(layer(2, 2, 64), &[[33, 33, 33, 0]], false),
        // Grouped heads, lengths in use, padding on the left.
        case(
            layer(6, 2, 80),
            &[[5, 40, 40, 0], [5, 40, 17, 9], [5, 40, 3, 3]],
            false,
        ),
        // More queries than keys: the first rows see nothing. Slopes of each sequence.
        case(
            layer(2, 1, 8)
                .slopes(Slopes::per_batch_and_head(&[0.5, 0.0, -0.1, 2.0], 2, 2).unwrap()),
            &[[9, 4, 4, 0], [9, 4, 0, 0]],
            false,
        ),
        case(
            layer(2, 2, 40)
                .mask(Mask::Bidirectional)
                .window(Some(6), Some(3)),
            &[[12, 20, 20, 0]],
            false,
        ),
        case(
            layer(2, 2, 112).softcap(1.5).scale(-0.2),
            &[[3, 18, 18, 0]],
            false,
        ),
        // Packed, with sequences of no queries and of no keys.
        case(
            layer(4, 2, 256),
            &[[3, 7, 7, 0], [0, 5, 5, 0], [2, 0, 0, 0], [6, 6, 5, 1]],
            true,
        ),
    ]
}

#[test]
fn keeps_the_contract_under_the_emulator() {
    for case in cases() {
        run::<f32>("reference_f32", &case, 1e-5);
        run::<f16>("reference_f16", &case, 2e-3);
        run::<bf16>("reference_bf16", &case, 1.6e-2);
    }
}
