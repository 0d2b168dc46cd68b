//! Attention problems as tests describe them.

use flash_alibi::cpu::Element;
use flash_alibi::{Attention, Horizon, Mask, Slopes};

use crate::accuracy::{Sequence, sees};
use crate::laid_out::LaidOut;
use crate::random;
use crate::tensor::Tensor;

/// One sequence of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Query rows.
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
    /// Those of the ALiBi paper.
    Geometric,
    /// No bias.
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

/// An attention problem: a layer, sequences, and how they lie in memory. Values are random.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Key heads.
    pub heads_k: usize,
    /// Query heads per key head.
    pub group: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// None for the default.
    pub scale: Option<f32>,
    /// None for no cap.
    pub softcap: Option<f32>,
    /// How strongly heads are biased.
    pub slopes: SlopeKind,
    /// Causal or not.
    pub mask: Mask,
    /// How far a row sees to the left and to the right.
    pub window: (Option<usize>, Option<usize>),
    /// Which keys may be left out.
    pub horizon: Horizon,
    /// Dense cases have the same `q` in all.
    pub sequences: Vec<Lengths>,
    /// Where the first query of each sequence stands among its key rows, those of the left padding included; none where the
    /// last query stands at the last key.
    pub offsets: Option<Vec<i32>>,
    /// Whether sequences lie one after the other, with cumulative lengths.
    pub packed: bool,
    /// Of q, k, v and out.
    pub memory: [Memory; 4],
    /// What q is multiplied by.
    pub amplitude: f32,
    /// Of the random values.
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
            offsets: None,
            packed: false,
            memory: [Memory::default(); 4],
            amplitude: 1.0,
            seed: 1,
        }
    }

    /// Query heads.
    pub fn heads_q(&self) -> usize {
        self.heads_k * self.group
    }

    /// The keys of the longest sequence.
    pub fn seqlen_k(&self) -> usize {
        self.sequences.iter().map(|s| s.k).max().unwrap_or(0)
    }

    pub(crate) fn slope(&self, b: usize, head: usize) -> f32 {
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
        let Lengths { k, leftpad, .. } = self.sequences[b];
        (leftpad..k).contains(&j) && sees(&self.attention(), self.offset(b), i, j)
    }

    /// Where the first query of sequence `b` stands among its key rows.
    pub fn offset(&self, b: usize) -> i64 {
        let Lengths { q, k, .. } = self.sequences[b];
        match &self.offsets {
            Some(offsets) => offsets[b].into(),
            None => k as i64 - q as i64,
        }
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
                offset: self.offset(b) - leftpad as i64,
                q: Vec::new(),
                k: Vec::new(),
                v: Vec::new(),
                slopes: (0..self.heads_q()).map(|h| self.slope(b, h)).collect(),
            };
            for i in 0..len_q {
                let sees_any = (leftpad..len_k).any(|j| sees(&attention, self.offset(b), i, j));
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
            offset: self.offsets.clone(),
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

/// Panics with the case when a check fails.
#[track_caller]
pub fn expect(case: &Case, result: Result<(), String>) {
    if let Err(why) = result {
        panic!("{why}\n{case:?}");
    }
}
