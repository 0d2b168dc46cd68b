//! Where diverged lanes meet again: the immediate post-dominator of each branch.

use super::program::{Inst, Op};

/// The basic blocks of a function.
pub struct Graph {
    /// First instruction of each block, relative to the function.
    pub starts: Vec<usize>,
    /// Successors of each block; `starts.len()` stands for the exit.
    pub successors: Vec<Vec<usize>>,
    /// Instructions of the function.
    pub len: usize,
}

impl Graph {
    /// Of the function whose code is `body`, and begins at `first` of the program.
    pub fn new(body: &[Inst], first: usize) -> Graph {
        let n = body.len();
        let mut leader = vec![false; n + 1];
        leader[0] = true;
        for (i, inst) in body.iter().enumerate() {
            for t in targets(inst) {
                if let Some(l) = (t as usize)
                    .checked_sub(first)
                    .and_then(|t| leader.get_mut(t))
                {
                    *l = true;
                }
            }
            if ends_block(inst) {
                leader[i + 1] = true;
            }
        }
        let starts: Vec<usize> = (0..n).filter(|&i| leader[i]).collect();
        let exit = starts.len();
        let mut graph = Graph {
            starts,
            successors: Vec::new(),
            len: n,
        };
        let mut block_of = vec![0; n];
        for b in 0..exit {
            block_of[graph.range(b)].fill(b);
        }
        for b in 0..exit {
            let end = graph.range(b).end;
            let last = &body[end - 1];
            let mut s: Vec<usize> = targets(last)
                .filter_map(|t| (t as usize).checked_sub(first))
                .map(|t| block_of.get(t).copied().unwrap_or(exit))
                .collect();
            if falls_through(last) {
                s.push(if end < n { block_of[end] } else { exit });
            } else if s.is_empty() {
                s.push(exit);
            }
            graph.successors.push(s);
        }
        graph
    }

    /// The instructions of a block.
    pub fn range(&self, block: usize) -> std::ops::Range<usize> {
        let end = self.starts.get(block + 1).copied().unwrap_or(self.len);
        self.starts[block]..end
    }
}

/// Fills in `reconverge` for the branches of one function, whose code begins at `first`.
pub fn reconvergence(code: &mut [Inst], first: usize, graph: &Graph) {
    let exit = graph.starts.len();
    let ipdom = post_dominators(&graph.successors, exit);
    for (b, &to) in ipdom.iter().enumerate().take(exit) {
        let inst = &mut code[first + graph.range(b).end - 1];
        if matches!(inst.op, Op::Bra { .. } | Op::Brx { .. }) {
            inst.reconverge = match graph.starts.get(to) {
                Some(&at) => (first + at) as u32,
                None => u32::MAX,
            };
        }
    }
}

fn targets(inst: &Inst) -> impl Iterator<Item = u32> + '_ {
    let (one, many): (Option<u32>, &[u32]) = match &inst.op {
        Op::Bra { target, .. } => (Some(*target), &[]),
        Op::Brx { targets, .. } => (None, targets),
        _ => (None, &[]),
    };
    one.into_iter().chain(many.iter().copied())
}

fn ends_block(inst: &Inst) -> bool {
    matches!(
        inst.op,
        Op::Bra { .. } | Op::Brx { .. } | Op::Ret | Op::Exit | Op::Trap
    )
}

fn falls_through(inst: &Inst) -> bool {
    !ends_block(inst) || inst.guard.is_some()
}

/// Cooper, Harvey and Kennedy's iteration on the reversed graph, rooted at the exit.
fn post_dominators(successors: &[Vec<usize>], exit: usize) -> Vec<usize> {
    let n = exit + 1;
    let mut predecessors = vec![Vec::new(); n];
    for (b, ss) in successors.iter().enumerate() {
        for &s in ss {
            predecessors[s].push(b);
        }
    }
    // Postorder of the reversed graph, without recursion: bodies may be long.
    let mut order = vec![usize::MAX; n];
    let mut list = Vec::with_capacity(n);
    let mut seen = vec![false; n];
    let mut stack = vec![(exit, 0)];
    seen[exit] = true;
    while let Some((b, i)) = stack.pop() {
        if let Some(&p) = predecessors[b].get(i) {
            stack.push((b, i + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            order[b] = list.len();
            list.push(b);
        }
    }
    let mut idom = vec![usize::MAX; n];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in list.iter().rev() {
            if b == exit {
                continue;
            }
            let mut new = usize::MAX;
            for &s in &successors[b] {
                if idom[s] == usize::MAX {
                    continue;
                }
                new = if new == usize::MAX {
                    s
                } else {
                    meet(&idom, &order, new, s)
                };
            }
            if new != usize::MAX && idom[b] != new {
                idom[b] = new;
                changed = true;
            }
        }
    }
    // Blocks that cannot reach the exit (endless loops) do not reconverge.
    idom.iter()
        .map(|&d| if d == usize::MAX { exit } else { d })
        .collect()
}

fn meet(idom: &[usize], order: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while order[a] < order[b] {
            a = idom[a];
        }
        while order[b] < order[a] {
            b = idom[b];
        }
    }
    a
}
