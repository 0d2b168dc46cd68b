//! ISA: Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions: wgmma.mma_async (shapes,
//! types, operands, scales, transposes), register fragments, matrix layouts in shared memory,
//! wgmma.fence, wgmma.commit_group, wgmma.wait_group; and setmaxnreg.

use libtest_mimic::Trial;
use std::fmt::Write;

use crate::harness::{HEADER, Rng, Suite, parse, suite};
use half::{bf16, f16};
use ptx_emulator::{Fault, FaultKind, LaunchConfig, Memory, Params};

/// One instruction and the layout of its operands.
#[derive(Clone, Copy, Debug)]
struct Case {
    n: usize,
    bf16: bool,
    acc_f16: bool,
    a_in_registers: bool,
    trans_a: bool,
    trans_b: bool,
    /// Bytes of a row of the swizzle; 16 for none.
    span: usize,
    negate: [bool; 2],
    scale_d: &'static str,
}

const PLAIN: Case = Case {
    n: 8,
    bf16: false,
    acc_f16: false,
    a_in_registers: false,
    trans_a: false,
    trans_b: false,
    span: 128,
    negate: [false; 2],
    scale_d: "%yes",
};

/// Shared addresses of A and of B; both at multiples of 1024.
const A: usize = 0;
const B: usize = 8192;

/// The canonical layouts of the ISA ("Strides", "Shared Memory Matrix Layout"), in elements of 16 bits:
/// the byte of element (row, k) before the swizzle, and the leading and stride byte offsets that go with
/// it. `rows` is M or N.
fn layout(span: usize, transposed: bool, rows: usize, row: usize, k: usize) -> (usize, [usize; 2]) {
    // Elements of a row of the swizzle.
    let t = span / 2;
    match (transposed, span) {
        // Core matrices of 8 rows of 16 bytes; along K, then along the rows.
        (false, 16) => {
            let (lbo, sbo) = (128, 256);
            (
                row % 8 * 16 + row / 8 * sbo + k / 8 * lbo + k % 8 * 2,
                [lbo, sbo],
            )
        }
        // Rows of `span` bytes, eight to an atom. 32 bytes of each are used.
        (false, _) => (row * span + k * 2, [16, 8 * span]),
        // Core matrices of 8 k of 8 rows.
        (true, 16) => {
            let (lbo, sbo) = (rows / 8 * 128, 128);
            (
                row % 8 * 2 + row / 8 * sbo + k % 8 * 16 + k / 8 * lbo,
                [lbo, sbo],
            )
        }
        // Atoms of 8 k of `t` rows: the next 8 k after one, the next rows after all 16.
        (true, _) => {
            let (lbo, sbo) = (16 * span, 8 * span);
            (
                row % t * 2 + row / t * lbo + k % 8 * span + k / 8 * sbo,
                [lbo, sbo],
            )
        }
    }
}

/// The swizzle exchanges 16-byte chunks: bits 4 and up of the address by those from 7 on.
fn swizzle(span: usize, at: usize) -> usize {
    let bits = match span {
        128 => 7,
        64 => 3,
        32 => 1,
        _ => 0,
    };
    at ^ (at >> 7 & bits) << 4
}

fn mode(span: usize) -> u64 {
    match span {
        128 => 1,
        64 => 2,
        32 => 3,
        _ => 0,
    }
}

fn descriptor(at: usize, [lbo, sbo]: [usize; 2], span: usize) -> u64 {
    (at as u64 >> 4) | (lbo as u64 >> 4) << 16 | (sbo as u64 >> 4) << 32 | mode(span) << 62
}

impl Case {
    fn registers(&self) -> usize {
        self.n / if self.acc_f16 { 4 } else { 2 }
    }

    fn element(&self, x: f32) -> u16 {
        match self.bf16 {
            true => bf16::from_f32(x).to_bits(),
            false => f16::from_f32(x).to_bits(),
        }
    }

