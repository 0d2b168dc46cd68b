//! How tokens are drawn.

use flash_alibi_models::Sampler;

fn frequencies(sampler: &mut Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..draws {
        counts[sampler.draw(logits).unwrap() as usize] += 1.0;
    }
    counts.iter().map(|count| count / draws as f64).collect()
}

const LOGITS: [f32; 5] = [1.0, -2.0, 3.0, 0.5, 2.5];

fn softmax(temperature: f64) -> Vec<f64> {
    let weights = LOGITS.map(|x| (f64::from(x) / temperature).exp());
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Five standard deviations of a frequency of 40,000 draws are 0.0125 at most.
fn close(found: &[f64], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.0125, "{found}, {expected}");
    }
}

#[test]
fn draws_have_the_probabilities_of_the_softmax() {
    for temperature in [0.5, 1.0, 2.0] {
        let mut sampler = Sampler::new(temperature, 1.0, 7).unwrap();
        close(
            &frequencies(&mut sampler, &LOGITS, 40_000),
            &softmax(temperature),
        );
    }
}

#[test]
fn top_p_keeps_the_fewest_tokens_that_have_it_together() {
    let p = softmax(1.0);
    let kept = |tokens: &[usize]| {
        let sum: f64 = tokens.iter().map(|&i| p[i]).sum();
        (0..5)
            .map(|i| if tokens.contains(&i) { p[i] / sum } else { 0.0 })
            .collect::<Vec<_>>()
    };
    // In the order of their probabilities: 2, 4, 0, 3, 1.
    for (top_p, tokens) in [
        (1e-9, &[2][..]),
        (p[2] - 1e-6, &[2]),
        (p[2] + 1e-6, &[2, 4]),
        (p[2] + p[4] + 1e-6, &[2, 4, 0]),
    ] {
        let mut sampler = Sampler::new(1.0, top_p, 7).unwrap();
        let found = frequencies(&mut sampler, &LOGITS, 40_000);
        close(&found, &kept(tokens));
        for (token, &frequency) in found.iter().enumerate() {
            assert!(
                tokens.contains(&token) || frequency == 0.0,
                "{token}: {frequency}"
            );
        }
    }
}

#[test]
fn a_seed_gives_the_same_tokens_and_another_gives_others() {
    let draw = |seed| {
        let mut sampler = Sampler::new(1.0, 1.0, seed).unwrap();
        (0..50)
            .map(|_| sampler.draw(&LOGITS).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    for mut sampler in [Sampler::greedy(), Sampler::new(0.0, 0.5, 1).unwrap()] {
        assert_eq!(sampler.draw(&LOGITS).unwrap(), 2);
        assert_eq!(
            sampler.draw(&[0.0, 4.0, f32::NEG_INFINITY, 4.0]).unwrap(),
            1
        );
    }
}

#[test]
fn what_cannot_be_drawn_from_is_an_error() {
    let message = |temperature, top_p| {
        let error = Sampler::new(temperature, top_p, 0).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        message(-1.0, 1.0),
        "temperature: found -1, expected a number of at least 0"
    );
    assert_eq!(
        message(f64::NAN, 1.0),
        "temperature: found NaN, expected a number of at least 0"
    );
    for top_p in [0.0, 1.5, f64::NAN] {
        assert_eq!(
            message(1.0, top_p),
            format!("top-p: found {top_p}, expected a number above 0 and at most 1")
        );
    }
    let mut sampler = Sampler::new(1.0, 1.0, 0).unwrap();
    assert_eq!(
        sampler.draw(&[0.0, f32::NAN]).unwrap_err().to_string(),
        "logits: found NaN for token 1, expected numbers"
    );
    assert_eq!(
        sampler.draw(&[]).unwrap_err().to_string(),
        "logits: found none"
    );
}
