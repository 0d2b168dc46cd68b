//! ISA: Data Movement and Conversion Instructions: cp.async.bulk, cp.async.bulk.tensor,
//! cp.async.bulk.prefetch, cp.async.bulk.commit_group, cp.async.bulk.wait_group, prefetch.tensormap;
//! Tensors (tiled mode, out-of-bounds access, swizzling modes); the async proxy and fence.proxy.async.

use crate::harness::{HEADER, Suite, parse, suite};
use libtest_mimic::Trial;
use ptx_emulator::tensor_map::{ElementType, Fill, TensorMap, Tiled};
use ptx_emulator::{Access, Fault, FaultKind, LaunchConfig, Memory, Params, Space, Swizzle};

/// Bytes of shared memory, at the address 0.
const SHARED: usize = 8192;

/// A kernel of one block: `%in` and `%out`, the address of a tensor map `%map`, the thread `%t`, shared
/// memory from 0 on with an mbarrier at 8192 (count 1, initialised and fenced by thread 0) behind it.
fn text(body: &str) -> String {
    format!(
        "{HEADER}.visible .entry k(.param .u64 p_in, .param .u64 p_out, .param .align 64 .b8 p_map[128]) {{
.reg .b64 %in, %out, %map, %rd<16>;
.reg .b32 %t, %r<16>;
.reg .b16 %h<4>;
.reg .pred %p, %q, %first;
.shared .align 1024 .b8 sm[8192];
.shared .align 16 .b64 mb[2];
ld.param.u64 %in, [p_in];
ld.param.u64 %out, [p_out];
mov.b64 %map, p_map;
cvta.param.u64 %map, %map;
mov.u32 %t, %tid.x;
setp.eq.u32 %first, %t, 0;
@%first mbarrier.init.shared::cta.b64 [mb], 1;
@%first fence.mbarrier_init.release.cluster;
bar.sync 0;
{body}
ret;
}}
"
    )
}

/// Thread 0 expects so many bytes and copies; then all wait.
fn load(bytes: u32, copy: &str) -> String {
    format!(
        "@!%first bra WAIT;
mbarrier.arrive.expect_tx.shared::cta.b64 %rd8, [mb], {bytes};
{copy}
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [mb], 0;
@!%p bra WAIT;"
    )
}

/// Copies shared memory to `%out`, 128 threads.
const DUMP: &str = "
shl.b32 %r10, %t, 2; cvt.u64.u32 %rd10, %r10; add.u64 %rd10, %rd10, %out;
DUMP: ld.shared.b32 %r11, [%r10]; st.global.b32 [%rd10], %r11;
add.u32 %r10, %r10, 512; add.u64 %rd10, %rd10, 512; setp.lt.u32 %q, %r10, 8192; @%q bra DUMP;";

/// Fills shared memory with 0xee, and with a proxy fence.
const CLEAR: &str = "
shl.b32 %r10, %t, 2; mov.u32 %r11, 0xeeeeeeee;
CLEAR: st.shared.b32 [%r10], %r11; add.u32 %r10, %r10, 512; setp.lt.u32 %q, %r10, 8192; @%q bra CLEAR;
fence.proxy.async.shared::cta; bar.sync 0;";

/// Runs a kernel on an input and a map of it; the output's bytes and the input's.
fn run(
    body: &str,
    input: &[u8],
    map: impl Fn(u64) -> [u8; 128],
    seed: u64,
) -> Result<(Vec<u8>, Vec<u8>), Box<Fault>> {
    let module = parse(&text(body)).unwrap_or_else(|e| panic!("{e}\n{}", text(body)));
    let memory = Memory::new();
    let from = memory.upload(input).expect("memory");
    let out = memory.alloc_zeroed(SHARED as u64).expect("memory");
    let params = Params::new().arg(from).arg(out).arg_bytes(&map(from.0), 64);
    let config = LaunchConfig::new(1, 128).seed(seed);
    module.launch(&memory, "k", &config, params.as_bytes())?;
    Ok((
        memory.download(out, SHARED).expect("memory"),
        memory.download(from, input.len()).expect("memory"),
    ))
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 37 + i / 251) as u8).collect()
}

fn no_map(_: u64) -> [u8; 128] {
    [0; 128]
}

