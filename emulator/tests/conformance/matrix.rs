//! ISA: Warp-level Matrix Instructions: ldmatrix, stmatrix, movmatrix, mma.
//!
//! Fragments follow the formulas of "Matrix Fragments for mma.m16n8k8" and ".m16n8k16":
//! groupID = %laneid >> 2, threadID_in_group = %laneid % 4.

use crate::harness::{BF16, F16, Format, Rng, f, kernel, suite, val};
use libtest_mimic::Trial;
use std::collections::HashSet;

/// Stores 16 bytes per thread at `sm`, thread t at 16 t, from the two input words per thread.
const FILL: &str = "
    mad.wide.u32 %rd0, %t, 16, %in;
    ld.global.v2.b64 {%rd1, %rd2}, [%rd0];
    mov.u32 %r40, sm;
    mad.lo.u32 %r41, %t, 16, %r40;
    st.shared.v2.b64 [%r41], {%rd1, %rd2};
    bar.sync 0;
    mad.wide.u32 %rd3, %t, 32, %out;";
const STORE: &str = "
    st.global.v4.b32 [%rd3], {%r0, %r1, %r2, %r3};";

/// 32 rows of 8 b16 elements, element e of row r being 256 r + e, as 64 words.
fn rows() -> Vec<u64> {
    (0..64)
        .map(|w| (0..4).fold(0, |x, i| x | (w / 2 * 256 + w % 2 * 4 + i) << (16 * i)))
        .collect()
}

fn ldmatrix() {
    suite("ldmatrix", |t| {
        for (num, regs) in [(1, "%r0"), (2, "%r0, %r1"), (4, "%r0, %r1, %r2, %r3")] {
            for trans in [false, true] {
                let suffix = if trans { ".trans" } else { "" };
                // Row addresses in reverse, so that nothing hangs on their order in memory.
                let body = format!(
                    "{FILL}
                    mov.u32 %r0, 0; mov.u32 %r1, 0; mov.u32 %r2, 0; mov.u32 %r3, 0;
                    sub.u32 %r5, 31, %lane;
                    mad.lo.u32 %r4, %r5, 16, %r40;
                    ldmatrix.sync.aligned.m8n8.x{num}{suffix}.shared.b16 {{{regs}}}, [%r4];
                    {STORE}"
                );
                let got = kernel("", &body, 32, &rows(), 128).expect("runs");
                let mut want = vec![0; 128];
                let mut seen = HashSet::new();
                for lane in 0..32u64 {
                    for m in 0..num {
                        let element = |i: u64| {
                            let (row, col) = (lane / 4, lane % 4 * 2 + i);
                            let (row, col) = if trans { (col, row) } else { (row, col) };
                            // Threads 8m..8m+7 hold the addresses of matrix m's rows.
                            (31 - (8 * m + row)) * 256 + col
                        };
                        assert!(seen.insert(element(0)) && seen.insert(element(1)));
                        let word = (lane * 4 + m / 2) as usize;
                        want[word] |= (element(1) << 16 | element(0)) << (32 * (m % 2));
                    }
                }
                assert_eq!(seen.len(), 64 * num as usize);
                t.same(&format!("ldmatrix x{num}{suffix}"), &got, &want);
            }
        }
    });
}

