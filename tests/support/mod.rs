//! Attention problems as tests describe them, laid out in memory in every way that the crate accepts, and checked.
//!
//! A [`Case`] says which sequences there are and how they lie in the buffers. [`Case::lay_out`] makes the buffers, in
//! which everything that belongs to no sequence is NaN or infinite, and the same sequences [alone](Sequence), from which
//! the oracle takes the reference: so a mistake in finding the rows of a sequence shows, though the oracle and the fast
//! path share that code.
#![allow(dead_code)] // Each test file uses a part.

use std::fmt::Debug;
use std::sync::Arc;

use flash_alibi::cpu::{self, Element, oracle};
use flash_alibi::cuda;
use flash_alibi::cuda::cudarc::driver::CudaStream;
use flash_alibi::{Attention, Horizon, Inputs, Layout, Mask, Slopes, View, ViewMut};

#[path = "../../examples/check_golden/accuracy.rs"]
pub mod accuracy;
#[path = "../../examples/check_golden/device.rs"]
pub mod device;
#[path = "../../examples/check_golden/emulator.rs"]
pub mod emulator;
pub mod horizon;
pub mod matrix;
pub mod paged;
pub mod strategy;

use accuracy::{Accuracy, LSE_LIMIT, Sequence, low_precision, sees};
use emulator::{Attended, Failure, OnDevice, Placed, Planner, Problem};
use ptx_emulator::Report;

/// Random numbers by position: the value of an element does not depend on how the tensor is laid out.
pub fn random(seed: u64, tag: u64, index: [usize; 4]) -> f32 {
    let mut x = seed ^ tag.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for i in index {
        x = splitmix(x ^ (i as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
    }
    // The sum of four uniform numbers is close to normal; this one has variance 1.
    let sum: u64 = (0..4).map(|part| x >> (16 * part) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
}

fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One sequence of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lengths {
    pub q: usize,
    /// Key rows in use, those of the left padding included.
    pub k: usize,
    /// The first of them that are padding; at most `k`.
    pub leftpad: usize,
    /// Key rows past those in use.
    pub unused: usize,
}

/// How slopes are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SlopeKind {
    Geometric,
    Zero,
    /// The same for all heads.
    All(f32),
    /// Random of either sign, up to about this size, some of them zero; one per head.
    PerHead(f32),
    /// Likewise, one per sequence and head.
    PerSequence(f32),
}

/// Where a tensor's elements lie in its buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The order of batch, rows and heads, outermost first: one of the six permutations. 0 is the order of the shape.
    pub order: usize,
    /// Elements between one index and the next beyond what lies within, for batch, rows and heads.
    pub gaps: [usize; 3],
    /// Where the first element lies.
    pub offset: usize,
    /// Which of batch, rows and heads have a stride of 0. Outputs ignore it.
    pub broadcast: [bool; 3],
}

#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub heads_k: usize,
    /// Query heads per key head.
    pub group: usize,
    pub head_dim: usize,
    pub scale: Option<f32>,
    pub softcap: Option<f32>,
    pub slopes: SlopeKind,
    pub mask: Mask,
    pub window: (Option<usize>, Option<usize>),
    pub horizon: Horizon,
    /// Dense cases have the same `q` in all.
    pub sequences: Vec<Lengths>,
    pub packed: bool,
    /// Of q, k, v and out.
    pub memory: [Memory; 4],
    /// What q is multiplied by.
    pub amplitude: f32,
    pub seed: u64,
}

impl Case {
    /// `batch` sequences of the same lengths, causal, with geometric slopes, no padding and no gaps.
    pub fn dense(batch: usize, q: usize, k: usize, heads: (usize, usize), head_dim: usize) -> Self {
        let lengths = Lengths {
            q,
            k,
            ..Lengths::default()
        };
        Self {
            heads_k: heads.1,
            group: heads.0 / heads.1,
            head_dim,
            scale: None,
            softcap: None,
            slopes: SlopeKind::Geometric,
            mask: Mask::Causal,
            window: (None, None),
            horizon: Horizon::default(),
            sequences: vec![lengths; batch],
            packed: false,
            memory: [Memory::default(); 4],
            amplitude: 1.0,
            seed: 1,
        }
    }

