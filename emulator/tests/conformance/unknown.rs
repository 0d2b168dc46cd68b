//! What the emulator does not know is an error that names the instruction and its line, never a
//! guess; text that is not well formed is an error with its line.

use crate::harness::{HEADER, launch, marked, parse, suite, text};
use libtest_mimic::Trial;
use ptx_emulator::{Fault, FaultKind, LaunchConfig, Memory, Module, Params};

/// Instructions that are PTX, but not for this emulator.
const FOREIGN: &[&str] = &[
    // Packed integers and mixed precision.
    "add.u16x2 %r0, %r1, %r2;",
    "min.s16x2 %r0, %r1, %r2;",
    "max.relu.s32 %r0, %r1, %r2;",
    "add.rn.f32x2 %rd0, %rd1, %rd2;",
    "add.f32.f16 %r0, %h0, %r1;",
    "sub.rn.f32.bf16 %r0, %h0, %r1;",
    "fma.rn.f32.f16 %r0, %h0, %h1, %r1;",
    // Textures and surfaces.
    "tex.2d.v4.f32.s32 {%r0, %r1, %r2, %r3}, [image, {%r4, %r5}];",
    "tld4.r.2d.v4.f32.f32 {%r0, %r1, %r2, %r3}, [image, {%r4, %r5}];",
    "txq.width.b32 %r0, [image];",
    "suld.b.1d.b32.trap {%r0}, [image, {%r2}];",
    "sust.b.1d.b32.trap [image, {%r2}], {%r0};",
    "istypep.texref %p, %rd0;",
    // Other matrix instructions, shapes and types.
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%r0, %r1, %r2, %r3}, %rd0, %rd1, %p, 1, 1;",
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r0, %r1, %r2, %r3}, %rd0, %rd1, %p, 1, 1;",
    "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {%r0, %r1, %r2, %r3}, %rd0, %rd1, %r4, 0, %p, 1, 1, 0, 0;",
    "wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%r0, %r1, %r2, %r3, %r4, %r5, %r6, %r7}, [sm];",
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd0, %rd1}, {%rd2}, {%rd3}, {%rd4, %rd5};",
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%r0, %r1, %r2, %r3}, {%r4, %r5, %r6, %r7}, {%r8, %r9}, {%r0, %r1, %r2, %r3};",
    "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%r8, %r9}, {%r0, %r1, %r2, %r3}, %r10, 0;",
    "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r0, %r1}, [sm];",
    "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [sm], 32;",
    // Bulk and tensor copies, clusters.
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [sm], [sm], 16, [sm];",
    "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [sm], [%rd0, {%r0, %r1, %r2}], [sm], {%h0};",
    "cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd0], [sm], 16, %h0;",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd0], [sm], 16;",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [sm], 1, [sm];",
    "st.bulk.weak.shared::cta [sm], 16, 0;",
    "red.async.relaxed.cluster.global.mbarrier::complete_tx::bytes.shared::cluster.add.u32 [sm], 1, [sm];",
    "tensormap.replace.tile.rank.global.b1024.b32 [%rd0], 1;",
    "fence.proxy.tensormap::generic.release.gpu;",
    "multimem.ld_reduce.global.add.u32 %r0, [%rd0];",
    "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p, %rd0;",
    // Video instructions, the stack, and the rest.
    "vadd.s32.s32.s32 %r0, %r1, %r2;",
    "vadd4.s32.s32.s32 %r0, %r1, %r2, %r3;",
    "vmad.s32.s32.s32 %r0, %r1, %r2, %r3;",
    "alloca.u64 %rd0, 16;",
    "stacksave.u64 %rd0;",
    "mov.b128 %rd0, {%rd1, %rd2};",
    "ld.global.b128 %rd0, [%rd0];",
    "atom.global.exch.b128 %rd0, [%rd0], %rd1;",
    "atom.global.add.noftz.v2.f32 {%r0, %r1}, [%rd0], {%r2, %r3};",
    "cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;",
    "cvt.rn.f16x2.e4m3x2 %r0, %h0;",
    "cvt.pack.sat.u8.s32.b32 %r0, %r1, %r2, %r3;",
    "redux.sync.min.f32 %r0, %r1, -1;",
    "mov.u32 %r0, %envreg3;",
    "mov.u32 %r0, %pm0;",
    "call %rd0, ();",
];

