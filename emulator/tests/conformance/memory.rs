//! ISA: ld, st, ld.param, cvta, isspacep, State Spaces, Variables.

use crate::harness::{HEADER, f, kernel, launch, n, parse, suite};
use libtest_mimic::Trial;
use ptx_emulator::{LaunchConfig, Memory, Params};

fn extension_and_truncation() {
    suite("extension_and_truncation", |t| {
        // ld: .s extends the sign and .u zeros to the register's width; st takes the low bits.
        let words = 0x8182_f384_8586_8788;
        t.op("d>rrrr", "ld.global.s8 %x, [%in]; ld.global.u8 %y, [%in]; ld.global.s16 %z, [%in]; ld.global.u16 %w, [%in];", &[[words, n(-0x78), 0x88, n(-0x7878), 0x8788]]);
        t.op("d>dddd", "ld.global.s8 %x, [%in+1]; ld.global.u8 %y, [%in+7]; ld.global.s32 %z, [%in]; ld.global.u32 %w, [%in+4];", &[[words, n(-0x79), 0x81, n(-0x7a79_7878), 0x8182_f384]]);
        t.op(
            "d>hh",
            "ld.global.s8 %x, [%in]; ld.global.u8 %y, [%in];",
            &[[words, 0xff88, 0x88]],
        );
        t.op(
            "d>rr",
            "ld.global.b8 %x, [%in]; ld.global.b16 %y, [%in+4];",
            &[[words, 0x88, 0xf384]],
        );
        t.op("d>d", "ld.global.b32 %x, [%in];", &[[words, 0x8586_8788]]);
        t.op(
            "rd>d",
            "st.global.u8 [%in+9], %a; st.global.u16 [%in+12], %a; ld.global.u64 %x, [%in+8];",
            &[[0xabcd_ef12, 0, 0xef12_0000_1200]],
        );
        t.op(
            "dd>d",
            "st.global.b32 [%in+8], %a; ld.global.u64 %x, [%in+8];",
            &[[u64::MAX, 0, 0xffff_ffff]],
        );
    });
}

fn vectors() {
    suite("vectors", |t| {
        let x = 0x4444_3333_2222_1111u64;
        let y = 0x8888_7777_6666_5555u64;
        t.op(
            "dd>rrrr",
            "ld.global.v4.u32 {%x, %y, %z, %w}, [%in];",
            &[[x, y, 0x2222_1111, 0x4444_3333, 0x6666_5555, 0x8888_7777]],
        );
        t.op(
            "dd>rr",
            "ld.global.v2.f32 {%x, %y}, [%in+8];",
            &[[x, y, 0x6666_5555, 0x8888_7777]],
        );
        t.op(
            "dd>dd",
            "ld.global.v2.u64 {%x, %y}, [%in];",
            &[[x, y, x, y]],
        );
        t.op(
            "dd>hhhh",
            "ld.global.v4.b16 {%x, %y, %z, %w}, [%in];",
            &[[x, y, 0x1111, 0x2222, 0x3333, 0x4444]],
        );
        t.op(
            "dd>rrrr",
            "ld.global.v4.u8 {%x, %y, %z, %w}, [%in+4];",
            &[[x, y, 0x33, 0x33, 0x44, 0x44]],
        );
        t.op(
            "dd>rr",
            "ld.global.v2.s16 {%x, %y}, [%in+12];",
            &[[x, y, 0x7777, n(-0x7778)]],
        );
        t.op(
            "dd>rr",
            "ld.global.nc.v2.u32 {%x, %y}, [%in];",
            &[[x, y, 0x2222_1111, 0x4444_3333]],
        );
        t.op("dd>dd", "mov.b64 {%r0, %r1}, %a; mov.b64 {%r2, %r3}, %b; st.global.v4.b32 [%in], {%r3, %r2, %r1, %r0}; ld.global.v2.b64 {%x, %y}, [%in];", &[[x, y, y << 32 | y >> 32, x << 32 | x >> 32]]);
        t.op("dd>dd", "mov.u32 %r0, sm; mad.lo.u32 %r0, %t, 16, %r0; st.shared.v2.u64 [%r0], {%b, %a}; ld.shared.v2.u64 {%x, %y}, [%r0];", &[[x, y, y, x], [1, 2, 2, 1]]);
        // Cache operators and eviction hints change nothing but speed.
        for q in ["ca", "cg", "cs", "cv", "lu"] {
            t.op("r>r", &format!("ld.global.{q}.u32 %x, [%in];"), &[[7, 7]]);
        }
        for q in ["wb", "cg", "cs", "wt"] {
            t.op(
                "r>r",
                &format!(
                    "add.u32 %r0, %a, 1; st.global.{q}.u32 [%in], %r0; ld.global.u32 %x, [%in];"
                ),
                &[[7, 8]],
            );
        }
        for q in [
            "volatile.global",
            "relaxed.gpu.global",
            "acquire.sys.global",
            "weak.global",
            "global.L1::no_allocate",
            "global.L2::128B",
        ] {
            t.op("r>r", &format!("ld.{q}.u32 %x, [%in];"), &[[7, 7]]);
        }
        t.op("r>r", "add.u32 %r0, %a, 1; st.release.gpu.global.u32 [%in], %r0; st.volatile.global.u32 [%in], %r0; st.relaxed.cta.u32 [%in], %r0; ld.global.u32 %x, [%in];", &[[7, 8]]);
    });
}