    pub fn heads_q(&self) -> usize {
        self.heads_k * self.group
    }

    /// The keys of the longest sequence.
    pub fn seqlen_k(&self) -> usize {
        self.sequences.iter().map(|s| s.k).max().unwrap_or(0)
    }

    fn slope(&self, b: usize, head: usize) -> f32 {
        let random = |b, size| match random(self.seed, 9, [b, head, 0, 0]) {
            x if x.abs() < 0.2 => 0.0,
            x => x * size / 2.0,
        };
        match self.slopes {
            SlopeKind::Geometric => Slopes::geometric(self.heads_q()).get(0, head),
            SlopeKind::Zero => 0.0,
            SlopeKind::All(slope) => slope,
            SlopeKind::PerHead(size) => random(0, size),
            SlopeKind::PerSequence(size) => random(b, size),
        }
    }

    fn build(&self, slopes: Slopes) -> Attention {
        let mut builder = Attention::new(self.heads_q(), self.heads_k, self.head_dim)
            .slopes(slopes)
            .mask(self.mask)
            .window(self.window.0, self.window.1)
            .horizon(self.horizon);
        if let Some(scale) = self.scale {
            builder = builder.scale(scale);
        }
        if let Some(softcap) = self.softcap {
            builder = builder.softcap(softcap);
        }
        builder.build().expect("the case is valid")
    }

    /// The layer.
    pub fn attention(&self) -> Attention {
        let heads = self.heads_q();
        let of = |b| (0..heads).map(move |head| self.slope(b, head));
        self.build(match self.slopes {
            SlopeKind::PerSequence(_) => {
                let batch = self.sequences.len();
                let slopes: Vec<f32> = (0..batch).flat_map(of).collect();
                Slopes::per_batch_and_head(&slopes, batch, heads).expect("the sizes agree")
            }
            _ => Slopes::per_head(&of(0).collect::<Vec<_>>()),
        })
    }

    /// The layer as sequence `b` alone sees it.
    fn attention_of(&self, b: usize) -> Attention {
        let slopes: Vec<f32> = (0..self.heads_q()).map(|h| self.slope(b, h)).collect();
        self.build(Slopes::per_head(&slopes))
    }