fn stmatrix_and_movmatrix() {
    suite("stmatrix_and_movmatrix", |t| {
        for trans in [false, true] {
            let suffix = if trans { ".trans" } else { "" };
            // stmatrix is ldmatrix backwards: each word lands where ldmatrix finds it.
            let body = format!(
                "mov.u32 %r40, sm;
                mad.lo.u32 %r4, %lane, 16, %r40;
                shl.b32 %r0, %lane, 17; or.b32 %r0, %r0, 0x10000; mad.lo.u32 %r0, %lane, 2, %r0;
                add.u32 %r1, %r0, 0x01000100; add.u32 %r2, %r1, 0x01000100; add.u32 %r3, %r2, 0x01000100;
                stmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 [%r4], {{%r0, %r1, %r2, %r3}};
                bar.sync 0;
                ld.shared.v2.b64 {{%rd1, %rd2}}, [%r4];
                mad.wide.u32 %rd3, %t, 16, %out;
                st.global.v2.b64 [%rd3], {{%rd1, %rd2}};"
            );
            let got = kernel("", &body, 32, &[0], 64).expect("runs");
            // Register m of a lane holds elements 2 lane and 2 lane + 1, plus 256 m.
            let mut want = vec![0u64; 64];
            for m in 0..4u64 {
                for lane in 0..32u64 {
                    for i in 0..2 {
                        let (row, col) = (lane / 4, lane % 4 * 2 + i);
                        let (row, col) = if trans { (col, row) } else { (row, col) };
                        let at = (8 * m + row) * 8 + col;
                        want[at as usize / 4] |= (2 * lane + i + 256 * m) << (16 * (at % 4));
                    }
                }
            }
            t.same(&format!("stmatrix{suffix}"), &got, &want);
        }
        for (num, regs) in [(1, "%r0"), (2, "%r0, %r1")] {
            let body = format!(
                "mov.u32 %r40, sm; mad.lo.u32 %r4, %lane, 16, %r40;
                mad.lo.u32 %r0, %lane, 0x00020002, 0x00010000; add.u32 %r1, %r0, 0x01000100;
                st.shared.v2.b64 [%r4], {{0, 0}}; bar.warp.sync -1;
                stmatrix.sync.aligned.m8n8.x{num}.shared.b16 [%r4], {{{regs}}};
                bar.warp.sync -1;
                ld.shared.v2.b64 {{%rd1, %rd2}}, [%r4];
                mad.wide.u32 %rd3, %t, 16, %out;
                st.global.v2.b64 [%rd3], {{%rd1, %rd2}};"
            );
            let got = kernel("", &body, 32, &[0], 64).expect("runs");
            let want: Vec<u64> = (0..256)
                .map(|at| {
                    if at < 64 * num {
                        at % 64 + 256 * (at / 64)
                    } else {
                        0
                    }
                })
                .collect::<Vec<u64>>()
                .chunks(4)
                .map(|c| c[3] << 48 | c[2] << 32 | c[1] << 16 | c[0])
                .collect();
            t.same(&format!("stmatrix x{num}"), &got, &want);
        }
        // movmatrix transposes: lane l has row l/4, columns 2(l%4) and +1.
        let word = |e: &dyn Fn(u64, u64) -> u64, l: u64| {
            e(l / 4, l % 4 * 2 + 1) << 16 | e(l / 4, l % 4 * 2)
        };
        let table: Vec<[u64; 2]> = (0..32)
            .map(|l| [word(&|r, c| r * 8 + c, l), word(&|r, c| c * 8 + r, l)])
            .collect();
        t.op(
            "r>r",
            "movmatrix.sync.aligned.m8n8.trans.b16 %x, %a;",
            &table,
        );
    });
}

