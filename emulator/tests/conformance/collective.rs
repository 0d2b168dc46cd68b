//! ISA: shfl.sync, vote.sync, match.sync, redux.sync, activemask, elect.sync.

use crate::harness::{Rng, suite};
use libtest_mimic::Trial;

const ALL: u64 = 0xffff_ffff;

/// The loop of the section "shfl.sync": the source lane and the predicate.
fn source(mode: &str, lane: i64, b: i64, c: i64) -> (i64, bool) {
    let (bval, cval, segmask) = (b & 31, c & 31, c >> 8 & 31);
    let max = (lane & segmask) | (cval & !segmask);
    let min = lane & segmask;
    let (j, p) = match mode {
        "up" => (lane - bval, lane - bval >= max),
        "down" => (lane + bval, lane + bval <= max),
        "bfly" => (lane ^ bval, (lane ^ bval) <= max),
        _ => {
            let j = min | (bval & !segmask);
            (j, j <= max)
        }
    };
    (if p { j } else { lane }, p)
}

fn shfl() {
    suite("shfl", |t| {
        let mut rng = Rng(6);
        let values: Vec<u64> = (0..32).map(|_| rng.next() & ALL).collect();
        for mode in ["up", "down", "bfly", "idx"] {
            // Clamps and segments: whole warp, and of 16, 8 and 2 lanes; a clamp inside.
            for c in [
                0, 31, 0x101f, 0x181f, 0x1e1f, 0x1000, 0x1800, 17, 0x1803, 0x180b,
            ] {
                for b in [0, 1, 2, 5, 16, 31, 33] {
                    let rows: Vec<[u64; 3]> = (0..32)
                        .map(|lane| {
                            let (j, p) = source(mode, lane, b, c);
                            [values[lane as usize], values[j as usize], p.into()]
                        })
                        .collect();
                    let op = format!("shfl.sync.{mode}.b32 %x|%y, %a, {b}, {c}, 0xffffffff;");
                    t.op("r>rp", &op, &rows);
                }
            }
        }
        // The lane index may differ from lane to lane, and the predicate may be left out.
        let rows: Vec<[u64; 3]> = (0..32)
            .map(|i| [values[i], 31 - i as u64, values[31 - i]])
            .collect();
        t.op("rr>r", "shfl.sync.idx.b32 %x, %a, %b, 0x1f, -1;", &rows);
        // By hand: down by 1 in segments of 8: the last of each keeps its own.
        let rows: Vec<[u64; 2]> = (0..32)
            .map(|i| [i, if i % 8 == 7 { i } else { i + 1 }])
            .collect();
        t.op("r>r", "shfl.sync.down.b32 %x, %a, 1, 0x181f, -1;", &rows);
        // A mask of the even lanes, executed by them alone.
        let rows: Vec<[u64; 2]> = (0..32)
            .map(|i| [i, if i % 2 == 0 { i ^ 2 } else { 99 }])
            .collect();
        t.op("r>r", "and.b32 %r0, %lane, 1; setp.eq.u32 %p, %r0, 0; mov.u32 %x, 99; @%p shfl.sync.bfly.b32 %x, %a, 2, 31, 0x55555555;", &rows);
    });
}

fn vote() {
    suite("vote", |t| {
        for (bits, all, any, uni) in [
            (ALL, 1, 1, 1),
            (0, 0, 0, 1),
            (0x10, 0, 1, 0),
            (ALL - 1, 0, 1, 0),
        ] {
            let rows: Vec<[u64; 5]> = (0..32)
                .map(|i| [bits >> i & 1, all, any, uni, bits])
                .collect();
            let op = "vote.sync.all.pred %x, %a, -1; vote.sync.any.pred %y, %a, -1; vote.sync.uni.pred %z, %a, -1; vote.sync.ballot.b32 %w, %a, -1;";
            t.op("p>pppr", op, &rows);
            let rows: Vec<[u64; 3]> = (0..32)
                .map(|i| [bits >> i & 1, u64::from(bits == 0), !bits & ALL])
                .collect();
            t.op(
                "p>pr",
                "vote.sync.all.pred %x, !%a, -1; vote.sync.ballot.b32 %y, !%a, -1;",
                &rows,
            );
        }
        // Only the lanes of the mask are counted; the others' bits are zero.
        let rows: Vec<[u64; 3]> = (0..32)
            .map(|i| [1, if i < 8 { 0xff } else { 7 }, u64::from(i < 8)])
            .collect();
        t.op("p>rp", "setp.lt.u32 %p, %lane, 8; mov.u32 %x, 7; setp.ne.u32 %y, 0, 0; @%p vote.sync.ballot.b32 %x, %a, 0xff; @%p vote.sync.all.pred %y, %a, 0xff;", &rows);
        // Two halves of a warp vote apart after diverging.
        let rows: Vec<[u64; 2]> = (0..32)
            .map(|i| [i, if i < 16 { 0x5555 } else { 0xaaaa_0000 }])
            .collect();
        let op = "
            and.b32 %r0, %lane, 1;
            setp.lt.u32 %p, %lane, 16;
            @%p bra LOW;
            setp.eq.u32 %q, %r0, 1;
            vote.sync.ballot.b32 %x, %q, 0xffff0000;
            bra DONE;
            LOW:
            setp.eq.u32 %q, %r0, 0;
            vote.sync.ballot.b32 %x, %q, 0x0000ffff;
            DONE:";
        t.op("r>r", op, &rows);
        // activemask: those that run now; a partial warp has no others.
        t.op("r>r", "activemask.b32 %x;", &[[0, 7], [0, 7], [0, 7]]);
        t.op("r>r", "activemask.b32 %x;", &[[0, ALL]; 32]);
    });
}

