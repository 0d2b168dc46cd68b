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
const _: () = assert!(FEW_ROWS <= ROWS, "their rows are one block");

/// Keys of a part where they are split. A property of the call alone, so that a sequence's result depends neither on
/// the number of threads nor on its neighbours in the batch.
const PART: usize = 8 * KEYS;

/// The blocks that make up a call.
#[derive(Default)]
struct Blocks {
    blocks: Vec<Block>,
    /// Of each block: whether it sees all keys of its rows, so that its state is the result.
    whole: Vec<bool>,
    /// The blocks that have the same rows and parts of their keys, one list for each.
    parts: Vec<Vec<usize>>,
}

fn blocks(problem: &Problem) -> Blocks {
    let attention = problem.attention;
    let mut all = Blocks::default();
    for sequence in &problem.sequences {
        let rows = sequence.seqlen_q * attention.group();
        let starts = (0..rows).step_by(ROWS);
        let block = |head_k, start, keys| Block {
            sequence: *sequence,
            head_k,
            rows: start..(start + ROWS).min(rows),
            keys,
        };
        if rows > FEW_ROWS || sequence.seqlen_k <= PART {
            for head_k in 0..attention.heads_k() {
                // The last rows of a causal sequence see most: the longest work first.
                for start in starts.clone().rev() {
                    all.blocks.push(block(head_k, start, 0..sequence.seqlen_k));
                    all.whole.push(true);
                }
            }
            continue;
        }
        // Heads within parts: the heads of a key lie side by side, so a thread walks through memory in order.
        let (first, heads_k) = (all.blocks.len(), attention.heads_k());
        let parts = sequence.seqlen_k.div_ceil(PART);
        for part in 0..parts {
            let keys = part * PART..((part + 1) * PART).min(sequence.seqlen_k);
            all.blocks
                .extend((0..heads_k).map(|head_k| block(head_k, 0, keys.clone())));
            all.whole.extend((0..heads_k).map(|_| false));
        }
        let of_head = |head_k| {
            (0..parts)
                .map(|part| first + part * heads_k + head_k)
                .collect()
        };
        all.parts.extend((0..heads_k).map(of_head));
    }
    all
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
    let Blocks {
        blocks,
        whole,
        parts,
    } = blocks(tensors.problem);
    let states: Vec<Option<State>> = blocks
        .par_iter()
        .zip(whole)
        .with_max_len(1)
        .map_init(Scratch::default, |scratch, (block, whole)| {
            arch.dispatch(Run {
                tensors,
                block,
                scratch,
                arithmetic,
            });
            if whole {
                outputs.write(block, &mut scratch.state);
                return None;
            }
            Some(std::mem::take(&mut scratch.state))
        })
        .collect();
    parts.par_iter().for_each(|parts| {
        let mut sum = State::default();
        parts
            .iter()
            .flat_map(|&part| &states[part])
            .for_each(|state| sum.merge(state));
        outputs.write(&blocks[parts[0]], &mut sum);
    });
}
