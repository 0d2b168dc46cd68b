//! Splits a call into blocks, runs them over the thread pool, and writes the results.

use half::bf16;
use pulp::Arch;
use rayon::prelude::*;

use super::Element;
#[cfg(target_arch = "x86_64")]
use super::block::UseBf16;
use super::block::{Block, ForSimd, Run, Scratch, State, Tensors, UseF32};
use super::tile::KEYS;
use crate::problem::Problem;

/// Query rows of a block: enough to share the conversion of a tile, few enough to stay in the second-level cache.
const ROWS: usize = 192;

/// With at most so many query rows for each key head, keys are split over threads too.
const FEW_ROWS: usize = 64;

/// Keys of a part where they are split. A property of the call alone, so that a sequence's result depends neither on
/// the number of threads nor on its neighbours in the batch.
const PART: usize = 8 * KEYS;

/// The blocks that make up the call. Those of one part belong together and are merged.
fn blocks(problem: &Problem) -> Vec<Vec<Block>> {
    let attention = problem.attention;
    let group = attention.group();
    let mut blocks = Vec::new();
    for sequence in &problem.sequences {
        let rows = sequence.seqlen_q * group;
        for head_k in 0..attention.heads_k() {
            // The last rows of a causal sequence see most: the longest work first.
            for start in (0..rows).step_by(ROWS).rev() {
                let block = Block {
                    sequence: *sequence,
                    head_k,
                    rows: start..(start + ROWS).min(rows),
                    keys: 0..sequence.seqlen_k,
                };
                let part = if rows <= FEW_ROWS { PART } else { usize::MAX };
                let parts = (0..sequence.seqlen_k.max(1))
                    .step_by(part)
                    .map(|key| Block {
                        keys: key..key.saturating_add(part).min(sequence.seqlen_k),
                        ..block.clone()
                    });
                blocks.push(parts.collect());
            }
        }
    }
    blocks
}

/// The outputs, written by many threads, each its own rows.
struct Outputs<'a, T> {
    problem: &'a Problem<'a>,
    out: *mut T,
    lse: Option<*mut f32>,
}

// SAFETY: `write` is called for each row of each head once, and rows do not share elements: `Problem` has checked that
// the layout of `out` keeps its elements apart and that sequences own separate rows.
unsafe impl<T: Send> Sync for Outputs<'_, T> {}

impl<T: Element> Outputs<'_, T> {
    fn write(&self, block: &Block, state: &mut State) {
        let layout = &self.problem.out;
        for r in 0..block.rows.len() {
            let (token, head) = block.row(self.problem.attention.group(), r);
            let (row, lse) = state.finish(r, layout.head_dim);
            let at = block.sequence.out + token * layout.row_stride + head * layout.head_stride;
            // SAFETY: within the buffer, whose length covers the layout; no other thread touches the row.
            let out = unsafe { std::slice::from_raw_parts_mut(self.out.add(at), layout.head_dim) };
            T::narrow(row, out);
            if let Some(to) = self.lse {
                let at = block.sequence.lse + head * self.problem.lse_head_stride + token;
                // SAFETY: as above; `check_lse` has checked the length.
                unsafe { to.add(at).write(lse) };
            }
        }
    }
}

/// Runs a validated call, with products in f32.
pub(super) fn run_f32<T: Element>(
    tensors: &Tensors<'_, T>,
    out: &mut [T],
    lse: Option<&mut [f32]>,
) {
    run_with(tensors, out, lse, UseF32);
}

/// Runs a validated call, with products of bf16 pairs where the processor has them.
pub(super) fn run_bf16(tensors: &Tensors<'_, bf16>, out: &mut [bf16], lse: Option<&mut [f32]>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(arithmetic) = super::tile::Bf16::new() {
        return run_with(tensors, out, lse, UseBf16(arithmetic));
    }
    run_f32(tensors, out, lse);
}

fn run_with<T: Element, I, A>(
    tensors: &Tensors<'_, T>,
    out: &mut [T],
    lse: Option<&mut [f32]>,
    arithmetic: A,
) where
    I: Copy + Default + Send,
    A: ForSimd<T, I> + Sync,
{
    let outputs = Outputs {
        problem: tensors.problem,
        out: out.as_mut_ptr(),
        lse: lse.map(<[f32]>::as_mut_ptr),
    };
    let arch = Arch::new();
    let run = |block: &Block, scratch: &mut Scratch<I>| {
        arch.dispatch(Run {
            tensors,
            block,
            scratch,
            arithmetic,
        });
    };
    blocks(tensors.problem)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(Scratch::default, |scratch, parts| match &parts[..] {
            [block] => {
                run(block, scratch);
                outputs.write(block, &mut scratch.state);
            }
            parts => {
                let mut states: Vec<State> = parts
                    .par_iter()
                    .map_init(Scratch::default, |scratch, block| {
                        run(block, scratch);
                        std::mem::take(&mut scratch.state)
                    })
                    .collect();
                let (first, rest) = states.split_at_mut(1);
                rest.iter().for_each(|state| first[0].merge(state));
                outputs.write(&parts[0], &mut first[0]);
            }
        });
}
