//! Reconvergence points: the immediate post-dominator of every branch.

use crate::ir::{Inst, NONE, Op};

/// Sets [`Inst::reconverge`] of every instruction that can part the lanes of a warp.
pub(super) fn reconvergence(code: &mut [Inst]) {
    let n = code.len();
    // Basic blocks.
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    for (pc, inst) in code.iter().enumerate() {
        match &inst.op {
            Op::Branch { target } => {
                leader[*target as usize] = true;
                leader[pc + 1] = true;
            }
            Op::BranchIndexed { targets, .. } => {
                targets.iter().for_each(|&t| leader[t as usize] = true);
                leader[pc + 1] = true;
            }
            Op::Exit | Op::Trap | Op::AssertFail { .. } => leader[pc + 1] = true,
            _ => {}
        }
    }
    let starts: Vec<usize> = (0..n).filter(|&pc| leader[pc]).collect();
    let mut block_of = vec![0usize; n];
    for (b, &s) in starts.iter().enumerate() {
        let end = starts.get(b + 1).copied().unwrap_or(n);
        block_of[s..end].fill(b);
    }
    let blocks = starts.len();
    let exit = blocks;
    let succs: Vec<Vec<usize>> = (0..blocks)
        .map(|b| {
            let end = starts.get(b + 1).copied().unwrap_or(n) - 1;
            let inst = &code[end];
            let next = if end + 1 < n { block_of[end + 1] } else { exit };
            let mut out = match &inst.op {
                Op::Branch { target } => vec![block_of[*target as usize]],
                Op::BranchIndexed { targets, .. } => {
                    targets.iter().map(|&t| block_of[t as usize]).collect()
                }
                Op::Exit | Op::Trap | Op::AssertFail { .. } => vec![exit],
                _ => vec![next],
            };
            if inst.guard.is_some() && !out.contains(&next) {
                out.push(next);
            }
            out
        })
        .collect();
    let succs = without_early_exits(code, &starts, succs, exit);
    let idom = post_dominators(&succs, exit);
    for (b, &parent) in idom.iter().enumerate().take(blocks) {
        let end = starts.get(b + 1).copied().unwrap_or(n) - 1;
        let parts = match &code[end].op {
            Op::Branch { .. } => code[end].guard.is_some(),
            Op::BranchIndexed { .. } => true,
            _ => false,
        };
        if parts && parent < blocks {
            code[end].reconverge = starts[parent] as u32;
        } else if parts {
            code[end].reconverge = NONE;
        }
    }
}

/// A lane that ends early (exit, trap) does not keep the others from meeting, as exited lanes are
/// waited for by nobody: drops edges to blocks that only end, where there is another successor. Not
/// those that lead out of a last loop: without them nothing would reach the exit.
fn without_early_exits(
    code: &[Inst],
    starts: &[usize],
    all: Vec<Vec<usize>>,
    exit: usize,
) -> Vec<Vec<usize>> {
    let mut ends: Vec<bool> = (0..starts.len())
        .map(|b| {
            let last = starts.get(b + 1).copied().unwrap_or(code.len()) - 1;
            code[last].guard.is_none()
                && match code[last].op {
                    Op::Trap | Op::AssertFail { .. } => true,
                    Op::Exit => last == starts[b],
                    _ => false,
                }
        })
        .collect();
    ends.push(true);
    debug_assert_eq!(ends.len(), exit + 1);
    let mut succs = all.clone();
    for ss in &mut succs {
        if ss.iter().any(|&s| !ends[s]) {
            ss.retain(|&s| !ends[s]);
        }
    }
    let reach = reaching(&succs, exit);
    for (b, ss) in all.into_iter().enumerate() {
        if !reach[b] {
            succs[b] = ss;
        }
    }
    succs
}

/// Which blocks have a way to the exit.
fn reaching(succs: &[Vec<usize>], exit: usize) -> Vec<bool> {
    let mut reach = vec![false; succs.len() + 1];
    reach[exit] = true;
    loop {
        let before = reach.iter().filter(|&&r| r).count();
        for (b, ss) in succs.iter().enumerate().rev() {
            reach[b] |= ss.iter().any(|&s| reach[s]);
        }
        if reach.iter().filter(|&&r| r).count() == before {
            return reach;
        }
    }
}

/// Immediate post-dominators by iteration to a fixed point (Cooper, Harvey and Kennedy). Blocks
/// that never reach the exit have none, which reads as `exit`.
fn post_dominators(succs: &[Vec<usize>], exit: usize) -> Vec<usize> {
    let n = succs.len();
    const UNSET: usize = usize::MAX;
    let mut preds = vec![Vec::new(); n + 1];
    for (b, ss) in succs.iter().enumerate() {
        for &s in ss {
            preds[s].push(b);
        }
    }
    // Post-order of the reversed graph, from the exit.
    let mut order = Vec::with_capacity(n + 1);
    let mut state = vec![0u8; n + 1];
    let mut stack = vec![(exit, 0usize)];
    state[exit] = 1;
    while let Some((b, i)) = stack.pop() {
        if let Some(&p) = preds[b].get(i) {
            stack.push((b, i + 1));
            if state[p] == 0 {
                state[p] = 1;
                stack.push((p, 0));
            }
        } else {
            order.push(b);
        }
    }
    let mut number = vec![UNSET; n + 1];
    for (i, &b) in order.iter().enumerate() {
        number[b] = i;
    }
    let mut idom = vec![UNSET; n + 1];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev() {
            if b == exit {
                continue;
            }
            let mut new = UNSET;
            for &s in &succs[b] {
                if idom[s] == UNSET {
                    continue;
                }
                if new == UNSET {
                    new = s;
                    continue;
                }
                let (mut x, mut y) = (s, new);
                while x != y {
                    while number[x] < number[y] {
                        x = idom[x];
                    }
                    while number[y] < number[x] {
                        y = idom[y];
                    }
                }
                new = x;
            }
            if new != UNSET && idom[b] != new {
                idom[b] = new;
                changed = true;
            }
        }
    }
    idom.iter()
        .map(|&d| if d == UNSET { exit } else { d })
        .collect()
}