    /// Whether row `i` of sequence `b` sees key row `j` (counted with the left padding).
    pub fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let Lengths { q, k, leftpad, .. } = self.sequences[b];
        (leftpad..k).contains(&j) && sees(&self.attention(), q, k, i, j)
    }

    /// The buffers: poison everywhere but in the rows that belong to a sequence and are not padding. Query rows that see
    /// no key are poison too.
    pub fn lay_out<T: Element>(&self) -> LaidOut<T> {
        let batch = self.sequences.len();
        let rows_k = |s: &Lengths| s.k + s.unused;
        let max_k = self.sequences.iter().map(rows_k).max().unwrap_or(0);
        let cumulate = |rows: &dyn Fn(&Lengths) -> usize| -> Vec<i32> {
            let mut cu = vec![0];
            for sequence in &self.sequences {
                cu.push(cu[cu.len() - 1] + rows(sequence) as i32);
            }
            cu
        };
        let cu_q = cumulate(&|s| s.q);
        let cu_k = cumulate(&rows_k);
        // Three rows that belong to no sequence at the end of packed tensors.
        let shape = |cu: &[i32], rows: usize, heads: usize| match self.packed {
            true => [1, cu[batch] as usize + 3, heads, self.head_dim],
            false => [batch, rows, heads, self.head_dim],
        };
        let shape_q = shape(
            &cu_q,
            self.sequences.first().map_or(0, |s| s.q),
            self.heads_q(),
        );
        let shape_k = shape(&cu_k, max_k, self.heads_k);
        let mut q = Tensor::new(shape_q, self.packed, self.memory[0]);
        let mut k = Tensor::new(shape_k, self.packed, self.memory[1]);
        let mut v = Tensor::new(shape_k, self.packed, self.memory[2]);
        let out = Tensor::new(
            shape_q,
            self.packed,
            Memory {
                broadcast: [false; 3],
                ..self.memory[3]
            },
        );

        let mut alone = Vec::new();
        for (
            b,
            &Lengths {
                q: len_q,
                k: len_k,
                leftpad,
                ..
            },
        ) in self.sequences.iter().enumerate()
        {
            let attention = self.attention_of(b);
            let at = |cu: &[i32], row: usize| match self.packed {
                true => (0, cu[b] as usize + row),
                false => (b, row),
            };
            let mut sequence = Sequence {
                seqlen_q: len_q,
                seqlen_k: len_k - leftpad,
                q: Vec::new(),
                k: Vec::new(),
                v: Vec::new(),
                slopes: (0..self.heads_q()).map(|h| self.slope(b, h)).collect(),
            };
            for i in 0..len_q {
                let sees_any = (leftpad..len_k).any(|j| sees(&attention, len_q, len_k, i, j));
                for head in 0..self.heads_q() {
                    let (b, row) = at(&cu_q, i);
                    let values = q.values(self, 0, [b, row, head], self.amplitude);
                    if sees_any {
                        q.write([b, row, head], &values);
                    }
                    sequence.q.extend(values);
                }
            }
            for j in leftpad..len_k {
                for head in 0..self.heads_k {
                    let (b, row) = at(&cu_k, j);
                    for (tag, tensor, to) in
                        [(1, &mut k, &mut sequence.k), (2, &mut v, &mut sequence.v)]
                    {
                        let values = tensor.values(self, tag, [b, row, head], 1.0);
                        tensor.write([b, row, head], &values);
                        to.extend(values);
                    }
                }
            }
            alone.push((attention, sequence));
        }
        let lengths = |of: &dyn Fn(&Lengths) -> usize| -> Vec<i32> {
            self.sequences.iter().map(|s| of(s) as i32).collect()
        };
        let expected_k = |s: &Lengths| if self.packed { rows_k(s) } else { max_k };
        LaidOut {
            attention: self.attention(),
            q,
            k,
            v,
            out,
            cu: self.packed.then_some((cu_q, cu_k)),
            seqused_k: (self.sequences.iter().any(|s| s.k != expected_k(s)))
                .then(|| lengths(&|s| s.k)),
            leftpad_k: (self.sequences.iter().any(|s| s.leftpad > 0))
                .then(|| lengths(&|s| s.leftpad)),
            lengths: self.sequences.clone(),
            alone,
        }
    }

    /// This case with its sizes reduced until the reference takes no more than `limit` multiplications or so.
    pub fn bounded(mut self, limit: usize) -> Self {
        let work = |case: &Self| -> usize {
            let pairs: usize = case.sequences.iter().map(|s| s.q * s.k).sum();
            pairs * case.heads_q() * case.head_dim
        };
        while work(&self) > limit && self.heads_k > 1 {
            self.heads_k -= 1;
        }
        while work(&self) > limit && self.group > 1 {
            self.group = self.group.div_ceil(2);
        }
        while work(&self) > limit && self.sequences.len() > 1 {
            self.sequences.pop();
        }
        while work(&self) > limit {
            self.sequences[0].q /= 2;
        }
        self
    }

    /// Checks the fast path on this case: accuracy; rows that see no key; buffers that stay untouched; no poison.
    pub fn check<T: Element>(&self) -> Result<(), String> {
        let laid_out = self.lay_out::<T>();
        let results = laid_out.attend_into()?;
        laid_out.check(&results)?;
        match laid_out.attend()? == results {
            true => Ok(()),
            false => Err("attend and attend_into differ".into()),
        }
    }
}

