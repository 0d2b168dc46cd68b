//! Fragment layouts of `mma.sync`, written out from the ISA's tables, shape by shape.

use crate::harness::{parse, suite};
use libtest_mimic::Trial;
use ptx_emulator::{LaunchConfig, Memory, Params};

#[derive(Clone, Copy, PartialEq)]
enum Element {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

impl Element {
    fn bits(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 16,
            Self::Tf32 => 32,
            Self::S8 | Self::U8 => 8,
        }
    }

    fn encode(self, v: i32) -> u32 {
        match self {
            Self::F16 => u32::from(half::f16::from_f32(v as f32).to_bits()),
            Self::Bf16 => u32::from(half::bf16::from_f32(v as f32).to_bits()),
            Self::Tf32 => (v as f32).to_bits(),
            Self::S8 | Self::U8 => v as u32 & 0xff,
        }
    }
}

struct Shape {
    name: &'static str,
    types: &'static str,
    k: usize,
    element: Element,
    acc_f16: bool,
    /// Row and column of element `i` of a lane's part of A, by group `g` and thread in group `t`.
    a: fn(usize, usize, usize) -> (usize, usize),
    /// Row (k) and column of element `i` of B.
    b: fn(usize, usize, usize) -> (usize, usize),
}

fn shapes() -> Vec<Shape> {
    use Element::{Bf16, F16, S8, Tf32, U8};
    let a_k16: fn(usize, usize, usize) -> (usize, usize) = |i, g, t| {
        let row = if matches!(i, 0 | 1 | 4 | 5) { g } else { g + 8 };
        (row, t * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
    };
    let b_k16: fn(usize, usize, usize) -> (usize, usize) =
        |i, g, t| (t * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, g);
    let a_k8: fn(usize, usize, usize) -> (usize, usize) =
        |i, g, t| (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1));
    let b_k8: fn(usize, usize, usize) -> (usize, usize) = |i, g, t| (t * 2 + i, g);
    let a_i16: fn(usize, usize, usize) -> (usize, usize) =
        |i, g, t| (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3));
    let b_i16: fn(usize, usize, usize) -> (usize, usize) = |i, g, t| (t * 4 + i, g);
    let a_i32: fn(usize, usize, usize) -> (usize, usize) = |i, g, t| {
        let row = if i < 4 || (8..12).contains(&i) {
            g
        } else {
            g + 8
        };
        (row, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
    };
    let b_i32: fn(usize, usize, usize) -> (usize, usize) =
        |i, g, t| (t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g);
    let shape = |name, types, k, element, acc_f16, a, b| Shape {
        name,
        types,
        k,
        element,
        acc_f16,
        a,
        b,
    };
    vec![
        shape("m16n8k16", "f32.f16.f16.f32", 16, F16, false, a_k16, b_k16),
        shape("m16n8k16", "f16.f16.f16.f16", 16, F16, true, a_k16, b_k16),
        shape(
            "m16n8k16",
            "f32.bf16.bf16.f32",
            16,
            Bf16,
            false,
            a_k16,
            b_k16,
        ),
        shape("m16n8k8", "f32.f16.f16.f32", 8, F16, false, a_k8, b_k8),
        shape("m16n8k8", "f16.f16.f16.f16", 8, F16, true, a_k8, b_k8),
        shape("m16n8k8", "f32.bf16.bf16.f32", 8, Bf16, false, a_k8, b_k8),
        shape(
            "m16n8k4",
            "f32.tf32.tf32.f32",
            4,
            Tf32,
            false,
            |i, g, t| (g + 8 * i, t),
            |_, g, t| (t, g),
        ),
        shape(
            "m16n8k8",
            "f32.tf32.tf32.f32",
            8,
            Tf32,
            false,
            |i, g, t| (g + 8 * (i & 1), t + if i >= 2 { 4 } else { 0 }),
            |i, g, t| (t + 4 * i, g),
        ),
        shape("m16n8k16", "s32.s8.s8.s32", 16, S8, false, a_i16, b_i16),
        shape("m16n8k16", "s32.u8.u8.s32", 16, U8, false, a_i16, b_i16),
        shape("m16n8k32", "s32.s8.s8.s32", 32, S8, false, a_i32, b_i32),
        shape("m16n8k32", "s32.u8.u8.s32", 32, U8, false, a_i32, b_i32),
    ]
}

/// A kernel that loads `[register][lane]` fragments of A, B and C, multiplies and stores D.
fn kernel(s: &Shape, na: usize, nb: usize, nc: usize) -> String {
    let regs = |from: usize, n: usize| {
        (from..from + n)
            .map(|r| format!("%r{r}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let n = na + nb + nc;
    let loads: String = (0..n)
        .map(|r| format!("ld.global.b32 %r{r}, [%rd2+{}];\n", 128 * r))
        .collect();
    let stores: String = (0..nc)
        .map(|r| format!("st.global.b32 [%rd2+{}], %r{};\n", 128 * (n + r), n + r))
        .collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<40>; .reg .b64 %rd<4>;\n\
         ld.param.u64 %rd1, [p]; mov.u32 %r39, %tid.x; mul.wide.u32 %rd3, %r39, 4; add.s64 %rd2, %rd1, %rd3;\n{loads}\
         mma.sync.aligned.{}.row.col.{} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n{stores}ret;\n}}\n",
        s.name,
        s.types,
        regs(n, nc),
        regs(0, na),
        regs(na, nb),
        regs(na + nb, nc)
    )
}

