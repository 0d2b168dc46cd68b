//! Sequences decoded together: each gives what it gives alone.

use std::fs;
use std::path::Path;

use candle_core::{IndexOp, Tensor};
use flash_alibi::Horizon;
use flash_alibi_models::{Model, Request, Sampler, Tokenizer, generate, serve};

fn load() -> (Model, Tokenizer) {
    let folder = Path::new("../models/kjv-bloom");
    let model = Model::load(folder, &candle_core::Device::Cpu, Horizon::default()).unwrap();
    (model, Tokenizer::load(folder).unwrap())
}

fn trace() -> Vec<Request> {
    serde_json::from_str(&fs::read_to_string("../examples/serve/trace.json").unwrap()).unwrap()
}

#[test]
fn texts_of_the_trace_equal_those_of_each_request_alone() {
    let (model, tokenizer) = load();
    let requests = trace();
    // So few pages that requests wait for others to finish.
    let report = serve(&model, &tokenizer, &requests, 36, 16).unwrap();
    assert!(report.most_sequences >= 4, "{report:?}");
    assert!((30..=36).contains(&report.most_pages), "{report:?}");
    assert_eq!(
        report.new_tokens,
        requests.iter().map(|r| r.tokens).sum::<usize>()
    );
    for (request, text) in requests.iter().zip(&report.texts) {
        let alone = Request {
            arrival: 0,
            ..request.clone()
        };
        let alone = serve(&model, &tokenizer, &[alone], 100, 8).unwrap();
        assert_eq!(alone.texts, [text.as_str()], "{request:?}");
    }
}

/// A request's text is what it is alone, to the bytes at its end that are no character.
#[test]
fn a_text_ends_as_that_of_its_prompt_alone() {
    let folder = Path::new("../models/tiny-bloom");
    let model = Model::load(folder, &candle_core::Device::Cpu, Horizon::default()).unwrap();
    let tokenizer = Tokenizer::load(folder).unwrap();
    let request = Request {
        arrival: 0,
        prompt: "hello there, old friend".into(),
        tokens: 24,
    };
    let served = serve(&model, &tokenizer, std::slice::from_ref(&request), 6, 8).unwrap();
    let prompt = tokenizer.encode(&request.prompt).unwrap();
    let greedy = &mut Sampler::greedy();
    let alone = generate(&model, &tokenizer, &prompt, 24, greedy, &mut |_| Ok(())).unwrap();
    assert!(
        alone.text.ends_with(char::REPLACEMENT_CHARACTER),
        "{}",
        alone.text
    );
    assert_eq!(served.texts, [alone.text]);
}

fn bits(hidden: &Tensor) -> Vec<u32> {
    let numbers: Vec<f32> = hidden.flatten_all().unwrap().to_vec1().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn hidden_states_are_those_of_each_sequence_alone_to_the_bit() {
    let (model, tokenizer) = load();
    let text = fs::read_to_string("../models/kjv-bloom/heldout.txt").unwrap();
    let tokens = tokenizer.encode(&text[..1500]).unwrap();
    // What each of five sequences reads in each step: prompts whole and in chunks, tokens one by one, and pauses.
    let steps: [[usize; 5]; 6] = [
        [200, 1, 0, 40, 1200],
        [1, 1, 63, 0, 1],
        [1, 1, 64, 40, 1],
        [0, 0, 0, 1, 0],
        [1, 0, 1, 1, 2],
        [1, 1, 1, 1, 1],
    ];
    let mut cache = model.cache(120, 16).unwrap();
    let together = [(); 5].map(|()| cache.pages.create());
    let mut separate = [(); 5].map(|()| {
        let mut cache = model.cache(20, 64).unwrap();
        let sequence = cache.pages.create();
        (cache, sequence)
    });
    let mut read = [0; 5];
    for (step, sizes) in steps.into_iter().enumerate() {
        let inputs: Vec<_> = (0..5)
            .map(|s| &tokens[s * 7 + read[s]..][..sizes[s]])
            .collect();
        let batch = (0..5).filter(|&s| sizes[s] > 0);
        let batch: Vec<_> = batch.map(|s| (together[s], inputs[s])).collect();
        let hidden = model.forward(&batch, &mut cache).unwrap();
        let mut start = 0;
        for s in (0..5).filter(|&s| sizes[s] > 0) {
            let (cache, sequence) = &mut separate[s];
            let alone = model.forward(&[(*sequence, inputs[s])], cache).unwrap();
            let found = hidden.i(start..start + sizes[s]).unwrap();
            assert!(bits(&found) == bits(&alone), "step {step}, sequence {s}");
            start += sizes[s];
            read[s] += sizes[s];
        }
    }
}

#[test]
fn a_fork_leaves_the_pages_of_the_other_as_they_were() {
    let (model, tokenizer) = load();
    let text = fs::read_to_string("../models/kjv-bloom/heldout.txt").unwrap();
    let tokens = tokenizer.encode(&text[..100]).unwrap();
    // Diverges within a page.
    let (prefix, ends) = (&tokens[..40], [&tokens[40..70], &tokens[60..90]]);
    let mut cache = model.cache(20, 16).unwrap();
    let first = cache.pages.create();
    model.forward(&[(first, prefix)], &mut cache).unwrap();
    let second = cache.pages.fork(first).unwrap();
    for (sequence, end) in [second, first].into_iter().zip(ends) {
        model.forward(&[(sequence, end)], &mut cache).unwrap();
    }
    let last = [(second, &tokens[90..]), (first, &tokens[90..])];
    let hidden = model.forward(&last, &mut cache).unwrap();
    for (at, end) in ends.into_iter().enumerate() {
        let mut cache = model.cache(20, 16).unwrap();
        let sequence = cache.pages.create();
        for tokens in [prefix, end] {
            model.forward(&[(sequence, tokens)], &mut cache).unwrap();
        }
        let alone = [(sequence, &tokens[90..])];
        let alone = model.forward(&alone, &mut cache).unwrap();
        let found = hidden.i(10 * at..10 * at + 10).unwrap();
        assert!(bits(&found) == bits(&alone), "sequence {at}");
    }
}

#[test]
fn a_request_that_can_never_fit_is_an_error() {
    let (model, tokenizer) = load();
    let requests = [Request {
        arrival: 0,
        prompt: "In the".into(),
        tokens: 27,
    }];
    let error = serve(&model, &tokenizer, &requests, 4, 8).unwrap_err();
    assert_eq!(
        error.to_string(),
        "request 0: found 4 pages, expected at least 5"
    );
    assert_eq!(
        serve(&model, &tokenizer, &requests, 5, 8)
            .unwrap()
            .new_tokens,
        27
    );
}