/// The fragments' formulas: for each lane and element, its row and column.
fn a_fragment(k: u64, lane: u64, i: u64) -> (u64, u64) {
    let (group, thread) = (lane >> 2, lane % 4);
    if k == 8 {
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    } else {
        let row = if i < 2 || (4..6).contains(&i) {
            group
        } else {
            group + 8
        };
        (row, thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
    }
}

fn b_fragment(lane: u64, i: u64) -> (u64, u64) {
    let row = lane % 4 * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
    (row, lane >> 2)
}

fn c_fragment(lane: u64, i: u64) -> (u64, u64) {
    let row = if i < 2 { lane >> 2 } else { (lane >> 2) + 8 };
    (row, lane % 4 * 2 + (i & 1))
}

/// Runs one mma of a 16 x k, a k x 8 and a 16 x 8 matrix, given by element, in fragments.
fn mma(
    k: u64,
    kind: &str,
    wide: bool,
    a: impl Fn(u64, u64) -> u64,
    b: impl Fn(u64, u64) -> u64,
    c: impl Fn(u64, u64) -> u64,
) -> Vec<Vec<u64>> {
    let (na, nb) = (k / 4, k / 8); // registers of a and b
    let mut input = Vec::new();
    for lane in 0..32 {
        let two = |e: &dyn Fn(u64) -> u64, r: u64| e(2 * r + 1) << 16 | e(2 * r);
        let at = |e: u64| {
            let (i, j) = a_fragment(k, lane, e);
            a(i, j)
        };
        let bt = |e: u64| {
            let (i, j) = b_fragment(lane, e);
            b(i, j)
        };
        let ct = |e: u64| {
            let (i, j) = c_fragment(lane, e);
            c(i, j)
        };
        input.extend((0..na).map(|r| two(&at, r)));
        input.extend((0..nb).map(|r| two(&bt, r)));
        if wide {
            input.extend((0..4).map(ct));
        } else {
            input.extend((0..2).map(|r| two(&ct, r)));
        }
    }
    let nc = if wide { 4 } else { 2 };
    let per = na + nb + nc;
    let regs = |base: u64, n: u64| {
        (0..n)
            .map(|r| format!("%r{}", base + r))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut body = format!(
        "mad.wide.u32 %in, %t, {}, %in; mad.wide.u32 %out, %t, {}, %out;\n",
        per * 8,
        nc * 8
    );
    (0..per).for_each(|r| body += &format!("ld.global.b32 %r{r}, [%in+{}];\n", r * 8));
    let acc = if wide { "f32" } else { "f16" };
    body += &format!(
        "mma.sync.aligned.m16n8k{k}.row.col.{acc}.{kind}.{kind}.{acc} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n",
        regs(20, nc),
        regs(0, na),
        regs(na, nb),
        regs(na + nb, nc)
    );
    (0..nc).for_each(|r| body += &format!("st.global.b32 [%out+{}], %r{};\n", r * 8, 20 + r));
    let got = kernel("", &body, 32, &input, 32 * nc as usize).expect("runs");
    let mut out = vec![vec![0; 8]; 16];
    for lane in 0..32 {
        for e in 0..4 {
            let (i, j) = c_fragment(lane, e);
            out[i as usize][j as usize] = if wide {
                got[(lane * 4 + e) as usize]
            } else {
                got[(lane * 2 + e / 2) as usize] >> (16 * (e % 2)) & 0xffff
            };
        }
    }
    out
}

fn fragments_are_bijections() {
    for k in [8u64, 16] {
        let all = |per: u64, at: &dyn Fn(u64, u64) -> (u64, u64)| -> HashSet<(u64, u64)> {
            (0..32)
                .flat_map(|l| (0..per).map(move |i| (l, i)))
                .map(|(l, i)| at(l, i))
                .collect()
        };
        assert_eq!(all(k / 2, &|l, i| a_fragment(k, l, i)).len() as u64, 16 * k);
        assert_eq!(all(k / 4, &b_fragment).len() as u64, 8 * k);
        assert_eq!(all(4, &c_fragment).len(), 128);
    }
}

fn mma_layouts() {
    suite("mma_layouts", |t| {
        for k in [8, 16] {
            for (kind, fmt, wide) in [
                ("f16", F16, true),
                ("f16", F16, false),
                ("bf16", BF16, true),
            ] {
                let name = format!("{kind} k{k} wide {wide}");
                let int = |x: u64| fmt.encode(x as f64, 'n');
                let acc = |x: f64| {
                    if wide {
                        f(x as f32)
                    } else {
                        F16.encode(x, 'n')
                    }
                };
                // One element of a against one of b at a time: with a a matrix of distinct
                // small integers and b a selection, d shows each element's place. Eight
                // columns per launch: b[kk][n] = 1 where kk = n + shift.
                for shift in (0..k).step_by(8) {
                    let a = |i: u64, j: u64| int(i * k + j);
                    let b = |i: u64, j: u64| int(u64::from(i == j + shift));
                    let d = mma(k, kind, wide, a, b, |_, _| 0);
                    for (i, row) in d.iter().enumerate() {
                        let want: Vec<u64> = (0..8)
                            .map(|j| acc((i as u64 * k + j + shift) as f64))
                            .collect();
                        t.same(&format!("{name} a row {i}"), row, &want);
                    }
                }
                // a selects rows of b: every element of b distinct.
                let a = |i: u64, j: u64| int(u64::from(i % k == j));
                let d = mma(k, kind, wide, a, |i, j| int(i * 8 + j + 1), |_, _| 0);
                for (i, row) in d.iter().enumerate() {
                    let want: Vec<u64> = (0..8)
                        .map(|j| acc((i as u64 % k * 8 + j + 1) as f64))
                        .collect();
                    t.same(&format!("{name} b row {i}"), row, &want);
                }
                // c passes through, all distinct.
                let d = mma(
                    k,
                    kind,
                    wide,
                    |_, _| 0,
                    |_, _| 0,
                    |i, j| acc((i * 8 + j + 1) as f64),
                );
                for (i, row) in d.iter().enumerate() {
                    let want: Vec<u64> = (0..8)
                        .map(|j| acc((i * 8 + j as usize + 1) as f64))
                        .collect();
                    t.same(&format!("{name} c row {i}"), row, &want);
                }
            }
        }
    });
}

fn mma_products() {
    suite("mma_products", |t| {
        for k in [8, 16] {
            // Small integers: the plain product is exact in every order.
            for (kind, fmt, wide) in [
                ("f16", F16, true),
                ("f16", F16, false),
                ("bf16", BF16, true),
            ] {
                let mut rng = Rng(k + 9);
                let mut matrix = |n: u64| -> Vec<f64> {
                    (0..n).map(|_| (rng.next() % 17) as f64 - 8.0).collect()
                };
                let (a, b, c) = (matrix(16 * k), matrix(8 * k), matrix(128));
                let acc = |x: f64| {
                    if wide {
                        f(x as f32)
                    } else {
                        F16.encode(x, 'n')
                    }
                };
                let d = mma(
                    k,
                    kind,
                    wide,
                    |i, j| fmt.encode(a[(i * k + j) as usize], 'n'),
                    |i, j| fmt.encode(b[(i * 8 + j) as usize], 'n'),
                    |i, j| acc(c[(i * 8 + j) as usize]),
                );
                for i in 0..16 {
                    let want: Vec<u64> = (0..8)
                        .map(|j| {
                            let dot: f64 = (0..k)
                                .map(|q| a[(i * k + q) as usize] * b[(q * 8 + j) as usize])
                                .sum();
                            acc(dot + c[(i * 8 + j) as usize])
                        })
                        .collect();
                    t.same(&format!("{kind} k{k} row {i}"), &d[i as usize], &want);
                }
                // Fractions: "at least single precision" of products and accumulation.
                if wide {
                    check_fractions(t, k, kind, fmt);
                }
            }
        }
        // Overflow: 65504 * 65504 is finite in f32 and infinite in f16.
        let max = |_: u64, _: u64| 0x7bff;
        t.same(
            "f32 max",
            &mma(8, "f16", true, max, max, |_, _| 0)[0],
            &[f(8.0 * 65504.0 * 65504.0); 8],
        );
        t.same(
            "f16 inf",
            &mma(8, "f16", false, max, max, |_, _| 0)[0],
            &[0x7c00; 8],
        );
        // Subnormal inputs count: 2^-24 * 1, eight times.
        t.same(
            "subnormal",
            &mma(8, "f16", true, |_, _| 1, |_, _| 0x3c00, |_, _| 0)[3],
            &[f(4.768_371_6e-7); 8],
        );
        // NaN and infinity: canonical NaN out of inf * 0.
        t.same(
            "nan",
            &mma(16, "f16", true, |_, _| 0x7c00, |_, _| 0, |_, _| 0)[5],
            &[0x7fff_ffff; 8],
        );
    });
}

fn check_fractions(t: &mut crate::harness::Suite, k: u64, kind: &str, fmt: Format) {
    let mut rng = Rng(k);
    let mut matrix = |n: u64| -> Vec<u64> {
        (0..n)
            .map(|_| fmt.encode((rng.next() % 4001) as f64 / 1000.0 - 2.0, 'n'))
            .collect()
    };
    let (a, b) = (matrix(16 * k), matrix(8 * k));
    let d = mma(
        k,
        kind,
        true,
        |i, j| a[(i * k + j) as usize],
        |i, j| b[(i * 8 + j) as usize],
        |_, _| f(0.5),
    );
    let good: Vec<bool> = (0..128)
        .map(|e| {
            let (i, j) = (e / 8, e % 8);
            let products = (0..k)
                .map(|q| fmt.decode(a[(i * k + q) as usize]) * fmt.decode(b[(q * 8 + j) as usize]));
            let (sum, size) = products.fold((0.5, 0.5), |(s, z), p| (s + p, z + p.abs()));
            (val(d[i as usize][j as usize]) - sum).abs() <= size * k as f64 * f64::exp2(-23.0)
        })
        .collect();
    t.same(&format!("{kind} k{k} fractions"), &good, &[true; 128]);
}

pub fn trials() -> Vec<Trial> {
    trials![
        ldmatrix,
        stmatrix_and_movmatrix,
        fragments_are_bijections,
        mma_layouts,
        mma_products
    ]
}