fn generic_addresses() {
    suite("generic_addresses", |t| {
        let decls = ".global .u32 g = 5;\n.const .u32 c = 6;";
        let body = "
            .local .align 8 .b8 loc[16];
            mov.u64 %rd0, sm; cvta.shared.u64 %rd1, %rd0;
            mov.u64 %rd2, loc; cvta.local.u64 %rd3, %rd2;
            mov.u64 %rd4, c; cvta.const.u64 %rd5, %rd4;
            mov.u64 %rd6, g; cvta.global.u64 %rd7, %rd6;
            st.shared.u32 [sm], 1; st.local.u32 [loc], 2;
            ld.u32 %r0, [%rd1]; ld.u32 %r1, [%rd3]; ld.u32 %r2, [%rd5]; ld.u32 %r3, [%rd7];
            st.global.u32 [%out], %r0; st.global.u32 [%out+8], %r1;
            st.global.u32 [%out+16], %r2; st.global.u32 [%out+24], %r3;
            st.u32 [%rd1], 11; st.u32 [%rd3], 12; st.u32 [%rd7], 14;
            ld.shared.u32 %r0, [sm]; ld.local.u32 %r1, [loc]; ld.global.u32 %r3, [g];
            st.global.u32 [%out+32], %r0; st.global.u32 [%out+40], %r1; st.global.u32 [%out+48], %r3;
            cvta.to.shared.u64 %rd8, %rd1; ld.shared.u32 %r0, [%rd8]; st.global.u32 [%out+56], %r0;
            cvta.to.local.u64 %rd9, %rd3; ld.local.u32 %r0, [%rd9]; st.global.u32 [%out+64], %r0;
            cvta.to.global.u64 %rd10, %rd7; ld.global.u32 %r0, [%rd10]; st.global.u32 [%out+72], %r0;
            cvta.to.const.u64 %rd11, %rd5; ld.const.u32 %r0, [%rd11]; st.global.u32 [%out+80], %r0;";
        let got = kernel(decls, body, 1, &[0], 11).expect("runs");
        t.same("generic", &got, &[1, 2, 6, 5, 11, 12, 14, 11, 12, 14, 6]);
        // isspacep of a generic address of each space, in each.
        let spaces = ["shared", "local", "const", "global"];
        for (i, (space, symbol)) in spaces.iter().zip(["sm", "loc", "c", "g"]).enumerate() {
            let mut body = format!(
                ".local .align 8 .b8 loc[16]; mov.u64 %rd0, {symbol}; cvta.{space}.u64 %rd1, %rd0;\n"
            );
            for (j, test) in spaces.iter().enumerate() {
                body += &format!(
                    "isspacep.{test} %p, %rd1; selp.u64 %rd2, 1, 0, %p; st.global.u64 [%out+{}], %rd2;\n",
                    j * 8
                );
            }
            let got = kernel(decls, &body, 1, &[0], 4).expect("runs");
            let want: Vec<u64> = (0..4).map(|j| u64::from(i == j)).collect();
            t.same(&format!("isspacep {space}"), &got, &want);
        }
    });
}