fn plain_copies() {
    suite("cp.async.bulk", |t| {
        let input = bytes(SHARED);
        let to = "mbarrier::complete_tx::bytes";
        for (form, operands) in [
            (format!("shared::cluster.global.{to}"), ""),
            (format!("shared::cta.global.{to}"), ""),
            (
                format!("shared::cluster.global.{to}.L2::cache_hint"),
                ", %rd3",
            ),
            (
                format!("shared::cluster.global.{to}.multicast::cluster"),
                ", 1",
            ),
            (
                format!("shared::cluster.global.{to}.multicast::cluster.L2::cache_hint"),
                ", 1, %rd3",
            ),
        ] {
            for (from, dst, size) in [
                (0, 0, 16),
                (32, 16, 48),
                (16, 4096, 4096),
                (0, 0, 8192),
                (64, 128, 0),
            ] {
                let copy = format!(
                    "add.u64 %rd0, %in, {from}; mov.b32 %r0, {size}; cp.async.bulk.{form} [{dst}], [%rd0], %r0, [mb]{operands};"
                );
                let body = format!("{CLEAR} {} {DUMP}", load(size as u32, &copy));
                let mut want = vec![0xee; SHARED];
                want[dst..dst + size].copy_from_slice(&input[from..from + size]);
                for seed in 0..4 {
                    same(t, &copy, run(&body, &input, no_map, seed), &want, &input);
                }
            }
        }
        // Shared to global, in a group.
        let fill = "shl.b32 %r0, %t, 4; st.shared.v4.u32 [%r0], {%t, %t, %t, %t}; fence.proxy.async; bar.sync 0;";
        let shared: Vec<u8> = (0..128u32)
            .flat_map(|i| [i.to_le_bytes(); 4].concat())
            .collect();
        for (hint, policy) in [("", ""), (".L2::cache_hint", ", %rd3")] {
            for (from, dst, size) in [(0, 0, 16), (32, 64, 160), (16, 4096, 1024)] {
                let copy = format!(
                    "add.u64 %rd0, %out, {dst}; @%first cp.async.bulk.global.shared::cta.bulk_group{hint} [%rd0], [{from}], {size}{policy}; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"
                );
                let mut want = vec![0; SHARED];
                want[dst..dst + size].copy_from_slice(&shared[from..from + size]);
                for seed in 0..4 {
                    same(
                        t,
                        &copy,
                        run(&format!("{fill} {copy}"), &input, no_map, seed),
                        &want,
                        &input,
                    );
                }
            }
        }
        for prefetch in [
            "cp.async.bulk.prefetch.L2.global [%in], 64;",
            "cp.async.bulk.prefetch.L2.global.L2::cache_hint [%in], 64, %rd3;",
            "prefetch.tensormap [%map];",
            "prefetch.param.tensormap [p_map];",
        ] {
            same(
                t,
                prefetch,
                run(prefetch, &input, no_map, 0),
                &[0; SHARED],
                &input,
            );
        }
    });
}

type Ran = Result<(Vec<u8>, Vec<u8>), Box<Fault>>;

fn same(t: &mut Suite, what: &str, got: Ran, out: &[u8], input: &[u8]) {
    match got {
        Ok((o, i)) => {
            let at = |x: &[u8], y: &[u8]| x.iter().zip(y).position(|(a, b)| a != b);
            t.same(what, &[at(&o, out), at(&i, input)], &[None, None]);
        }
        Err(f) => t.same(what, &[f.to_string()], &["no fault".to_owned()]),
    }
}

/// A tensor of 16-bit elements with rows of 16-byte multiples, and boxes of it.
struct Boxes {
    extents: &'static [usize],
    boxes: &'static [usize],
    swizzle: Swizzle,
    fill: Fill,
}

impl Boxes {
    /// Bytes from one element to the next in each dimension.
    fn strides(&self) -> Vec<usize> {
        let mut strides = vec![2];
        let mut stride = (2 * self.extents[0]).next_multiple_of(16);
        for &e in &self.extents[1..] {
            strides.push(stride);
            stride *= e;
        }
        strides
    }

    fn bytes(&self) -> usize {
        match self.extents {
            [x] => (2 * x).next_multiple_of(16),
            e => self.strides()[e.len() - 1] * e[e.len() - 1],
        }
    }

    fn map(&self, address: u64) -> [u8; 128] {
        let extents: Vec<u64> = self.extents.iter().map(|&x| x as u64).collect();
        let boxes: Vec<u32> = self.boxes.iter().map(|&x| x as u32).collect();
        let mut tiled = Tiled::dense(ElementType::F16, address, &extents, &boxes);
        for (d, s) in tiled.dimensions.iter_mut().zip(self.strides()) {
            d.stride = s as u64;
        }
        tiled.fill = self.fill;
        TensorMap::new(tiled.swizzle(self.swizzle))
            .expect("a map")
            .encode()
    }

