//! Every error that the crate returns, with its whole message; that nothing is written then; and that no argument, however
//! extreme, makes it panic.

use flash_alibi::cpu::{self, oracle};
use flash_alibi::{
    Attention, AttentionBuilder, Error, Inputs, Layout, Mask, Slopes, View, ViewMut,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Asserts a whole message.
#[track_caller]
fn says<T: std::fmt::Debug>(result: Result<T, Error>, message: &str) {
    assert_eq!(result.expect_err("an error").to_string(), message);
}

fn layer(heads_q: usize, heads_k: usize, head_dim: usize) -> AttentionBuilder {
    Attention::new(heads_q, heads_k, head_dim)
}

#[test]
fn of_a_layer() {
    for (builder, message) in [
        (layer(4, 0, 64), "heads_k: found 0, expected at least 1"),
        (
            layer(0, 2, 64),
            "heads_q: found 0, expected a positive multiple of heads_k = 2",
        ),
        (
            layer(5, 2, 64),
            "heads_q: found 5, expected a positive multiple of heads_k = 2",
        ),
        (
            layer(2, 4, 64),
            "heads_q: found 2, expected a positive multiple of heads_k = 4",
        ),
        (
            layer(4, 2, 0),
            "head_dim: found 0, expected a multiple of 8 from 8 to 512",
        ),
        (
            layer(4, 2, 60),
            "head_dim: found 60, expected a multiple of 8 from 8 to 512",
        ),
        (
            layer(4, 2, 520),
            "head_dim: found 520, expected a multiple of 8 from 8 to 512",
        ),
        (
            layer(4, 2, 64).scale(f32::NAN),
            "scale: found NaN, expected a finite number",
        ),
        (
            layer(4, 2, 64).scale(f32::INFINITY),
            "scale: found inf, expected a finite number",
        ),
        (
            layer(4, 2, 64).softcap(0.0),
            "softcap: found 0, expected a positive finite number",
        ),
        (
            layer(4, 2, 64).softcap(-1.5),
            "softcap: found -1.5, expected a positive finite number",
        ),
        (
            layer(4, 2, 64).softcap(f32::INFINITY),
            "softcap: found inf, expected a positive finite number",
        ),
        (
            layer(4, 2, 64).softcap(f32::NAN),
            "softcap: found NaN, expected a positive finite number",
        ),
        (
            layer(4, 2, 64).slopes(Slopes::geometric(8)),
            "slopes: found 8 heads, expected heads_q = 4",
        ),
        (
            layer(4, 2, 64).slopes(Slopes::per_head(&[1.0, 0.5, f32::NAN, 0.1])),
            "slopes: found NaN at index 2, expected finite numbers",
        ),
        (
            layer(2, 1, 64).slopes(Slopes::per_head(&[1.0, f32::NEG_INFINITY])),
            "slopes: found -inf at index 1, expected finite numbers",
        ),
        (
            layer(1 << 20, 1, 64),
            "heads_q: found 1048576, expected at most 65536",
        ),
        (
            layer(usize::MAX, 1, 64),
            "heads_q: found 18446744073709551615, expected at most 65536",
        ),
    ] {
        says(builder.build(), message);
    }
    // The limits themselves are fine.
    assert!(layer(1 << 16, 1, 256).build().is_ok());
    assert!(
        layer(4, 2, 8)
            .scale(-0.0)
            .softcap(f32::MIN_POSITIVE)
            .build()
            .is_ok()
    );
}

#[test]
fn of_slopes() {
    says(
        Slopes::per_batch_and_head(&[0.0; 5], 2, 3),
        "slopes: found 5 elements, expected batch * heads = 2 * 3",
    );
    says(
        Slopes::geometric(8).head_range(4..9),
        "heads: found 4..9, expected a range within 0..8",
    );
    // A variable: clippy knows that a literal range of this kind is empty.
    let reversed = std::ops::Range { start: 5, end: 3 };
    says(
        Slopes::geometric(8).head_range(reversed),
        "heads: found 5..3, expected a range within 0..8",
    );
}

#[test]
fn of_views() {
    let data = [0f32; 100];
    let view = |shape: &[usize]| View::new(&data, shape);
    let strided = |shape: &[usize], strides: &[usize]| View::strided(&data, shape, strides);
    let rank = "expected [batch, seqlen, heads, head_dim] or [total, heads, head_dim]";
    says(view(&[]), &format!("shape: found shape [], {rank}"));
    says(view(&[2, 8]), &format!("shape: found shape [2, 8], {rank}"));
    says(
        view(&[1, 1, 1, 1, 8]),
        &format!("shape: found shape [1, 1, 1, 1, 8], {rank}"),
    );
    says(
        view(&[2, 3, 4, 8]),
        "data: found 100 elements, expected at least 192 for shape [2, 3, 4, 8] and strides [96, 32, 8, 1]",
    );
    says(
        view(&[13, 1, 8]),
        "data: found 100 elements, expected at least 104 for shape [13, 1, 8] and strides [8, 8, 1]",
    );
    says(
        strided(&[2, 1, 8], &[93, 8, 1]),
        "data: found 100 elements, expected at least 101 for shape [2, 1, 8] and strides [93, 8, 1]",
    );
    assert!(strided(&[2, 1, 8], &[92, 8, 1]).is_ok());
    let strides = "expected one stride a dimension, the last of them 1";
    says(
        strided(&[2, 1, 8], &[8, 8]),
        &format!("strides: found strides [8, 8], {strides}"),
    );
    says(
        strided(&[2, 1, 8], &[16, 8, 8, 1]),
        &format!("strides: found strides [16, 8, 8, 1], {strides}"),
    );
    says(
        strided(&[2, 1, 8], &[16, 16, 2]),
        &format!("strides: found strides [16, 16, 2], {strides}"),
    );
    says(
        strided(&[1, 2, 1, 8], &[8, 8, 1]),
        &format!("strides: found strides [8, 8, 1], {strides}"),
    );
    let most = usize::MAX;
    says(
        strided(&[3, 1, 8], &[most, 8, 1]),
        &format!("strides: found strides [{most}, 8, 1], expected offsets below 2^63"),
    );
    says(
        view(&[most, 2, 8]),
        &format!("shape: found shape [{most}, 2, 8], expected offsets below 2^63"),
    );

    says(
        Layout::new("k", &[8], &[1]),
        &format!("k: found shape [8], {rank}"),
    );
    says(
        Layout::new("k", &[2, 1, 8], &[8, 8, 0]),
        &format!("k: found strides [8, 8, 0], {strides}"),
    );
    says(
        Layout::contiguous("k", &[1 << 32, 1 << 30, 1, 8]),
        "k: found strides [8589934592, 8, 8, 1], expected offsets below 2^63",
    );

    let mut data = [0f32; 100];
    says(
        ViewMut::new(&mut data, &[2, 8]).map(|_| ()),
        &format!("shape: found shape [2, 8], {rank}"),
    );
    says(
        ViewMut::new(&mut data, &[13, 1, 8]).map(|_| ()),
        "data: found 100 elements, expected at least 104 for shape [13, 1, 8] and strides [8, 8, 1]",
    );
    says(
        ViewMut::strided(&mut data, &[2, 1, 8], &[8, 8, 2]).map(|_| ()),
        &format!("strides: found strides [8, 8, 2], {strides}"),
    );
    let apart = "expected strides that keep the output's elements apart";
    for (shape, strides) in [
        (vec![2, 1, 8], vec![0, 8, 1]),  // broadcast
        (vec![2, 1, 8], vec![7, 8, 1]),  // rows overlap by one
        (vec![2, 3, 8], vec![16, 8, 1]), // the third head is the next row's first
        (vec![2, 2, 2, 8], vec![16, 16, 8, 1]),
    ] {
        says(
            ViewMut::strided(&mut data, &shape, &strides).map(|_| ()),
            &format!("strides: found strides {strides:?}, {apart}"),
        );
    }
    // A dimension of one may have any stride; an empty tensor any strides.
    assert!(ViewMut::strided(&mut data, &[1, 2, 8], &[0, 8, 1]).is_ok());
    assert!(ViewMut::strided(&mut data, &[0, 2, 8], &[0, 0, 1]).is_ok());
}

/// The arguments of a call. The default fits: batch 2, 3 queries, 5 keys, heads 4 and 2, head_dim 8; `packed`: the same
/// rows as two sequences of 2 and 4 queries, 3 and 7 keys.
#[derive(Clone)]
struct Call {
    attention: Attention,
    q: Vec<usize>,
    k: Vec<usize>,
    v: Vec<usize>,
    out: Vec<usize>,
    lse: usize,
    cu_seqlens: Option<(Vec<i32>, Vec<i32>)>,
    seqused_k: Option<Vec<i32>>,
    leftpad_k: Option<Vec<i32>>,
}

impl Call {
    fn dense() -> Self {
        Self {
            attention: layer(4, 2, 8).build().unwrap(),
            q: vec![2, 3, 4, 8],
            k: vec![2, 5, 2, 8],
            v: vec![2, 5, 2, 8],
            out: vec![2, 3, 4, 8],
            lse: 24,
            cu_seqlens: None,
            seqused_k: None,
            leftpad_k: None,
        }
    }

    fn packed() -> Self {
        Self {
            q: vec![6, 4, 8],
            k: vec![10, 2, 8],
            v: vec![10, 2, 8],
            out: vec![6, 4, 8],
            cu_seqlens: Some((vec![0, 2, 6], vec![0, 3, 10])),
            ..Self::dense()
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn cu(self, q: &[i32], k: &[i32]) -> Self {
        self.with(|call| call.cu_seqlens = Some((q.to_vec(), k.to_vec())))
    }

    /// Calls everything that takes these arguments.
    fn run(&self) -> Result<(), Error> {
        let len = |shape: &[usize]| shape.iter().product::<usize>();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|shape| vec![1f32; len(shape)]);
        let view = |data, shape| View::new(data, shape).unwrap();
        let mut inputs = Inputs::new(view(&q, &self.q), view(&k, &self.k), view(&v, &self.v));
        if let Some((q, k)) = &self.cu_seqlens {
            inputs = inputs.varlen(q, k);
        }
        if let Some(lengths) = &self.seqused_k {
            inputs = inputs.seqused_k(lengths);
        }
        if let Some(lengths) = &self.leftpad_k {
            inputs = inputs.leftpad_k(lengths);
        }
        let mut out = vec![-7f32; len(&self.out)];
        let mut lse = vec![-7f32; self.lse];
        let view = ViewMut::new(&mut out, &self.out).unwrap();
        let result = cpu::attend_into(&self.attention, &inputs, view, Some(&mut lse));
        let written = out.iter().chain(&lse).any(|&x| x != -7.0);
        assert_eq!(written, result.is_ok(), "nothing is written on an error");

        // What is wrong with the inputs is wrong everywhere.
        let about_outputs = |e: &Error| {
            ["out:", "lse:"]
                .iter()
                .any(|s| e.to_string().starts_with(s))
        };
        let inputs_result = match &result {
            Err(e) if about_outputs(e) => Ok(()),
            other => other.clone(),
        };
        assert_eq!(
            cpu::attend(&self.attention, &inputs).map(|_| ()),
            inputs_result
        );
        assert_eq!(
            oracle::attend(&self.attention, &inputs).map(|_| ()),
            inputs_result
        );
        result
    }
}

#[test]
fn of_a_call() {
    Call::dense().run().unwrap();
    Call::packed().run().unwrap();
    let dense = |change: &dyn Fn(&mut Call)| Call::dense().with(change);
    let packed = |change: &dyn Fn(&mut Call)| Call::packed().with(change);
    let per_batch = |batch| {
        let slopes = Slopes::per_batch_and_head(&vec![0.5; batch * 4], batch, 4).unwrap();
        layer(4, 2, 8).slopes(slopes).build().unwrap()
    };
    let errors = [
        // Shapes, dense.
        (
            dense(&|c| c.q = vec![2, 3, 5, 8]),
            "q: found shape [2, 3, 5, 8], expected [batch, seqlen_q, 4, 8]",
        ),
        (
            dense(&|c| c.q = vec![2, 3, 4, 16]),
            "q: found shape [2, 3, 4, 16], expected [batch, seqlen_q, 4, 8]",
        ),
        (
            dense(&|c| c.q = vec![6, 4, 8]),
            "q: found shape [6, 4, 8], expected [batch, seqlen_q, 4, 8]",
        ),
        (
            dense(&|c| c.k = vec![3, 5, 2, 8]),
            "k: found shape [3, 5, 2, 8], expected [2, seqlen_k, 2, 8]",
        ),
        (
            dense(&|c| c.k = vec![2, 5, 4, 8]),
            "k: found shape [2, 5, 4, 8], expected [2, seqlen_k, 2, 8]",
        ),
        (
            dense(&|c| c.k = vec![2, 5, 2, 16]),
            "k: found shape [2, 5, 2, 16], expected [2, seqlen_k, 2, 8]",
        ),
        (
            dense(&|c| c.k = vec![10, 2, 8]),
            "k: found shape [10, 2, 8], expected [2, seqlen_k, 2, 8]",
        ),
        (
            dense(&|c| c.v = vec![2, 6, 2, 8]),
            "v: found shape [2, 6, 2, 8], expected [2, 5, 2, 8]",
        ),
        (
            dense(&|c| c.v = vec![1, 5, 2, 8]),
            "v: found shape [1, 5, 2, 8], expected [2, 5, 2, 8]",
        ),
        (
            dense(&|c| c.v = vec![2, 5, 1, 8]),
            "v: found shape [2, 5, 1, 8], expected [2, 5, 2, 8]",
        ),
        (
            dense(&|c| c.v = vec![2, 5, 2, 16]),
            "v: found shape [2, 5, 2, 16], expected [2, 5, 2, 8]",
        ),
        (
            dense(&|c| c.v = vec![10, 2, 8]),
            "v: found shape [10, 2, 8], expected [2, 5, 2, 8]",
        ),
        (
            dense(&|c| c.out = vec![2, 4, 4, 8]),
            "out: found shape [2, 4, 4, 8], expected [2, 3, 4, 8]",
        ),
        (
            dense(&|c| c.out = vec![1, 3, 4, 8]),
            "out: found shape [1, 3, 4, 8], expected [2, 3, 4, 8]",
        ),
        (
            dense(&|c| c.out = vec![2, 3, 2, 8]),
            "out: found shape [2, 3, 2, 8], expected [2, 3, 4, 8]",
        ),
        (
            dense(&|c| c.out = vec![2, 3, 4, 16]),
            "out: found shape [2, 3, 4, 16], expected [2, 3, 4, 8]",
        ),
        (
            dense(&|c| c.out = vec![6, 4, 8]),
            "out: found shape [6, 4, 8], expected [2, 3, 4, 8]",
        ),
        (
            dense(&|c| c.lse = 23),
            "lse: found 23 elements, expected 24 for [batch, heads_q, seqlen_q] = [2, 4, 3]",
        ),
        (
            dense(&|c| c.lse = 25),
            "lse: found 25 elements, expected 24 for [batch, heads_q, seqlen_q] = [2, 4, 3]",
        ),
        // Shapes, packed.
        (
            packed(&|c| c.q = vec![1, 6, 4, 8]),
            "q: found shape [1, 6, 4, 8], expected [total_q, 4, 8]",
        ),
        (
            packed(&|c| c.q = vec![6, 2, 8]),
            "q: found shape [6, 2, 8], expected [total_q, 4, 8]",
        ),
        (
            packed(&|c| c.k = vec![1, 10, 2, 8]),
            "k: found shape [1, 10, 2, 8], expected [total_k, 2, 8]",
        ),
        (
            packed(&|c| c.v = vec![11, 2, 8]),
            "v: found shape [11, 2, 8], expected [10, 2, 8]",
        ),
        (
            packed(&|c| c.out = vec![7, 4, 8]),
            "out: found shape [7, 4, 8], expected [6, 4, 8]",
        ),
        (
            packed(&|c| c.lse = 6),
            "lse: found 6 elements, expected 24 for [heads_q, total_q] = [4, 6]",
        ),
        // Cumulative lengths.
        (
            Call::packed().cu(&[], &[0, 3, 10]),
            "cu_seqlens_q: found 0 elements, expected batch + 1, at least 1",
        ),
        (
            Call::packed().cu(&[0, 2, 6], &[]),
            "cu_seqlens_k: found 0 elements, expected batch + 1, at least 1",
        ),
        (
            Call::packed().cu(&[1, 2, 6], &[0, 3, 10]),
            "cu_seqlens_q: found 1 at index 0, expected 0",
        ),
        (
            Call::packed().cu(&[0, 2, 6], &[-1, 3, 10]),
            "cu_seqlens_k: found -1 at index 0, expected 0",
        ),
        (
            Call::packed().cu(&[0, 4, 3], &[0, 3, 10]),
            "cu_seqlens_q: found 3 at index 2, expected at least 4, its predecessor",
        ),
        (
            Call::packed().cu(&[0, 2, 6], &[0, -3, 10]),
            "cu_seqlens_k: found -3 at index 1, expected at least 0, its predecessor",
        ),
        (
            Call::packed().cu(&[0, i32::MIN, 6], &[0, 3, 10]),
            "cu_seqlens_q: found -2147483648 at index 1, expected at least 0, its predecessor",
        ),
        (
            Call::packed().cu(&[0, 2, 7], &[0, 3, 10]),
            "cu_seqlens_q: found 7 at index 2, expected at most the 6 rows of the tensor",
        ),
        (
            Call::packed().cu(&[0, 2, 6], &[0, 3, i32::MAX]),
            "cu_seqlens_k: found 2147483647 at index 2, expected at most the 10 rows of the tensor",
        ),
        (
            Call::packed().cu(&[0, 2, 6], &[0, 3, 5, 10]),
            "cu_seqlens_k: found 4 elements, expected 3, as for q",
        ),
        (
            Call::packed().cu(&[0, 2, 6], &[0, 3]),
            "cu_seqlens_k: found 2 elements, expected 3, as for q",
        ),
        // Slopes of a batch.
        (
            dense(&|c| c.attention = per_batch(3)),
            "slopes: found 3 sequences, expected batch = 2",
        ),
        (
            packed(&|c| c.attention = per_batch(1)),
            "slopes: found 1 sequences, expected batch = 2",
        ),
        // Lengths.
        (
            dense(&|c| c.seqused_k = Some(vec![5])),
            "seqused_k: found 1 elements, expected batch = 2",
        ),
        (
            dense(&|c| c.seqused_k = Some(vec![5, 6])),
            "seqused_k: found 6 at index 1, expected 0 to seqlen_k = 5",
        ),
        (
            dense(&|c| c.seqused_k = Some(vec![-1, 5])),
            "seqused_k: found -1 at index 0, expected 0 to seqlen_k = 5",
        ),
        (
            packed(&|c| c.seqused_k = Some(vec![3, 8])),
            "seqused_k: found 8 at index 1, expected 0 to seqlen_k = 7",
        ),
        (
            packed(&|c| c.seqused_k = Some(vec![i32::MIN, 7])),
            "seqused_k: found -2147483648 at index 0, expected 0 to seqlen_k = 3",
        ),
        (
            dense(&|c| c.leftpad_k = Some(vec![0, 0, 0])),
            "leftpad_k: found 3 elements, expected batch = 2",
        ),
        (
            dense(&|c| c.leftpad_k = Some(vec![0, 6])),
            "leftpad_k: found 6 at index 1, expected 0 to seqlen_k = 5",
        ),
        (
            dense(&|c| c.leftpad_k = Some(vec![-2, 0])),
            "leftpad_k: found -2 at index 0, expected 0 to seqlen_k = 5",
        ),
        (
            // The padding is part of the rows in use.
            dense(&|c| {
                c.seqused_k = Some(vec![5, 2]);
                c.leftpad_k = Some(vec![0, 3]);
            }),
            "leftpad_k: found 3 at index 1, expected 0 to seqlen_k = 2",
        ),
    ];
    for (call, message) in errors {
        says(call.run(), message);
    }
}

#[test]
fn of_an_output_that_no_memory_holds() {
    // Strides of 0 let a few elements stand for a q of any size; its output would need them all.
    let attention = layer(1, 1, 8).build().unwrap();
    let row = [1f32; 8];
    let q = View::strided(&row, &[1 << 58, 1, 1, 8], &[0, 0, 0, 1]).unwrap();
    let k = View::strided(&row, &[1 << 58, 1, 1, 8], &[0, 0, 0, 1]).unwrap();
    let message =
        "q: found shape [288230376151711744, 1, 1, 8], expected one whose output fits in memory";
    says(cpu::attend(&attention, &Inputs::new(q, k, k)), message);
    says(oracle::attend(&attention, &Inputs::new(q, k, k)), message);

    // Without rows there is nothing to compute and nothing to hold, for any batch.
    let q = View::strided(&row, &[1 << 60, 0, 1, 8], &[0, 0, 0, 1]).unwrap();
    let k = View::strided(&row, &[1 << 60, 1, 1, 8], &[0, 0, 0, 1]).unwrap();
    let inputs = Inputs::new(q, k, k);
    assert!(cpu::attend(&attention, &inputs).unwrap().out.is_empty());
    let out = ViewMut::new(&mut [], &[1 << 60, 0, 1, 8]).unwrap();
    cpu::attend_into(&attention, &inputs, out, Some(&mut [])).unwrap();
}

#[test]
fn nothing_extreme_panics() {
    // The widest windows.
    for mask in [Mask::Causal, Mask::Bidirectional] {
        for window in [
            (Some(usize::MAX), Some(usize::MAX)),
            (Some(0), Some(0)),
            (None, Some(usize::MAX)),
        ] {
            let attention = layer(4, 2, 8)
                .mask(mask)
                .window(window.0, window.1)
                .build()
                .unwrap();
            Call::dense()
                .with(|c| c.attention = attention)
                .run()
                .unwrap();
        }
    }
    // The largest finite numbers: results may overflow, nothing more.
    for x in [f32::MAX, f32::MIN, f32::MIN_POSITIVE] {
        let slopes = Slopes::per_head(&[x, -x, x, -x]);
        let attention = layer(4, 2, 8)
            .scale(x)
            .slopes(slopes)
            .softcap(x.abs())
            .build()
            .unwrap();
        Call::dense()
            .with(|c| c.attention = attention)
            .run()
            .unwrap();
    }
    // A tensor without elements may have any strides, whatever the number of sequences.
    let (attention, data, most) = (layer(1, 1, 8).build().unwrap(), [1f32; 40], usize::MAX);
    let q = View::new(&data, &[5, 1, 1, 8]).unwrap();
    let k = View::strided(&data, &[5, 0, 1, 8], &[most, most, most, 1]).unwrap();
    let output = cpu::attend(&attention, &Inputs::new(q, k, k)).unwrap();
    assert_eq!(output.lse, [f32::NEG_INFINITY; 5]);
    // A dimension of one may have any stride; a sequence that starts past the last row has no rows.
    let row = View::strided(&data, &[1, 1, 8], &[most, most, 1]).unwrap();
    let inputs = Inputs::new(row, row, row).varlen(&[0, 1, 1], &[0, 1, 1]);
    assert_eq!(cpu::attend(&attention, &inputs).unwrap().out, [1.0; 8]);
    let inputs = Inputs::new(row, row, row).varlen(&[0, 0, 1], &[0, 1, 1]);
    assert_eq!(
        cpu::attend(&attention, &inputs).unwrap().lse,
        [f32::NEG_INFINITY]
    );
}

fn size() -> impl Strategy<Value = usize> {
    let extreme = vec![
        usize::MAX,
        usize::MAX / 2,
        1 << 63,
        1 << 60,
        1 << 32,
        u32::MAX as usize,
    ];
    prop_oneof![4 => 0usize..4, 1 => Just(8usize), 2 => select(extreme)]
}

fn lengths() -> impl Strategy<Value = Vec<i32>> {
    let length = prop_oneof![3 => 0i32..4, 1 => select(vec![i32::MIN, i32::MAX, -1])];
    prop::collection::vec(length, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_arguments_panic(
        heads in (size(), size(), size()),
        sizes in prop::collection::vec(size(), 0..6),
        strides in prop::collection::vec(size(), 0..6),
        [cu_q, cu_k, used, pad] in [lengths(), lengths(), lengths(), lengths()],
        (packed, use_used, use_pad) in any::<(bool, bool, bool)>(),
        window in (proptest::option::of(size()), proptest::option::of(size())),
    ) {
        // Errors are as good as results here.
        let _ = layer(heads.0, heads.1, heads.2).window(window.0, window.1).build();
        let _ = Slopes::per_batch_and_head(&[0.5; 4], heads.0, heads.1);
        let _ = Slopes::geometric(4).head_range(heads.0..heads.1);
        let _ = Layout::contiguous("q", &sizes);
        let _ = Layout::new("q", &sizes, &strides).map(|l| (l.elements(), l.span(), l.shape(), l.strides()));
        let mut data = [0.5f32; 64];
        let _ = ViewMut::new(&mut data, &sizes).map(|v| v.layout());
        let _ = ViewMut::strided(&mut data, &sizes, &strides).map(|v| v.layout());

        // Calls whose work is small: any sizes of batch and strides, few rows.
        let attention = layer(2, 1, 8).window(window.0, window.1).build().unwrap();
        let few = |n: usize| n.min(3);
        let (shape_q, shape_k) = match packed {
            true => (vec![few(heads.0), 2, 8], vec![few(heads.1), 1, 8]),
            false => (vec![few(heads.2), few(heads.0), 2, 8], vec![few(heads.2), few(heads.1), 1, 8]),
        };
        let mut strides = strides;
        strides.resize(shape_q.len() - 1, 0);
        strides.push(1);
        let data = [0.5f32; 64];
        let view = |shape: &[usize]| View::strided(&data, shape, &strides).or_else(|_| View::new(&data, shape));
        if let (Ok(q), Ok(k)) = (view(&shape_q), view(&shape_k)) {
            let mut inputs = Inputs::new(q, k, k);
            if packed {
                inputs = inputs.varlen(&cu_q, &cu_k);
            }
            if use_used {
                inputs = inputs.seqused_k(&used);
            }
            if use_pad {
                inputs = inputs.leftpad_k(&pad);
            }
            let _ = cpu::attend(&attention, &inputs);
            let _ = oracle::attend(&attention, &inputs);
        }
    }
}