/// Instructions that are not PTX: an opcode, modifier, type, state space or operand is wrong.
const WRONG: &[&str] = &[
    "frobnicate.u32 %r0, %r1;",
    "add %r0, %r1, %r2;",
    "add.foo.u32 %r0, %r1, %r2;",
    "add.rn.u32 %r0, %r1, %r2;",
    "add.sat.u32 %r0, %r1, %r2;",
    "add.u8 %r0, %r1, %r2;",
    "add.f8 %r0, %r1, %r2;",
    "add.f32.rn %r0, %r1, %r2;",
    "add.rn.ftz.sat.foo.f32 %r0, %r1, %r2;",
    "add.sat.f64 %rd0, %rd1, %rd2;",
    "add.ftz.f64 %rd0, %rd1, %rd2;",
    "add.u32 %r0, %r1;",
    "add.u32 %r0, %r1, %r2, %r3;",
    "add.u32 %r0, %r1, %nope;",
    "add.u32 %nope, %r1, %r2;",
    "add.u32 %rd0, %r1, %r2;",
    "add.u32 %r0, %rd1, %r2;",
    "add.u64 %rd0, %r1, %rd2;",
    "add.u32 5, %r1, %r2;",
    // No default for the half of a product or for a rounding.
    "mul.u32 %r0, %r1, %r2;",
    "mul.wide.u64 %rd0, %rd1, %rd2;",
    "mul.lo.f32 %r0, %r1, %r2;",
    "mad.s32 %r0, %r1, %r2, %r3;",
    "fma.f32 %r0, %r1, %r2, %r3;",
    "fma.f64 %rd0, %rd1, %rd2, %rd3;",
    "div.f32 %r0, %r1, %r2;",
    "div.f64 %rd0, %rd1, %rd2;",
    "sqrt.f32 %r0, %r1;",
    "rcp.f32 %r0, %r1;",
    "rcp.approx.f64 %rd0, %rd1;",
    "sin.f32 %r0, %r1;",
    "ex2.approx.f64 %rd0, %rd1;",
    "cvt.u32.f32 %r0, %r1;",
    "cvt.f32.u32 %r0, %r1;",
    "cvt.foo.u32.u16 %r0, %h1;",
    "cvt.u32 %r0, %r1;",
    "popc.u32 %r0, %r1;",
    "bfe.b32 %r0, %r1, 0, 1;",
    "prmt.b32.foo %r0, %r1, %r2, 0;",
    "shf.l.b32 %r0, %r1, %r2, %r3;",
    // What excludes each other, or needs another.
    "fma.approx.f32 %r0, %r1, %r2, %r3;",
    "sqrt.full.f32 %r0, %r1;",
    "div.rn.rz.f32 %r0, %r1, %r2;",
    "div.rn.approx.f32 %r0, %r1, %r2;",
    "div.approx.f64 %rd0, %rd1, %rd2;",
    "add.approx.f32 %r0, %r1, %r2;",
    "neg.rn.f32 %r0, %r1;",
    "abs.sat.f32 %r0, %r1;",
    "min.rn.f32 %r0, %r1, %r2;",
    "rcp.rn.sat.f32 %r0, %r1;",
    "mul.lo.hi.u32 %r0, %r1, %r2;",
    "mul.sat.lo.s32 %r0, %r1, %r2;",
    "add.lo.u32 %r0, %r1, %r2;",
    "mul24.u32 %r0, %r1, %r2;",
    "and.u32 %r0, %r1, %r2;",
    "shl.u32 %r0, %r1, %r2;",
    "setp.lt.b32 %p, %r0, %r1;",
    "selp.pred %p, %q, %p, %q;",
    "mov.u8 %h0, %h1;",
    "cvt.rn.rz.f32.f64 %r0, %rd0;",
    "fence.sc;",
    "fence.sc.acq_rel.gpu;",
    "fence.proxy;",
    "membar.proxy;",
    "ld.relaxed.u32 %r0, [%rd0];",
    "ld.gpu.global.u32 %r0, [%rd0];",
    "ld.weak.volatile.global.u32 %r0, [%rd0];",
    "ld.global.shared.u32 %r0, [%rd0];",
    "st.relaxed.u32 [%rd0], %r0;",
    "atom.weak.global.add.u32 %r0, [%rd0], %r1;",
    "setp.foo.u32 %p, %r0, %r1;",
    "setp.lo.s32 %p, %r0, %r1;",
    "setp.equ.s32 %p, %r0, %r1;",
    "setp.lt.nand.s32 %p, %r0, %r1, %q;",
    "setp.lt.s32 %r0, %r0, %r1;",
    "mov.foo.u32 %r0, %r1;",
    "mov.u32 %r0, %ctaid;",
    "ld.foo.u32 %r0, [%rd0];",
    "ld.global.foo.u32 %r0, [%rd0];",
    "ld.surf.u32 %r0, [%rd0];",
    "ld.global %r0, [%rd0];",
    "ld.global.u32 %r0, %rd0;",
    "ld.global.pred %p, [%rd0];",
    "ld.global.v3.u32 {%r0, %r1, %r2}, [%rd0];",
    "ld.global.v2.u32 {%r0, %r1, %r2}, [%rd0];",
    "ld.global.v8.u64 {%rd0, %rd1, %rd2, %rd3, %rd4, %rd5, %rd6, %rd7}, [%rd0];",
    "ld.release.gpu.global.u32 %r0, [%rd0];",
    "st.acquire.gpu.global.u32 [%rd0], %r0;",
    "st.global.nc.u32 [%rd0], %r0;",
    "st.global.foo.u32 [%rd0], %r0;",
    "st.const.u32 [%rd0], %r0;",
    "st.param.u32 [p_in], %r0;",
    "atom.global.mul.u32 %r0, [%rd0], %r1;",
    "atom.global.add.foo.u32 %r0, [%rd0], %r1;",
    "atom.global.inc.s32 %r0, [%rd0], %r1;",
    "atom.local.add.u32 %r0, [%rd0], %r1;",
    "red.global.exch.b32 [%rd0], %r1;",
    "red.global.cas.b32 [%rd0], %r1, %r2;",
    "cvta.foo.u64 %rd0, %rd1;",
    "cvta.to.foo.u64 %rd0, %rd1;",
    "isspacep.foo %p, %rd0;",
    "prefetch.foo [%rd0];",
    "prefetch.global.L3 [%rd0];",
    "prefetchu.L2 [%rd0];",
    "discard.global.L2 [%rd0], 64;",
    "createpolicy.foo.b64 %rd0;",
    "cp.async.ca.shared.global [sm], [%rd0], 12;",
    "cp.async.cg.shared.global [sm], [%rd0], 8;",
    "cp.async.cb.shared.global [sm], [%rd0], 16;",
    "cp.async.shared.global [sm], [%rd0], 16;",
    "cp.async.ca.global.shared [%rd0], [sm], 16;",
    "cp.async.ca.shared.global.L2::32B [sm], [%rd0], 16;",
    "cp.async.ca.shared.global [sm], [%rd0], %r0;",
    "cp.async.commit_group 1;",
    "cp.async.wait_group;",
    "cp.async.wait_group %r0;",
    "cp.async.wait_all 1;",
    "cp.async.mbarrier.arrive.foo.shared.b64 [sm];",
    "mbarrier.foo.shared.b64 [sm];",
    "mbarrier.init.shared.b32 [sm], 1;",
    "mbarrier.init.global.b64 [%rd0], 1;",
    "mbarrier.arrive.foo.shared.b64 %rd0, [sm];",
    "mbarrier.arrive.noComplete.shared.b64 %rd0, [sm];",
    "mbarrier.arrive.expect_tx.shared.b64 %rd0, [sm];",
    "mbarrier.test_wait.shared.b64 %p, [sm];",
    "mbarrier.test_wait.shared.b64 %p, [sm], %rd0, 5;",
    "mbarrier.try_wait.shared.b64 %p, [sm], %rd0, 5, 6;",
    "mbarrier.pending_count.foo %r0, %rd0;",
    "bar 0;",
    "bar.sync;",
    "bar.foo 0;",
    "bar.sync.foo 0;",
    "bar.arrive 0;",
    "bar.red.xor.pred %p, 0, %q;",
    "bar.red.popc.s32 %r0, 0, %q;",
    "bar.warp.sync;",
    "bar.warp.foo -1;",
    "bar.warp.sync.foo -1;",
    "membar;",
    "membar.foo;",
    "membar.gl 1;",
    "fence;",
    "fence.foo;",
    "shfl.sync.foo.b32 %r0, %r1, %r2, %r3, -1;",
    "shfl.sync.idx.b64 %rd0, %rd1, %r2, %r3, -1;",
    "vote.sync.foo.pred %p, %q, -1;",
    "match.sync.any.b32 %r0, %r1, -1;",
    "redux.sync.add.b32 %r0, %r1, -1;",
    "activemask.u32 %r0;",
    "activemask %r0;",
    "bra.foo HERE;",
    "bra NOWHERE;",
    "bra %r0;",
    "bra.uni;",
    "brx.idx %r0, HERE;",
    "brx.idx %r0, NOLIST;",
    "brx %r0, HERE;",
    "ret.foo;",
    "ret 1;",
    "exit.uni;",
    "exit 1;",
    "trap.foo;",
    "nanosleep %r0;",
    "nanosleep.u64 %rd0;",
    "nanosleep.u32;",
    "pmevent.foo 1;",
    "griddepcontrol.foo;",
    "call nothing;",
    "@%nope mov.u32 %r0, 0;",
    "@%r0 mov.u32 %r0, 0;",
];

