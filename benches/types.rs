//! The element types beside each other on the CPU, as a table: f32, bf16 and f16 in turns, so that a machine that slows
//! down does so for all of them. Causal, 8 heads of dimension 64, the machine's threads. Medians, and in brackets the least,
//! which is what others that work on the machine disturb least.
//!
//! `cargo bench --bench types`; `RAYON_NUM_THREADS=1` for one thread.

use std::time::{Duration, Instant};

use flash_alibi::cpu::{self, Element};
use flash_alibi::{Attention, Horizon, Inputs, View, ViewMut};
use half::{bf16, f16};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
/// Tokens of a page.
const PAGE_SIZE: usize = 16;
/// The time that each case is given.
const TIME: Duration = Duration::from_secs(10);

struct Case {
    name: &'static str,
    seqlen_q: usize,
    seqlen_k: usize,
    paged: bool,
    horizon: Horizon,
}

impl Case {
    /// A call, on numbers of variance 1.
    fn call<T: Element>(&self) -> Box<dyn FnMut()> {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let mut random = |seqlen: usize| -> Vec<T> {
            let bound = 3f32.sqrt();
            let mut next = || T::from_f32(generator.random_range(-bound..bound));
            (0..seqlen * HEADS * HEAD_DIM).map(|_| next()).collect()
        };
        let q = random(self.seqlen_q);
        let (k, v) = (random(self.seqlen_k), random(self.seqlen_k));
        let shape_q = [1, self.seqlen_q, HEADS, HEAD_DIM];
        let pages = self.seqlen_k / PAGE_SIZE;
        let shape_k = match self.paged {
            true => [pages, PAGE_SIZE, HEADS, HEAD_DIM],
            false => [1, self.seqlen_k, HEADS, HEAD_DIM],
        };
        // In no order: 37 divides no power of two.
        let block_table: Vec<i32> = (0..pages).map(|i| (i * 37 % pages) as i32).collect();
        let seqused_k = [self.seqlen_k as i32];
        let layer = Attention::new(HEADS, HEADS, HEAD_DIM)
            .horizon(self.horizon)
            .build()
            .expect("valid");
        let (mut out, paged) = (q.clone(), self.paged);
        Box::new(move || {
            let view = |data, shape| View::new(data, shape).expect("fits");
            let (q, k, v) = (view(&q, &shape_q), view(&k, &shape_k), view(&v, &shape_k));
            let inputs = match paged {
                true => Inputs::paged(q, k, v, &block_table, &seqused_k),
                false => Inputs::new(q, k, v),
            };
            let out = ViewMut::new(&mut out, &shape_q).expect("fits");
            cpu::attend_into(&layer, &inputs, out, None).expect("fits");
        })
    }

    /// The median and the least time of each call in milliseconds.
    fn time(&self, mut calls: [Box<dyn FnMut()>; 3], once: bool) -> [String; 3] {
        /// Calls of one type in a row: what lies in the cache is its own then.
        const RUN: usize = 4;
        let mut times = [const { Vec::new() }; 3];
        let start = Instant::now();
        loop {
            for (call, times) in calls.iter_mut().zip(&mut times) {
                call();
                for _ in 0..RUN {
                    let start = Instant::now();
                    call();
                    times.push(start.elapsed());
                }
            }
            if once || start.elapsed() > TIME {
                break;
            }
        }
        times.map(|mut times| {
            times.sort();
            let milliseconds = |at: usize| times[at].as_secs_f64() * 1e3;
            format!(
                "{:.2} ({:.2})",
                milliseconds(times.len() / 2),
                milliseconds(0)
            )
        })
    }
}

fn main() {
    // `cargo test` runs benches too, to see that they run.
    let once = !std::env::args().any(|argument| argument == "--bench");
    let case = |name, seqlen_q, seqlen_k, paged, horizon| Case {
        name,
        seqlen_q,
        seqlen_k,
        paged,
        horizon,
    };
    let cases = [
        case("decode", 1, 16384, false, Horizon::Off),
        case("decode, paged", 1, 16384, true, Horizon::Off),
        case("decode, horizon", 1, 16384, false, Horizon::default()),
        case("prefill", 1024, 1024, false, Horizon::Off),
        case("prefill, horizon", 1024, 1024, false, Horizon::default()),
        case("prefill", 4096, 4096, false, Horizon::Off),
        case("prefill, horizon", 4096, 4096, false, Horizon::default()),
    ];
    println!("| | keys | f32, ms | bf16, ms | f16, ms |\n|---|---|---|---|---|");
    for case in cases {
        let calls = [case.call::<f32>(), case.call::<bf16>(), case.call::<f16>()];
        let [f32, bf16, f16] = case.time(calls, once);
        let (name, keys) = (case.name, case.seqlen_k);
        println!("| {name} | {keys} | {f32} | {bf16} | {f16} |");
    }
}