    /// The instruction.
    fn text(&self) -> String {
        let ty = if self.bf16 { "bf16" } else { "f16" };
        let d: Vec<String> = (0..self.registers()).map(|i| format!("%d{i}")).collect();
        let sign = |negative| if negative { -1 } else { 1 };
        let trans = match self.a_in_registers {
            true => format!("{}", u8::from(self.trans_b)),
            false => format!("{}, {}", u8::from(self.trans_a), u8::from(self.trans_b)),
        };
        format!(
            "wgmma.mma_async.sync.aligned.m64n{}k16.{}.{ty}.{ty} {{{}}}, {}, %b, {}, {}, {}, {trans};",
            self.n,
            if self.acc_f16 { "f16" } else { "f32" },
            d.join(", "),
            if self.a_in_registers {
                "{%a0, %a1, %a2, %a3}"
            } else {
                "%a"
            },
            self.scale_d,
            sign(self.negate[0]),
            sign(self.negate[1]),
        )
    }

    /// A kernel of 128 threads: shared memory and A's registers from the input, the accumulators to the
    /// output.
    fn kernel(&self, a: u64, b: u64) -> String {
        let mut body = String::new();
        for i in 0..self.registers() {
            writeln!(body, "ld.global.b32 %d{i}, [%acc + {}];", i * 512).expect("string");
        }
        let mut stores = String::new();
        for i in 0..self.registers() {
            writeln!(stores, "st.global.b32 [%acc + {}], %d{i};", i * 512).expect("string");
        }
        format!(
            "{HEADER}.visible .entry k(.param .u64 p_in, .param .u64 p_frag, .param .u64 p_acc) {{
.reg .b64 %in, %frag, %acc, %a, %b;
.reg .b32 %t, %i, %v, %d<128>, %a<4>;
.reg .pred %yes, %no, %p;
.shared .align 1024 .b8 sm[40960];
ld.param.u64 %in, [p_in];
ld.param.u64 %frag, [p_frag];
ld.param.u64 %acc, [p_acc];
mov.u32 %t, %tid.x;
mad.wide.u32 %in, %t, 4, %in;
mad.wide.u32 %frag, %t, 16, %frag;
mad.wide.u32 %acc, %t, 4, %acc;
setp.eq.u32 %yes, 0, 0;
setp.ne.u32 %no, 0, 0;
shl.b32 %i, %t, 2;
LOOP:
ld.global.b32 %v, [%in];
st.shared.b32 [%i], %v;
add.u64 %in, %in, 512;
add.u32 %i, %i, 512;
setp.lt.u32 %p, %i, 40960;
@%p bra LOOP;
ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%frag];
{body}
mov.b64 %a, {a};
mov.b64 %b, {b};
fence.proxy.async;
bar.sync 0;
wgmma.fence.sync.aligned;
{}
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
{stores}
ret;
}}
",
            self.text()
        )
    }

    /// Runs the instruction on small integers, of which every sum is exact, and compares.
    fn check(&self, t: &mut Suite, seed: u64) {
        let mut rng = Rng(seed);
        let mut small = || (rng.next() % 7) as f32 - 3.0;
        let n = self.n;
        let a: Vec<f32> = (0..64 * 16).map(|_| small()).collect();
        let b: Vec<f32> = (0..n * 16).map(|_| small()).collect();
        let c: Vec<f32> = (0..64 * n).map(|_| small()).collect();
        // What no element is at is a NaN.
        let mut shared = vec![0x7fffu16; 40960 / 2];
        let mut put = |base: usize, transposed, rows, row, k, x| {
            let (at, offsets) = layout(self.span, transposed, rows, row, k);
            shared[swizzle(self.span, base + at) / 2] = self.element(x);
            offsets
        };
        let (mut of_a, mut of_b) = ([0; 2], [0; 2]);
        for k in 0..16 {
            for row in 0..64 {
                if !self.a_in_registers {
                    of_a = put(A, self.trans_a, 64, row, k, a[row * 16 + k]);
                }
            }
            for row in 0..n {
                of_b = put(B, self.trans_b, n, row, k, b[row * 16 + k]);
            }
        }
        // Figures of the ISA: fragments of A and of D.
        let mut fragments = vec![0u32; 128 * 4];
        let mut accumulators = vec![0u32; 128 * self.registers()];
        let place = |thread: usize, i: usize| {
            let (warp, lane) = (thread / 32, thread % 32);
            let row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
            (row, 8 * (i / 4) + 2 * (lane % 4) + i % 2)
        };
        for thread in 0..128 {
            for i in 0..8 {
                let (row, k) = place(thread, i);
                let bits = u32::from(self.element(a[row * 16 + k]));
                fragments[thread * 4 + i / 2] |= bits << (16 * (i % 2));
            }
            for i in 0..n / 2 {
                let (row, column) = place(thread, i);
                let x = c[row * n + column];
                match self.acc_f16 {
                    true => {
                        accumulators[i / 2 * 128 + thread] |=
                            u32::from(f16::from_f32(x).to_bits()) << (16 * (i % 2));
                    }
                    false => accumulators[i * 128 + thread] = x.to_bits(),
                }
            }
        }
        let what = self.text();
        let text = self.kernel(
            descriptor(A, of_a, self.span),
            descriptor(B, of_b, self.span),
        );
        let got = match run(&text, &shared, &fragments, &accumulators, seed) {
            Ok(got) => got,
            Err(e) => return t.same(&what, &[e], &["no fault".to_owned()]),
        };
        let sign = if self.negate[0] != self.negate[1] {
            -1.0
        } else {
            1.0
        };
        let add = matches!(self.scale_d, "%yes" | "1" | "!%no");
        let (mut values, mut want) = (Vec::new(), Vec::new());
        for thread in 0..128 {
            for i in 0..n / 2 {
                let (row, column) = place(thread, i);
                let products = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]);
                let sum: f32 = products.sum();
                want.push(sign * sum + if add { c[row * n + column] } else { 0.0 });
                values.push(match self.acc_f16 {
                    true => {
                        let bits = got[i / 2 * 128 + thread] >> (16 * (i % 2));
                        f16::from_bits(bits as u16).to_f32()
                    }
                    false => f32::from_bits(got[i * 128 + thread]),
                });
            }
        }
        t.same(&format!("{what} span {}", self.span), &values, &want);
    }
}