fn variables() {
    suite("variables", |t| {
        // ISA: Initializers. Aggregates are filled with zeros; addresses may be initialisers,
        // plain for the space's and generic() for the generic address.
        let decls = "
            .global .align 4 .s32 arr[5] = {1, -2, 0x30};
            .const .align 8 .f32 fl[4] = {0f3F800000, 2.5, -1.0, 0.0};
            .global .align 2 .b8 bytes[6] = {1, 2, 255};
            .global .align 8 .u64 ptr = generic(arr);
            .global .align 8 .u64 ptrs[2] = {generic(arr)+4, generic(arr)+8};
            .const .align 4 .u16 shorts[2][2] = {{1, 2}, {3, 4}};
            .global .f64 dbl = 0d3FF8000000000000;
            .global .align 16 .v4 .u32 vec = {1, 2, 3, 4};
            .visible .global .u32 blank;";
        let body = "
            ld.global.s32 %r0, [arr+4]; st.global.u32 [%out], %r0;
            ld.global.s32 %r0, [arr+8]; st.global.u32 [%out+8], %r0;
            ld.global.s32 %r0, [arr+16]; st.global.u32 [%out+16], %r0;
            ld.const.f32 %r0, [fl+4]; st.global.u32 [%out+24], %r0;
            ld.const.f32 %r0, [fl]; st.global.u32 [%out+32], %r0;
            ld.global.u16 %r0, [bytes+2]; st.global.u32 [%out+40], %r0;
            ld.global.u64 %rd0, [ptr]; ld.u32 %r0, [%rd0]; st.global.u32 [%out+48], %r0;
            ld.global.u64 %rd0, [ptrs+8]; ld.u32 %r0, [%rd0]; st.global.u32 [%out+56], %r0;
            ld.const.u16 %r0, [shorts+6]; st.global.u32 [%out+64], %r0;
            ld.global.u64 %rd0, [dbl]; st.global.u64 [%out+72], %rd0;
            ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [vec]; st.global.u32 [%out+80], %r3;
            ld.global.u32 %r0, [blank]; st.global.u32 [%out+88], %r0;
            mov.u64 %rd1, fl; ld.const.v2.f32 {%r0, %r1}, [%rd1+8]; st.global.u32 [%out+96], %r0;";
        let got = kernel(decls, body, 1, &[0], 13).expect("runs");
        let minus2 = 0xffff_fffe;
        t.same(
            "initialisers",
            &got,
            &[
                minus2,
                0x30,
                0,
                f(2.5),
                f(1.0),
                0xff,
                1,
                0x30,
                4,
                1.5f64.to_bits(),
                4,
                0,
                f(-1.0),
            ],
        );
        // Local memory is each thread's own.
        let body = "
            .local .align 4 .b8 loc[32];
            mov.u64 %rd0, loc;
            st.local.u32 [loc+8], %t;
            and.b32 %r0, %t, 7; mad.wide.u32 %rd1, %r0, 4, %rd0;
            st.local.v2.u32 [loc+16], {%t, %t};
            st.local.u32 [%rd1], %t;
            bar.sync 0;
            ld.local.u32 %r1, [%rd1];
            ld.local.u32 %r2, [loc+8];
            add.u32 %r1, %r1, %r2;
            mad.wide.u32 %rd2, %t, 8, %out;
            st.global.u32 [%rd2], %r1;";
        let got = kernel("", body, 64, &[0], 64).expect("runs");
        t.same("local", &got, &(0..64).map(|i| 2 * i).collect::<Vec<u64>>());
        // Shared variables lie apart; a dynamic array follows the static ones.
        let text = format!(
            "{HEADER}.extern .shared .align 16 .b8 dyn[];
            .shared .align 4 .u32 one;
            .visible .entry k(.param .u64 p_in, .param .u64 p_out) {{
            .reg .b64 %rd<4>; .reg .b32 %r<8>;
            .shared .align 4 .u32 two;
            ld.param.u64 %rd1, [p_out];
            st.shared.u32 [one], 1; st.shared.u32 [two], 2; st.shared.u32 [dyn], 3; st.shared.u32 [dyn+12], 4;
            ld.shared.u32 %r1, [one]; ld.shared.u32 %r2, [two]; ld.shared.u32 %r3, [dyn]; ld.shared.u32 %r4, [dyn+12];
            st.global.u32 [%rd1], %r1; st.global.u32 [%rd1+8], %r2; st.global.u32 [%rd1+16], %r3; st.global.u32 [%rd1+24], %r4;
            mov.u32 %r5, dyn; and.b32 %r5, %r5, 15; st.global.u32 [%rd1+32], %r5;
            mov.u32 %r6, %dynamic_smem_size; st.global.u32 [%rd1+40], %r6;
            ret; }}"
        );
        let module = parse(&text).expect("parses");
        let memory = Memory::new();
        let out = memory.alloc_zeroed(48).expect("memory");
        let params = Params::new().arg(0u64).arg(out);
        module
            .launch(
                &memory,
                "k",
                &LaunchConfig::new(1, 1).shared_bytes(16),
                params.as_bytes(),
            )
            .expect("runs");
        t.same(
            "shared",
            &memory.download::<u64>(out, 6).expect("memory"),
            &[1, 2, 3, 4, 0, 16],
        );
    });
}