/// A case in memory.
pub struct LaidOut<T> {
    pub attention: Attention,
    pub q: Tensor<T>,
    pub k: Tensor<T>,
    pub v: Tensor<T>,
    /// The layout of the output; its buffer is not used.
    pub out: Tensor<T>,
    cu: Option<(Vec<i32>, Vec<i32>)>,
    seqused_k: Option<Vec<i32>>,
    leftpad_k: Option<Vec<i32>>,
    lengths: Vec<Lengths>,
    alone: Vec<(Attention, Sequence<T>)>,
}

/// What came out for one sequence, as bits: so that equal means the same, NaN included.
#[derive(Clone, PartialEq, Eq)]
pub struct Rows {
    /// `[seqlen_q, heads_q, head_dim]`
    pub out: Vec<u32>,
    /// `[heads_q, seqlen_q]`
    pub lse: Vec<u32>,
}

/// What output buffers hold before a call.
pub const UNTOUCHED: f32 = -123.0;

impl<T: Element> LaidOut<T> {
    pub fn inputs(&self) -> Inputs<'_, T> {
        let mut inputs = Inputs::new(self.q.view(), self.k.view(), self.v.view());
        if let Some((q, k)) = &self.cu {
            inputs = inputs.varlen(q, k);
        }
        if let Some(lengths) = &self.seqused_k {
            inputs = inputs.seqused_k(lengths);
        }
        if let Some(lengths) = &self.leftpad_k {
            inputs = inputs.leftpad_k(lengths);
        }
        inputs
    }

    /// Row `i` of sequence `b` as the index of batch and row.
    pub fn row_q(&self, b: usize, i: usize) -> [usize; 2] {
        match &self.cu {
            Some((cu, _)) => [0, cu[b] as usize + i],
            None => [b, i],
        }
    }

    /// Likewise for keys.
    pub fn row_k(&self, b: usize, j: usize) -> [usize; 2] {
        match &self.cu {
            Some((_, cu)) => [0, cu[b] as usize + j],
            None => [b, j],
        }
    }

    /// Runs `cpu::attend_into` on buffers full of a mark, and checks that it stays wherever no sequence's row is.
    pub fn attend_into(&self) -> Result<Vec<Rows>, String> {
        self.attend_inputs(&self.inputs())
    }

    fn attend_inputs(&self, inputs: &Inputs<'_, T>) -> Result<Vec<Rows>, String> {
        let mut out = self.out.like(T::from_f32(UNTOUCHED));
        let mut lse = vec![UNTOUCHED; self.lse_len()];
        let view = out.view_mut();
        cpu::attend_into(&self.attention, inputs, view, Some(&mut lse))
            .map_err(|e| e.to_string())?;
        let results = self.gather(&out, &lse, UNTOUCHED)?;

        let mut without_lse = self.out.like(T::from_f32(UNTOUCHED));
        let view = without_lse.view_mut();
        cpu::attend_into(&self.attention, inputs, view, None).map_err(|e| e.to_string())?;
        match bits(&out.data) == bits(&without_lse.data) {
            true => Ok(results),
            false => Err("out depends on whether lse is wanted".into()),
        }
    }

    /// Runs `cpu::attend`, and checks that rows of no sequence are zero.
    pub fn attend(&self) -> Result<Vec<Rows>, String> {
        let output = cpu::attend(&self.attention, &self.inputs()).map_err(|e| e.to_string())?;
        let mut out = Tensor::new(self.out.shape, self.out.packed, Memory::default());
        if output.out.len() != self.out.shape.iter().product::<usize>() {
            return Err(format!("out has {} elements", output.out.len()));
        }
        out.data = output.out;
        self.gather(&out, &output.lse, 0.0)
    }

    /// Runs a planner's kernels under the emulator, twice in different orders.
    pub fn attend_on_emulator(&self, planner: &Planner) -> Result<(Vec<Rows>, Vec<Report>), String>
    where
        T: OnDevice,
    {
        self.attend_twice(|problem, turn| problem.attend(planner, turn))
    }

    /// Runs the prefill kernel on a GPU, twice.
    pub fn attend_on_device(&self, stream: &Arc<CudaStream>) -> Result<Vec<Rows>, String>
    where
        T: OnDevice + cuda::Element,
    {
        let (rows, _) = self.attend_twice(|problem, _| problem.attend_on(stream))?;
        Ok(rows)
    }

    /// Runs the kernels for decoding on a GPU, twice.
    pub fn decode_on_device(&self, stream: &Arc<CudaStream>) -> Result<Vec<Rows>, String>
    where
        T: OnDevice + cuda::Element,
    {
        let (rows, _) = self.attend_twice(|problem, _| problem.decode_on(stream))?;
        Ok(rows)
    }

    /// Runs a kernel twice on buffers full of a mark, and checks that it stays wherever no sequence's row is.
    fn attend_twice(
        &self,
        attend: impl Fn(&Problem<'_, T>, u64) -> Result<Attended<T>, Failure>,
    ) -> Result<(Vec<Rows>, Vec<Report>), String>
    where
        T: OnDevice,
    {
        let out = self.out.like(T::from_f32(UNTOUCHED));
        let lse = vec![UNTOUCHED; self.lse_len()];
        let problem = self.problem(&out, Some(&lse));
        let attended = attend(&problem, 1).map_err(|e| e.to_string())?;
        let problem = self.problem(&out, None);
        let again = attend(&problem, 2).map_err(|e| e.to_string())?;
        if bits(&attended.out) != bits(&again.out) {
            return Err("out depends on the order, or on whether lse is wanted".into());
        }
        let rows = self.rows(&attended)?;
        Ok((rows, attended.reports))
    }

    /// This case for a kernel, with what its outputs hold before.
    pub fn problem<'a>(&'a self, out: &'a Tensor<T>, lse: Option<&'a [f32]>) -> Problem<'a, T> {
        Problem {
            attention: &self.attention,
            q: self.q.placed(),
            k: self.k.placed(),
            v: self.v.placed(),
            out: out.placed(),
            lse,
            cu_seqlens_q: self.cu.as_ref().map(|(q, _)| &q[..]),
            cu_seqlens_k: self.cu.as_ref().map(|(_, k)| &k[..]),
            seqused_k: self.seqused_k.as_deref(),
            leftpad_k: self.leftpad_k.as_deref(),
            block_table: None,
            radii: None,
        }
    }

    /// What a kernel made of each sequence, on buffers full of a mark.
    pub fn rows(&self, attended: &Attended<T>) -> Result<Vec<Rows>, String> {
        let out = Tensor {
            data: attended.out.clone(),
            ..self.out.clone()
        };
        self.gather(&out, &attended.lse, UNTOUCHED)
    }

    pub fn lse_len(&self) -> usize {
        self.out.shape[..3].iter().product()
    }

    /// Each sequence's rows of out and lse; what is left must be `rest`.
    fn gather(&self, out: &Tensor<T>, lse: &[f32], rest: f32) -> Result<Vec<Rows>, String> {
        if lse.len() != self.lse_len() {
            return Err(format!("lse has {} elements", lse.len()));
        }
        let (rows, heads) = (self.out.shape[1], self.out.shape[2]);
        let mut out_bits = bits(&out.data);
        let mut lse_bits: Vec<u32> = lse.iter().map(|x| x.to_bits()).collect();
        let rest = rest.to_bits();
        let mut results = Vec::new();
        for (b, lengths) in self.lengths.iter().enumerate() {
            let mut sequence = Rows {
                out: Vec::new(),
                lse: Vec::new(),
            };
            for i in 0..lengths.q {
                for head in 0..heads {
                    let [b, row] = self.row_q(b, i);
                    let at = out.at([b, row, head]);
                    sequence.out.extend(&out_bits[at..][..self.out.shape[3]]);
                    out_bits[at..][..self.out.shape[3]].fill(rest);
                }
            }
            for head in 0..heads {
                for i in 0..lengths.q {
                    let [b, row] = self.row_q(b, i);
                    let at = (b * heads + head) * rows + row;
                    sequence.lse.push(lse_bits[at]);
                    lse_bits[at] = rest;
                }
            }
            results.push(sequence);
        }
        if let Some(at) = out_bits.iter().position(|&x| x != rest) {
            return Err(format!(
                "element {at} of out is in no sequence's row, yet written"
            ));
        }
        if let Some(at) = lse_bits.iter().position(|&x| x != rest) {
            return Err(format!(
                "element {at} of lse is no sequence's row, yet written"
            ));
        }
        Ok(results)
    }

    /// Compares results with the oracle's on each sequence alone.
    pub fn check(&self, results: &[Rows]) -> Result<(), String> {
        let mut accuracy = Accuracy::new::<T>();
        for ((attention, sequence), result) in self.alone.iter().zip(results) {
            let reference = reference(attention, sequence);
            let low = low_precision(attention, sequence);
            let heads = attention.heads_q();
            for (row, lse) in result.lse.iter().enumerate() {
                let (head, i) = (row / sequence.seqlen_q, row % sequence.seqlen_q);
                accuracy.add_lse(f32::from_bits(*lse).into(), reference.lse[row]);
                if reference.lse[row] == f64::NEG_INFINITY {
                    let at = (i * heads + head) * self.out.shape[3];
                    let zero = result.out[at..][..self.out.shape[3]]
                        .iter()
                        .all(|&x| f32::from_bits(x) == 0.0);
                    if !zero {
                        return Err(format!(
                            "row {i} of head {head} sees no key, and out is not zero"
                        ));
                    }
                }
            }
            for ((&out, low), &reference) in result.out.iter().zip(low).zip(&reference.out) {
                accuracy.add_out(f32::from_bits(out).into(), low.into(), reference);
            }
        }
        if accuracy.passes() {
            return Ok(());
        }
        let (out, lse) = (accuracy.out_error, accuracy.lse_error);
        let limit = accuracy.out_limit();
        Err(format!(
            "error of out {out:.2e} (limit {limit:.2e}), of lse {lse:.2e} (limit {LSE_LIMIT:.0e})"
        ))
    }
}