fn match_and_redux() {
    suite("match_and_redux", |t| {
        let value = |i: u64| [7, 9, 7, ALL][i as usize % 4];
        let mask = |i: u64| {
            (0..32)
                .filter(|&j| value(j) == value(i))
                .fold(0u64, |m, j| m | 1 << j)
        };
        let rows: Vec<[u64; 2]> = (0..32).map(|i| [value(i), mask(i)]).collect();
        t.op("r>r", "match.any.sync.b32 %x, %a, -1;", &rows);
        let rows: Vec<[u64; 2]> = (0..32).map(|i| [value(i) << 32 | 1, mask(i)]).collect();
        t.op("d>r", "match.any.sync.b64 %x, %a, -1;", &rows);
        // match.all: the mask and true when all agree, else 0 and false.
        t.op(
            "r>rp",
            "match.all.sync.b32 %x|%y, %a, -1;",
            &[[5, ALL, 1]; 32],
        );
        let rows: Vec<[u64; 3]> = (0..32).map(|i| [u64::from(i == 9), 0, 0]).collect();
        t.op("r>rp", "match.all.sync.b32 %x|%y, %a, -1;", &rows);
        t.op(
            "d>rp",
            "match.all.sync.b64 %x|%y, %a, -1;",
            &[[5 << 40, ALL, 1]; 32],
        );
        let mut rng = Rng(8);
        let v: Vec<u32> = (0..32).map(|_| rng.next() as u32).collect();
        let s = || v.iter().map(|&x| x as i32);
        let results: [(&str, u32); 8] = [
            ("add.u32", v.iter().fold(0, |a, &b| a.wrapping_add(b))),
            ("add.s32", v.iter().fold(0, |a, &b| a.wrapping_add(b))),
            ("min.u32", *v.iter().min().expect("values")),
            ("max.u32", *v.iter().max().expect("values")),
            ("min.s32", s().min().expect("values") as u32),
            ("max.s32", s().max().expect("values") as u32),
            ("and.b32", v.iter().fold(!0, |a, &b| a & (b | 0xf))),
            ("xor.b32", v.iter().fold(0, |a, &b| a ^ b)),
        ];
        for (op, want) in results {
            let or = if op == "and.b32" { 0xf } else { 0 };
            let rows: Vec<[u64; 2]> = v
                .iter()
                .map(|&x| [u64::from(x | or), want.into()])
                .collect();
            t.op("r>r", &format!("redux.sync.{op} %x, %a, -1;"), &rows);
        }
        let rows: Vec<[u64; 2]> = (0..32).map(|i| [1 << (i % 5), 31]).collect();
        t.op("r>r", "redux.sync.or.b32 %x, %a, -1;", &rows);
        let rows: Vec<[u64; 2]> = (0..32).map(|i| [i, if i < 4 { 6 } else { 0 }]).collect();
        t.op(
            "r>r",
            "setp.lt.u32 %p, %lane, 4; mov.u32 %x, 0; @%p redux.sync.add.u32 %x, %a, 0xf;",
            &rows,
        );
        // elect: one leader of the mask, and d is its lane in every one.
        t.judge(
            "r>rr",
            "elect.sync %r0|%p, -1; selp.u32 %y, 1, 0, %p; mov.u32 %x, %r0;",
            &[[0]; 1],
            |_, got| (got != [0, 1]).then(|| "the only lane leads".into()),
        );
        let rows: Vec<[u64; 2]> = (0..32).map(|_| [0, 1]).collect();
        t.op("r>r", "elect.sync %r0|%p, -1; vote.sync.ballot.b32 %r1, %p, -1; popc.b32 %r2, %r1; bfind.u32 %r3, %r1; setp.eq.u32 %q, %r3, %r0; selp.u32 %x, %r2, 0, %q;", &rows);
    });
}

pub fn trials() -> Vec<Trial> {
    trials![shfl, vote, match_and_redux]
}
