//! What the horizon leaves out of a model's layers.

use std::fs;

use candle_core::Device;
use flash_alibi::Horizon;
use flash_alibi_models::{Model, Problem, Tokenizer, measure};

use crate::{folder, max_difference};

/// Far beyond where the horizon begins, it changes neither what the model computes nor, in bits, what `Bitwise` promises.
#[test]
fn the_horizon_changes_no_prediction() {
    let tokenizer = Tokenizer::load(&folder("kjv-bloom")).unwrap();
    let text = fs::read_to_string(folder("kjv-bloom").join("heldout.txt")).unwrap();
    let tokens = tokenizer.encode(&text[..4096]).unwrap();
    let hidden = |horizon| {
        let model = Model::load(&folder("kjv-bloom"), &Device::Cpu, horizon).unwrap();
        let mut cache = model.cache(4096 / 16, 16).unwrap();
        let sequence = cache.pages.create();
        let hidden = model.forward(&[(sequence, &tokens)], &mut cache).unwrap();
        let rows: Vec<u32> = (0..4096).collect();
        let next = model.greedy(&hidden, &rows).unwrap();
        (hidden, next)
    };
    let (whole, next) = hidden(Horizon::Off);
    for (horizon, most) in [(Horizon::default(), 1e-4), (Horizon::Bitwise, 0.0)] {
        let (found, found_next) = hidden(horizon);
        assert_eq!(next, found_next);
        let difference = max_difference(&whole, &found);
        assert!(difference <= most, "{horizon:?}: {difference}");
    }
}

/// Of layers of a model and of what a plain generator makes, at a tolerance that shows.
#[test]
fn what_the_horizon_example_measures_is_within_its_certificate() {
    let model = folder("kjv-bloom");
    let mut problems = Problem::of_model(&model, &model.join("heldout.txt"), 2304).unwrap();
    problems.push(Problem::normal(2304, (4, 16), 3.0, 8.0).unwrap());
    for problem in &problems {
        let found = measure(problem, 0.5f32.powi(10)).unwrap().json();
        println!("{found}");
        for (name, rounding) in [("out", 2e-6), ("lse", 2e-6)] {
            let of = |what: &str| found[name][what].as_f64().unwrap();
            assert!(of("error") <= of("certified") + rounding, "{found}");
        }
        let sum = |what: &str| -> u64 {
            let heads = found["heads"].as_array().unwrap().iter();
            let pairs = heads.flat_map(|head| head[what].as_array().unwrap());
            pairs.map(|pairs| pairs.as_u64().unwrap()).sum()
        };
        let (computed, all) = (sum("computed"), sum("all"));
        assert_eq!(found["computed"], computed);
        assert_eq!(found["f16"]["differ_bitwise"], 0);
        assert_eq!(found["all"], all);
        // Each query and the 1 to 18 tiles that it sees.
        let heads = found["heads"].as_array().unwrap().len() as u64;
        assert_eq!(all, heads * (1..=18).map(|tiles| 128 * tiles).sum::<u64>());
        assert!(computed < all * 2 / 3, "{found}");
    }
}