impl<T: Element> LaidOut<T> {
    /// Runs `cpu::attend` on sequence `b` alone, without padding or gaps.
    pub fn attend_alone(&self, b: usize) -> Result<Rows, String> {
        let (attention, sequence) = &self.alone[b];
        let (heads_k, d) = (attention.heads_k(), attention.head_dim());
        let shape_q = [1, sequence.seqlen_q, attention.heads_q(), d];
        let shape_k = [1, sequence.seqlen_k, heads_k, d];
        let view = |data, shape| View::new(data, shape).map_err(|e| e.to_string());
        let inputs = Inputs::new(
            view(&sequence.q, &shape_q)?,
            view(&sequence.k, &shape_k)?,
            view(&sequence.v, &shape_k)?,
        );
        let output = cpu::attend(attention, &inputs).map_err(|e| e.to_string())?;
        Ok(Rows {
            out: bits(&output.out),
            lse: output.lse.iter().map(|x| x.to_bits()).collect(),
        })
    }

    /// The oracle's result on the sequences where they lie, compared with its result on each alone.
    pub fn check_oracle(&self) -> Result<(), String> {
        let found = oracle::attend(&self.attention, &self.inputs()).map_err(|e| e.to_string())?;
        let [_, rows, heads, d] = self.out.shape;
        for (b, (attention, sequence)) in self.alone.iter().enumerate() {
            let expected = reference(attention, sequence);
            for i in 0..sequence.seqlen_q {
                let [batch, row] = self.row_q(b, i);
                for head in 0..heads {
                    let at = ((batch * rows + row) * heads + head) * d;
                    let out = &found.out[at..][..d];
                    let same_out = *out == expected.out[(i * heads + head) * d..][..d];
                    let lse = found.lse[(batch * heads + head) * rows + row];
                    if !same_out || lse != expected.lse[head * sequence.seqlen_q + i] {
                        return Err(format!("sequence {b}, row {i}, head {head} differs"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The oracle's result on a sequence alone, from inputs in f32, which holds them exactly.
pub fn reference<T: Element>(attention: &Attention, sequence: &Sequence<T>) -> oracle::Reference {
    let widen = |x: &[T]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
    let (q, k, v) = (widen(&sequence.q), widen(&sequence.k), widen(&sequence.v));
    let (heads_k, d) = (attention.heads_k(), attention.head_dim());
    let shape_q = [1, sequence.seqlen_q, attention.heads_q(), d];
    let shape_k = [1, sequence.seqlen_k, heads_k, d];
    let inputs = Inputs::new(
        View::new(&q, &shape_q).expect("q fits"),
        View::new(&k, &shape_k).expect("k fits"),
        View::new(&v, &shape_k).expect("v fits"),
    );
    oracle::attend(attention, &inputs).expect("the sequence is valid")
}

/// A tensor in a buffer of its own.
#[derive(Debug, Clone)]
pub struct Tensor<T> {
    pub data: Vec<T>,
    /// `[batch, rows, heads, head_dim]`; batch is 1 when packed.
    pub shape: [usize; 4],
    strides: [usize; 3],
    offset: usize,
    packed: bool,
}

impl<T: Element> Tensor<T> {
    /// A tensor full of poison.
    fn new(shape: [usize; 4], packed: bool, memory: Memory) -> Self {
        const ORDERS: [[usize; 3]; 6] = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        let mut strides = [0; 3];
        let mut within = shape[3];
        for dim in ORDERS[memory.order].into_iter().rev() {
            let used_as_zero = packed && dim == 0;
            if !memory.broadcast[dim] && !used_as_zero {
                strides[dim] = within + memory.gaps[dim];
                within = strides[dim] * shape[dim].max(1);
            }
        }
        let poison = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(T::from_f32);
        let len = memory.offset + within + 5;
        Self {
            data: (0..len).map(|i| poison[i % 3]).collect(),
            shape,
            strides,
            offset: memory.offset,
            packed,
        }
    }

    pub fn like(&self, value: T) -> Self {
        Self {
            data: vec![value; self.data.len()],
            ..self.clone()
        }
    }

    /// Where a head's row starts in the buffer.
    pub fn at(&self, index: [usize; 3]) -> usize {
        let steps: usize = index
            .iter()
            .zip(self.strides)
            .map(|(i, stride)| i * stride)
            .sum();
        self.offset + steps
    }

    fn write(&mut self, index: [usize; 3], values: &[T]) {
        let at = self.at(index);
        self.data[at..][..values.len()].copy_from_slice(values);
    }

    /// The values of a head's row; the same for all indices that share memory.
    fn values(&self, case: &Case, tag: u64, index: [usize; 3], amplitude: f32) -> Vec<T> {
        let [b, row, head] = [0, 1, 2].map(|dim| match self.strides[dim] {
            0 => 0,
            _ => index[dim],
        });
        let value = |c| T::from_f32(random(case.seed, tag, [b, row, head, c]) * amplitude);
        (0..self.shape[3]).map(value).collect()
    }

    fn shape_and_strides(&self) -> (Vec<usize>, Vec<usize>) {
        let mut strides = self.strides.to_vec();
        strides.push(1);
        let skip = usize::from(self.packed);
        (self.shape[skip..].to_vec(), strides[skip..].to_vec())
    }

    fn placed(&self) -> Placed<'_, T> {
        let (shape, strides) = self.shape_and_strides();
        Placed {
            data: &self.data,
            offset: self.offset,
            layout: Layout::new("tensor", &shape, &strides).expect("the strides fit"),
        }
    }

    pub fn view(&self) -> View<'_, T> {
        let (shape, strides) = self.shape_and_strides();
        View::strided(&self.data[self.offset..], &shape, &strides).expect("the buffer fits")
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let (shape, strides) = self.shape_and_strides();
        ViewMut::strided(&mut self.data[self.offset..], &shape, &strides).expect("the buffer fits")
    }
}

fn bits<T: Element>(data: &[T]) -> Vec<u32> {
    data.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// Panics with the case when a check fails.
#[track_caller]
pub fn expect(case: &Case, result: Result<(), String>) {
    if let Err(why) = result {
        panic!("{why}\n{case:?}");
    }
}
