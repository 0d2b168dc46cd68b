//! Maps the registers of a function to as few rows as their lifetimes allow.
//!
//! PTX assigns each register about once, so a kernel names thousands, of which a hundred live at
//! a time. A row is 256 bytes: with fewer of them a block's registers stay in the cache. Lifetimes
//! are those of a single thread's path, which is what each lane of a row follows.

use super::cfg::Graph;
use super::program::{Inst, Mbar, Op, Reduce, Src};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Functions beyond this many registers times blocks keep one row per register.
const MAX_WORK: usize = 1 << 27;

/// Renames the registers; returns the number of rows.
pub fn registers(body: &mut [Inst], graph: &Graph, rows: u32) -> u32 {
    let n = rows as usize;
    let blocks = graph.starts.len();
    if n * blocks > MAX_WORK {
        return rows;
    }
    let words = n.div_ceil(64);
    let bit = |r: u32| (r as usize / 64, 1u64 << (r % 64));
    // Per block: registers read before they are written, and those written in any case.
    let mut used = vec![vec![0u64; words]; blocks];
    let mut killed = vec![vec![0u64; words]; blocks];
    let mut life = vec![(usize::MAX, 0usize); n];
    for b in 0..blocks {
        for i in graph.range(b) {
            let guarded = body[i].guard.is_some();
            let mut defs = Vec::new();
            visit(&mut body[i].op, &mut |r, def| {
                let at = 2 * i + usize::from(def);
                let l = &mut life[*r as usize];
                *l = (l.0.min(at), l.1.max(at));
                if def && !guarded {
                    defs.push(*r);
                } else {
                    // A guarded write keeps the other lanes' values.
                    let (w, m) = bit(*r);
                    if killed[b][w] & m == 0 {
                        used[b][w] |= m;
                    }
                }
            });
            for r in defs {
                let (w, m) = bit(r);
                killed[b][w] |= m;
            }
        }
    }
    let mut live_in = used.clone();
    let mut live_out = vec![vec![0u64; words]; blocks];
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks).rev() {
            for w in 0..words {
                let out = graph.successors[b]
                    .iter()
                    .filter_map(|&s| live_in.get(s))
                    .fold(0, |m, s| m | s[w]);
                let into = used[b][w] | out & !killed[b][w];
                live_out[b][w] = out;
                changed |= live_in[b][w] != into;
                live_in[b][w] = into;
            }
        }
    }
    for b in 0..blocks {
        let range = graph.range(b);
        for (r, l) in life.iter_mut().enumerate() {
            let (w, m) = bit(r as u32);
            if live_in[b][w] & m != 0 {
                *l = (l.0.min(2 * range.start), l.1.max(2 * range.start));
            }
            if live_out[b][w] & m != 0 {
                let end = 2 * range.end - 1;
                *l = (l.0.min(end), l.1.max(end));
            }
        }
    }
    // Linear scan.
    let mut order: Vec<usize> = (0..n).filter(|&r| life[r].0 != usize::MAX).collect();
    order.sort_by_key(|&r| life[r]);
    let mut active: BinaryHeap<Reverse<(usize, u32)>> = BinaryHeap::new();
    let mut free: Vec<u32> = Vec::new();
    let mut next = 0;
    let mut row = vec![0; n];
    for r in order {
        while let Some(&Reverse((end, old))) = active.peek()
            && end < life[r].0
        {
            active.pop();
            free.push(old);
        }
        row[r] = free.pop().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        active.push(Reverse((life[r].1, row[r])));
    }
    for inst in body {
        visit(&mut inst.op, &mut |r, _| *r = row[*r as usize]);
    }
    next
}

