//! Logits, text and bits per byte against what transformers computes.

use std::collections::HashMap;
use std::fs;

use candle_core::{D, IndexOp};
use flash_alibi_models::{Sampler, Tokenizer, generate};

use crate::{LOGIT_TOLERANCE, folder, golden, load, logits, max_difference};

#[test]
fn logits_equal_those_of_transformers() {
    for name in ["kjv-bloom", "random-mpt"] {
        let model = load(&folder(name)).unwrap();
        let (tokens, expected) = golden(name);
        let difference = max_difference(&logits(&model, &tokens, &[tokens[0].len()]), &expected);
        println!("{name}: logits differ by at most {difference:e}");
        assert!(difference <= LOGIT_TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn a_cache_filled_in_chunks_or_token_by_token_gives_the_same_logits() {
    for name in ["kjv-bloom", "random-mpt"] {
        let model = load(&folder(name)).unwrap();
        let tokens: Vec<Vec<u32>> = golden(name).0.iter().map(|t| t[..150].to_vec()).collect();
        let whole = logits(&model, &tokens, &[150]);
        for chunks in [&[1][..], &[64, 63, 1], &[7, 130]] {
            let difference = max_difference(&logits(&model, &tokens, chunks), &whole);
            assert!(
                difference <= LOGIT_TOLERANCE,
                "{name} in chunks of {chunks:?}: {difference}"
            );
        }
    }
}

#[test]
fn greedy_text_equals_that_of_transformers() {
    let folder = folder("kjv-bloom");
    let (model, tokenizer) = (load(&folder).unwrap(), Tokenizer::load(&folder).unwrap());
    let expected = fs::read_to_string(folder.join("golden_greedy.txt")).unwrap();
    let prompt = "Ge1:1 In the beginning God created";
    let mut written = prompt.to_owned();
    let tokens = tokenizer.encode(prompt).unwrap();
    let mut write = |text: &str| {
        written += text;
        Ok(())
    };
    let greedy = &mut Sampler::greedy();
    let found = generate(&model, &tokenizer, &tokens, 96, greedy, &mut write).unwrap();
    assert_eq!(written, expected);
    assert_eq!(format!("{prompt}{}", found.text), expected);
    assert_eq!(found.tokens.len(), 96);
}

#[test]
fn bits_per_byte_equal_those_of_transformers_beyond_the_trained_context() {
    let folder = folder("kjv-bloom");
    let model = load(&folder).unwrap();
    let text = fs::read(folder.join("heldout.txt")).unwrap();
    let expected = fs::read_to_string(folder.join("golden_bits_per_byte.json")).unwrap();
    let expected: HashMap<String, f64> = serde_json::from_str(&expected).unwrap();
    for context in [128, 1024] {
        let (mut bits, mut bytes) = (0.0, 0);
        for window in text.chunks_exact(context).take((32768 / context).min(40)) {
            let tokens: Vec<u32> = window.iter().copied().map(u32::from).collect();
            let logits = logits(&model, std::slice::from_ref(&tokens), &[context])
                .i(0)
                .unwrap();
            let logs = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
            let logs: Vec<Vec<f32>> = logs.to_vec2().unwrap();
            for (logs, &next) in logs.iter().zip(&tokens[1..]) {
                bits -= f64::from(logs[next as usize]) / std::f64::consts::LN_2;
                bytes += 1;
            }
        }
        let (found, expected) = (bits / f64::from(bytes), expected[&context.to_string()]);
        assert!(
            (found - expected).abs() < 0.005,
            "{context}: {found}, {expected}"
        );
    }
}