    /// For each element of the box at some coordinates: its shared byte, and its byte in the tensor
    /// unless it is outside. Elements follow one another, the first dimension innermost; a row takes the
    /// span of the swizzle.
    fn elements(&self, at: &[i32]) -> Vec<(usize, Option<usize>)> {
        let (pitch, bits) = match self.swizzle {
            Swizzle::None => (2 * self.boxes[0], 0),
            Swizzle::B32 => (32, 1),
            Swizzle::B64 => (64, 3),
            Swizzle::B128 => (128, 7),
        };
        let strides = self.strides();
        let count: usize = self.boxes.iter().product();
        (0..count)
            .map(|i| {
                let (mut rest, mut row, mut scale, mut byte, mut inside) = (i, 0, 1, 0, true);
                for (d, &extent) in self.boxes.iter().enumerate() {
                    let x = rest % extent;
                    rest /= extent;
                    if d > 0 {
                        row += x * scale;
                        scale *= extent;
                    }
                    let global = i64::from(at[d]) + x as i64;
                    inside &= (0..self.extents[d] as i64).contains(&global);
                    byte += global.max(0) as usize * strides[d];
                }
                let linear = row * pitch + i % self.boxes[0] * 2;
                (linear ^ (linear >> 7 & bits) << 4, inside.then_some(byte))
            })
            .collect()
    }
}

const CASES: &[Boxes] = &[
    Boxes {
        extents: &[100],
        boxes: &[64],
        swizzle: Swizzle::None,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[40, 20],
        boxes: &[8, 16],
        swizzle: Swizzle::None,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[40, 20],
        boxes: &[16, 16],
        swizzle: Swizzle::B32,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[40, 20],
        boxes: &[32, 10],
        swizzle: Swizzle::B64,
        fill: Fill::Nan,
    },
    Boxes {
        extents: &[70, 33],
        boxes: &[64, 32],
        swizzle: Swizzle::B128,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[70, 33],
        boxes: &[40, 32],
        swizzle: Swizzle::B128,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[16, 5, 6],
        boxes: &[16, 3, 4],
        swizzle: Swizzle::B32,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[24, 3, 4, 5],
        boxes: &[8, 2, 3, 2],
        swizzle: Swizzle::None,
        fill: Fill::Zeros,
    },
    Boxes {
        extents: &[64, 3, 2, 3, 2],
        boxes: &[64, 2, 2, 1, 2],
        swizzle: Swizzle::B128,
        fill: Fill::Zeros,
    },
];

/// Coordinates inside, across each end, and far outside.
fn coordinates(rank: usize) -> Vec<Vec<i32>> {
    let mut all = vec![
        vec![0; rank],
        vec![1; rank],
        vec![-1; rank],
        vec![-1000; rank],
    ];
    all.push((0..rank).map(|d| if d == 0 { 24 } else { 2 }).collect());
    all.push(
        (0..rank)
            .map(|d| if d == 0 { i32::MAX } else { 0 })
            .collect(),
    );
    all.push((0..rank).map(|d| if d == 0 { -3 } else { 1 }).collect());
    all
}

