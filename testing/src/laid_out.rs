//! Cases in memory: computed, taken apart by sequence, and compared with the oracle.

use flash_alibi::cpu::{self, Element, oracle};
use flash_alibi::{Attention, Inputs, View};

use crate::accuracy::{Accuracy, Sequence, low_precision};
use crate::case::{Lengths, Memory};
use crate::tensor::{Tensor, bits};

/// A case in memory.
pub struct LaidOut<T> {
    /// The layer.
    pub attention: Attention,
    /// Queries.
    pub q: Tensor<T>,
    /// Keys.
    pub k: Tensor<T>,
    /// Values.
    pub v: Tensor<T>,
    /// The layout of the output; its buffer is not used.
    pub out: Tensor<T>,
    pub(crate) cu: Option<(Vec<i32>, Vec<i32>)>,
    pub(crate) seqused_k: Option<Vec<i32>>,
    pub(crate) leftpad_k: Option<Vec<i32>>,
    pub(crate) offset: Option<Vec<i32>>,
    pub(crate) lengths: Vec<Lengths>,
    pub(crate) alone: Vec<(Attention, Sequence<T>)>,
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
    /// The call as the CPU path takes it.
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
        if let Some(offset) = &self.offset {
            inputs = inputs.offset(offset);
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

    pub(crate) fn attend_inputs(&self, inputs: &Inputs<'_, T>) -> Result<Vec<Rows>, String> {
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

    /// The elements of lse.
    pub fn lse_len(&self) -> usize {
        self.out.shape[..3].iter().product()
    }

    /// Each sequence's rows of out and lse; what is left must be `rest`.
    pub(crate) fn gather(
        &self,
        out: &Tensor<T>,
        lse: &[f32],
        rest: f32,
    ) -> Result<Vec<Rows>, String> {
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
        Err(format!(
            "error of out {:.2e} ({:.2} of its limit), of lse {:.2e} ({:.2} of its limit)",
            accuracy.out_error,
            accuracy.out_ratio(),
            accuracy.lse_error,
            accuracy.lse_ratio(),
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
        let offset = alone_offset(sequence);
        let inputs = match &offset {
            Some(offset) => inputs.offset(offset),
            None => inputs,
        };
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
    let offset = alone_offset(sequence);
    let inputs = match &offset {
        Some(offset) => inputs.offset(offset),
        None => inputs,
    };
    oracle::attend(attention, &inputs).expect("the sequence is valid")
}

/// The offset of a sequence alone, where its last query does not stand at its last key.
fn alone_offset<T>(sequence: &Sequence<T>) -> Option<[i32; 1]> {
    let aligned = sequence.seqlen_k as i64 - sequence.seqlen_q as i64;
    let offset =
        i32::try_from(sequence.offset).expect("cases have offsets that fit without padding");
    (sequence.offset != aligned).then_some([offset])
}