/// What a launch answers, which is what `check` answers.
fn fault(text: &str) -> Result<Box<Fault>, String> {
    let module = parse(text).map_err(|e| e.to_string())?;
    let Err(fault) = launch(&module, 1, &[0], 1) else {
        return Err("it runs".to_owned());
    };
    if module.check("k") == Err(fault.clone()) {
        Ok(fault)
    } else {
        Err("`check` disagrees".to_owned())
    }
}

/// Whether the fault names the instruction, with its line and in its message.
fn names(f: &Fault, instruction: &str, line: u32) -> bool {
    let written = instruction.trim_end_matches(';');
    matches!(f.kind, FaultKind::UnknownInstruction(_))
        && f.place.ptx_line == line
        && f.place.instruction == written
        && f.kernel == "k"
        && f.to_string().contains(&format!("PTX line {line}"))
        && f.to_string().contains(written)
}

fn unknown_instructions() {
    suite("unknown instructions", |t| {
        for (i, instruction) in FOREIGN.iter().chain(WRONG).enumerate() {
            // Somewhere in the kernel; that it is not reached does not matter.
            let text = text(
                ".global .texref image;",
                &format!(
                    "{}bra HERE;\n{instruction} // BAD\nHERE: mov.u32 %r0, 1;",
                    "mov.u32 %r0, 1;\n".repeat(i % 5)
                ),
            );
            let got = match fault(&text) {
                Ok(f) if names(&f, instruction, marked(&text)) => "named".to_owned(),
                Ok(f) => f.to_string(),
                Err(e) => e,
            };
            t.same(instruction, &[got.as_str()], &["named"]);
        }
    });
}