fn list(at: &[i32]) -> String {
    at.iter()
        .map(|x| format!("{x}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn tensor_loads() {
    suite("cp.async.bulk.tensor loads", |t| {
        for case in CASES {
            let input = bytes(case.bytes());
            let rank = case.extents.len();
            for at in coordinates(rank) {
                let elements = case.elements(&at);
                // Bytes outside count too.
                let size = 2 * elements.len() as u32;
                let form = ["", ".tile"][at[0] as usize % 2];
                let copy = format!(
                    "cp.async.bulk.tensor.{rank}d.shared::cluster.global{form}.mbarrier::complete_tx::bytes [1024], [%map, {{{}}}], [mb];",
                    list(&at)
                );
                let mut want = vec![0xee; SHARED];
                for (shared, global) in &elements {
                    let value = match (global, case.fill) {
                        (Some(at), _) => [input[*at], input[at + 1]],
                        (None, Fill::Zeros) => [0, 0],
                        // A NaN of the emulator's choice.
                        (None, Fill::Nan) => [0xff, 0x7f],
                    };
                    want[1024 + shared..][..2].copy_from_slice(&value);
                }
                let body = format!("{CLEAR} {} {DUMP}", load(size, &copy));
                // To a cluster of one, with a policy: the same. A prefetch before it changes nothing.
                let hinted = copy
                    .replace("bytes [", "bytes.multicast::cluster.L2::cache_hint [")
                    .replace(";", ", 1, %rd3;");
                let prefetch = format!(
                    "cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%map, {{{}}}];",
                    list(&at)
                );
                let hinted = format!("{CLEAR} {} {DUMP}", load(size, &(prefetch + &hinted)));
                same(
                    t,
                    &copy,
                    run(&hinted, &input, |a| case.map(a), 0),
                    &want,
                    &input,
                );
                for seed in 0..2 {
                    same(
                        t,
                        &copy,
                        run(&body, &input, |a| case.map(a), seed),
                        &want,
                        &input,
                    );
                }
            }
        }
    });
}

fn tensor_stores() {
    suite("cp.async.bulk.tensor stores", |t| {
        for case in CASES {
            let input = bytes(case.bytes());
            let rank = case.extents.len();
            for at in coordinates(rank) {
                let copy = format!(
                    "@%first cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%map, {{{}}}], [1024];
                    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 0;",
                    list(&at)
                );
                // Every word of shared memory holds its address.
                let fill = "shl.b32 %r10, %t, 2;
                    FILL: st.shared.b32 [%r10], %r10; add.u32 %r10, %r10, 512; setp.lt.u32 %q, %r10, 8192; @%q bra FILL;
                    fence.proxy.async; bar.sync 0;";
                let mut want = input.clone();
                for (shared, global) in case.elements(&at) {
                    // What is outside is dropped.
                    let Some(to) = global else { continue };
                    let word = (1024 + shared as u32 & !3).to_le_bytes();
                    want[to..to + 2].copy_from_slice(&word[shared % 4..][..2]);
                }
                for seed in 0..3 {
                    let got = run(&format!("{fill} {copy}"), &input, |a| case.map(a), seed);
                    same(t, &copy, got, &[0; SHARED], &want);
                }
            }
        }
    });
}

fn groups() {
    suite("bulk groups", |t| {
        let fill = "shl.b32 %r0, %t, 4; st.shared.v4.u32 [%r0], {%t, %t, %t, %t}; fence.proxy.async; bar.sync 0; @!%first bra END;";
        let store = |i: u32| {
            format!(
                "add.u64 %rd0, %out, {}; cp.async.bulk.global.shared::cta.bulk_group [%rd0], [{}], 16; cp.async.bulk.commit_group;",
                16 * i,
                16 * i
            )
        };
        let two = format!("{fill} {} {}", store(0), store(1));
        let again = |i: u32| format!("mov.u32 %r5, 7; st.shared.b32 [{}], %r5;", 16 * i);
        let read = |i: u32| format!("ld.global.b32 %r5, [%out+{}];", 16 * i);
        let wait = |n: u32| format!("cp.async.bulk.wait_group {n};");
        let wait_read = |n: u32| format!("cp.async.bulk.wait_group.read {n};");
        let rows: &[(&str, String, Option<Access>)] = &[
            (
                "all waited for",
                format!("{two} {} {} {} END:", wait(0), again(1), read(1)),
                None,
            ),
            (
                "the older of two",
                format!("{two} {} {} {} END:", wait(1), again(0), wait(0)),
                None,
            ),
            (
                "the newer of two",
                format!("{two} {} {} {} END:", wait(1), again(1), wait(0)),
                Some(Access::Write),
            ),
            (
                "a source that was read",
                format!("{two} {} {} {} END:", wait_read(0), again(1), wait(0)),
                None,
            ),
            (
                "a source too early",
                format!("{two} {} {} END:", again(1), wait(0)),
                Some(Access::Write),
            ),
            (
                "bytes after only the source",
                format!("{two} {} {} {} END:", wait_read(0), read(1), wait(0)),
                Some(Access::Read),
            ),
        ];
        for (what, body, want) in rows {
            for seed in 0..16 {
                let found = match run(body, &bytes(64), no_map, seed) {
                    Ok(_) => None,
                    Err(f) => match &f.kind {
                        FaultKind::Race { access, .. } => Some(*access),
                        _ => panic!("{what}: {f}"),
                    },
                };
                t.same(what, &[found], &[*want]);
            }
        }
        // The end of a block that has not waited.
        for body in [
            format!("{two} END:"),
            format!(
                "{fill} add.u64 %rd0, %out, 16; cp.async.bulk.global.shared::cta.bulk_group [%rd0], [0], 16; {} END:",
                wait(0)
            ),
        ] {
            let f = run(&body, &bytes(64), no_map, 1).expect_err("the end");
            let right =
                matches!(&f.kind, FaultKind::AsyncMisuse(s) if s.contains("the block ends before"));
            t.same("the end", &[right], &[true]);
        }
        let waited = format!("{two} {} END:", wait_read(0));
        for seed in 0..8 {
            let (out, _) = run(&waited, &bytes(64), no_map, seed).expect("runs");
            t.same("written by the end", &out[16..20], &1u32.to_le_bytes());
        }
    });
}

fn faults() {
    let ask = |copy: &str| format!("{CLEAR} {}", load(64, copy));
    let bulk = |dst: &str, src: &str, size: &str, bar: &str| {
        ask(&format!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{dst}], [{src}], {size}, [{bar}];"
        ))
    };
    let tensor = |dst: &str, map: &str, rank: &str, at: &str| {
        ask(&format!(
            "cp.async.bulk.tensor.{rank}.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{dst}], [{map}, {{{at}}}], [mb];"
        ))
    };
    let case = &CASES[1];
    let good = |a| case.map(a);
    let changed = |a| {
        let mut bytes = case.map(a);
        bytes[40] ^= 1;
        bytes
    };
    // 256 in each of five dimensions: 2^40 bytes.
    let huge = |a| {
        let tiled = Tiled::dense(ElementType::U8, a, &[256; 5], &[256; 5]);
        TensorMap::new(tiled).expect("a map").encode()
    };
    type Row<'a> = (&'a str, String, &'a dyn Fn(u64) -> [u8; 128], &'a str);
    let rows: &[Row<'_>] = &[
        (
            "a size",
            bulk("0", "%in", "24", "mb"),
            &no_map,
            "multiple of 16",
        ),
        (
            "a shared address",
            bulk("8", "%in", "64", "mb"),
            &no_map,
            "shared address 0x8 is not aligned to 16",
        ),
        (
            "a global address",
            bulk("0", "%in+8", "64", "mb"),
            &no_map,
            "is not aligned to 16",
        ),
        (
            "past shared memory",
            bulk("8176", "%in", "64", "mb"),
            &no_map,
            "mbarrier",
        ),
        (
            "past global memory",
            bulk("0", "%in+1552", "64", "mb"),
            &no_map,
            "out of bounds",
        ),
        (
            "four gigabytes",
            bulk("16", "%in", "0xfffffff0", "mb"),
            &no_map,
            "out of bounds",
        ),
        (
            "a box of terabytes",
            tensor("0", "%map", "5d", "0, 0, 0, 0, 0"),
            &huge,
            "out of bounds",
        ),
        (
            "no mbarrier",
            bulk("0", "%in", "64", "0"),
            &no_map,
            "no initialised mbarrier",
        ),
        (
            "onto the mbarrier",
            bulk("8192", "%in", "16", "mb"),
            &no_map,
            "a store into the mbarrier",
        ),
        (
            "too many for the count",
            ask("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mb], 1048575;"),
            &no_map,
            "the limit is 1048575",
        ),
        (
            "a box's address",
            tensor("64", "%map", "2d", "0, 0"),
            &good,
            "expected a multiple of 128",
        ),
        (
            "a foreign map",
            tensor("0", "%map", "2d", "0, 0"),
            &|_| [7; 128],
            "were not made by encoding a tensor map",
        ),
        (
            "a changed map",
            tensor("0", "%map", "2d", "0, 0"),
            &changed,
            "changed since",
        ),
        (
            "a map in shared memory",
            tensor("0", "%rd5", "2d", "0, 0"),
            &good,
            "out of bounds",
        ),
        (
            "a rank",
            tensor("0", "%map", "3d", "0, 0, 0"),
            &good,
            "3 coordinates, expected 2",
        ),
        (
            "an unaligned map",
            tensor("0", "%map+16", "2d", "0, 0"),
            &good,
            "is not aligned to 64",
        ),
        (
            "blocks that are not there",
            ask(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [0], [%in], 64, [mb], 3;",
            ),
            &no_map,
            "multicast to blocks 0x0003",
        ),
    ];
    suite("bulk faults", |t| {
        for (what, body, map, want) in rows {
            let found = run(body, &bytes(CASES[1].bytes()), map, 0)
                .expect_err(what)
                .to_string();
            t.same(
                &format!("{what}: {found}"),
                &[found.contains(want)],
                &[true],
            );
        }
        // A map in global memory.
        let whole = CASES[1].bytes();
        let mut input = bytes(whole);
        input.resize(whole.next_multiple_of(64) + 128, 0);
        let at = whole.next_multiple_of(64);
        let body = format!(
            "add.u64 %rd5, %in, {at}; {CLEAR} {} ",
            load(
                256,
                "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [0], [%rd5, {0, 0}], [mb];"
            )
        );
        let f = run(&body, &input, good, 0).expect_err("no map there");
        t.same(
            "zeros in global memory",
            &[f.to_string().contains("were not made")],
            &[true],
        );
    });
}