/// The accumulators after a kernel.
fn run(
    text: &str,
    shared: &[u16],
    fragments: &[u32],
    acc: &[u32],
    seed: u64,
) -> Result<Vec<u32>, String> {
    let module = parse(text).map_err(|e| format!("{e}\n{text}"))?;
    let memory = Memory::new();
    let params = Params::new()
        .arg(memory.upload(shared).expect("memory"))
        .arg(memory.upload(fragments).expect("memory"));
    let out = memory.upload(acc).expect("memory");
    let config = LaunchConfig::new(1, 128).seed(seed);
    let params = params.arg(out);
    module
        .launch(&memory, "k", &config, params.as_bytes())
        .map_err(|f| f.to_string())?;
    Ok(memory.download(out, acc.len()).expect("memory"))
}

fn shapes_and_types() {
    suite("wgmma shapes", |t| {
        for n in (8..=256).step_by(8) {
            let rs = n % 16 == 0;
            Case {
                n,
                a_in_registers: rs,
                ..PLAIN
            }
            .check(t, n as u64);
            Case {
                n,
                bf16: true,
                a_in_registers: !rs,
                ..PLAIN
            }
            .check(t, n as u64);
        }
        for n in [8, 40, 256] {
            Case {
                n,
                acc_f16: true,
                ..PLAIN
            }
            .check(t, 1);
            Case {
                n,
                acc_f16: true,
                a_in_registers: true,
                ..PLAIN
            }
            .check(t, 2);
        }
    });
}

