//! The horizon of the prefill kernels, executed by the emulator: what they leave out, and what that changes.

mod support;

use flash_alibi::plan::Plan;
use flash_alibi::{Attention, Horizon, Inputs, Layout, Slopes, View, cpu};
use half::f16;
use support::emulator::{OnDevice, Placed, Problem};

#[test]
fn probe() {
    let args: Vec<f64> = std::env::var("PROBE")
        .unwrap_or("4096,8,1,64".into())
        .split(',')
        .map(|x| x.parse().unwrap())
        .collect();
    let (n, heads, sd, d) = (
        args[0] as usize,
        args[1] as usize,
        args[2] as f32,
        args[3] as usize,
    );
    let mut state = 1u64;
    let mut normal = || {
        let mut t = 0.0f32;
        for _ in 0..12 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            t += (state >> 40) as f32 / (1u64 << 24) as f32;
        }
        t - 6.0
    };
    let mut random = |sd: f32| -> Vec<f16> {
        (0..n * heads * d)
            .map(|_| f16::from_f32(sd * normal()))
            .collect()
    };
    let (q, k, v) = (random(sd.sqrt()), random(sd.sqrt()), random(1.0));
    let layout = Layout::contiguous("q", &[1, n, heads, d]).unwrap();
    let run = |h: Horizon| {
        let attention = Attention::new(heads, heads, d).horizon(h).build().unwrap();
        let out = vec![f16::NAN; q.len()];
        let lse = vec![f32::NAN; n * heads];
        fn placed<'a>(data: &'a [f16], layout: Layout) -> Placed<'a, f16> {
            Placed {
                data,
                offset: 0,
                layout,
            }
        }
        let problem = Problem {
            attention: &attention,
            q: placed(&q, layout),
            k: placed(&k, layout),
            v: placed(&v, layout),
            out: placed(&out, layout),
            lse: Some(&lse),
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            seqused_k: None,
            leftpad_k: None,
            block_table: None,
        };
        let t = std::time::Instant::now();
        let a = problem.attend(&Plan::prefill, 1).unwrap();
        let (kept, total) = a
            .tiles
            .chunks(2)
            .fold((0, 0), |(x, y), c| (x + c[0], y + c[1]));
        println!(
            "{h:?}: {:.1} s, kept {kept} of {total}: 1/{:.3} {:?}",
            t.elapsed().as_secs_f64(),
            total as f64 / kept as f64,
            a.tiles
        );
        a
    };
    let c = run(Horizon::default());
    if std::env::var("DENSE").is_ok() {
        let o = run(Horizon::Off);
        let e = o
            .out
            .iter()
            .zip(&c.out)
            .map(|(a, b)| (a.to_f32() - b.to_f32()).abs())
            .fold(0f32, f32::max);
        let l = o
            .lse
            .iter()
            .zip(&c.lse)
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, f32::max);
        println!(
            "out {e:e} in {} lse {l:e}",
            o.out
                .iter()
                .zip(&c.out)
                .filter(|(a, b)| a.to_bits() != b.to_bits())
                .count()
        );
    }
    let _ = (
        View::<f16>::new,
        Slopes::zero,
        Inputs::<f16>::new,
        cpu::attend::<f16>,
        <f16 as OnDevice>::DTYPE,
    );
}
