//! Splits a call into blocks, runs them over the thread pool, and writes the results.

use half::bf16;
use pulp::Arch;
use rayon::prelude::*;

use super::Element;
#[cfg(target_arch = "x86_64")]
use super::block::UseBf16;
use super::block::{ForMachine, Run, Scratch, Tensors, UseF32};
use super::bounds::key_bounds;
use super::machine::dispatch;
use super::state::State;
#[cfg(target_arch = "x86_64")]
use super::tile::Bf16;
use super::tile::KEYS;
use super::work::Block;
use crate::problem::Problem;
use crate::{Attention, Horizon};

/// Query rows of a block: enough to share the conversion of a tile, few enough to stay in the second-level cache.
const ROWS: usize = 192;

/// With at most so many query rows for each key head, keys are split over threads too: decoding, of Falcon's 71 heads a
/// key head too.
const FEW_ROWS: usize = 128;
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
    /// Of each block: the part that has the nearest keys, unless it is that part or has all keys.
    nearest: Vec<Option<usize>>,
}

/// Whether the parts of keys wait for the nearest: what it keeps tells what the others may leave out.
fn waits(attention: &Attention) -> bool {
    matches!(attention.horizon(), Horizon::Certified { .. })
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
        if rows == 0 {
            continue;
        }
        let seen = sequence.seen(attention);
        let parts = seen.start / PART..seen.end.div_ceil(PART);
        if rows > FEW_ROWS || parts.len() <= 1 {
            for head_k in 0..attention.heads_k() {
                // The last rows of a causal sequence see most: the longest work first.
                for start in starts.clone().rev() {
                    all.blocks.push(block(head_k, start, 0..sequence.seqlen_k));
                    all.whole.push(true);
                    all.nearest.push(None);
                }
            }
            continue;
        }
        // Heads within parts: the heads of a key lie side by side, so a thread walks through memory in order.
        let (first, heads_k) = (all.blocks.len(), attention.heads_k());
        let last = sequence.position(sequence.seqlen_q - 1);
        let nearest = last.clamp(seen.start as i64, seen.end as i64 - 1) as usize / PART;
        for part in parts.clone() {
            let keys = part * PART..((part + 1) * PART).min(sequence.seqlen_k);
            all.blocks
                .extend((0..heads_k).map(|head_k| block(head_k, 0, keys.clone())));
            all.whole.extend((0..heads_k).map(|_| false));
            let of_head = |head_k| first + (nearest - parts.start) * heads_k + head_k;
            let others = part != nearest && waits(attention);
            all.nearest
                .extend((0..heads_k).map(|head_k| others.then(|| of_head(head_k))));
        }
        let of_head = |head_k| {
            (0..parts.len())
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
            let attention = self.problem.attention;
            let (token, head) = block.row(attention.group(), r);
            let (row, lse) = state.finish(r, layout.head_dim);
            let apart = block.sequence.apart(attention, token) as f64;
            let slope = attention.slopes().get(block.sequence.index, head);
            let lse = (f64::from(lse) - f64::from(slope) * apart) as f32;
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
    run_with(Arch::new(), tensors, out, lse, UseF32);
}

/// Runs a validated call, with products of bf16 pairs where the processor is fast at them.
pub(super) fn run_bf16(tensors: &Tensors<'_, bf16>, out: &mut [bf16], lse: Option<&mut [f32]>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(arithmetic) = Bf16::new()
        && Bf16::is_fast()
    {
        return run_with(Arch::new(), tensors, out, lse, UseBf16(arithmetic));
    }
    run_f32(tensors, out, lse);
}

fn run_with<T: Element, I, A>(
    arch: Arch,
    tensors: &Tensors<'_, T>,
    out: &mut [T],
    lse: Option<&mut [f32]>,
    arithmetic: A,
) where
    I: Copy + Default + Send,
    A: ForMachine<T, I> + Sync,
{
    let problem = tensors.problem;
    let outputs = Outputs {
        problem,
        out: out.as_mut_ptr(),
        lse: lse.map(<[f32]>::as_mut_ptr),
    };
    let Blocks {
        blocks,
        whole,
        parts,
        nearest,
    } = blocks(problem);
    let bounds = key_bounds(arch, problem, |sequence, head_k| {
        tensors.keys(sequence, head_k)
    });
    let run = |at: usize, kept: Option<&State>, scratch: &mut Scratch<I>| {
        let block = &blocks[at];
        let of_block = block.sequence.index * problem.attention.heads_k() + block.head_k;
        let run = Run {
            tensors,
            block,
            bounds: bounds[of_block].as_ref(),
            kept: kept.map(|state| &state.max[..]),
            scratch,
            arithmetic,
        };
        dispatch(arch, run);
        if whole[at] {
            outputs.write(block, &mut scratch.state);
            return None;
        }
        // Of the nearest part there is always a result.
        let left_out = kept.is_some() && scratch.state.saw_nothing();
        (!left_out).then(|| std::mem::take(&mut scratch.state))
    };
    let (first, others): (Vec<usize>, Vec<usize>) =
        (0..blocks.len()).partition(|&at| nearest[at].is_none());
    let run_all = |wave: &[usize], done: &[Option<State>]| -> Vec<(usize, Option<State>)> {
        wave.par_iter()
            .with_max_len(1)
            .map_init(Scratch::default, |scratch, &at| {
                let kept = nearest[at].and_then(|nearest| done[nearest].as_ref());
                (at, run(at, kept, scratch))
            })
            .collect()
    };
    let mut states: Vec<Option<State>> = Vec::new();
    states.resize_with(blocks.len(), || None);
    for wave in [first, others] {
        for (at, state) in run_all(&wave, &states) {
            states[at] = state;
        }
    }
    parts.par_iter().for_each(|parts| {
        let mut sum = State::default();
        parts
            .iter()
            .flat_map(|&part| &states[part])
            .for_each(|state| sum.merge(state));
        outputs.write(&blocks[parts[0]], &mut sum);
    });
}

#[cfg(test)]
mod tests {
    use half::f16;
    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::cpu::machine::arches;
    use crate::cpu::oracle;
    use crate::{Attention, Inputs, View};

    fn every_arch_agrees_with_the_oracle<T: Element, I, A>(arithmetic: A, tolerance: f64)
    where
        I: Copy + Default + Send,
        A: ForMachine<T, I> + Sync,
    {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let mut random = |n: usize| -> Vec<T> {
            let mut next = || T::from_f32(generator.random_range(-2.0..2.0));
            (0..n).map(|_| next()).collect()
        };
        // Many rows, and few: each has a path. 24 and 40 are no whole number of registers.
        for (seqlen_q, seqlen_k, head_dim) in [(150, 150, 24), (1, 300, 40), (2, 2100, 64)] {
            let layer = Attention::new(2, 1, head_dim)
                .softcap(20.0)
                .build()
                .unwrap();
            let (q, k) = (random(seqlen_q * 2 * head_dim), random(seqlen_k * head_dim));
            let v = random(seqlen_k * head_dim);
            let view =
                |data, heads, seqlen| View::new(data, &[1, seqlen, heads, head_dim]).unwrap();
            let (q, k, v) = (
                view(&q, 2, seqlen_q),
                view(&k, 1, seqlen_k),
                view(&v, 1, seqlen_k),
            );
            let inputs = Inputs::new(q, k, v);
            let expected = oracle::attend(&layer, &inputs).unwrap();
            let problem = Problem::new(&layer, &inputs, None).unwrap();
            let tensors = Tensors {
                problem: &problem,
                q: q.data,
                k: k.data,
                v: v.data,
                counts: None,
            };
            for arch in arches() {
                let mut out = vec![T::from_f32(f32::NAN); expected.out.len()];
                let mut lse = vec![f32::NAN; expected.lse.len()];
                run_with(arch, &tensors, &mut out, Some(&mut lse), arithmetic);
                for (found, expected) in out.iter().zip(&expected.out) {
                    let error = (f64::from(found.to_f32()) - expected).abs();
                    assert!(
                        error <= tolerance,
                        "{arch:?}, {head_dim}: {found:?}, {expected}"
                    );
                }
                for (found, expected) in lse.iter().zip(&expected.lse) {
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-5,
                        "{arch:?}: lse {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_keys_of_a_decoding_sequence_are_split_whatever_its_heads() {
        for heads_q in [1, 4, 71, 112] {
            let attention = Attention::new(heads_q, 1, 8).build().unwrap();
            let data = vec![0.5f32; 10 * PART * 8];
            let q = View::new(&data, &[1, 1, heads_q, 8]).unwrap();
            let k = View::new(&data, &[1, 10 * PART, 1, 8]).unwrap();
            let inputs = Inputs::new(q, k, k);
            let problem = Problem::new(&attention, &inputs, None).unwrap();
            assert_eq!(blocks(&problem).parts, [Vec::from_iter(0..10)]);
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_the_oracle() {
        every_arch_agrees_with_the_oracle::<f32, _, _>(UseF32, 1e-5);
        every_arch_agrees_with_the_oracle::<f16, _, _>(UseF32, 2e-3);
        every_arch_agrees_with_the_oracle::<bf16, _, _>(UseF32, 1.6e-2);
        #[cfg(target_arch = "x86_64")]
        if let Some(pairs) = Bf16::new() {
            every_arch_agrees_with_the_oracle::<bf16, _, _>(UseBf16(pairs), 1.6e-2);
        }
    }
}