fn parameters() {
    suite("parameters", |t| {
        let text = format!(
            "{HEADER}.visible .entry k(.param .u64 out, .param .s8 b, .param .u16 h, .param .f32 f, .param .f64 d, .param .align 16 .b8 s[20], .param .u32 last) {{
            .reg .b64 %rd<8>; .reg .b32 %r<12>; .reg .b16 %h<4>;
            ld.param.u64 %rd1, [out];
            ld.param.s8 %r1, [b]; st.global.u32 [%rd1], %r1;
            ld.param.u16 %r2, [h]; st.global.u32 [%rd1+8], %r2;
            ld.param.f32 %r3, [f]; st.global.u32 [%rd1+16], %r3;
            ld.param.f64 %rd2, [d]; st.global.u64 [%rd1+24], %rd2;
            ld.param.v4.u32 {{%r4, %r5, %r6, %r7}}, [s]; st.global.u32 [%rd1+32], %r7;
            ld.param.u8 %r8, [s+17]; st.global.u32 [%rd1+40], %r8;
            ld.param.u32 %r9, [last]; st.global.u32 [%rd1+48], %r9;
            ret; }}"
        );
        let module = parse(&text).expect("parses");
        let memory = Memory::new();
        let out = memory.alloc_zeroed(56).expect("memory");
        let bytes: Vec<u8> = (0..20).collect();
        let params = Params::new()
            .arg(out)
            .arg(-3i8)
            .arg(0x8001u16)
            .arg(1.5f32)
            .arg(2.5f64)
            .arg_bytes(&bytes, 16)
            .arg(77u32);
        assert_eq!(
            module.kernel("k").map(|k| k.param_bytes as usize),
            Some(params.as_bytes().len())
        );
        module
            .launch(&memory, "k", &LaunchConfig::new(1, 1), params.as_bytes())
            .expect("runs");
        let got = memory.download::<u64>(out, 7).expect("memory");
        t.same(
            "params",
            &got,
            &[
                0xffff_fffd,
                0x8001,
                f(1.5),
                2.5f64.to_bits(),
                0x0f0e_0d0c,
                17,
                77,
            ],
        );
        // Special registers of a launch in three dimensions.
        let text = format!(
            "{HEADER}.visible .entry k(.param .u64 p_in, .param .u64 p_out) {{
            .reg .b64 %rd<4>; .reg .b32 %r<32>;
            ld.param.u64 %rd1, [p_out];
            mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
            mov.u32 %r4, %ntid.x; mov.u32 %r5, %ntid.y; mov.u32 %r6, %ntid.z;
            mov.u32 %r7, %ctaid.x; mov.u32 %r8, %ctaid.y; mov.u32 %r9, %ctaid.z;
            mov.u32 %r10, %nctaid.x; mov.u32 %r11, %nctaid.y; mov.u32 %r12, %nctaid.z;
            mad.lo.u32 %r13, %r3, %r5, %r2; mad.lo.u32 %r13, %r13, %r4, %r1;
            mad.lo.u32 %r14, %r9, %r11, %r8; mad.lo.u32 %r14, %r14, %r10, %r7;
            mul.lo.u32 %r15, %r4, %r5; mul.lo.u32 %r15, %r15, %r6;
            mad.lo.u32 %r16, %r14, %r15, %r13;
            mad.wide.u32 %rd2, %r16, 8, %rd1;
            mov.u32 %r17, %laneid; mov.u32 %r18, %warpid; mov.u32 %r19, WARP_SZ;
            mad.lo.u32 %r20, %r18, 32, %r17; mad.lo.u32 %r20, %r19, 1000, %r20;
            st.global.u32 [%rd2], %r20;
            mov.u32 %r21, %lanemask_lt; mov.u32 %r22, %lanemask_ge; xor.b32 %r23, %r21, %r22;
            mov.u32 %r24, %lanemask_eq; mov.u32 %r25, %lanemask_le; mov.u32 %r26, %lanemask_gt;
            xor.b32 %r27, %r25, %r26; and.b32 %r23, %r23, %r27; sub.u32 %r28, %r24, 1; xor.b32 %r28, %r28, %r21;
            sub.u32 %r23, %r23, %r28;
            st.global.u32 [%rd2+4], %r23;
            ret; }}"
        );
        let module = parse(&text).expect("parses");
        let memory = Memory::new();
        let out = memory.alloc_zeroed(12 * 40 * 8).expect("memory");
        let params = Params::new().arg(0u64).arg(out);
        module
            .launch(
                &memory,
                "k",
                &LaunchConfig::new((2, 3, 2), (5, 4, 2)),
                params.as_bytes(),
            )
            .expect("runs");
        let got = memory.download::<u64>(out, 480).expect("memory");
        let want: Vec<u64> = (0..480)
            .map(|i| 0xffff_ffff << 32 | (32000 + i % 40))
            .collect();
        t.same("special registers", &got, &want);
    });
}

fn module_variables_from_the_host() {
    suite("module_variables", |t| {
        let decls = ".visible .global .u32 counter = 41;";
        let text = crate::harness::text(
            decls,
            "ld.global.u32 %r0, [counter]; add.u32 %r0, %r0, 1; st.global.u32 [counter], %r0;",
        );
        let module = parse(&text).expect("parses");
        let memory = Memory::new();
        let params = Params::new().arg(0u64).arg(0u64);
        for _ in 0..2 {
            module
                .launch(&memory, "k", &LaunchConfig::new(1, 1), params.as_bytes())
                .expect("runs");
        }
        let at = module
            .variable(&memory, "counter")
            .expect("variable")
            .expect("declared")
            .0;
        t.same(
            "counter",
            &memory.download::<u32>(at, 1).expect("memory"),
            &[43],
        );
        // Another memory starts from the initialiser again.
        let got = launch(&module, 1, &[0], 1).map(|_| 1).expect("runs");
        t.same("again", &[got], &[1]);
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        extension_and_truncation,
        vectors,
        generic_addresses,
        variables,
        parameters,
        module_variables_from_the_host
    ]
}