/// `code` after a header that ends at line 3.
fn line_of(code: &str) -> Option<u32> {
    let text = format!("{HEADER}{code}");
    match Module::parse(&text) {
        Err(e) => Some(e.line),
        Ok(m) => m.check("k").err().map(|f| f.place.ptx_line),
    }
}

fn lines() {
    suite("lines", |t| {
        let bad = "frobnicate.u32 %r0;";
        let kernel = |body: &str| format!(".entry k() {{ .reg .b32 %r<9>;\n{body}\nret; }}");
        for (what, code, line) in [
            ("nothing wrong", kernel("mov.u32 %r0, 1;"), None),
            ("the second line", kernel(bad), Some(5)),
            (
                "two on a line",
                kernel(&format!("mov.u32 %r0, 1; {bad} {bad}")),
                Some(5),
            ),
            (
                "the first of two",
                kernel(&format!("\n{bad}\n\nwgmma.fence;")),
                Some(6),
            ),
            // An instruction begins at its guard or opcode, however it goes on.
            (
                "over lines",
                kernel("\nmad\n.foo.u32 %r0,\n%r1,\n%r2;"),
                Some(6),
            ),
            (
                "a guard",
                kernel(".reg .pred %p;\n@%p\nfrobnicate\n;"),
                Some(6),
            ),
            ("a label", kernel(&format!("HERE:\n\n{bad}")), Some(7)),
            // Comments and ends of lines of other systems.
            (
                "a comment",
                kernel(&format!("// one\n// two; {{\n{bad}")),
                Some(7),
            ),
            (
                "a long comment",
                kernel(&format!("/* one\n* two\n*/ /**/ {bad}")),
                Some(7),
            ),
            (
                "a comment in it",
                kernel("frobnicate /*\n\n*/ %r0;"),
                Some(5),
            ),
            (
                "returns",
                kernel(&format!("\r\nmov.u32 %r0, 1;\r\n{bad}\r\n")),
                Some(7),
            ),
            (".loc", kernel(&format!(".loc 1 77 3\n{bad}")), Some(6)),
            (
                "a block",
                kernel(&format!("{{\n{{\n{bad}\n}}\n}}")),
                Some(7),
            ),
            (
                "no last line end",
                format!(".entry k() {{\n{bad} }}"),
                Some(5),
            ),
            // Declarations.
            ("a register's type", kernel("\n.reg .foo %x;"), Some(6)),
            ("a wide register", kernel("\n\n.reg\n.b128 %x;"), Some(7)),
            (
                "too many registers",
                kernel("\n.reg .b32 %x<300000>;"),
                Some(6),
            ),
            (
                "a variable in a function",
                kernel("\n.global .u32 x;"),
                Some(6),
            ),
            (
                "too much shared memory",
                kernel("\n.shared .b8 x[99999999];"),
                Some(6),
            ),
            (
                "too much local memory",
                kernel("\n.local .b8 x[99999999];"),
                Some(6),
            ),
            // In the function that is called, not where it is called; and only if it is.
            (
                "in a function",
                format!(".func f() {{\n\n{bad}\n}}\n{}", kernel("call f;")),
                Some(6),
            ),
            (
                "not called",
                format!(".func f() {{\n{bad}\n}}\n{}", kernel("")),
                None,
            ),
            (
                "in another kernel",
                format!(".entry j() {{\n{bad}\n}}\n{}", kernel("")),
                None,
            ),
            (
                "recursion",
                format!(".func f() {{\n\ncall f;\n}}\n{}", kernel("call f;")),
                Some(6),
            ),
            (
                "mutual recursion",
                format!(
                    ".func g();\n.func f() {{ call g; }}\n.func g() {{\ncall f; }}\n{}",
                    kernel("call f;")
                ),
                Some(7),
            ),
            (
                "no body",
                format!(".extern .func f();\n{}", kernel("\ncall f;")),
                Some(7),
            ),
            (
                "an argument",
                format!(
                    ".func f(.param .b32 a) {{ ret; }}\n{}",
                    kernel("\ncall f, (%r0);")
                ),
                Some(7),
            ),
            (
                "arguments",
                format!(".func f(.param .b32 a) {{ ret; }}\n{}", kernel("\ncall f;")),
                Some(7),
            ),
        ] {
            t.same(what, &[line_of(&code)], &[line]);
        }
        // The line of the source, too.
        let text = format!(
            "{HEADER}.file 1 \"kernel.cu\"\n{}",
            kernel(&format!(".loc 1 77 3\nmov.u32 %r0, 1;\n.loc 1 78 9\n{bad}"))
        );
        let f = fault(&text).expect("unknown");
        t.same(
            "source",
            &[f.place.source.as_deref()],
            &[Some("kernel.cu:78")],
        );
    });
}