fn layouts() {
    suite("wgmma layouts", |t| {
        for span in [16, 32, 64, 128] {
            for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
                for n in [8, 16, 24, 64, 72, 128, 256] {
                    // A transposed operand is whole rows of the swizzle.
                    if trans_b && n * 2 < span {
                        continue;
                    }
                    Case {
                        n,
                        trans_a,
                        trans_b,
                        span,
                        ..PLAIN
                    }
                    .check(t, n as u64);
                }
                let rs = Case {
                    n: 64,
                    trans_b,
                    span,
                    a_in_registers: true,
                    ..PLAIN
                };
                rs.check(t, 3);
            }
        }
    });
}

fn scales() {
    suite("wgmma scales", |t| {
        for negate in [[false, false], [true, false], [false, true], [true, true]] {
            for a_in_registers in [false, true] {
                Case {
                    n: 16,
                    negate,
                    a_in_registers,
                    ..PLAIN
                }
                .check(t, 4);
            }
        }
        for scale_d in ["%yes", "%no", "!%yes", "!%no", "0", "1"] {
            Case {
                n: 16,
                scale_d,
                ..PLAIN
            }
            .check(t, 5);
        }
    });
}

/// A kernel of whole warps; `%t` is the thread.
fn body(code: &str) -> String {
    format!(
        "{HEADER}.visible .entry k() {{
.reg .b64 %a, %b, %rd<4>;
.reg .b32 %t, %w, %d<8>, %a<4>, %r<8>;
.reg .pred %p, %q;
.shared .align 1024 .b8 sm[8192];
mov.u32 %t, %tid.x;
shr.u32 %w, %t, 5;
setp.eq.u32 %p, 0, 0;
shl.b32 %r0, %t, 5;
st.shared.v4.u32 [%r0], {{%t, %t, %t, %t}};
st.shared.v4.u32 [%r0+16], {{%t, %t, %t, %t}};
mov.b64 %a, {};
mov.b64 %b, {};
fence.proxy.async.shared::cta;
bar.sync 0;
{code}
ret;
}}
",
        descriptor(0, [128, 256], 16),
        descriptor(2048, [128, 256], 16)
    )
}

const MMA: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%d0, %d1, %d2, %d3}, %a, %b, %p, 1, 1, 0, 0;";
const RS: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, %b, %p, 1, 1, 0;";
const FENCE: &str = "wgmma.fence.sync.aligned;";
const COMMIT: &str = "wgmma.commit_group.sync.aligned;";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

fn launch(text: &str, threads: u32, seed: u64) -> Result<(), Box<Fault>> {
    let module = parse(text).expect("parses");
    let config = LaunchConfig::new(1, threads).seed(seed);
    module.launch(&Memory::new(), "k", &config, &[]).map(|_| ())
}