fn layouts() {
    for s in shapes() {
        let per = 32 / s.element.bits();
        let (ea, eb) = (16 * s.k / 32, 8 * s.k / 32);
        let (na, nb, nc) = (ea / per, eb / per, if s.acc_f16 { 2 } else { 4 });
        // Small integers, so that every format and every order of sums is exact.
        let signed = s.element != Element::U8;
        let value = |seed: usize, r: usize, c: usize| {
            let v = (((r * 31 + c * 17 + seed * 7) * 2_654_435_761) >> 8) % 8;
            v as i32 - if signed { 4 } else { 0 }
        };
        let mut words = vec![0u32; 32 * (na + nb + 2 * nc)];
        let (mut seen_a, mut seen_b) = (vec![0; 16 * s.k], vec![0; 8 * s.k]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..ea {
                let (r, c) = (s.a)(i, g, t);
                seen_a[r * s.k + c] += 1;
                words[32 * (i / per) + lane] |=
                    s.element.encode(value(1, r, c)) << (s.element.bits() * (i % per));
            }
            for i in 0..eb {
                let (r, c) = (s.b)(i, g, t);
                seen_b[r * 8 + c] += 1;
                words[32 * (na + i / per) + lane] |=
                    s.element.encode(value(2, r, c)) << (s.element.bits() * (i % per));
            }
            for i in 0..4 {
                let v = value(3, g + 8 * (i / 2), 2 * t + i % 2);
                if s.acc_f16 {
                    words[32 * (na + nb + i / 2) + lane] |=
                        Element::F16.encode(v) << (16 * (i % 2));
                } else {
                    words[32 * (na + nb + i) + lane] = if s.element.bits() == 8 {
                        v as u32
                    } else {
                        (v as f32).to_bits()
                    };
                }
            }
        }
        // The tables are bijections.
        assert!(
            seen_a.iter().chain(&seen_b).all(|&n| n == 1),
            "{} {}",
            s.name,
            s.types
        );
        let memory = Memory::new();
        let p = memory.upload(&words).unwrap();
        let module = parse(&kernel(&s, na, nb, nc)).unwrap();
        module
            .launch(
                &memory,
                "k",
                &LaunchConfig::new(1, 32),
                Params::new().arg(p).as_bytes(),
            )
            .unwrap_or_else(|f| panic!("{f}"));
        let got: Vec<u32> = memory
            .download(p.offset(128 * (na + nb + nc) as u64), 32 * nc)
            .unwrap();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..4 {
                let (r, c) = (g + 8 * (i / 2), 2 * t + i % 2);
                let want = value(3, r, c)
                    + (0..s.k)
                        .map(|k| value(1, r, k) * value(2, k, c))
                        .sum::<i32>();
                let got = if s.acc_f16 {
                    half::f16::from_bits((got[32 * (i / 2) + lane] >> (16 * (i % 2))) as u16)
                        .to_f32() as i32
                } else if s.element.bits() == 8 {
                    got[32 * i + lane] as i32
                } else {
                    f32::from_bits(got[32 * i + lane]) as i32
                };
                assert_eq!(got, want, "{} {} at {r},{c}", s.name, s.types);
            }
        }
    }
}

fn a_warp_with_lanes_missing_cannot_multiply() {
    let s = &shapes()[0];
    let memory = Memory::new();
    let p = memory.alloc_zeroed(1 << 14).unwrap();
    let module = parse(&kernel(s, 4, 2, 4)).unwrap();
    let f = module
        .launch(
            &memory,
            "k",
            &LaunchConfig::new(1, 31),
            Params::new().arg(p).as_bytes(),
        )
        .unwrap_err();
    assert!(f.to_string().contains("all 32 lanes"), "{f}");
}

/// Sums of integers wrap, or with `.satfinite` stop at the ends of their range.
fn saturation() {
    suite("mma of integers at the ends", |t| {
        for (modifier, want) in [("", i32::MIN + 15), (".satfinite", i32::MAX)] {
            let name = format!("m16n8k16.row.col{modifier}.s32.s8.s8.s32");
            let text = kernel(&shapes()[8], 2, 1, 4);
            let text = text.replace("m16n8k16.row.col.s32.s8.s8.s32", &name);
            let memory = Memory::new();
            // All elements are 1, all accumulators the largest number.
            let words: Vec<i32> = (0..11 * 32)
                .map(|i| if i < 3 * 32 { 0x0101_0101 } else { i32::MAX })
                .collect();
            let p = memory.upload(&words).expect("memory");
            parse(&text)
                .expect("parses")
                .launch(
                    &memory,
                    "k",
                    &LaunchConfig::new(1, 32),
                    Params::new().arg(p).as_bytes(),
                )
                .unwrap_or_else(|f| panic!("{f}"));
            let got: Vec<i32> = memory.download(p.offset(7 * 128), 4 * 32).expect("memory");
            t.same(&name, &got, &[want; 128]);
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        layouts,
        a_warp_with_lanes_missing_cannot_multiply,
        saturation
    ]
}