fn other_kernels_run() {
    suite("other kernels", |t| {
        // A kernel with something unknown does not keep the others of its module from running.
        let text = text(
            ".visible .entry other() { tcgen05.fence::before_thread_sync; ret; }",
            "mov.u64 %rd0, 4; st.global.u64 [%out], %rd0;",
        );
        t.runs("the good one", &text, 1, &[0], &[4]);
        let module = parse(&text).expect("parses");
        let answers = [
            module.check("k").is_ok(),
            module.check("other").is_err(),
            matches!(module.check("nobody"), Err(f) if matches!(f.kind, FaultKind::BadLaunch(_))),
            module
                .launch(
                    &Memory::new(),
                    "other",
                    &LaunchConfig::new(1, 1),
                    Params::new().as_bytes(),
                )
                .is_err(),
        ];
        t.same("answers", &answers, &[true; 4]);
    });
}

fn malformed_text() {
    // What is wrong, a text with `// BAD` at its line, and a word of the message.
    let rows = [
        ("no module", "nonsense // BAD", "nonsense"),
        ("a directive", ".foo // BAD\n.global .u32 x;", ".foo"),
        (
            "a directive after linkage",
            ".visible\n; // BAD\n",
            "directive",
        ),
        ("a variable's type", ".global .foo // BAD\nx;", ".foo"),
        ("a variable's name", ".global .u32\n5; // BAD", "name"),
        (
            "an alignment",
            ".global .align 3 // BAD\n.u32 x;",
            "alignment",
        ),
        (
            "an array",
            ".global .u32 x[99999999999999 // BAD\n];",
            "large",
        ),
        ("an array's end", ".global .u32 x[4\n; // BAD", "`]`"),
        (
            "an initialiser",
            ".global .u32 x[2] = {1, 2, 3} // BAD\n;",
            "initialiser",
        ),
        (
            "an initialiser's comma",
            ".global .u32 x[2] = {1\n2}; // BAD",
            "`,`",
        ),
        (
            "a variable's end",
            ".global .u32 x\n.global .u32 y; // BAD",
            "`;`",
        ),
        ("a function's name", ".entry\n() { ret; } // BAD", "name"),
        (
            "a function's directive",
            ".entry k()\n.foo // BAD\n{ ret; }",
            ".foo",
        ),
        ("a count", ".entry k() .maxntid -1 // BAD\n{ ret; }", "-1"),
        (
            "parameters",
            ".entry k(.param .u32 a,\n.u32 b) { ret; } // BAD",
            ".param",
        ),
        (
            "register parameters",
            ".func f(.reg .u32 a) // BAD\n{ ret; }",
            "register",
        ),
        ("a body", ".entry k()\nret; // BAD", "`{`"),
        (
            "no end of a body",
            ".entry k() {\nret;\n// the last\n; // BAD",
            "end of the text",
        ),
        (
            "an inner directive",
            ".entry k() {\n.foo // BAD\n.reg .b32 x; }",
            ".foo",
        ),
        (
            "vector registers",
            ".entry k() {\n.reg .v4 // BAD\n.f32 x; }",
            "vector",
        ),
        (
            "a register's count",
            ".entry k() {\n.reg .b32 x<4\n; } // BAD",
            "`>`",
        ),
        (
            "registers without end",
            ".entry k() {\n.reg .b32 x\nret; } // BAD",
            "`;`",
        ),
        ("a statement", ".entry k() {\n5; } // BAD", "statement"),
        (
            "no end of an instruction",
            ".entry k() {\nmov.u32 x, y\nret; } // BAD",
            "`;`",
        ),
        ("no comma", ".entry k() {\nmov.u32 x y; } // BAD", "`,`"),
        (
            "no operand",
            ".entry k() {\nmov.u32 x, y,\n; } // BAD",
            "operand",
        ),
        (
            "an address",
            ".entry k() {\nld.u32 x, [y\n; } // BAD",
            "`]`",
        ),
        ("a vector", ".entry k() {\nmov.b64 {x\n; } // BAD", "`,`"),
        (
            "a guard",
            ".entry k() {\n@\n5 mov.u32 x, y; } // BAD",
            "name",
        ),
        (
            "an integer",
            ".entry k() {\nmov.u32 x, -\ny; } // BAD",
            "integer",
        ),
        (
            "a number",
            ".entry k() {\nmov.u32 x, 12abc; } // BAD",
            "12abc",
        ),
        (
            "an octal number",
            ".entry k() {\nmov.u32 x, 08; } // BAD",
            "08",
        ),
        (
            "a binary number",
            ".entry k() {\nmov.u32 x, 0b2; } // BAD",
            "0b2",
        ),
        (
            "a large number",
            ".entry k() {\nmov.u32 x, 99999999999999999999; } // BAD",
            "99999999999999999999",
        ),
        (
            "a short float",
            ".entry k() {\nmov.f32 x, 0f3f80; } // BAD",
            "0f3f80",
        ),
        (
            "a short double",
            ".entry k() {\nmov.f64 x, 0d3ff0; } // BAD",
            "0d3ff0",
        ),
        ("a string", ".file 1 \"kernel.cu // BAD\n", "string"),
        (
            "a byte",
            ".entry k() {\nmov.u32 x, \u{e9}; } // BAD",
            "0xc3",
        ),
        (
            "a comment",
            ".entry k() { ret; }\n/* it goes on // BAD\nand on",
            "comment",
        ),
        (
            "two labels",
            ".entry k() {\nA: ret;\nA: // BAD\nret; }",
            "`A`",
        ),
        (
            "a label and a list",
            ".entry k() {\nA: ret;\nA: .branchtargets A; // BAD\nret; }",
            "`A`",
        ),
        (
            "label lists",
            ".entry k() {\nA: ret;\nB: .branchtargets A,\n5; } // BAD",
            "name",
        ),
    ];
    suite("malformed text", |t| {
        for (what, code, word) in rows {
            for (before, lines) in [("", 0), ("\n\n// x\n/*\n*/", 4)] {
                let text = format!("{HEADER}{before}{code}");
                let line = marked(&text);
                assert!(line > 3 + lines, "{what}");
                let got = match parse(&text) {
                    Err(e) if e.line == line && e.message.contains(word) => "named".to_owned(),
                    Err(e) => format!("not line {line}: {e}"),
                    Ok(_) => "parses".to_owned(),
                };
                t.same(what, &[got.as_str()], &["named"]);
            }
        }
        // Labels of different blocks and functions may be the same.
        let text = format!(
            "{HEADER}.func f() {{ A: ret; }}\n.entry k() {{ A: {{ A: {{ A: }} }} {{ A: }} ret; }}"
        );
        t.same("labels of blocks", &[parse(&text).is_ok()], &[true]);
        // Nesting without end is an error, and not a crash.
        for open in ["{", "mov.b64 {", "mov.b64 {{{{", "ld.u32 (", "mov.u32 x|"] {
            let text = format!("{HEADER}.entry k() {{\n{}", open.repeat(100_000));
            let line = parse(&text).map_err(|e| e.line).err();
            t.same("nesting", &[line], &[Some(5)]);
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        unknown_instructions,
        lines,
        other_kernels_run,
        malformed_text
    ]
}