/// Calls `f` for each register operand: those read first, with false, then those written.
fn visit(op: &mut Op, f: &mut dyn FnMut(&mut u32, bool)) {
    fn read(s: &mut Src, f: &mut dyn FnMut(&mut u32, bool)) {
        if let Src::Reg(r) = s {
            f(r, false);
        }
    }
    macro_rules! reads {
        ($($s:expr),*) => {{ $(read($s, f);)* }};
    }
    macro_rules! each {
        ($list:expr) => {
            $list.iter_mut().for_each(|s| read(s, f))
        };
    }
    match op {
        Op::Alu { dst, src, .. } => {
            each!(src);
            f(dst, true);
        }
        Op::Carry { dst, src, .. } => {
            each!(src);
            f(dst, true);
        }
        Op::SetP { a, b, .. } => reads!(a, b),
        Op::Set { dst, a, b, .. } | Op::Selp { dst, a, b, .. } => {
            reads!(a, b);
            f(dst, true);
        }
        Op::SetPair {
            preds, dst, a, b, ..
        } => {
            reads!(a, b);
            if preds.is_none() {
                f(dst, true);
            }
        }
        Op::Lop3Pred { dst, src, .. } => {
            each!(src);
            dst.iter_mut().for_each(|d| f(d, true));
        }
        Op::Pack { dst, src, .. } => {
            each!(src);
            f(dst, true);
        }
        Op::Unpack { dst, src, .. } => {
            read(src, f);
            dst.iter_mut().flatten().for_each(|d| f(d, true));
        }
        Op::IsSpace { a, .. } => read(a, f),
        Op::Ld { access, dst, .. } => {
            read(&mut access.address.base, f);
            dst.iter_mut().flatten().for_each(|d| f(d, true));
        }
        Op::St { access, src } => {
            read(&mut access.address.base, f);
            each!(src);
        }
        Op::Atom {
            access,
            dst,
            src,
            cas,
            ..
        } => {
            reads!(&mut access.address.base, src);
            cas.iter_mut().for_each(|s| read(s, f));
            dst.iter_mut().for_each(|d| f(d, true));
        }
        Op::Shfl {
            dst, a, b, c, mask, ..
        } => {
            reads!(a, b, c, mask);
            dst.iter_mut().for_each(|d| f(d, true));
        }
        Op::Vote {
            mode, dst, mask, ..
        } => {
            read(mask, f);
            if *mode == super::program::VoteMode::Ballot {
                f(dst, true);
            }
        }
        Op::Match { dst, a, mask, .. } => {
            reads!(a, mask);
            dst.iter_mut().for_each(|d| f(d, true));
        }
        Op::Redux { dst, a, mask, .. } => {
            reads!(a, mask);
            f(dst, true);
        }
        Op::ActiveMask { dst } => f(dst, true),
        Op::Elect { dst, mask, .. } => {
            read(mask, f);
            dst.iter_mut().for_each(|d| f(d, true));
        }
        Op::WarpSync { mask } => read(mask, f),
        Op::Barrier(b) => {
            read(&mut b.id, f);
            b.count.iter_mut().for_each(|s| read(s, f));
            if let Some((Reduce::Popc, _, dst)) = &mut b.reduce {
                f(dst, true);
            }
        }
        Op::Mbar { op, address, .. } => {
            read(&mut address.base, f);
            match op {
                Mbar::Init(s) | Mbar::ExpectTx(s) | Mbar::CompleteTx(s) => read(s, f),
                Mbar::Arrive { state, count, .. } => {
                    count.iter_mut().for_each(|s| read(s, f));
                    state.iter_mut().for_each(|d| f(d, true));
                }
                Mbar::Test { state, .. } => read(state, f),
                Mbar::Inval | Mbar::CopyArrive { .. } => {}
            }
        }
        Op::MbarPending { dst, state } => {
            read(state, f);
            f(dst, true);
        }
        Op::CpAsync { dst, src, size, .. } => {
            reads!(&mut dst.base, &mut src.base);
            size.iter_mut().for_each(|s| read(s, f));
        }
        Op::LdMatrix { dst, address, .. } => {
            read(&mut address.base, f);
            dst.iter_mut().for_each(|d| f(d, true));
        }
        Op::StMatrix { src, address, .. } => {
            read(&mut address.base, f);
            each!(src);
        }
        Op::MovMatrix { dst, src } => {
            read(src, f);
            f(dst, true);
        }
        Op::Mma { d, a, b, c, .. } => {
            each!(a);
            each!(b);
            each!(c);
            d.iter_mut().for_each(|d| f(d, true));
        }
        Op::Brx { index, .. } => read(index, f),
        Op::CallIndirect { target, .. } => read(target, f),
        Op::PredLogic { .. }
        | Op::Fence
        | Op::CpCommit
        | Op::CpWait(_)
        | Op::Bra { .. }
        | Op::Call { .. }
        | Op::Printf { .. }
        | Op::Assert(_)
        | Op::Ret
        | Op::Exit
        | Op::Trap
        | Op::Yield
        | Op::Nop => {}
    }
}