fn proxies() {
    let copy = load(
        16,
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [0], [%in], 16, [mb];",
    );
    let write = "@%first st.shared.b32 [4], %t;";
    let store = "@%first cp.async.bulk.global.shared::cta.bulk_group [%out], [0], 16; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;";
    let fill = "shl.b32 %r0, %t, 2; st.shared.b32 [%r0], %t;";
    let global = "shl.b32 %r0, %t, 2; cvt.u64.u32 %rd1, %r0; add.u64 %rd1, %rd1, %out; st.global.b32 [%rd1], %t;";
    let from_out = load(
        16,
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [0], [%out], 16, [mb];",
    );
    let rows: &[(&str, String, bool)] = &[
        ("a copy over a store", format!("{write} {copy}"), false),
        (
            "with a fence",
            format!("{write} fence.proxy.async; {copy}"),
            true,
        ),
        (
            "of shared memory",
            format!("{write} fence.proxy.async.shared::cta; {copy}"),
            true,
        ),
        (
            "of the cluster's",
            format!("{write} fence.proxy.async.shared::cluster; {copy}"),
            true,
        ),
        (
            "of global memory only",
            format!("{write} fence.proxy.async.global; {copy}"),
            false,
        ),
        (
            "one way",
            format!(
                "{write} fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster; {copy}"
            ),
            true,
        ),
        (
            "another fence",
            format!("{write} fence.acq_rel.gpu; {copy}"),
            false,
        ),
        (
            "the fence of mbarriers",
            format!("{write} fence.mbarrier_init.release.cluster; {copy}"),
            false,
        ),
        (
            "a fence before the store",
            format!("fence.proxy.async; {write} {copy}"),
            false,
        ),
        (
            "all write and fence",
            format!("{fill} fence.proxy.async; bar.sync 0; {store}"),
            true,
        ),
        (
            "only the copying thread fences",
            format!("{fill} bar.sync 0; @%first fence.proxy.async; {store}"),
            false,
        ),
        (
            "its own write by another lane",
            format!("setp.eq.u32 %q, %t, 1; {fill} @%q fence.proxy.async; bar.sync 0; {store}"),
            false,
        ),
        (
            "global memory",
            format!("{global} bar.sync 0; {from_out}"),
            false,
        ),
        (
            "global memory with a fence",
            format!("{global} fence.proxy.async; bar.sync 0; {from_out}"),
            true,
        ),
        (
            "global memory, fence of global",
            format!("{global} fence.proxy.async.global; bar.sync 0; {from_out}"),
            true,
        ),
        (
            "global memory, fence of shared",
            format!("{global} fence.proxy.async.shared::cta; bar.sync 0; {from_out}"),
            false,
        ),
        (
            "loads need none",
            format!("{copy} @%first ld.shared.b32 %r1, [4]; bar.sync 0; {store}"),
            true,
        ),
    ];
    suite("proxies", |t| {
        for (what, body, right) in rows {
            for seed in 0..8 {
                let found = match run(body, &bytes(64), no_map, seed) {
                    Ok(_) => true,
                    Err(f) => match &f.kind {
                        FaultKind::MissingProxyFence { space, .. } => {
                            t.same(
                                what,
                                &[*space == Space::Global],
                                &[what.contains("global memory") && !what.contains("only")],
                            );
                            false
                        }
                        _ => panic!("{what}: {f}"),
                    },
                };
                t.same(what, &[found], &[*right]);
            }
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        plain_copies,
        tensor_loads,
        tensor_stores,
        groups,
        faults,
        proxies
    ]
}