fn registers_in_flight() {
    let end = format!("{COMMIT} {WAIT}");
    let other_n = "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, %a, %b, %p, 1, 1, 0, 0;";
    let half_d = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%d4, %d5, %d6, %d7}, {%d0, %d1, %d2, %d3}, %b, %p, 1, 1, 0;";
    let rows: &[(&str, String, Option<&str>)] = &[
        (
            "in order",
            format!("{FENCE} {MMA} {end} mov.b32 %r1, %d0;"),
            None,
        ),
        (
            "twice on one accumulator",
            format!("{FENCE} {MMA} {MMA} {end}"),
            None,
        ),
        (
            "again after a wait",
            format!("{FENCE} {MMA} {end} {MMA} {end}"),
            None,
        ),
        (
            "no fence at all",
            format!("{MMA} {end}"),
            Some("missing wgmma.fence"),
        ),
        (
            "a write after the fence",
            format!("{FENCE} mov.b32 %d3, 0; {MMA} {end}"),
            Some("missing wgmma.fence"),
        ),
        (
            "a read after the fence",
            format!("{FENCE} mov.b32 %r1, %d3; {MMA} {end}"),
            Some("missing wgmma.fence"),
        ),
        (
            "a write of A after the fence",
            format!("{FENCE} mov.b32 %a1, 0; {RS} {end}"),
            Some("missing wgmma.fence"),
        ),
        (
            "a read between",
            format!("{FENCE} {MMA} {end} mov.b32 %r1, %d0; {MMA} {end}"),
            Some("missing wgmma.fence"),
        ),
        (
            "a read between and a fence",
            format!("{FENCE} {MMA} {end} mov.b32 %r1, %d0; {FENCE} {MMA} {end}"),
            None,
        ),
        (
            "another register between",
            format!("{FENCE} {MMA} {end} mov.b32 %d4, 0; {MMA} {end}"),
            None,
        ),
        (
            "a read in flight",
            format!("{FENCE} {MMA} {COMMIT} mov.b32 %r1, %d0; {WAIT}"),
            Some("accumulator in flight"),
        ),
        (
            "a write in flight",
            format!("{FENCE} {MMA} {COMMIT} mov.b32 %d2, 0; {WAIT}"),
            Some("accumulator in flight"),
        ),
        (
            "a read without a commit",
            format!("{FENCE} {MMA} {WAIT} mov.b32 %r1, %d0; {end}"),
            Some("accumulator in flight"),
        ),
        (
            "a write of A in flight",
            format!("{FENCE} {RS} {COMMIT} mov.b32 %a0, 0; {WAIT}"),
            Some("fragment of A in flight"),
        ),
        ("A shared by two", format!("{FENCE} {RS} {RS} {end}"), None),
        (
            "a store of one in flight",
            format!("{FENCE} {MMA} {COMMIT} st.shared.b32 [4092], %d1; {WAIT}"),
            Some("accumulator in flight"),
        ),
        (
            "another shape on it",
            format!("{FENCE} {MMA} {COMMIT} {other_n} {end}"),
            Some("another shape"),
        ),
        (
            "another shape and a fence",
            format!("{FENCE} {MMA} {end} {FENCE} {other_n} {end}"),
            None,
        ),
        (
            "an accumulator as A",
            format!("{FENCE} {MMA} {COMMIT} {FENCE} {half_d} {end}"),
            Some("register in flight"),
        ),
        (
            "an accumulator as A after a wait",
            format!("{FENCE} {MMA} {end} {FENCE} {half_d} {end}"),
            None,
        ),
        (
            "the end in flight",
            format!("{FENCE} {MMA} {COMMIT}"),
            Some("the warp ends before"),
        ),
        (
            "two shapes in two groups",
            format!(
                "{FENCE} {MMA} {COMMIT} {other_n} {COMMIT} wgmma.wait_group.sync.aligned 1; mov.b32 %r1, %d0; {WAIT}"
            ),
            Some("another shape"),
        ),
    ];
    suite("wgmma registers", |t| {
        for (what, code, want) in rows {
            for seed in 0..8 {
                let found = match launch(&body(code), 128, seed) {
                    Ok(()) => None,
                    Err(f) => match &f.kind {
                        FaultKind::RegisterHazard { detail, .. } => Some(detail.clone()),
                        _ => Some(f.to_string()),
                    },
                };
                let right = match (want, &found) {
                    (None, None) => true,
                    (Some(w), Some(f)) => f.contains(w),
                    _ => false,
                };
                t.same(
                    &format!("{what}: {found:?}, want {want:?}"),
                    &[right],
                    &[true],
                );
            }
        }
    });
}

fn warpgroups() {
    let mma = format!("{FENCE} {MMA} {COMMIT} {WAIT}");
    let rows: &[(&str, u32, String, Option<&str>)] = &[
        ("one", 128, mma.clone(), None),
        ("two", 256, mma.clone(), None),
        ("half of one", 64, mma.clone(), Some("a warpgroup is four warps")),
        ("half of the second", 192, mma.clone(), Some("a warpgroup is four warps")),
        ("a warp too few", 128, format!("setp.eq.u32 %q, %w, 2; @%q bra END; {mma} END:"), Some("warp 2 of its warpgroup has not issued")),
        ("lanes too few", 128, format!("and.b32 %r1, %t, 31; setp.eq.u32 %q, %r1, 5; @%q exit; {mma}"), Some("all 32 lanes")),
        ("different instructions", 128, format!("setp.eq.u32 %q, %w, 1; {FENCE} @%q bra OTHER; {MMA} bra BACK; OTHER: {MMA} BACK: {COMMIT} {WAIT}"), Some("the warps of a warpgroup disagree")),
        ("different descriptors in a warp", 128, format!("cvt.u64.u32 %rd0, %t; add.u64 %a, %a, %rd0; {mma}"), Some("descriptor is")),
        ("different descriptors in a group", 128, format!("cvt.u64.u32 %rd0, %w; shl.b64 %rd0, %rd0, 4; add.u64 %b, %b, %rd0; {mma}"), Some("descriptors of B")),
        ("different scales in a group", 128, format!("setp.eq.u32 %p, %w, 1; {mma}"), Some("scale-d")),
        ("different scales in a warp", 128, format!("setp.lt.u32 %p, %t, 5; {mma}"), Some("scale-d is true in lanes")),
        ("reserved bits", 128, format!("or.b64 %a, %a, 0x8000; {mma}"), Some("bits set that no field has")),
        ("outside shared memory", 128, format!("or.b64 %b, %b, 0x3f00; {mma}"), Some("out of bounds")),
        // setmaxnreg: a pool that begins empty.
        ("registers exchanged", 256, "setp.lt.u32 %q, %w, 4; @%q bra LESS; setmaxnreg.inc.sync.aligned.u32 240; bra END; LESS: setmaxnreg.dec.sync.aligned.u32 96; END:".into(), None),
        ("more than there are", 256, "setp.lt.u32 %q, %w, 4; @%q bra LESS; setmaxnreg.inc.sync.aligned.u32 248; bra END; LESS: setmaxnreg.dec.sync.aligned.u32 96; END:".into(), Some("2560 for the warp, and 1536 are free")),
        ("the way down goes up", 256, "setmaxnreg.dec.sync.aligned.u32 176;".into(), Some("setmaxnreg.dec to 176 registers in a warp that has fewer already: 168")),
        ("the way up goes down", 256, "setmaxnreg.inc.sync.aligned.u32 160;".into(), Some("has more already")),
        ("registers of three warps", 128, "setp.eq.u32 %q, %w, 3; @%q bra END; setmaxnreg.dec.sync.aligned.u32 96; END:".into(), Some("not every warp of the warpgroup executed this setmaxnreg")),
        ("different setmaxnreg", 128, "setp.eq.u32 %q, %w, 3; @%q bra OTHER; setmaxnreg.dec.sync.aligned.u32 96; bra END; OTHER: setmaxnreg.dec.sync.aligned.u32 96; END:".into(), Some("they execute different setmaxnreg")),
        ("registers in half a warpgroup", 64, "setmaxnreg.dec.sync.aligned.u32 96;".into(), Some("a warpgroup is four warps")),
    ];
    suite("warpgroups", |t| {
        for (what, threads, code, want) in rows {
            for seed in 0..8 {
                let module = parse(&body(code)).expect("parses");
                let config = LaunchConfig::new(1, *threads).seed(seed).registers(168);
                let found = module.launch(&Memory::new(), "k", &config, &[]);
                let found = found.err().map(|f| f.to_string());
                let right = match (want, &found) {
                    (None, None) => true,
                    (Some(w), Some(f)) => f.contains(w),
                    _ => false,
                };
                t.same(
                    &format!("{what}: {found:?}, want {want:?}"),
                    &[right],
                    &[true],
                );
            }
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        shapes_and_types,
        layouts,
        scales,
        registers_in_flight,
        warpgroups
    ]
}
